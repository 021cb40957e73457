"""Asking the agent on this machine: answers, refusals, and nobody there."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controlplane.client.agent import AgentNotRunning, AgentRefused, AgentSilent, ask


@contextmanager
def agent(path: Path, answer: Callable[[bytes], bytes | None]) -> Iterator[list[bytes]]:
    """Answers one request on a unix socket; None never answers. Gives the requests."""
    requests: list[bytes] = []
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            requests.append(connection.makefile("rb").readline())
            reply = answer(requests[-1])
            if reply is None:
                done.wait(10)
            else:
                connection.sendall(reply)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield requests
        done.set()
        thread.join(10)


def test_the_answer_to_a_command_with_its_arguments(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    with agent(path, lambda _: b'{"result": {"connected": true}}\n') as requests:
        assert ask(path, "connect", server="fra1") == {"connected": True}
    assert json.loads(requests[0]) == {"command": "connect", "arguments": {"server": "fra1"}}


def test_a_refusal_has_the_agents_code_and_words(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    reply = b'{"error": "not-found", "detail": "no server \'par1\'"}\n'
    with agent(path, lambda _: reply), pytest.raises(AgentRefused, match="no server 'par1'") as caught:
        ask(path, "connect", server="par1")
    assert caught.value.code == "not-found"


def test_an_agent_that_does_not_run_is_named_with_the_way_to_start_it(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    expected = r"no client agent answers on '.*client\.sock': start it with `horizon client run`"
    with pytest.raises(AgentNotRunning, match=expected) as caught:
        ask(path, "status")
    assert caught.value.code == "agent-not-running"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(AgentNotRunning, match=expected):
        ask(path, "status")


def test_an_agent_that_may_not_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(AgentNotRunning, match="be root or in the group 'horizon'"):
        ask(tmp_path / "client.sock", "status")


@pytest.mark.parametrize("reply", [b"", b'{"result": '])
def test_an_agent_that_ends_meanwhile(tmp_path: Path, reply: bytes) -> None:
    path = tmp_path / "client.sock"
    with agent(path, lambda _: reply), pytest.raises(AgentSilent, match="ended before it answered"):
        ask(path, "status")


def test_an_agent_that_does_not_answer_in_time(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    with (
        agent(path, lambda _: None),
        pytest.raises(AgentSilent, match="not answered within 0 s: see its log"),
    ):
        ask(path, "status", timeout=0.1)
