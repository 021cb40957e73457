"""Both agents as real processes on hosts of the lab: what ends, dies and breaks beneath them.

broker ── internet ── fra1 (server), alice (client)
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, Pinger, ping, reaches, require_netns
from lab.commands import ip, wait_for
from lab.fleet import START, Fleet, Node, horizon_argv
from lab.hosts import Host
from lab.snapshot import COMMANDS

pytestmark = pytest.mark.netns


@dataclass
class Stage:
    """A broker, a server and a client that are connected before each test."""

    fleet: Fleet
    fra1: Node
    alice: Node

    @property
    def inside(self) -> str:
        """fra1's address in the tunnel."""
        return str(self.alice.status()["peers"][0]["addresses"][0])

    def heal(self) -> None:
        """Whatever a test left behind: all run, and alice is connected."""
        revive(self.fleet)
        for node in (self.fra1, self.alice):
            if not runs(node):
                start(node)
            wait_for(lambda node=node: node.status()["broker"]["reachable"], START, "the broker", 0.05)  # type: ignore[misc]
        wait_for(self._fra1_is_online, START, "fra1 online", 0.05)
        self.alice.horizon("client", "connect", "fra1")

    def _fra1_is_online(self) -> bool:
        return any(one["name"] == "fra1" and one["online"] for one in self.fleet.admin("server", "list"))


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    require_netns()
    Lab.sweep("hzag")
    with Lab(f"hzag-{os.getpid()}") as lab:
        fleet = Fleet(lab)
        fleet.start_broker()
        yield fleet


@pytest.fixture(scope="module")
def made(fleet: Fleet) -> Stage:
    return Stage(fleet, fleet.add_server("fra1"), fleet.add_client("alice"))


@pytest.fixture
def stage(made: Stage) -> Stage:
    made.heal()
    return made


def revive(fleet: Fleet) -> None:
    """Start the broker again where a test before has killed it."""
    if not runs(fleet.broker):
        fleet.start_broker()


def runs(node: Node) -> bool:
    return node.process is not None and node.process.alive()


def start(node: Node) -> None:
    """Start an agent again. A killed one leaves its socket file, so the file is not awaited alone."""
    node.start()
    wait_for(lambda: said(node, node.role, "status")[0] == 0, START, f"the agent on {node.name}", 0.05)


def said(node: Node, *words: str) -> tuple[int, str]:
    """Exit status and all output of a `horizon` command, whatever comes of it."""
    done = node.site.run([*horizon_argv(), *words], check=False, env=node.environment, timeout=60)
    return done.returncode, done.stdout + done.stderr


def link(host: Host, name: str) -> dict[str, Any]:
    """One link as it was made, without what the kernel changes by itself (carrier, link-local addresses)."""
    (shown,) = json.loads(host.run(["ip", "-json", "-details", "address", "show", "dev", name]).stdout)
    made = ("ifindex", "address", "mtu", "ifalias", "group")
    addresses = [one["local"] for one in shown["addr_info"] if one["scope"] == "global"]
    kind = shown["linkinfo"].get("info_kind")
    plain = {key: shown.get(key) for key in made}
    return {"kind": kind, "addresses": addresses, "up": "UP" in shown["flags"], **plain}


def transfer(node: Node, name: str) -> dict[str, tuple[int, int]]:
    """Bytes received and sent of each peer, by `wg`."""
    lines = node.site.run(["wg", "show", name, "transfer"]).stdout.splitlines()
    return {key: (int(received), int(sent)) for key, received, sent in map(str.split, lines)}


def state_file(node: Node, name: str) -> Path:
    return node.site.state_dir / name


def snapshot(host: Host) -> dict[str, str]:
    return {name: host.run(argv).stdout for name, argv in COMMANDS.items()}


# --- the end of a process -----------------------------------------------------------------------


