"""One machine of the lab: a named network namespace and a few private directories (shell).

A host shares the file tree, users and process table of this machine, but has

- a network namespace with a name, so that `ip netns pids NAME` finds every process in it, a
  daemon that detached itself included;
- its own `/run/wireguard` and `/run/horizon`. WireGuard in user space keeps its control socket in
  `/var/run/wireguard/INTERFACE.sock`: with one directory for all, two hosts could not both call
  their interface `hz0`. Both are bound from `host.directory`, where they can be seen from outside.

The two namespaces are kept by a *holder*, a process that sleeps in them; commands enter by
`nsenter`. The mount points are made in this machine's `/run` where missing, and stay there empty.
"""

import contextlib
import os
import select
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import IO

from lab.commands import run, wait_for
from lab.errors import LabError

PRIVATE = ("/run/wireguard", "/var/run/wireguard", "/run/horizon")
"""Directories every host has for itself; where two are one by a symbolic link, it is mounted once."""

START = 15.0
"""Seconds a holder may take to be ready: far more than it needs on a slow machine."""


class Process:
    """A command running on a host in the background, its output in a file.

    Signals go to this process alone, never to its children: what it leaves running (WireGuard in
    user space) goes on, as on a real machine, until the lab ends.
    """

    def __init__(self, popen: subprocess.Popen[bytes], argv: Sequence[str], log: Path) -> None:
        self._popen = popen
        self.argv = list(argv)
        self.log = log

    def __repr__(self) -> str:
        return f"<Process {self.pid} '{shlex.join(self.argv)}'>"

    @property
    def pid(self) -> int:
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen.poll() is None

    def wait(self, timeout: float) -> int:
        """Wait for its end and return its status; LabError with its log after `timeout` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(
                f"{self!r} did not end within {timeout:g} s; it wrote:\n{self.log_text()}"
            ) from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens where the process has ended."""
        self._popen.send_signal(number)

    def terminate(self, timeout: float = 10.0) -> int:
        """Ask it to end (SIGTERM), kill it after `timeout` seconds; return its status."""
        self._popen.terminate()
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it at once (SIGKILL) and return its status."""
        self._popen.kill()
        return self.wait(10.0)

    def log_text(self) -> str:
        """What it has written so far, standard output and standard error together."""
        return self.log.read_text(errors="replace")


class Host:
    """A machine of the lab; `start` brings it up, `Lab` takes it down.

    >>> alice.run(["ip", "-br", "address"]).stdout
    >>> agent = alice.spawn(["horizon", "client", "run"])
    >>> agent.terminate()
    """

    def __init__(self, name: str, namespace: str, directory: Path) -> None:
        self.name = name
        self.namespace = namespace
        """Name of its network namespace, as `ip netns` lists it."""
        self.directory = directory
        """Everything it keeps: `state`, `logs`, and its private directories under `private`."""
        self._holder: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._log_numbers = count(1)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}>"

    @property
    def state_dir(self) -> Path:
        """A directory of mode 0700 for what its programs keep."""
        return self.directory / "state"

    def start(self, sysctls: Mapping[str, str]) -> None:
        """Make the namespaces, set `sysctls` (`net/ipv4/ip_forward`: `0`), bring `lo` up."""
        for part in ("state", "logs", "private"):
            (self.directory / part).mkdir(parents=True, mode=0o700)
        script = ["set -e", "ip link set lo up"]
        for path in sorted({os.path.realpath(p) for p in PRIVATE}):
            Path(path).mkdir(parents=True, exist_ok=True)
            private = self.directory / "private" / path.strip("/").replace("/", "-")
            private.mkdir(mode=0o755)
            script.append(f"mount --bind {shlex.quote(str(private))} {shlex.quote(path)}")
        script += [f"echo {value} > /proc/sys/{key}" for key, value in sysctls.items()]
        script += ["echo ready", "exec sleep infinity"]
        run(["ip", "netns", "add", self.namespace])
        # `ip netns exec` gives the process a mount namespace of its own, from which nothing
        # propagates back, with a /sys that shows the devices of this network namespace.
        self._holder = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "sh", "-c", "\n".join(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._children.append(self._holder)
        assert self._holder.stdout is not None
        said = b""
        if select.select([self._holder.stdout], [], [], START)[0]:
            said = self._holder.stdout.readline()
        if said != b"ready\n":
            raise LabError(f"host '{self.name}' did not start: '{said.decode().strip()}'")

    def exec_argv(self, argv: Sequence[str] = ()) -> list[str]:
        """The command line that runs `argv` on this host, in the current directory."""
        if self._holder is None or self._holder.poll() is not None:
            raise LabError(f"host '{self.name}' is not running; use it inside 'with Lab(...)'")
        target = str(self._holder.pid)
        # --wdns: entering a mount namespace otherwise leaves the process in its root directory.
        return ["nsenter", "-t", target, "-m", "-n", f"--wdns={os.getcwd()}", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 30.0,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` on this host to its end; as `lab.commands.run`."""
        return run(argv, inside=self.exec_argv(), check=check, timeout=timeout, input=input, env=env)

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] = subprocess.STDOUT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `argv` on this host with the given files; the lab ends it at the latest."""
        popen = subprocess.Popen(
            self.exec_argv(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        self._children.append(popen)
        return popen

    def spawn(
        self,
        argv: Sequence[str],
        *,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start `argv` in the background, appending its output to `log`.

        Without `log` it is a new file in the host's `logs`.
        """
        if log is None:
            name = f"{next(self._log_numbers):02}-{Path(argv[0]).name}.log"
            log = self.directory / "logs" / name
        with log.open("ab") as file:
            return Process(self.popen(argv, stdout=file, env=env), argv, log)

    def stop(self) -> None:
        """Kill what was started here, the holder too; what detached itself is the lab's to end."""
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait(10.0)
            for pipe in (child.stdin, child.stdout, child.stderr):
                if pipe is not None:
                    pipe.close()
        self._children.clear()


def processes(namespace: str) -> list[int]:
    """The processes in a named network namespace; none where it is no longer one."""
    listed = run(["ip", "netns", "pids", namespace], check=False).stdout
    return [pid for pid in map(int, listed.split()) if pid != os.getpid()]


def end_processes(namespaces: Sequence[str], deadline: float = 10.0) -> None:
    """Kill every process in the namespaces and wait until none is left."""

    def none_left() -> bool:
        left = [pid for namespace in namespaces for pid in processes(namespace)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_for(none_left, deadline, f"the end of all processes in {', '.join(namespaces)}")
