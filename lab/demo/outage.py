"""Steps without the broker, and what follows its return (shell)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lab.commands import wait_for
from lab.demo.rows import Row
from lab.demo.stage import CLIENTS, DEADLINE, PLAIN, SERVER, Addresses, Stage, seconds_until
from lab.fleet import horizon_argv
from lab.traffic import Pinger, first_reply, ping

PATHS = (("alice", "bob"), (PLAIN, SERVER))
"""Who pings whom across an outage; who could not join is left out."""
AGENTS = (SERVER, *CLIENTS)


def kill_broker(stage: Stage) -> Iterator[Row]:
    with across(stage) as pingers:
        stage.fleet.broker.kill()
        took = seconds_until(lambda: not any(map(stage.broker_answers, AGENTS)), "agents missing the broker")
        for name in CLIENTS:
            ping(stage.site(name), stage.inside[SERVER].ipv6, count=40, interval=0.02)
    for path, pinger in pingers.items():
        yield steady(f"broker killed with -9: {path}", "the broker gone", pinger)
    how = "every agent's `status` says so, and goes on"
    yield Row("agents notice", how, round(took, 2), "s", True)


def restart_agents(stage: Stage) -> Iterator[Row]:
    with across(stage) as pingers:
        for name in AGENTS:
            stage.nodes[name].kill()
        stage.restart(*AGENTS)
    for path, pinger in pingers.items():
        yield steady(f"agents killed with -9, restarted: {path}", "still no broker", pinger)


def boot_without_broker(stage: Stage) -> Iterator[Row]:
    for name in AGENTS:
        stage.power_off(name)

    def boot() -> None:
        stage.restart(SERVER)
        stage.restart(*CLIENTS)

    seconds = first_reply(stage.site("alice"), stage.inside[SERVER].ipv4, DEADLINE, after=boot)
    how = "interfaces and rules deleted, agents started: signed netmap to the first reply"
    yield Row("cold start without the broker", how, round(seconds, 2), "s", True)
    took = seconds_until(lambda: stage.reaches("alice", "bob"), "alice reaching bob after the cold start")
    how = "IPv4 and IPv6, after the same cold start"
    yield Row("alice → bob, still no broker", how, round(took, 2), "s", True)
    text = stage.says("alice", "client", "status")
    until = text.partition("authorised until ")[2].partition("\n")[0][:16].replace("T", " ")
    how = "`horizon client status`: broker AWAY, and how long it may stay so"
    yield Row("authorised until", how, until, "UTC", "AWAY" in text and bool(until))


def return_broker(stage: Stage) -> Iterator[Row]:
    with Pinger(stage.site("alice"), stage.inside["bob"].ipv4) as pinger:
        stage.fleet.start_broker()
        took = seconds_until(
            lambda: all(map(stage.broker_answers, AGENTS)), "agents finding the broker", 0.05
        )
    how = "from its listening again until all agents have found it by themselves"
    yield Row("broker returns", how, round(took, 2), "s", _online(stage))
    yield steady("broker returning: alice → bob", "meanwhile", pinger)


def disconnect(stage: Stage) -> Iterator[Row]:
    alice, key = stage.nodes["alice"], stage.public_key("alice")
    if key not in stage.peers_on_server():
        raise LookupError("the server has no peer for alice to begin with")
    started = time.monotonic()
    alice.horizon("client", "disconnect", SERVER)
    wait_for(lambda: key not in stage.peers_on_server(), DEADLINE, "the server dropping alice's peer")
    took = time.monotonic() - started
    how = "`horizon client disconnect` to no such peer in `wg show` on the server; its pings fail"
    quiet = stage.silent("alice", SERVER)
    yield Row("disconnect removes the peer", how, round(took, 2), "s", quiet)
    answer = alice.horizon("client", "connect", SERVER)
    same = Addresses.of(answer["addresses"]) == stage.inside["alice"]
    how = "`horizon client connect` again: its former addresses, both answered"
    ok = same and stage.reaches("alice", SERVER)
    yield Row("reconnecting", how, stage.inside["alice"].ipv4, "", ok)


def revoke_device(stage: Stage) -> Iterator[Row]:
    bob, key = stage.nodes["bob"], stage.public_key("bob")
    (device,) = [d for d in stage.fleet.admin("device", "list") if d["user_name"] == "bob"]
    if not stage.reaches("bob", SERVER) or key not in stage.peers_on_server():
        raise LookupError("bob is not connected to begin with")
    broker = stage.fleet.broker
    argv = [*horizon_argv(), "admin", "device", "revoke", device["device_id"]]
    started = time.monotonic()
    revoking = broker.site.spawn(argv, env=broker.environment)
    wait_for(lambda: key not in stage.peers_on_server(), DEADLINE, "the server dropping bob's peer")
    took = time.monotonic() - started
    ok = revoking.wait(DEADLINE) == 0 and stage.silent("bob", SERVER) and stage.silent("bob", "alice")
    how = "`horizon admin device revoke` to no such peer on the server; its pings fail"
    yield Row("revoking a device cuts it off", how, round(took, 2), "s", ok)
    took = seconds_until(lambda: bob.status()["revoked"], "bob's agent hearing that it is revoked", 0.05)
    code = stage.refusal(bob, "client", "connect", SERVER)
    how = f"bob's agent says so, and `connect` is refused: {code}"
    yield Row("it stays out", how, round(took, 2), "s", code == "revoked")


@contextmanager
def across(stage: Stage) -> Iterator[dict[str, Pinger]]:
    """Steady pings on all `PATHS` while the context is open, by the path's name."""
    with ExitStack() as open_:
        yield {
            f"{source} → {target}": open_.enter_context(Pinger(stage.site(source), stage.inside[target].ipv4))
            for source, target in PATHS
            if {source, target} <= stage.inside.keys()
        }


def steady(name: str, meanwhile: str, pinger: Pinger) -> Row:
    report = pinger.report
    how = f"ping every 20 ms, {meanwhile}: {report.received} of {report.sent} answered"
    return Row(name, how, report.lost, "lost", report.lost == 0 and report.received > 0)


def _online(stage: Stage) -> bool:
    return any(s["name"] == SERVER and s["online"] for s in stage.fleet.admin("server", "list"))