def test_killed_agents_come_back_to_the_same_tunnel(stage: Stage) -> None:
    """kill -9 and a new start of both: no ping is lost, and the counters go on."""
    nodes = [(stage.fra1, "hz0"), (stage.alice, "hzc0")]
    before = {name: (transfer(node, name), link(node.site, name)) for node, name in nodes}
    with Pinger(stage.alice.site, stage.inside) as pinger:
        for node, _ in nodes:
            node.kill()
            ping(stage.alice.site, pinger.address, count=5)
            start(node)
        for node, _ in nodes:
            wait_for(lambda node=node: node.status()["broker"]["reachable"], START, "the broker", 0.05)  # type: ignore[misc]
    assert pinger.report.sent > 10
    assert pinger.report.lost == 0
    for node, name in nodes:
        counted, first = before[name]
        now = transfer(node, name)
        assert now.keys() == counted.keys()
        key = stage.fra1.status()["public_key"] if node is stage.alice else stage.alice.status()["public_key"]
        assert now[key] > counted[key]
        assert now[key][1] > counted[key][1]
        assert link(node.site, name)["ifindex"] == first["ifindex"]


def test_a_signal_ends_an_agent_and_leaves_its_tunnel(stage: Stage) -> None:
    address = stage.inside
    with Pinger(stage.alice.site, address) as pinger:
        for node, number in ((stage.alice, signal.SIGINT), (stage.fra1, signal.SIGTERM)):
            assert node.process is not None
            node.process.signal(number)
            assert node.process.wait(10) == 0, node.log_text()
            assert "Traceback" not in node.log_text()
            assert not Path(f"/proc/{node.process.pid}").exists()
            status, text = said(node, node.role, "status")
            assert status == 1
            assert f"start it with `horizon {node.role} run`" in text
        assert ping(stage.alice.site, address, count=10).lost == 0
    assert pinger.report.lost == 0


def test_a_second_agent_is_told_that_one_runs(stage: Stage) -> None:
    status, text = said(stage.fra1, "server", "run")
    assert status == 1
    assert "an agent runs already with" in text
    assert stage.fra1.status()["up"]
    assert reaches(stage.alice.site, stage.inside)


@pytest.mark.parametrize("running", [True, False], ids=["by the agent", "without one"])
def test_down_leaves_nothing(fleet: Fleet, made: Stage, running: bool) -> None:
    made.heal()
    user = "bob" if running else "carol"
    site = fleet.lab.site(user)
    before = snapshot(site)
    node = fleet.add_client(user, site=site)
    node.horizon("client", "connect", "fra1")
    assert reaches(site, made.inside)
    assert snapshot(site) != before
    assert node.process is not None
    if not running:
        node.kill()
    assert said(node, "client", "down") == (0, "hzc0 is down\n")
    if running:
        assert node.process.wait(10) == 0, node.log_text()
    wait_for(lambda: snapshot(site) == before, 10, "the host as it was before")
    assert site.run(["ls", "/run/wireguard"]).stdout == ""
    assert said(node, "client", "down") == (0, "hzc0 is down\n")


# --- what breaks beneath an agent ---------------------------------------------------------------


def test_a_clients_interface_that_was_deleted_comes_back_by_connecting_anew(stage: Stage) -> None:
    address = stage.inside
    ip(["link delete hzc0"], stage.alice.site.namespace)
    assert not reaches(stage.alice.site, address)
    stage.alice.horizon("client", "disconnect", "fra1")
    stage.alice.horizon("client", "connect", "fra1")
    assert ping(stage.alice.site, address).lost == 0


def test_a_servers_interface_that_was_deleted_comes_back_with_the_next_peer(stage: Stage) -> None:
    """Nobody has to wait for the next tick: whatever changes next finds it gone."""
    address = stage.inside
    ip(["link delete hz0"], stage.fra1.site.namespace)
    stage.alice.horizon("client", "disconnect", "fra1")
    stage.alice.horizon("client", "connect", "fra1")
    assert ping(stage.alice.site, address).lost == 0


def test_a_restart_brings_back_a_deleted_interface_without_the_broker(stage: Stage) -> None:
    address = stage.inside
    stage.fleet.broker.kill()
    stage.alice.kill()
    ip(["link delete hzc0"], stage.alice.site.namespace)
    start(stage.alice)
    assert named(stage.alice) == ["fra1"]
    assert ping(stage.alice.site, address).received > 0


