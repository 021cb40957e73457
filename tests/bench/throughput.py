"""iperf3 through a server of Horizon's, against the same WireGuard set up by hand. *Shell.*

Both tunnels join the same two hosts, with the same MTU and kind of WireGuard, and are measured in turn:
TCP over IPv4, to the server and from it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab import CommandFailed, Lab, Site
from lab.commands import wait_for
from lab.fleet import Fleet
from lab.wireguard import Backend, tunnel
from tests.bench.rows import Goal, Result, Row, interleave

NEEDS = ("iperf3",)
SERVER = "fra1"
CLIENT_INTERFACE = "hzc0"
LISTEN_PORT = 51999
"""Of the tunnel by hand, beside Horizon's."""
PORT = 5201
GOAL = Goal(">=", 0.97)
DIRECTIONS = {"to the server": (), "from the server": ("--reverse",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=25, help="interleaved rounds (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=int, default=1, help="length of one transfer (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> Result:
    with Lab(f"hzbench-{os.getpid()}") as lab:
        fleet = Fleet(lab)
        fleet.start_broker()
        server, client = fleet.add_server(SERVER), fleet.add_client("alice")
        answer = client.horizon("client", "connect", SERVER)
        address = next(a for a in answer["server_addresses"] if "." in a)
        kind: Backend = client.status()["backend"]
        mtu = int(client.site.run(["cat", f"/sys/class/net/{CLIENT_INTERFACE}/mtu"]).stdout)
        ends = client.site, server.site
        with (
            tunnel(*ends, listen_port=LISTEN_PORT, mtu=mtu, kind=kind) as made,
            _serving(server.site),
        ):

            def transfer(target: str, direction: tuple[str, ...]) -> Callable[[], float]:
                return lambda: _transfer(client.site, target, options.seconds, direction)

            targets = (address, made.responder.ipv4)
            measures = [transfer(target, way) for way in DIRECTIONS.values() for target in targets]
            for measure in measures[:2]:
                measure()  # The first handshakes, and TCP's memory of the path.
            found = iter(interleave(options.rounds, *measures))
    rows = (
        Row(f"TCP {name}, {kind}", "Mbit/s", ours, f"{kind} WireGuard by hand, MTU {mtu}", bound, GOAL)
        for name, ours, bound in ((name, next(found), next(found)) for name in DIRECTIONS)
    )
    return Result(tuple(rows))


@contextmanager
def _serving(server: Site) -> Iterator[None]:
    """An iperf3 server for the length of the context."""
    serving = server.spawn(["iperf3", "--server", "--port", str(PORT)])
    try:
        listing = ["ss", "-Hltn", f"sport = :{PORT}"]
        wait_for(lambda: server.run(listing).stdout, 10, f"iperf3 listening on {server.name}", 0.02)
        yield
    finally:
        serving.kill()


def _transfer(client: Site, address: str, seconds: int, options: tuple[str, ...]) -> float:
    """Mbit/s of TCP between the client and `address`, as received."""
    argv = ["iperf3", "--json", "--client", address, "--port", str(PORT), "--time", str(seconds)]
    argv += ["--connect-timeout", "5000", *options]

    def once() -> tuple[float, ...]:
        done = client.run(argv, check=False, timeout=seconds + 30)
        result = json.loads(done.stdout or "{}")
        error = result.get("error", "")
        if "server is busy" in error:  # It has not quite ended the transfer before.
            return ()
        if done.returncode != 0 or error:
            raise CommandFailed(argv, done.returncode, error or done.stderr)
        return (float(result["end"]["sum_received"]["bits_per_second"]) / 1e6,)

    (measured,) = wait_for(once, 10, "the iperf3 server free for a transfer", 0.05)
    return measured
