"""The agent's local socket: who may ask, what is answered, and who is there already."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controlplane.client.agent import AgentNotRunning, AgentRefused, AgentSilent, ask
from controlplane.protocol.errors import BrokerUnreachable, NetMapError, PinMismatch, Problem, ProblemError
from dataplane import local
from dataplane.errors import AlreadyRunning, NameTaken
from dataplane.local import MAX_LINE, CommandRefused, LocalSocket

NOBODY = 65534


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path that other users reach; short, as sun_path is."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory, "run", "client.sock")


async def echo(name: str, arguments: dict[str, Any]) -> Any:
    return {"name": name, **arguments}


@asynccontextmanager
async def serving(path: Path, handler: local.Handler = echo) -> AsyncIterator[None]:
    async with asyncio.timeout(20), LocalSocket(path).serving(handler):
        yield


async def asked(path: Path, command: str, **arguments: Any) -> Any:
    return await asyncio.to_thread(partial(ask, path, command, 10.0, **arguments))


async def raw(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """The answers to lines sent as they are, on one connection."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"".join(lines))
    writer.write_eof()
    answers = (await reader.read()).splitlines()
    writer.close()
    await writer.wait_closed()
    return [json.loads(answer) for answer in answers]


# --- asking -------------------------------------------------------------------------------------


async def test_a_command_and_its_arguments_reach_the_handler(path: Path) -> None:
    async with serving(path):
        assert await asked(path, "connect", server="fra1") == {"name": "connect", "server": "fra1"}


async def test_several_may_ask_at_once_and_one_several_times(path: Path) -> None:
    together = asyncio.Barrier(2)

    async def wait(name: str, arguments: dict[str, Any]) -> str:
        await together.wait()
        return name

    async with serving(path, wait):
        assert await asyncio.gather(asked(path, "one"), asked(path, "two")) == ["one", "two"]  # type: ignore[comparison-overlap]
    async with serving(path):
        answers = await raw(path, b'{"command": "a"}\n', b'{"command": "b"}\n')
        assert answers == [{"result": {"name": "a"}}, {"result": {"name": "b"}}]


@pytest.mark.parametrize(
    "line",
    [
        *(b"\n", b"status\n", b"[]\n", b"5\n", b"null\n", b"{}\n", b"\xff\xfe\n"),
        *(b'{"command": "x", "arguments": 5}\n', b'{"command": "x", "arguments": null}\n', b'{"command"\n'),
    ],
)
async def test_a_malformed_line_is_answered_and_the_next_one_too(path: Path, line: bytes) -> None:
    async with serving(path):
        bad, good = await raw(path, line, b'{"command": "status"}\n')
        assert bad["error"] == "malformed"
        assert "not a command in JSON" in bad["detail"]
        assert good == {"result": {"name": "status"}}


async def test_a_line_without_end_ends_the_connection_and_not_the_agent(path: Path) -> None:
    async with serving(path):
        assert await raw(path, b"x" * (MAX_LINE + 1)) == []
        assert await asked(path, "status") == {"name": "status"}


FAILURES: list[tuple[Exception, str, str]] = [
    (CommandRefused("not-connected", "not connected to 'x'"), "not-connected", "not connected to 'x'"),
    (NameTaken("hz0", "bridge"), "failed", "'hz0' exists and is not ours"),
    (ProblemError(Problem.of("server-offline", 409, "'x' is offline")), "server-offline", "'x' is offline"),
    (BrokerUnreachable("no answer from https://x"), "broker-unreachable", "no answer"),
    (PinMismatch("another key"), "broker-unreachable", "another key"),
    (NetMapError("a gap"), "netmap-gap", "a gap"),
    (RuntimeError("secret internals"), "internal-error", "its log says why"),
]