@pytest.mark.parametrize("broker", [True, False], ids=["with the broker", "without"])
def test_a_truncated_netmap_is_rebuilt_without_a_lost_ping(stage: Stage, broker: bool) -> None:
    """The last line is cut short where the broker is there, and almost all of the file where it is not."""
    with ExitStack() as open_:
        pinger = open_.enter_context(Pinger(stage.alice.site, stage.inside))
        if not broker:
            stage.fleet.broker.kill()
        for node in (stage.fra1, stage.alice):
            node.kill()
            path = state_file(node, "netmap.jsonl")
            whole = path.read_bytes()
            path.write_bytes(whole[:-30] if broker else whole[:20])
            start(node)
        ping(stage.alice.site, pinger.address, count=20)
        if not broker:
            assert stage.fra1.status()["broker"]["reachable"] is False
            stage.fleet.start_broker()
        wait_for(lambda: "alice-laptop" in named(stage.fra1), START, "fra1's netmap", 0.05)
        wait_for(lambda: named(stage.alice) == ["fra1"], START, "alice's netmap", 0.05)
    assert pinger.report.lost == 0


def named(node: Node) -> list[str]:
    return [peer["name"] for peer in node.status()["peers"]]


def test_a_damaged_enrolment_says_to_join_again_and_touches_nothing(stage: Stage) -> None:
    stage.alice.kill()
    path = state_file(stage.alice, "agent.json")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    status, text = said(stage.alice, "client", "run")
    assert status == 1
    assert "join again with a new invite, `horizon client join INVITE`" in text
    assert state_file(stage.alice, "agent.json.damaged-1").read_bytes() == whole[:100]
    assert ping(stage.alice.site, tunnel_address(stage.fra1)).lost == 0
    state_file(stage.alice, "agent.json.damaged-1").unlink()
    path.write_bytes(whole)


def tunnel_address(server: Node) -> str:
    return str(server.status()["addresses"][0]).partition("/")[0]


# --- names that belong to others ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_a_taken_interface_name_is_never_touched(fleet: Fleet, kind: str) -> None:
    """Neither by joining, which keeps the invite, nor by an agent that joined before."""
    revive(fleet)
    site = fleet.lab.site(f"taken-{kind}")
    node = Node(site, "server")
    invite = fleet.admin("registration-key", "create")["invite"]
    take = [f"link add hz0 type {kind}", "address add 10.99.7.7/24 dev hz0", "link set hz0 up"]
    ip(take, site.namespace)
    before = link(site, "hz0"), snapshot(site)["nft list ruleset"]
    name = ["--name", f"t-{kind}", "--backend", fleet.backend, "--endpoint", site.ipv4]
    words = ["server", "join", invite, *name]
    taken = f"interface 'hz0' exists and is not ours (kind '{kind}')"
    status, text = said(node, *words)
    assert (status, taken in text) == (1, True), text
    assert (link(site, "hz0"), snapshot(site)["nft list ruleset"]) == before

    ip(["link delete hz0"], site.namespace)
    assert said(node, *words)[0] == 0, "the invite was not used up"
    ip(take, site.namespace)
    before = link(site, "hz0"), snapshot(site)["nft list ruleset"]
    node.start()
    wait_for(lambda: taken in str(node.status()["trouble"]), START, "the agent saying so", 0.05)
    node.kill()
    status, text = said(node, "server", "run")
    assert (status, taken in text) == (1, True), text
    assert "Traceback" not in text
    assert said(node, "server", "down")[0] == 0
    assert (link(site, "hz0"), snapshot(site)["nft list ruleset"]) == before


# --- the broker hears ---------------------------------------------------------------------------


def test_the_broker_hears_of_a_handshake_long_before_the_next_heartbeat(stage: Stage) -> None:
    stage.alice.horizon("client", "disconnect")
    stage.alice.horizon("client", "connect", "fra1")

    def status() -> list[str]:
        listed = stage.fleet.admin("connection", "list")
        return [one["status"] for one in listed if one["user_name"] == "alice"]

    wait_for(lambda: status() == ["active"], 10, "the connection active", 0.05)
