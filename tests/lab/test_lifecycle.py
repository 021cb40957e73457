import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, LabError, PrefixInUse, lifecycle, require_netns
from lab.commands import run
from lab.snapshot import difference, machine_state
from lab.wireguard import backend

# A program with a lab in which everything runs that may be left behind.
PROGRAM = """
import sys
from lab import Lab
from lab.wireguard import add_interface
with Lab(sys.argv[1]) as lab:
    server, bob = lab.site("server"), lab.site("bob", nat=True)
    add_interface(server, "hz0", sys.argv[2])
    server.spawn(["sleep", "300"])
    bob.run(["setsid", "--fork", "sh", "-c", "trap '' TERM HUP; sleep 300"])
    bob.run(["nft", "add", "table", "inet", "mine"])
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def prefix() -> Iterator[str]:
    require_netns()
    prefix = f"hzcrash-{os.getpid()}"
    yield prefix
    Lab.cleanup(prefix)


def start(prefix: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-c", PROGRAM, prefix, backend()]
    program = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == b"up\n"
    return program


def end(program: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    program.send_signal(number)
    program.communicate(timeout=30)


def state(prefix: str) -> dict[str, str]:
    """The machine's state without the namespaces of other labs, which come and go beside ours."""
    state = machine_state()
    ours = [name for name in state["ip netns"].split() if name.startswith(f"{prefix}.")]
    return state | {"ip netns": "\n".join(ours)}


def all_processes(prefix: str) -> list[int]:
    listed = (run(["ip", "netns", "pids", ns]).stdout for ns in lifecycle.namespaces(prefix))
    return [int(pid) for pids in listed for pid in pids.split()]


@pytest.mark.netns
def test_a_killed_lab_is_cleaned_up_without_trace(prefix: str) -> None:
    before = state(prefix)
    program = start(prefix)
    with pytest.raises(PrefixInUse, match=f"in use by process {program.pid}"):
        Lab.cleanup(prefix)
    end(program, signal.SIGKILL)

    left = all_processes(prefix)
    assert len(left) >= 6  # four holders, the process in the background, the detached one
    assert len(lifecycle.namespaces(prefix)) == 4
    assert (lifecycle.RUN / prefix / "server").is_dir()
    changed = difference(before, state(prefix)).splitlines()
    assert sorted(changed) == [f"ip netns: +{name}" for name in lifecycle.namespaces(prefix)]

    Lab.cleanup(prefix)
    assert difference(before, state(prefix)) == ""
    assert not [pid for pid in left if Path(f"/proc/{pid}/ns/net").exists()]
    assert not list(lifecycle.RUN.glob(f"{prefix}*"))
    Lab.cleanup(prefix)
    assert difference(before, state(prefix)) == ""


@pytest.mark.netns
def test_the_next_start_takes_over(prefix: str) -> None:
    program = start(prefix)
    end(program, signal.SIGKILL)
    left = all_processes(prefix)
    with Lab(prefix) as lab:
        assert not set(left) & set(all_processes(prefix))
        assert lifecycle.namespaces(prefix) == [lab.internet.namespace]
        with pytest.raises(PrefixInUse, match=f"process {os.getpid()}"), Lab(prefix):
            pass
        assert lab.internet.run(["true"]).returncode == 0


@pytest.mark.netns
@pytest.mark.parametrize("how", [signal.SIGINT, "end of input"])
def test_a_lab_that_ends_takes_everything_with_it(
    prefix: str, how: "signal.Signals | str", capfd: pytest.CaptureFixture[str]
) -> None:
    before = state(prefix)
    program = start(prefix)
    if isinstance(how, signal.Signals):
        end(program, how)
        assert "KeyboardInterrupt" in capfd.readouterr().err
    else:
        program.communicate(timeout=30)
        assert program.returncode == 0
    assert difference(before, state(prefix)) == ""
    assert not list(lifecycle.RUN.glob(f"{prefix}*"))


@pytest.mark.netns
def test_only_the_exact_prefix_is_touched(prefix: str) -> None:
    short = prefix.rpartition("-")[0]
    with Lab(f"{prefix}-other") as other:
        sleeper = other.internet.spawn(["sleep", "60"])
        run(["ip", "netns", "add", f"{prefix}other"])
        try:
            Lab.cleanup(prefix)
            Lab.cleanup(short)
            assert Path(lifecycle.NAMESPACES, f"{prefix}other").exists()
            assert sleeper.alive()
            assert other.internet.run(["true"]).returncode == 0
        finally:
            run(["ip", "netns", "delete", f"{prefix}other"])


@pytest.mark.netns
def test_sweep_removes_the_dead_and_passes_over_the_living(prefix: str) -> None:
    program = start(f"{prefix}-dead")
    end(program, signal.SIGKILL)
    with Lab(f"{prefix}-alive") as alive:
        assert Lab.sweep(prefix) == [f"{prefix}-dead"]
        assert lifecycle.namespaces(f"{prefix}-dead") == []
        assert alive.internet.run(["true"]).returncode == 0


@pytest.mark.netns
def test_a_lab_that_cannot_start_leaves_nothing(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(prefix)
    monkeypatch.setattr("lab.network._ROUTER", {"net/no/such": "1"})
    with pytest.raises(LabError, match=r"host 'internet' did not start: .*no/such"), Lab(prefix):
        pass
    assert difference(before, state(prefix)) == ""
    assert not list(lifecycle.RUN.glob(f"{prefix}*"))


@pytest.mark.parametrize("prefix", ["", "a.b", "../etc", "Upper", "-dash", "x" * 40, "a\n"])
def test_a_prefix_is_a_plain_word(prefix: str) -> None:
    with pytest.raises(LabError, match="is no name for a lab"):
        Lab(prefix)
    with pytest.raises(LabError, match="is no name for a lab"):
        Lab.cleanup(prefix)
