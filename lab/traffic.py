"""Traffic between hosts, measured: ping, steady ping across an event, iperf3 (shell).

Times are seconds, except round-trip times, which are milliseconds as `ping` prints them.
"""

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from lab.commands import wait_for
from lab.errors import CommandFailed, LabError
from lab.hosts import Host

_COUNTS = re.compile(r"(\d+) packets transmitted, (\d+) received")
_RTT = re.compile(r"= ([\d.]+)/([\d.]+)/([\d.]+)/[\d.]+ ms")


@dataclass(frozen=True)
class RoundTrip:
    """Round-trip times in milliseconds."""

    min: float
    avg: float
    max: float


@dataclass(frozen=True)
class PingResult:
    """What `ping` counted."""

    sent: int
    received: int
    rtt: RoundTrip | None
    """None where nothing came back."""

    @property
    def lost(self) -> int:
        return self.sent - self.received


@dataclass(frozen=True)
class PingReport(PingResult):
    """What a `Pinger` counted."""

    longest_gap: float
    """The longest time without a reply, in seconds; about the interval where none was lost."""


def ping(
    host: Host, address: str, count: int = 3, interval: float = 0.05, timeout: float = 2.0
) -> PingResult:
    """Send `count` pings, `interval` apart, and wait `timeout` for the last replies.

    No reply is a result; no route to the address is an error (CommandFailed).
    """
    argv = ["ping", "-n", "-c", str(count), "-i", str(interval), "-W", str(timeout), address]
    done = host.run(argv, check=False, timeout=count * (interval + timeout) + 10)
    counts = _COUNTS.search(done.stdout)
    if done.returncode > 1 or counts is None:
        raise CommandFailed(argv, done.returncode, done.stderr or done.stdout)
    rtt = _RTT.search(done.stdout)
    times = RoundTrip(*map(float, rtt.groups())) if rtt else None
    return PingResult(int(counts[1]), int(counts[2]), times)


def reaches(host: Host, address: str, timeout: float = 1.0) -> bool:
    """Whether one ping is answered within `timeout`; False too where there is no route."""
    try:
        return ping(host, address, count=1, timeout=timeout).received == 1
    except CommandFailed:
        return False


class Pinger:
    """Pings steadily while the context is open: across an outage, a move, a restart.

    It sends on whatever happens (no route, no interface, no peer): such a ping is lost.

    >>> with Pinger(alice, server_tunnel_address) as pinger:
    ...     broker.kill()
    >>> pinger.report.lost, pinger.report.longest_gap
    """

    def __init__(self, host: Host, address: str, interval: float = 0.02, linger: float = 1.0) -> None:
        self.host, self.address = host, address
        self.interval, self.linger = interval, linger
        self._popen: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._first: float | None = None
        self._report: PingReport | None = None

    def __enter__(self) -> "Pinger":
        script = Path(__file__).with_name("echo.py")
        options = [self.address, str(self.interval), str(self.linger)]
        self._popen = self.host.popen(
            [sys.executable, "-I", "-S", str(script), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._expect("ready", 15.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.stop()
        elif self._popen is not None:
            self._popen.kill()

    @property
    def report(self) -> PingReport:
        """What was counted; there once it has stopped."""
        if self._report is None:
            raise LabError(f"the pings to {self.address} are going on; stop() them first")
        return self._report

    def first_reply(self, deadline: float) -> float:
        """When the first reply came, by `time.monotonic()`; LabError after `deadline` seconds."""
        if self._first is None:
            self._first = int(self._expect("first", deadline).split()[1]) / 1e9
        return self._first

    def stop(self) -> PingReport:
        """Stop sending, wait up to `linger` for replies under way, and report."""
        if self._report is None:
            assert self._popen is not None
            assert self._popen.stdin is not None
            self._popen.stdin.close()
            counted = json.loads(self._expect("{", self.linger + 10.0))
            self._popen.wait(10.0)
            trips = [nanoseconds / 1e6 for nanoseconds in counted["round_trips"]]
            rtt = RoundTrip(min(trips), sum(trips) / len(trips), max(trips)) if trips else None
            gap = counted["longest_gap"] / 1e9
            self._report = PingReport(counted["sent"], counted["received"], rtt, gap)
        return self._report

    def _expect(self, start: str, deadline: float) -> str:
        """Read lines up to one that starts so, and return it."""
        passed = b""
        assert self._popen is not None
        assert self._popen.stdout is not None
        file, end = self._popen.stdout.fileno(), time.monotonic() + deadline
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                if line.startswith(start.encode()):
                    return line.decode()
                if line.startswith(b"first"):
                    self._first = int(line.split()[1]) / 1e9
                passed += line + newline
                continue
            if not select.select([file], [], [], max(0.0, end - time.monotonic()))[0]:
                raise LabError(f"{self.host.name} to {self.address}: no '{start}' within {deadline:g} s")
            if not (data := os.read(file, 65536)):
                raise LabError(f"the pings to {self.address} broke off: '{passed.decode()}'")
            self._buffer += data


def first_reply(
    host: Host,
    address: str,
    deadline: float,
    after: Callable[[], object],
    interval: float = 0.002,
) -> float:
    """Seconds from the call of `after()` to the first reply from `address`, to the millisecond.

    The pings run before `after` is called, so neither their start nor a poll is in the figure;
    `interval` bounds how late a way that opens is noticed. LabError where the address answered
    before `after` was called: then there is nothing to measure.
    """
    early = LabError(f"{address} answered {host.name} before there was anything to wait for")
    if reaches(host, address, timeout=0.1):
        raise early
    with Pinger(host, address, interval, linger=0.0) as pinger:
        called = time.monotonic()
        after()
        first = pinger.first_reply(deadline - (time.monotonic() - called))
    if first < called:
        raise early
    return first - called


def throughput(client: Host, server: Host, address: str, seconds: int = 5, port: int = 5201) -> float:
    """TCP from `client` to `server` at `address`, as received: bits per second, by iperf3."""
    serving = server.spawn(["iperf3", "--server", "--one-off", "--port", str(port)])
    try:

        def listening() -> bool:
            if not serving.alive():
                raise LabError(f"iperf3 on {server.name} did not serve: '{serving.log_text()}'")
            return bool(server.run(["ss", "-Hltn", f"sport = :{port}"]).stdout)

        wait_for(listening, 10.0, f"iperf3 listening on {server.name}, port {port}", 0.02)
        argv = ["iperf3", "--json", "--client", address, "--port", str(port)]
        argv += ["--time", f"{seconds}", "--connect-timeout", "5000"]
        done = client.run(argv, check=False, timeout=seconds + 30)
        result = json.loads(done.stdout or "{}")
        if done.returncode != 0 or "error" in result:
            raise CommandFailed(argv, done.returncode, result.get("error", done.stderr))
        return float(result["end"]["sum_received"]["bits_per_second"])
    finally:
        serving.kill()
