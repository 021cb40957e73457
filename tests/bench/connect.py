"""From starting `horizon client connect` to the first ping reply, against `wg-quick up`. *Shell.*

Ours is the whole way: the command, the client agent, the broker, the server's agent, the interface,
the handshake. The bound has least to do: the same keys, addresses and server, a configuration without
DNS or hooks, a given MTU, and its peer in place on the server beforehand. While it is measured the
server's agent is stopped (SIGSTOP), as it would take a peer away that the broker does not know of.

Where our time goes is measured in rounds of their own, from outside: the agents' logs name each action
just before it is carried out.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface, ip_network
from pathlib import Path

from controlplane.protocol.keys import PublicKey
from controlplane.protocol.wireguard import Endpoint, PeerSpec
from controlplane.wgconf import WgQuickConfig, render
from dataplane.store import Store
from lab import Lab, first_reply
from lab.commands import wait_for
from lab.fleet import Fleet, Node, horizon_argv
from tests.bench.rows import Goal, Result, Row, Samples, Step, interleave
from tests.bench.trace import Tail, time_to_ask

NEEDS = ("wg-quick",)
SERVER = "fra1"
SERVER_INTERFACE, CLIENT_INTERFACE, BY_HAND = "hz0", "hzc0", "wg0"
SETTLED = 20.0
"""Seconds for a disconnect to have reached everybody, and for a first reply."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds (default: %(default)s)")
    parser.add_argument(
        "--traced", type=int, default=5, help="rounds for where our time goes (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> Result:
    with Lab(f"hzbench-{os.getpid()}") as lab:
        fleet = Fleet(lab)
        fleet.start_broker()
        bench = _Bench(fleet.add_server(SERVER), fleet.add_client("alice"))
        bench.first_connection()
        ours, by_hand = interleave(options.rounds, bench.horizon, bench.wg_quick)
        traced = [bench.traced() for _ in range(options.traced)]
        traces = {name: Samples(tuple(t[name] for t in traced)) for name in (traced[0] if traced else ())}
    row = Row(
        "`horizon client connect` to first reply",
        "ms",
        ours.scaled(1000),
        "`wg-quick up` to first reply",
        by_hand.scaled(1000),
        Goal("<", 1.0),
    )
    return Result((row,), tuple(Step(name, "ms", found.scaled(1000)) for name, found in traces.items()))


class _Bench:
    """One server and one client, and the two ways from one to the other."""

    def __init__(self, server: Node, client: Node) -> None:
        self.server, self.client = server, client
        self.private_key = Store(client.site.state_dir, "client").load().private_key
        self.public_key = self.private_key.public_key
        self.target = ""
        """The server's IPv4 address in the tunnel."""
        self.allowed_ips = ""
        """What the server lets the client send from."""
        self.config = Path()

    def first_connection(self) -> None:
        """Connect once, to learn addresses and keys; write the wg-quick configuration with them."""
        answer = self.client.horizon("client", "connect", SERVER)
        self.target = next(a for a in answer["server_addresses"] if "." in a)
        (peer,) = self.client.status()["peers"]
        self.allowed_ips = self._server_peers()[str(self.public_key)]
        mtu = int(self.client.site.run(["cat", f"/sys/class/net/{CLIENT_INTERFACE}/mtu"]).stdout)
        spec = PeerSpec(
            PublicKey.parse(peer["public_key"]),
            frozenset(map(ip_network, peer["allowed_ips"])),
            Endpoint.parse(answer["endpoint"]),
            persistent_keepalive=25,
        )
        config = WgQuickConfig(
            self.private_key, tuple(map(ip_interface, answer["addresses"])), (spec,), mtu=mtu
        )
        self.config = self.client.site.directory / f"{BY_HAND}.conf"
        self.config.touch(mode=0o600)
        self.config.write_text(render(config))
        self._disconnect()

    def horizon(self) -> float:
        """Seconds by Horizon, from the start of its command."""
        try:
            return self._first_reply([*horizon_argv(), "client", "connect", SERVER])
        finally:
            self._disconnect()

    def wg_quick(self) -> float:
        """Seconds by wg-quick, from the start of it."""
        with self._peer_by_hand():
            try:
                return self._first_reply(["wg-quick", "up", str(self.config)])
            finally:
                self.client.site.run(["wg-quick", "down", str(self.config)])

    def traced(self) -> dict[str, float]:
        """Seconds from the start of the command to each step of a connection, by name."""
        command = [*horizon_argv(), "client", "connect", SERVER]
        stand_in = {"server": SERVER, "addresses": [], "seconds": 0.0}
        asked = time_to_ask(self.client, command, stand_in)
        assert self.server.process is not None
        assert self.client.process is not None
        logs = {"server": self.server.process.log, "client": self.client.process.log}
        started = ended = 0.0

        def start() -> None:
            nonlocal started, ended
            started = time.monotonic()
            self._run(command)
            ended = time.monotonic()

        with Tail(logs) as tail:
            replied = first_reply(self.client.site, self.target, SETTLED, after=start)
        self._disconnect()
        return {
            "the command asks the agent": asked,
            "the server's agent sets the peer": tail.when("server", str(self.public_key)) - started,
            "the client's agent begins to change its host": tail.when("client", "[#] ") - started,
            "the client's agent sets the peer": tail.when("client", "[#] wg set") - started,
            "the client's agent adds the first address": tail.when("client", "[#] ip address add") - started,
            "the first reply": replied,
            "the command has ended": ended - started,
        }

    def _first_reply(self, argv: list[str]) -> float:
        return first_reply(self.client.site, self.target, SETTLED, after=lambda: self._run(argv))

    def _run(self, argv: list[str]) -> None:
        self.client.site.run(argv, env=self.client.environment)

    def _disconnect(self) -> None:
        """Disconnect, and wait until all is as before on both hosts."""
        self.client.horizon("client", "disconnect", SERVER)

        def settled() -> bool:
            shown = self.client.site.run(["ip", "-br", "address", "show", CLIENT_INTERFACE]).stdout
            return " 10." not in shown and str(self.public_key) not in self._server_peers()

        wait_for(settled, SETTLED, "the end of the connection on client and server", 0.02)

    def _server_peers(self) -> dict[str, str]:
        shown = self.server.site.run(["wg", "show", SERVER_INTERFACE, "allowed-ips"]).stdout
        return dict(line.split("\t") for line in shown.splitlines())

    @contextmanager
    def _peer_by_hand(self) -> Iterator[None]:
        """The client's peer in place on the server, without Horizon."""
        assert self.server.process is not None
        self.server.process.signal(signal.SIGSTOP)
        peer = ["wg", "set", SERVER_INTERFACE, "peer", str(self.public_key)]
        try:
            allowed_ips = self.allowed_ips.replace(" ", ",")
            self.server.site.run([*peer, "allowed-ips", allowed_ips])
            yield
        finally:
            self.server.site.run([*peer, "remove"])
            self.server.process.signal(signal.SIGCONT)
