"""The agent's local socket: one JSON line asks, one JSON line answers. *Shell.*

    {"command": "connect", "arguments": {"server": "fra1"}}
    {"result": {…}}   or   {"error": "server-offline", "detail": "…"}

Who may ask is decided by the peer credentials that the kernel vouches for (SO_PEERCRED, unix(7)): root,
the agent's own user, and members of the group `horizon`. `controlplane.client.agent` is the other end.
"""

from __future__ import annotations

import asyncio
import grp
import json
import logging
import os
import pwd
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from controlplane.protocol.errors import BrokerUnreachable, ProblemError, ProtocolError
from dataplane.errors import AlreadyRunning, DataplaneError

log = logging.getLogger(__name__)
GROUP = "horizon"
MAX_LINE = 64 * 1024
Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]


class CommandRefused(DataplaneError):
    """A command that makes no sense to this agent; `code` names the kind."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class LocalSocket:
    """A unix socket at `path`, made when served and removed after."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @asynccontextmanager
    async def serving(self, handler: Handler) -> AsyncIterator[None]:
        """Answer while inside. Raises `AlreadyRunning`."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self.path.exists() and _answers(self.path):
            raise AlreadyRunning(f"an agent runs already: it answers on {str(self.path)!r}")
        self.path.unlink(missing_ok=True)

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await _converse(reader, writer, handler)
            except (ConnectionError, ValueError) as error:
                log.debug("local socket: %s", error)
            finally:
                writer.close()

        server = await asyncio.start_unix_server(talk, self.path, limit=MAX_LINE)
        _open_to_group(self.path)
        try:
            yield
        finally:
            server.close()
            self.path.unlink(missing_ok=True)


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
    uid = _peer_uid(writer.get_extra_info("socket"))
    while line := await reader.readline():
        if not _may_ask(uid):
            answer = {"error": "forbidden", "detail": f"uid {uid} may not: be root or in the group {GROUP!r}"}
        else:
            answer = await _answer(line, handler)
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()


async def _answer(line: bytes, handler: Handler) -> dict[str, Any]:
    try:
        request = json.loads(line)
        command, arguments = str(request["command"]), dict(request.get("arguments", {}))
    except (ValueError, KeyError, TypeError) as error:
        return {"error": "malformed", "detail": f"not a command in JSON: {error!r}"}
    try:
        return {"result": await handler(command, arguments)}
    except (DataplaneError, ProtocolError, ProblemError) as error:
        return {"error": getattr(error, "code", "failed"), "detail": str(error)}
    except BrokerUnreachable as error:
        return {"error": "broker-unreachable", "detail": str(error)}
    except Exception:
        log.exception("the command %r failed", command)
        return {"error": "internal-error", "detail": "the agent failed on this; its log says why"}


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _open_to_group(path: Path) -> None:
    path.chmod(0o660)
    try:
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
    except (KeyError, PermissionError):
        log.debug("no group %r: only root and our own user may ask", GROUP)


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _may_ask(uid: int) -> bool:
    if uid in {0, os.geteuid()}:
        return True
    try:
        user, group = pwd.getpwuid(uid), grp.getgrnam(GROUP)
    except KeyError:
        return False
    return user.pw_name in group.gr_mem or user.pw_gid == group.gr_gid
