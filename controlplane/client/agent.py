"""Ask the agent on this machine, over its unix socket. *Shell*, of the standard library alone, so that
a command line starts fast.

    ask(Path("/run/horizon/client.sock"), "connect", server="fra1")
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from controlplane.client.ahead import take
from controlplane.client.console import CommandError

RUN_DIR = Path("/run/horizon")


class AgentNotRunning(CommandError):
    """Nobody answers on the socket."""

    code = "agent-not-running"


class AgentSilent(CommandError):
    """An agent took the request and has not answered."""

    code = "agent-silent"


class AgentRefused(CommandError):
    """The agent understood and refused; `code` says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def ask(path: Path, command: str, timeout: float = 60.0, **arguments: Any) -> Any:
    """The agent's answer to `command`. Raises `AgentNotRunning` and `AgentRefused`."""
    line = json.dumps({"command": command, "arguments": arguments}).encode() + b"\n"
    sent = take(str(path), line)
    with socket.socket(socket.AF_UNIX) if sent is None else socket.socket(fileno=sent) as connection:
        connection.settimeout(timeout)
        try:
            if sent is None:
                connection.connect(str(path))
                connection.sendall(line)
        except (FileNotFoundError, ConnectionRefusedError):
            role = path.stem
            raise AgentNotRunning(
                f"no {role} agent answers on {str(path)!r}: start it with `horizon {role} run`"
            ) from None
        except PermissionError:
            raise AgentNotRunning(
                f"{str(path)!r} may not be used: be root or in the group 'horizon'"
            ) from None
        try:
            text = connection.makefile("rb").readline()
        except TimeoutError:
            raise AgentSilent(f"the agent has not answered within {timeout:.0f} s: see its log") from None
    if not text.endswith(b"\n"):
        raise AgentSilent("the agent ended before it answered: see its log")
    answer = json.loads(text)
    if "error" in answer:
        raise AgentRefused(str(answer["error"]), str(answer["detail"]))
    return answer["result"]
