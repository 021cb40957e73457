"""The demo as people run it, each test under a prefix of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, lifecycle, require_netns
from lab.demo.__main__ import NO_TRACE, STEPS, own_state
from lab.fleet import START
from lab.snapshot import difference
from lab.wireguard import backend

netns = pytest.mark.netns
LIMIT = 6 * START
"""Seconds for one run, which takes less than 60 where the machine is not slow."""
slow = pytest.mark.timeout(LIMIT + 60)


@pytest.fixture
def prefix() -> Iterator[str]:
    require_netns("iperf3", "wg-quick", "sysctl")
    prefix = f"hzdemotest-{os.getpid()}"
    before = own_state(prefix)
    yield prefix
    left = difference(before, own_state(prefix))
    files = list(lifecycle.RUN.glob(f"{prefix}*"))
    Lab.cleanup(prefix)
    assert left == ""
    assert files == []


@pytest.fixture
def no_database() -> dict[str, str]:
    """An environment in which no broker can start."""
    return os.environ | {"DATABASE_URL": "nosuch://database"}


def argv(*options: str) -> list[str]:
    return [sys.executable, "-m", "lab.demo", *options]


def run(*options: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(argv(*options), check=False, capture_output=True, text=True, timeout=LIMIT, env=env)


def start_until(line: str, *options: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start the demo and read what it says up to a line with this in it."""
    demo = subprocess.Popen(
        argv(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert demo.stdout is not None
    said = ""
    while line not in said:
        read = demo.stdout.readline()
        assert read, f"it ended before '{line}': {said}"
        said += read
    return demo


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@netns
@slow
def test_everything_holds(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    done = run("--check", "--json", str(path), "--prefix", prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    table = load(path)
    rows = {row["name"]: row for row in table["rows"]}
    assert len(rows) == len(table["rows"])
    assert [name for name, row in rows.items() if not row["ok"]] == []
    assert table["ok"] is True
    assert table["backend"] == backend()
    for step in STEPS:
        assert f"✓ {step.title} " in done.stdout
    for name, row in rows.items():
        assert name in done.stdout
        assert row["how"]
        assert row["value"] is not None
    assert {name for name, row in rows.items() if row["unit"] == "lost"} == {
        "broker killed with -9: alice → bob",
        "broker killed with -9: carol → fra1",
        "agents killed with -9, restarted: alice → bob",
        "agents killed with -9, restarted: carol → fra1",
        "broker returning: alice → bob",
    }
    assert all(row["value"] == 0 for row in rows.values() if row["unit"] == "lost")
    assert rows[NO_TRACE]["value"] == 0
    assert rows["throughput alice → fra1"]["value"] >= 10
    assert 0 < rows["connected: bob"]["value"] < 1000 * START
    assert f"{len(rows)} of {len(rows)} held" in done.stdout


@netns
@slow
@pytest.mark.parametrize(
    ("number", "line"), [(signal.SIGINT, "a server registers"), (signal.SIGTERM, "the broker starts")]
)
def test_a_signal_in_the_middle_leaves_nothing(prefix: str, number: signal.Signals, line: str) -> None:
    demo = start_until(line, "--check", "--prefix", prefix)
    assert lifecycle.namespaces(prefix)
    demo.send_signal(number)
    _, complaint = demo.communicate(timeout=LIMIT)
    assert demo.returncode == 128 + number
    assert complaint == f"demo: stopped by {number.name}; everything is removed\n"
    # That nothing is left is asserted at the end of the fixture.


@netns
@slow
def test_the_next_run_removes_what_a_killed_one_left(prefix: str, no_database: dict[str, str]) -> None:
    demo = start_until("the broker starts", "--check", "--prefix", prefix)
    demo.kill()
    demo.communicate(timeout=LIMIT)
    assert f"{prefix}.broker" in lifecycle.namespaces(prefix)
    done = run("--check", "--prefix", prefix, env=no_database)
    assert "0 changes   yes" in done.stdout


@netns
@slow
def test_a_row_that_does_not_hold_is_exit_status_1(
    prefix: str, no_database: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    done = run("--check", "--json", str(path), "--prefix", prefix, env=no_database)
    assert done.returncode == 1
    table = load(path)
    assert table["ok"] is False
    first, *others, last = table["rows"]
    assert first["name"] == "the broker starts"
    assert first["cause"].startswith("the broker ended: ")
    assert "nosuch" in first["cause"]
    assert first["logs"].startswith("--- broker")
    assert {row["cause"] for row in others} == {"not tried, after 'the broker starts' failed"}
    assert (last["name"], last["ok"]) == (NO_TRACE, True)
    assert first["cause"] in done.stdout
    assert f"1 of {len(table['rows'])} held" in done.stdout


@netns
@slow
def test_without_check_it_stays_up_until_ctrl_c(prefix: str, no_database: dict[str, str]) -> None:
    demo = start_until("Ctrl-C ends it", "--prefix", prefix, env=no_database)
    assert f"{prefix}.broker" in lifecycle.namespaces(prefix)
    demo.send_signal(signal.SIGINT)
    said, complaint = demo.communicate(timeout=LIMIT)
    assert demo.returncode == 1
    assert f"{NO_TRACE}: yes" in said
    assert complaint == ""


@netns
def test_two_at_once_need_two_prefixes(prefix: str) -> None:
    with Lab(prefix):
        done = run("--check", "--prefix", prefix)
        assert done.returncode == 2
        assert f"in use by process {os.getpid()}" in done.stderr
        assert "choose another --prefix" in done.stderr


def test_what_is_missing_is_named_with_its_fix(tmp_path: Path) -> None:
    done = run("--check", env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stdout == ""
    assert "demo: missing: command 'iperf3'; `apt-get install iperf3`, or" in done.stderr
    assert "demo: missing: command 'wg-quick'; `apt-get install wireguard-tools`, or" in done.stderr


@netns
def test_a_table_that_could_not_be_written_is_refused_at_once(tmp_path: Path) -> None:
    require_netns("iperf3", "wg-quick", "sysctl")
    done = run("--check", "--json", str(tmp_path / "no" / "table.json"))
    assert done.returncode == 2
    assert f"'{tmp_path / 'no'}' is no directory" in done.stderr


@netns
def test_a_backend_that_is_not_there_is_refused() -> None:
    require_netns("iperf3", "wg-quick", "sysctl")
    if backend() == "kernel":
        pytest.skip("this kernel has WireGuard")
    done = run("--check", "--backend", "kernel")
    assert done.returncode == 2
    assert "missing: WireGuard in the kernel; `modprobe wireguard`" in done.stderr


def test_help_and_wrong_usage() -> None:
    told = run("--help")
    assert told.returncode == 0
    for word in ("--check", "--json FILE", "--backend", "--prefix", "Exit status"):
        assert word in told.stdout
    for wrong in (["--prefix", "Not.Good"], ["--backend", "magic"]):
        assert run(*wrong).returncode == 2
