"""Pings one address steadily and says what came back; run on a host by `lab.traffic.Pinger`.

    python -I -S echo.py ADDRESS INTERVAL LINGER

Writes `ready`, then `first NANOSECONDS` (monotonic clock) at the first reply; at the end of its
standard input it stops sending, waits up to LINGER seconds for replies under way, and writes the
report as JSON. What `ping` cannot do, and why this is not it: go on where there is no route yet,
choose the source address anew for each packet (the tunnel comes up meanwhile), and end without
counting the packets under way as lost. Standard library only; `Tally` is core, the rest is shell.
"""

import contextlib
import ipaddress
import json
import os
import select
import socket
import struct
import sys
import time

HEADER = struct.Struct("!BBHHH")
"""ICMP echo: type, code, checksum, identifier, sequence number (RFC 792, RFC 4443)."""
BODY = struct.Struct("!QQ")
"""Our payload: a random mark and the number of the packet, which unlike the sequence never wraps."""


class Tally:
    """Counts echo requests and replies; times are nanoseconds of one clock."""

    def __init__(self) -> None:
        self.sent = 0
        self.round_trips: list[int] = []
        self.outstanding: dict[int, int] = {}
        self.last_news: int | None = None
        """When a reply last came; before the first one, when the first request was sent."""
        self.longest_gap = 0
        self.last_sent = 0

    def send(self, now: int) -> int:
        """Note a request and return its number, from 0."""
        number = self.sent
        self.sent += 1
        self.outstanding[number] = self.last_sent = now
        if self.last_news is None:
            self.last_news = now
        return number

    def receive(self, number: int, now: int) -> bool:
        """Note a reply; False for one never asked for or already seen."""
        sent = self.outstanding.pop(number, None)
        if sent is None or self.last_news is None:
            return False
        self.round_trips.append(now - sent)
        self.longest_gap = max(self.longest_gap, now - self.last_news)
        self.last_news = now
        return True

    def report(self) -> dict[str, int | list[int]]:
        """The counts, the round-trip times, and the longest time without a reply.

        A silence at the end counts up to the last request: past it no reply was due.
        """
        silence = self.last_sent - self.last_news if self.last_news is not None else 0
        return {
            "sent": self.sent,
            "received": len(self.round_trips),
            "longest_gap": max(self.longest_gap, silence),
            "round_trips": self.round_trips,
        }


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Echo:
    """A raw ICMP socket for either family; needs CAP_NET_RAW."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.mark = int.from_bytes(os.urandom(8), "big")
        self.identifier = os.getpid() & 0xFFFF
        if ipaddress.ip_address(address).version == 4:
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            self.request, self.reply = 8, 0
        else:
            self.socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            self.request, self.reply = 128, 129
        self.socket.setblocking(False)

    def send(self, number: int) -> None:
        """Send a request. One that cannot be sent is one that gets no reply: lost, like others."""
        body = BODY.pack(self.mark, number)
        fields = self.request, 0, 0, self.identifier, number & 0xFFFF
        # For ICMPv6 the kernel puts in the checksum, which covers the addresses (RFC 3542, 3.1).
        sum_ = checksum(HEADER.pack(*fields) + body) if self.request == 8 else 0
        packet = HEADER.pack(self.request, 0, sum_, *fields[3:]) + body
        with contextlib.suppress(OSError):
            self.socket.sendto(packet, (self.address, 0))

    def receive(self) -> list[int]:
        """The numbers of all replies that are waiting."""
        numbers: list[int] = []
        while True:
            try:
                data = self.socket.recv(2048)
            except OSError:
                return numbers
            if self.request == 8:  # IPv4 raw sockets see the IP header, IPv6 ones do not
                data = data[(data[0] & 0x0F) * 4 :]
            if len(data) == HEADER.size + BODY.size and data[0] == self.reply:
                mark, number = BODY.unpack_from(data, HEADER.size)
                if mark == self.mark:
                    numbers.append(number)


def say(line: str) -> None:
    print(line, flush=True)


def main(address: str, interval: int, linger: int) -> None:
    """Ping until standard input ends; `interval` and `linger` in nanoseconds."""
    echo, tally = Echo(address), Tally()
    say("ready")
    due, end = time.monotonic_ns(), None
    while end is None or (tally.outstanding and time.monotonic_ns() < end):
        now = time.monotonic_ns()
        if end is None and now >= due:
            echo.send(tally.send(now))
            due = max(due + interval, now)
        until = due if end is None else end
        watched = [echo.socket] if end is not None else [echo.socket, sys.stdin]
        pause = max(0, until - time.monotonic_ns()) / 1e9
        readable = select.select(watched, [], [], pause)[0]
        now = time.monotonic_ns()
        for number in echo.receive() if echo.socket in readable else ():
            if tally.receive(number, now) and len(tally.round_trips) == 1:
                say(f"first {now}")
        if sys.stdin in readable:  # nothing is ever written to it: readable means ended
            end = now + linger
    say(json.dumps(tally.report()))


if __name__ == "__main__":
    main(sys.argv[1], int(float(sys.argv[2]) * 1e9), int(float(sys.argv[3]) * 1e9))
