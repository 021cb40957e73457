"""What this machine lacks for a lab (shell), asked before one is made."""

import functools
import os
import shutil
from pathlib import Path

from lab.commands import run
from lab.errors import LabError
from lab.wireguard import backend

COMMANDS = ("ip", "mount", "nft", "nsenter", "ping", "ss", "tc", "unshare", "wg")


@functools.cache
def _system() -> tuple[str, ...]:
    """What of the kernel and of this process's rights is missing, tried out."""
    if os.geteuid() != 0:
        return ("root",)
    if run(["unshare", "--net", "--mount", "true"], check=False).returncode != 0:
        return ("the right to make namespaces (CAP_SYS_ADMIN)",)
    lacking = [] if Path("/dev/net/tun").exists() else ["/dev/net/tun"]
    try:
        backend()
    except LabError as error:
        lacking.append(str(error))
    return tuple(lacking)


def missing(*commands: str) -> list[str]:
    """What a lab needs and this machine lacks, `commands` too; empty where all is there."""
    lacking = [f"command '{name}'" for name in (*COMMANDS, *commands) if not shutil.which(name)]
    return [*lacking, *(_system() if "command 'unshare'" not in lacking else ())]


def require_netns(*commands: str) -> None:
    """Skip the calling test, saying what is missing, where no lab can be made here."""
    if lacking := missing(*commands):
        import pytest

        pytest.skip(f"needs {', '.join(lacking)}")
