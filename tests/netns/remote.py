"""The real `dataplane.host.Host` on a host of the lab, spoken to as if it were here.

    with RemoteKernel(alice) as kernel:
        reconcile(kernel, desired)

One process stays on the lab's host, as an agent does; leaving the `with` is the agent's exit.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from dataplane.actions import Action
from dataplane.host import BackendChoice, Host
from dataplane.plan import plan
from dataplane.state import Desired, HostState, InterfaceState
from lab import Host as LabHost

NAME = "hz0"
BACKEND = cast(BackendChoice, os.environ.get("HORIZON_BACKEND", "auto"))
"""Which WireGuard the ring runs on."""


class RemoteKernel:
    """A `Kernel` whose work is done by a process on `host`, started through `prefix`."""

    def __init__(self, host: LabHost, backend: BackendChoice = BACKEND, prefix: Sequence[str] = ()) -> None:
        self._host = host
        self._argv = [*prefix, sys.executable, "-m", "tests.netns.remote", backend]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = host.directory / "logs" / f"kernel-{time.monotonic_ns()}.log"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = self._host.popen(
                self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(30) == 0, self.log

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return Path(self._log).read_text()

    def observe(self, name: str) -> HostState:
        return cast(HostState, self._call("observe", name))

    def apply(self, action: Action) -> None:
        self._call("apply", action)

    def _call(self, method: str, argument: object) -> object:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((method, argument), self._process.stdin)
        self._process.stdin.flush()
        try:
            answer: Any = pickle.load(self._process.stdout)
        except EOFError:
            raise AssertionError(f"the process on {self._host.name} ended: {self.log}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def reconcile(kernel: RemoteKernel, desired: Desired) -> tuple[Action, ...]:
    """Observe, plan, apply."""
    actions = plan(desired, kernel.observe(NAME), time.time())
    for action in actions:
        kernel.apply(action)
    return actions


def settle(kernel: RemoteKernel, desired: Desired) -> HostState:
    """Reconcile once; there must be nothing left to do."""
    reconcile(kernel, desired)
    state = kernel.observe(NAME)
    assert plan(desired, state, time.time()) == ()
    return state


def interface(kernel: RemoteKernel) -> InterfaceState:
    """The interface, which must be there."""
    state = kernel.observe(NAME).interface
    assert state is not None
    return state


def serve(backend: BackendChoice) -> None:
    """Answer calls from standard input until it ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answer: object
    host: Host | None = None
    while True:
        try:
            method, argument = pickle.load(requests)
        except EOFError:
            break
        try:
            host = host or Host(backend)
            answer = getattr(host, method)(argument)
        except Exception as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()
    if host is not None:
        host.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    serve(cast(BackendChoice, sys.argv[1]))
