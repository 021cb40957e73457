"""Steps from the first start of the broker to a plain WireGuard client (shell)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from lab.commands import wait_for
from lab.demo.rows import Row
from lab.demo.stage import BEHIND_NAT, CLIENTS, DEADLINE, PLAIN, SERVER, Addresses, Stage
from lab.fleet import Node
from lab.traffic import first_reply, throughput
from lab.wireguard import latest_handshake

LEAST_THROUGHPUT = 10.0
"""Mbit/s that anything at all worth the name has; the benchmark has the real bound."""
THROUGHPUT_SECONDS = 2


def start_broker(stage: Stage) -> Iterator[Row]:
    started = time.monotonic()
    broker = stage.fleet.start_broker()
    took = time.monotonic() - started
    how = f"first run at {broker.site.ipv4}, with its own certificate; its owner logged in by an invite"
    ok = broker.process is not None and broker.process.alive()
    yield Row("broker started", how, round(took, 2), "s", ok)


def register_server(stage: Stage) -> Iterator[Row]:
    started = time.monotonic()
    node = stage.nodes[SERVER] = stage.fleet.add_server(SERVER)
    took = time.monotonic() - started
    (server,) = stage.fleet.admin("server", "list")
    stage.inside[SERVER] = Addresses.of(server["addresses"])
    how = f"one invite, on its own network at {node.site.ipv4}; the broker lists it as online"
    yield Row("server registered", how, round(took, 2), "s", server["name"] == SERVER and server["online"])


def join_clients(stage: Stage) -> Iterator[Row]:
    sites = {name: stage.lab.site(name, nat=name in BEHIND_NAT) for name in CLIENTS}

    def join(name: str) -> tuple[Node, float]:
        started = time.monotonic()
        node = stage.fleet.add_client(name, site=sites[name])
        return node, time.monotonic() - started

    # At the same time, as nobody waits for anybody.
    with ThreadPoolExecutor() as pool:
        joined = dict(zip(CLIENTS, pool.map(join, CLIENTS), strict=True))
    for name, (node, took) in joined.items():
        stage.nodes[name] = node
        seen = [server["name"] for server in node.horizon("client", "servers")]
        place = f"behind NAT, seen as {node.site.ipv4}" if name in BEHIND_NAT else f"at {node.site.ipv4}"
        how = f"one invite, {place}; its agent lists the server"
        yield Row(f"client joined: {name}", how, round(took, 2), "s", seen == [SERVER])


def connect(stage: Stage) -> Iterator[Row]:
    inside = stage.inside[SERVER]
    for name in CLIENTS:
        node = stage.nodes[name]

        def ask(name: str = name) -> None:
            answer = stage.nodes[name].horizon("client", "connect", SERVER)
            stage.inside[name] = Addresses.of(answer["addresses"])

        seconds = first_reply(node.site, inside.ipv4, DEADLINE, after=ask)
        (peer,) = node.status()["peers"]
        how = "from `horizon client connect` to the first ping reply"
        yield Row(f"connected: {name}", how, round(1000 * seconds), "ms", peer["connected"])


def ping_everybody(stage: Stage) -> Iterator[Row]:
    for source, target in (("alice", SERVER), ("bob", SERVER), ("alice", "bob")):
        # The client agents hear of each other's right to speak by their watch.
        wait_for(partial(stage.reaches, source, target), DEADLINE, f"{source} reaching {target}")
        yield _pinged(stage, source, target)


def refuse_reverse(stage: Stage) -> Iterator[Row]:
    for name in CLIENTS:
        ok = stage.reaches(name, SERVER) and stage.silent(SERVER, name)
        how = f"{name} pings the server; the server's pings to {name} have no answer"
        yield Row(f"no reverse connection: {name}", how, "none" if ok else "open", "", ok)


def measure_throughput(stage: Stage) -> Iterator[Row]:
    for source, target in (("alice", SERVER), ("alice", "bob")):
        speed = throughput(
            stage.site(source), stage.site(target), stage.inside[target].ipv4, THROUGHPUT_SECONDS
        )
        speed = round(speed / 1e6)
        how = f"iperf3, TCP through the tunnel, {THROUGHPUT_SECONDS} s"
        yield Row(f"throughput {source} → {target}", how, speed, "Mbit/s", speed >= LEAST_THROUGHPUT)


def admit_plain_wireguard(stage: Stage) -> Iterator[Row]:
    site = stage.lab.site(PLAIN)
    stage.fleet.admin("personal-key", "create", PLAIN)
    path = Path(site.state_dir, f"{SERVER}.conf")
    before = stage.peers_on_server()
    started = time.monotonic()
    answer = stage.fleet.admin("export", "--user", PLAIN, "--server", SERVER, "--output", str(path))
    took = time.monotonic() - started
    stage.inside[PLAIN] = Addresses.of(answer["addresses"])
    there = len(stage.peers_on_server() - before) == 1
    how = "`horizon admin export`, to its end: `wg show` on the server has the peer"
    yield Row("exported peer in place", how, round(took, 2), "s", answer["in_place"] and there)

    def up() -> None:
        site.run(["wg-quick", "up", str(path)], timeout=DEADLINE)

    seconds = first_reply(site, stage.inside[SERVER].ipv4, DEADLINE, after=up)
    shaken = latest_handshake(site, SERVER, stage.public_key(SERVER))
    how = f"stock `wg-quick up {SERVER}.conf` to the first reply; `wg show` has its handshake"
    yield Row("plain WireGuard client", how, round(1000 * seconds), "ms", shaken is not None)
    for source, target in ((PLAIN, SERVER), (PLAIN, "alice"), ("alice", PLAIN)):
        yield _pinged(stage, source, target)
    ok = stage.silent(SERVER, PLAIN)
    how = "the exported file's own hooks: the server's pings have no answer"
    yield Row(f"no reverse connection: {PLAIN}", how, "none" if ok else "open", "", ok)


def forbid_and_allow(stage: Stage) -> Iterator[Row]:
    others = [name for name in ("bob", PLAIN) if name in stage.inside]
    started = _allow(stage, "--no-client-to-client")
    took = stage.first_unanswered("alice", "bob") - started
    forbidden = stage.silent("alice", "bob") and stage.silent("bob", "alice")
    still = stage.reaches("alice", SERVER) and stage.reaches("bob", SERVER)
    how = "`horizon admin server set --no-client-to-client`: silence both ways, the server answers"
    yield Row("policy forbids alice → bob", how, round(took, 2), "s", forbidden and still)
    if PLAIN in others:
        # Its exported file lets others in as it always did.
        ok = stage.silent("alice", PLAIN)
        how = f"nobody told {PLAIN}: the server refuses for it"
        yield Row(f"policy forbids alice → {PLAIN}", how, "none" if ok else "open", "", ok)
    started = _allow(stage, "--client-to-client")
    for name in others:
        wait_for(partial(stage.reaches, "alice", name), DEADLINE, f"alice reaching {name} again")
    took = time.monotonic() - started
    how = f"`horizon admin server set --client-to-client`: {' and '.join(others)} answer again"
    yield Row("policy allows it again", how, round(took, 2), "s", True)


def _allow(stage: Stage, option: str) -> float:
    """Change the policy; when that began, by `time.monotonic()`."""
    started = time.monotonic()
    stage.fleet.admin("server", "set", SERVER, option)
    return started


def _pinged(stage: Stage, source: str, target: str) -> Row:
    sent, lost, trip = stage.lost(source, target)
    how = f"ping over IPv4 and IPv6: {sent - lost} of {sent} answered"
    return Row(f"{source} → {target}", how, round(trip, 2), "ms", lost == 0)
