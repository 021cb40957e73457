"""The control socket of a daemon in user space, played by a thread; the daemon is in the namespace ring."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from controlplane.protocol.keys import PrivateKey, PublicKey
from dataplane import userspace
from dataplane.actions import PeerChange
from dataplane.errors import BackendError, NoBackend, NotPermitted
from dataplane.links import Links
from dataplane.userspace import UserspaceBackend

PRIVATE = PrivateKey.generate()
KEY = PublicKey(b"k" * 32)


class NoLinks:
    """What the control socket's part needs of Linux: nothing."""

    def delete(self, name: str) -> None:
        assert name == "hz0"


@pytest.fixture
def backend(tmp_path: Path) -> UserspaceBackend:
    return UserspaceBackend(cast(Links, NoLinks()), tmp_path)


@contextmanager
def daemon(path: Path, answer: Callable[[bytes], bytes]) -> Iterator[None]:
    """Answer one request at `hz0.sock`, in small pieces."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "hz0.sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                request = b""
                while not request.endswith(b"\n\n"):
                    request += connection.recv(7)
                for byte in answer(request):
                    connection.send(bytes([byte]))

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)


def test_the_state_is_read_piece_by_piece(backend: UserspaceBackend, tmp_path: Path) -> None:
    answer = f"private_key={PRIVATE.hex}\npublic_key={KEY.hex}\nrx_bytes=5\nerrno=0\n\n".encode()
    with daemon(tmp_path, lambda request: answer if request == b"get=1\n\n" else b""):
        state = backend.observe("hz0")
    assert state is not None
    assert state.public_key == PRIVATE.public_key
    assert state.peers[KEY].received == 5


def test_no_socket_and_no_listener_are_no_interface(backend: UserspaceBackend, tmp_path: Path) -> None:
    assert backend.observe("hz0") is None
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "hz0.sock"))
    assert backend.observe("hz0") is None
    backend.remove("hz0")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_an_error(backend: UserspaceBackend, tmp_path: Path) -> None:
    refusal = b"errno=-22\n\n"
    with (
        daemon(tmp_path, lambda request: refusal),
        pytest.raises(BackendError, match="Invalid argument") as caught,
    ):
        backend.set_peers("hz0", [PeerChange(KEY, remove=True)])
    assert caught.value.errno == errno.EINVAL


def test_a_daemon_that_dies_in_the_middle_is_an_error(backend: UserspaceBackend, tmp_path: Path) -> None:
    half = f"private_key={PRIVATE.hex}\n".encode()
    with daemon(tmp_path, lambda request: half), pytest.raises(BackendError, match="middle") as caught:
        backend.configure("hz0", PRIVATE, None, None)
    assert PRIVATE.hex not in str(caught.value)


def test_without_a_daemon_nothing_can_be_set(backend: UserspaceBackend) -> None:
    with pytest.raises(BackendError, match="cannot speak to wireguard-go") as caught:
        backend.set_peers("hz0", [PeerChange(KEY, remove=True)])
    assert caught.value.errno == errno.ENOENT


def test_a_listen_port_in_use_is_named_before_the_daemon_is_asked(backend: UserspaceBackend) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        with pytest.raises(BackendError, match=f"listen port {port} is in use") as caught:
            backend.configure("hz0", None, port, None)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("echo 'ERROR: (hz0) Failed to create TUN device: operation not permitted'", NotPermitted, "CAP_NET"),
        ("echo 'ERROR: (hz0) Failed to open /dev/net/tun' >&2", NoBackend, "module 'tun'"),
        ("echo 'ERROR: (hz0) device or resource busy'", BackendError, "resource busy"),
        ("true", BackendError, "said nothing"),
    ],
)
def test_a_daemon_that_does_not_start_says_why(
    backend: UserspaceBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    kind: type[Exception],
    words: str,
) -> None:
    program = tmp_path / "wireguard-go"
    program.write_text(f"#!/bin/sh\n{script}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(userspace, "PROGRAM", str(program))
    with pytest.raises(kind, match=words):
        backend.create("hz0")


def test_without_the_program_the_package_is_named(
    backend: UserspaceBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not backend.available()
    with pytest.raises(NoBackend, match="install the package 'wireguard-go'"):
        backend.create("hz0")
