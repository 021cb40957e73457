"""The console: one line for what went wrong, and text, tables or JSON for what did not."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address
from typing import Any

import pytest

from controlplane.client.console import CommandError, add_json, print_json, print_table, run_command
from controlplane.errors import StartError
from controlplane.protocol.errors import BrokerUnreachable, KeyFormatError, Problem, ProblemError
from controlplane.protocol.messages import PersonalKeyRequest, Status

COLUMNS = {"name": "NAME", "since": "SINCE", "addresses": "ADDRESSES"}


def run(handler: Callable[[argparse.Namespace], int], *words: str) -> int:
    parser = argparse.ArgumentParser()
    add_json(parser)
    parser.set_defaults(handler=handler)
    return run_command(parser.parse_args(words))


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def handler(_: argparse.Namespace) -> int:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("no such thing"), "failed"),
        (StartError("no such thing"), "failed"),
        (KeyFormatError("no such thing"), "malformed-key"),
        (BrokerUnreachable("no such thing"), "failed"),
        (ProblemError(Problem.of("used-key", 403, "no such thing")), "used-key"),
        (PermissionError("no such thing"), "failed"),
        (ConnectionRefusedError("no such thing"), "failed"),
    ],
)
def test_expected_errors_are_one_line_or_json(
    error: Exception, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "horizon: no such thing\n")
    assert run(raising(error), "--json") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err) == {"error": code, "detail": "no such thing"}


def test_a_value_that_no_message_takes_is_named_and_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    def handler(_: argparse.Namespace) -> int:
        PersonalKeyRequest(user_name="al ice", expires_in=1)
        return 0

    assert run(handler, "--json") == 1
    error = json.loads(capsys.readouterr().err)
    assert error["error"] == "invalid-value"
    assert "user_name: String should match pattern" in error["detail"]
    assert (
        "(given 'al ice'); expires_in: Input should be greater than or equal to 60 (given 1)"
        in error["detail"]
    )


def test_unexpected_errors_are_not_hidden() -> None:
    for error in (RuntimeError("a bug"), KeyError("a bug"), ValueError("a bug")):
        with pytest.raises(type(error)):
            run(raising(error))


def test_the_handlers_status_and_an_interrupt_are_the_exit_status() -> None:
    assert run(lambda _: 3) == 3
    assert run(raising(KeyboardInterrupt())) == 130


def test_a_reader_that_left_is_no_error() -> None:
    """As `horizon admin device list | head -1`."""
    script = (
        "import argparse, sys\n"
        "from controlplane.client.console import run_command\n"
        "def handler(_):\n"
        "    for _ in range(100_000): print('x' * 100)\n"
        "    return 0\n"
        "sys.exit(run_command(argparse.Namespace(handler=handler)))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141


def test_json_is_of_models_times_and_addresses(capsys: pytest.CaptureFixture[str], status: Status) -> None:
    moment = datetime(2027, 1, 15, 8, tzinfo=UTC)
    print_json({"status": [status], "at": moment, "address": ip_address("2001:db8::1"), "none": None})
    parsed = json.loads(capsys.readouterr().out)
    assert parsed["status"][0]["name"] == "horizon"
    assert (parsed["at"], parsed["address"], parsed["none"]) == (moment.isoformat(), "2001:db8::1", None)


@pytest.fixture
def status() -> Status:
    from controlplane.protocol.keys import IdentityKey

    return Status(version="1.0", time=datetime.now(UTC), broker_key=IdentityKey.generate().public_key)


ROWS: list[dict[str, Any]] = [
    {"name": "fra1", "since": datetime(2027, 1, 15, 9, tzinfo=timezone(timedelta(hours=1))), "addresses": ()},
    {"name": "[red]amsterdam", "since": None, "addresses": (ip_address("10.64.0.1"), True)},
]


def test_a_table_to_a_pipe_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS, "none")
    assert capsys.readouterr().out.splitlines() == [
        "NAME            SINCE                 ADDRESSES",
        "fra1            2027-01-15 08:00:00Z  -",
        "[red]amsterdam  -                     10.64.0.1, yes",
    ]


def test_a_table_to_a_terminal_shows_names_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    print_table(COLUMNS, ROWS, "none")
    out = capsys.readouterr().out
    assert "[red]amsterdam" in out
    assert "2027-01-15 08:00:00Z" in out


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [], "no servers yet")
    assert capsys.readouterr().out == "no servers yet\n"


def test_the_console_costs_a_command_line_no_library() -> None:
    script = (
        "import sys, controlplane.client.console, controlplane.client.agent\n"
        "heavy = {'pydantic', 'rich', 'httpx2', 'cryptography', 'sqlalchemy', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "/var/x"), "/var/x: No space left on device"),
        (IsADirectoryError(21, "Is a directory", b"/etc"), "/etc: Is a directory"),
        (OSError("no such thing"), "no such thing"),
        (TimeoutError(), "TimeoutError"),
        (EOFError("EOF when reading a line"), "stdin ended before anything was read: write the invite to it"),
        (
            ExceptionGroup("two", [ExceptionGroup("one", [CommandError("first")]), StartError("second")]),
            "first",
        ),
    ],
)
def test_the_systems_faults_are_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"horizon: {line}")
    assert said.count("\n") == 1


def test_a_group_with_a_bug_in_it_is_not_hidden() -> None:
    with pytest.raises(ExceptionGroup):
        run(raising(ExceptionGroup("two", [CommandError("expected"), KeyError("a bug")])))
