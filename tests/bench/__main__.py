"""Run a benchmark: `python -m tests.bench [NAME [--json FILE] [--check] [its own options]]`. *Shell.*

Without a name, list them. A benchmark is a module of this package, named in `BENCHMARKS`, with

    add_arguments(parser) -> None      its own options
    run(options) -> Result             measure; raises LabError
    NEEDS: tuple[str, ...]             commands it needs beside those of every lab

whose docstring's first line says what it measures. It imports nothing heavy before `run`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from rich.console import Console

from lab import LabError, missing
from tests.bench.report import show, write_json
from tests.bench.rows import Result

BENCHMARKS = ("connect", "reconcile", "throughput")


class Benchmark(Protocol):
    """What a benchmark's module holds."""

    NEEDS: tuple[str, ...]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: argparse.Namespace) -> Result: ...


def load(name: str) -> Benchmark:
    return cast(Benchmark, importlib.import_module(f"tests.bench.{name}"))


def summary(benchmark: Benchmark) -> str:
    """What it measures, in one line."""
    return (benchmark.__doc__ or "").splitlines()[0].removesuffix(" *Shell.*").removesuffix(".")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, with `--check` 1 if a goal is missed; 2 for wrong usage or a lacking machine."""
    parser = argparse.ArgumentParser(
        prog="just bench", description="Run one benchmark against its bound; without a name, list them."
    )
    names = parser.add_subparsers(dest="name", metavar="NAME", title="benchmarks")
    benchmarks = {name: load(name) for name in BENCHMARKS}
    for name, benchmark in benchmarks.items():
        text = summary(benchmark)
        own = names.add_parser(name, help=text, description=f"{text}.")
        own.add_argument("--json", type=_file, metavar="FILE", help="write the rows there")
        own.add_argument("--check", action="store_true", help="exit with status 1 if a goal is missed")
        benchmark.add_arguments(own)
    options = parser.parse_args(arguments)
    if options.name is None:
        _list(benchmarks)
        return 0
    return _run(options, benchmarks[options.name])


def _file(text: str) -> Path:
    """A file to write; asked about before minutes are spent on what goes into it."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"'{path.parent}' is not a directory: make it first")
    return path


def _list(benchmarks: dict[str, Benchmark]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    width = max(map(len, benchmarks))
    for name, benchmark in benchmarks.items():
        console.print(f"[bold]{name:<{width}}[/]  {summary(benchmark)}")


def _run(options: argparse.Namespace, benchmark: Benchmark) -> int:
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if lacking := missing(*benchmark.NEEDS):
        errors.print(f"bench {options.name}: needs {', '.join(lacking)}")
        return 2
    try:
        result = benchmark.run(options)
    except LabError as error:
        errors.print(f"bench {options.name}: {error}")
        return 2
    # Into a file the table keeps the width that it wants.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    show(console, f"{options.name}: {summary(benchmark)}", result)
    if options.json is not None:
        write_json(options.json, result)
    return 1 if options.check and not result.ok else 0


if __name__ == "__main__":
    sys.exit(main())
