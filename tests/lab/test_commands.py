import sys

import pytest

from lab.commands import run, wait_for
from lab.errors import CommandFailed, CommandTimedOut, LabError


def test_output_input_and_environment_are_passed() -> None:
    script = "import os, sys; print(os.environ['WORD'] + sys.stdin.read())"
    done = run([sys.executable, "-c", script], input=" in", env={"WORD": "said"})
    assert done.stdout == "said in\n"


def test_a_failure_quotes_command_status_and_stderr() -> None:
    with pytest.raises(CommandFailed) as failure:
        run(["sh", "-c", "echo no such thing >&2; exit 3"])
    assert failure.value.status == 3
    assert "sh -c 'echo no such thing >&2; exit 3'" in str(failure.value)
    assert str(failure.value).endswith("status 3: no such thing")


def test_a_failure_can_be_a_result() -> None:
    assert run(["false"], check=False).returncode == 1


def test_a_command_is_bounded() -> None:
    with pytest.raises(CommandTimedOut, match=r"did not end within 0.2 s; it wrote: 'started'"):
        run(["sh", "-c", "echo started >&2; exec sleep 60"], timeout=0.2)


def test_wait_for_returns_the_first_true_value() -> None:
    values = iter([0, None, "", "there"])
    assert wait_for(lambda: next(values), 5.0, "a value", interval=0.0) == "there"


def test_wait_for_names_what_did_not_come() -> None:
    with pytest.raises(LabError, match=r"the moon: not within 0\.05 s"):
        wait_for(lambda: False, 0.05, "the moon")
