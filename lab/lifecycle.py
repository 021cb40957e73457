"""Who owns a lab's name, and how what it made is removed (shell).

Everything of the lab with prefix P is found by that prefix, with no record needed: its network
namespaces are `P.HOST`, its files are under `RUN/P`. A prefix has no dot, so that `hz` never means
what `hz-demo` made. `RUN/P.lock` is locked by the process that has the lab; the kernel frees it
when that process ends, however it ends. So what a killed run left is told from what is running.
"""

import contextlib
import fcntl
import os
import re
import shutil
from pathlib import Path
from types import TracebackType

from lab.commands import run
from lab.errors import LabError, PrefixInUse
from lab.hosts import end_processes

RUN = Path("/run/horizon-lab")
"""Where labs keep their files."""
NAMESPACES = Path("/run/netns")
"""Where `ip netns` keeps its names."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


def checked(name: str) -> str:
    """Return a prefix or host name that can be part of a namespace's name, or raise LabError."""
    if not _NAME.fullmatch(name):
        raise LabError(f"'{name}' is no name for a lab or host: use a-z, 0-9 and '-', from a letter")
    return name


class Ownership:
    """The exclusive right to the names of one prefix, while the context is open.

    PrefixInUse, naming the process, where a running one has it.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = checked(prefix)
        self._path = RUN / f"{prefix}.lock"
        self._file = -1

    def __enter__(self) -> "Ownership":
        RUN.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(file, 20).decode()
                os.close(file)
                raise PrefixInUse(
                    f"lab '{self.prefix}' is in use by process {owner}; end that first"
                ) from None
            # The file may have been removed by its last owner between opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), self._path.stat()):
                    break
            os.close(file)
        os.truncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def namespaces(prefix: str) -> list[str]:
    """The named network namespaces of the lab `prefix`."""
    if not NAMESPACES.is_dir():
        return []
    return sorted(p.name for p in NAMESPACES.iterdir() if p.name.startswith(f"{prefix}."))


def prefixes() -> set[str]:
    """Every prefix of which there is a trace on this machine, running or not."""
    files = RUN.iterdir() if RUN.is_dir() else ()
    names = NAMESPACES.iterdir() if NAMESPACES.is_dir() else ()
    traces = {p.name.removesuffix(".lock") for p in files}
    return traces | {p.name.partition(".")[0] for p in names if "." in p.name}


def remove(prefix: str) -> None:
    """End the processes of the lab, delete its namespaces and files; nothing where there is none.

    The caller has the `Ownership` of the prefix.
    """
    found = namespaces(prefix)
    if found:
        end_processes(found)
    for namespace in found:
        run(["ip", "netns", "delete", namespace])
    shutil.rmtree(RUN / checked(prefix), ignore_errors=True)


def cleanup(prefix: str) -> None:
    """Remove what a killed run of the lab `prefix` left; PrefixInUse where one is running."""
    with Ownership(prefix):
        remove(prefix)


def sweep(family: str) -> list[str]:
    """Remove what killed runs left of all labs called `FAMILY-...`, and return their prefixes.

    Running ones are passed over. For labs with a process id in their prefix, which no later run
    would take up again.
    """
    removed = []
    for prefix in sorted(prefixes()):
        if prefix.startswith(f"{family}-"):
            try:
                cleanup(prefix)
            except PrefixInUse:
                continue
            removed.append(prefix)
    return removed
