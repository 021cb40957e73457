"""Commands and conditions, each waited for with a bound (shell).

Everything the lab does to the machine is a system tool (`ip`, `nft`, `wg`) run through `run`, so
that a failure always says which command, which status and what the tool wrote; everything it waits
for goes through `wait_for`, so that nothing waits for ever.
"""

import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, TypeVar

from lab.errors import CommandFailed, CommandTimedOut, LabError

T = TypeVar("T")


def run(
    argv: Sequence[str],
    *,
    inside: Sequence[str] = (),
    check: bool = True,
    timeout: float = 30.0,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end and return its status, standard output and standard error.

    `inside` is put before it and left out of messages (see `Host.exec_argv`); `input` is its
    standard input (else empty); `env` is added to this process's environment; `timeout` is in
    seconds. The command gets a session of its own: a Ctrl-C at the terminal reaches only the lab,
    which then tears down in order.
    """
    # Files, not pipes: a daemon that the command leaves behind may keep them open.
    with _memory("stdout") as out, _memory("stderr") as err:
        try:
            status = subprocess.run(
                [*inside, *argv],
                check=False,
                stdout=out,
                stderr=err,
                input=(input or "").encode(),
                timeout=timeout,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            ).returncode
        except subprocess.TimeoutExpired:
            raise CommandTimedOut(
                f"'{shlex.join(argv)}' did not end within {timeout:g} s; it wrote: '{_text(err).strip()}'"
            ) from None
        done = subprocess.CompletedProcess(list(argv), status, _text(out), _text(err))
    if check and status != 0:
        raise CommandFailed(argv, status, done.stderr or done.stdout)
    return done


def _memory(name: str) -> BinaryIO:
    return open(os.memfd_create(name), "w+b")


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def ip(lines: Sequence[str], namespace: str | None = None) -> None:
    """Carry out `lines`, commands of `ip` without the word itself, in one process.

    They act in the named network namespace, or in the lab's own; the first that fails ends the
    batch and is quoted in the error.
    """
    where = ("-n", namespace) if namespace else ()
    done = run(["ip", *where, "-batch", "-"], input="\n".join(lines), check=False)
    if done.returncode != 0:
        raise CommandFailed(["ip", *where, *lines], done.returncode, done.stderr)


def wait_for(condition: Callable[[], T], deadline: float, what: str, interval: float = 0.01) -> T:
    """Return the first true value of `condition()`, asked every `interval` seconds.

    LabError, naming `what`, when there is none within `deadline` seconds.
    """
    end = time.monotonic() + deadline
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() >= end:
            raise LabError(f"{what}: not within {deadline:g} s")
        pause.wait(interval)
    return value
