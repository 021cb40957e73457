"""WireGuard in user space: wireguard-go and its control socket. *Shell.*

Each interface has a daemon of its own, which outlives the agent: tunnels stay up when the agent exits.
(A service manager must not kill it with the agent: `KillMode=process`.) The daemon ends when its
interface is deleted. boringtun is not used: it panics when a peer is changed in place.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from controlplane.protocol.keys import PrivateKey
from controlplane.protocol.wireguard import check_interface_name
from dataplane import uapi
from dataplane.actions import PeerChange
from dataplane.errors import BackendError, NoBackend, NotPermitted
from dataplane.links import Links
from dataplane.state import BackendKind, DeviceState

SOCKETS = Path("/var/run/wireguard")
"""Fixed by WireGuard's cross-platform interface."""
PROGRAM = "wireguard-go"
START_SECONDS = 10.0
ANSWER_SECONDS = 30.0
"""Setting 10,000 peers takes about a second."""


class UserspaceBackend:
    """wireguard-go, one daemon for each interface."""

    kind: Final[BackendKind] = "userspace"

    def __init__(self, links: Links, sockets: Path = SOCKETS) -> None:
        self._links = links
        self._sockets = sockets

    def available(self) -> bool:
        return shutil.which(PROGRAM) is not None

    def create(self, name: str) -> None:
        check_interface_name(name)
        # Without LOG_LEVEL the daemon logs to /dev/null and keeps none of our files open.
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        try:
            # It returns when interface and socket are there, and leaves the daemon behind.
            done = subprocess.run(
                [PROGRAM, name],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                env=environment,
                cwd="/",
                start_new_session=True,
                timeout=START_SECONDS,
            )
        except FileNotFoundError:
            raise NoBackend(f"there is no {PROGRAM!r} command: install the package 'wireguard-go'") from None
        except subprocess.TimeoutExpired:
            raise BackendError(f"{PROGRAM} did not start within {START_SECONDS:g} s") from None
        if done.returncode != 0:
            raise _start_error(name, done.stdout + done.stderr)
        if not _wait_for(lambda: self.observe(name) is not None, START_SECONDS):
            self.remove(name)
            raise BackendError(f"{PROGRAM} did not open {self._path(name)}")

    def remove(self, name: str) -> None:
        self._links.delete(name)
        # The daemon sees its interface go, and ends; what it leaves is a socket without a listener.
        if not _wait_for(lambda: not self._answers(name), START_SECONDS):
            raise BackendError(f"the daemon of {name!r} still answers at {self._path(name)}")
        self._path(name).unlink(missing_ok=True)

    def configure(
        self,
        name: str,
        private_key: PrivateKey | None,
        listen_port: int | None,
        fwmark: int | None,
    ) -> None:
        if listen_port is not None:
            # The daemon binds when the interface goes up, and can tell nobody that it failed.
            _check_port_free(listen_port)
        uapi.check(self._ask(name, [uapi.set_device(private_key, listen_port, fwmark)]))

    def set_peers(self, name: str, changes: Sequence[PeerChange]) -> None:
        uapi.check(self._ask(name, uapi.set_peers(changes)))

    def observe(self, name: str) -> DeviceState | None:
        try:
            answer = self._ask(name, [uapi.GET])
        except BackendError as error:
            # The last: the daemon is ending.
            if error.errno in {errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET}:
                return None
            raise
        uapi.check(answer)
        return uapi.read_device(answer)

    def _path(self, name: str) -> Path:
        return self._sockets / f"{name}.sock"

    def _answers(self, name: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(START_SECONDS)
            return control.connect_ex(str(self._path(name))) == 0

    def _ask(self, name: str, request: Iterable[bytes]) -> bytes:
        """The daemon's answer. Nothing of a request or answer goes into an error: they hold keys."""
        answer = bytearray()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
                control.settimeout(ANSWER_SECONDS)
                control.connect(str(self._path(name)))
                for sent in request:
                    control.sendall(sent)
                # The daemon keeps the connection open for more; an empty line ends the answer.
                while not answer.endswith(b"\n\n") and (part := control.recv(1 << 16)):
                    answer += part
        except PermissionError:
            raise NotPermitted(f"speak to {PROGRAM} at {self._path(name)}") from None
        except OSError as error:
            reason = error.strerror or "no answer in time"
            raise BackendError(
                f"cannot speak to {PROGRAM} at {self._path(name)}: {reason}", error.errno or 0
            ) from None
        return bytes(answer)


def _start_error(name: str, said: str) -> Exception:
    lines = [line.strip() for line in said.splitlines() if "ERROR" in line or "rror:" in line]
    reason = lines[-1] if lines else "it said nothing"
    if "operation not permitted" in reason.lower():
        return NotPermitted(f"create interface {name!r}")
    if "no such file" in reason.lower() or "/dev/net/tun" in reason:
        return NoBackend(f"{PROGRAM} cannot use /dev/net/tun: load the kernel module 'tun' ({reason})")
    return BackendError(f"{PROGRAM} {name} failed: {reason}")


def _check_port_free(port: int) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise BackendError(
                    f"listen port {port} is in use by another program: choose another, or see "
                    f"'ss -lunp sport = :{port}'",
                    errno.EADDRINUSE,
                ) from None
            if family == socket.AF_INET:
                raise BackendError(f"listen port {port}: {error.strerror}", error.errno or 0) from None


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true within `seconds`; nothing announces it, so it is asked for."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() >= deadline:
            return False
        pause.wait(0.005)
    return True