@pytest.mark.parametrize(
    ("error", "code", "words"), FAILURES, ids=[type(error).__name__ for error, _, _ in FAILURES]
)
async def test_a_failure_is_told_by_its_code(
    path: Path, error: Exception, code: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(name: str, arguments: dict[str, Any]) -> None:
        raise error

    async with serving(path, fail):
        with pytest.raises(AgentRefused) as caught:
            await asked(path, "connect")
    assert caught.value.code == code
    assert words in str(caught.value)
    assert ("secret internals" in caplog.text) == (code == "internal-error")
    assert "secret internals" not in str(caught.value)


# --- who may ask --------------------------------------------------------------------------------

AS_NOBODY = """
import os, sys
from pathlib import Path
from controlplane.client.agent import AgentNotRunning, AgentRefused, ask
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    print(ask(Path(sys.argv[1]), "status", 10.0))
except (AgentNotRunning, AgentRefused) as error:
    print(error.code, error)
"""


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def as_nobody(path: Path) -> str:
    """What the command line says to another user."""
    run = partial(
        subprocess.run,
        [sys.executable, "-c", AS_NOBODY, str(path)],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return (await asyncio.to_thread(run)).stdout.strip()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def let_everyone_write(path: Path) -> None:
    path.chmod(0o666)


@needs_root
async def test_another_user_is_refused_by_the_kernels_word(path: Path) -> None:
    """Where the file's mode would let them in: what counts is who the kernel says they are."""
    called: list[str] = []

    async def note(name: str, arguments: dict[str, Any]) -> None:
        called.append(name)

    async with serving(path, note):
        let_everyone_write(path)
        said = await as_nobody(path)
        assert said == f"forbidden uid {NOBODY} may not: be root or in the group 'horizon'"
        assert called == []


@needs_root
async def test_the_files_mode_keeps_other_users_out_too(path: Path) -> None:
    async with serving(path):
        assert mode(path) == 0o660
        said = await as_nobody(path)
        assert said == f"agent-not-running {str(path)!r} may not be used: be root or in the group 'horizon'"


@needs_root
async def test_members_of_the_group_may_ask(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = grp.struct_group(("horizon", "x", os.getegid(), [pwd.getpwuid(NOBODY).pw_name]))
    monkeypatch.setattr(grp, "getgrnam", lambda name: members)
    async with serving(path):
        let_everyone_write(path)
        assert await as_nobody(path) == "{'name': 'status'}"


@pytest.mark.parametrize(
    ("members", "gid", "may"),
    [(["alice"], 70000, True), (["bob"], 70000, False), ([], 1234, True), ([], 70000, False)],
)
def test_a_member_is_named_by_the_group_or_has_it_as_their_own(
    monkeypatch: pytest.MonkeyPatch, members: list[str], gid: int, may: bool
) -> None:
    user = pwd.struct_passwd(("alice", "x", 4321, 1234, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", gid, members)))
    assert local._may_ask(4321) == may


def test_root_and_our_own_user_may_always_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> grp.struct_group:
        raise KeyError(name)

    monkeypatch.setattr(grp, "getgrnam", none)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert [local._may_ask(uid) for uid in (0, 4321, 4322)] == [True, True, False]


# --- who is there -------------------------------------------------------------------------------


async def test_a_second_agent_is_told_and_takes_nothing_away(path: Path) -> None:
    async with serving(path):
        with pytest.raises(AlreadyRunning, match=f"an agent runs already: it answers on '{path}'"):
            async with serving(path):
                raise AssertionError("served twice")
        assert await asked(path, "status") == {"name": "status"}
    with pytest.raises(AgentNotRunning):
        await asked(path, "status")
    with pytest.raises(FileNotFoundError):
        mode(path)


async def test_a_socket_that_a_killed_agent_left_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    with pytest.raises(AgentNotRunning):
        await asked(path, "status")
    async with serving(path):
        assert await asked(path, "status") == {"name": "status"}


async def test_a_socket_on_which_nobody_ever_listened_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
    async with serving(path):
        assert await asked(path, "status") == {"name": "status"}


@pytest.mark.parametrize("role", ["client", "server"])
def test_no_agent_names_the_command_that_starts_one(path: Path, role: str) -> None:
    where = path.with_name(f"{role}.sock")
    with pytest.raises(AgentNotRunning, match=f"start it with `horizon {role} run`") as caught:
        ask(where, "status")
    assert caught.value.code == "agent-not-running"


async def test_an_agent_that_ends_before_it_answers_is_said(path: Path) -> None:
    path.parent.mkdir()

    def end_early(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(100)
            connection.send(b'{"result": 1')

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=end_early, args=[listening])
        thread.start()
        with pytest.raises(AgentSilent, match="ended before it answered"):
            await asked(path, "status")
        thread.join(10)


async def test_an_agent_that_is_silent_is_said(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(AgentSilent, match="has not answered within 0 s: see its log"):
            await asyncio.to_thread(partial(ask, path, "status", 0.05))
