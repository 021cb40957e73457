# Recipes of Horizon. `./just RECIPE` makes the environment first; `just RECIPE` inside it works too.
set positional-arguments

# In CI, and for root, the namespace ring has to run: tests/conftest.py fails where it would skip it.
must_run := if env("CI", "") == "true" { "1" } else if `id -u` == "0" { "1" } else { "0" }
export HORIZON_REQUIRE_NETNS := env("HORIZON_REQUIRE_NETNS", must_run)

# List the recipes
[default]
list:
    @just --list --unsorted

# Show the main job in its own network namespaces: --check runs it once, --json FILE writes its table
demo *options:
    @python -m lab.demo "$@"

# Style, types, layers and the pure and in-process tests (options go to pytest)
check *options:
    #!/bin/sh
    just static & static=$!
    trap 'kill $static' INT TERM
    python -m pytest -m "not netns" -n auto "$@"; tests=$?
    wait $static && exit $tests

# Everything: check, then the namespace ring (options go to its pytest)
test *options: check
    @just test-netns "$@"

# The namespace ring: real WireGuard between network namespaces (needs root)
test-netns *options:
    python -m pytest -m netns "$@"

# The namespace ring on the kernel's WireGuard: here, in a User-Mode Linux, or skipped with the reason
test-kernel *options:
    @sh tests/kernel.sh "$@"

# Run one benchmark against its bound, --json FILE for its rows; without a name, list them
bench *arguments:
    @python -m tests.bench "$@"

# Format the sources and mend what ruff can mend
fmt:
    ruff format .
    ruff check --fix .

# Make requirements.lock again from pyproject.toml
lock *options:
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-header --no-annotate \
        --extra agent --extra broker --extra admin --group dev \
        pyproject.toml -o requirements.lock "$@"

# Build the wheel and the source distribution into dist/
build:
    hatchling build

# Remove what the tools left behind, except .venv
clean:
    rm -rf dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
    find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

[parallel]
[private]
static: style types layers

[private]
style:
    ruff check .
    ruff format --check .

[private]
types:
    mypy

[private]
layers:
    lint-imports
