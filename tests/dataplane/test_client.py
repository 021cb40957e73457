"""The client agent: connecting and disconnecting, with the broker there and away."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from controlplane.client.agent import AgentRefused
from controlplane.protocol.errors import BrokerUnreachable, ProblemError
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.messages import ConnectionStatus
from controlplane.protocol.wireguard import Endpoint
from dataplane import agent as agent_module
from dataplane import client as client_module
from dataplane.client import ClientAgent, NoHandshake
from dataplane.firewall import digest
from dataplane.local import CommandRefused
from dataplane.state import ClientFirewall
from tests.dataplane.agents import ENDPOINT, Rig, Stage
from tests.harness.broker import Harness
from tests.harness.machines import Server
from tests.harness.waiting import wait_for

EMPTY = digest(ClientFirewall("hzc0"))


async def a_server(horizon: Harness, name: str = "fra1", host: str = ENDPOINT) -> Server:
    return await horizon.server(name, endpoint_host=host)


def key(server: Server) -> PublicKey:
    return server.wireguard.public_key


async def peers_at_broker(rig: Rig[ClientAgent]) -> list[str]:
    """The connections that the broker has and that are not over."""
    return [one.server_name for one in await rig.machine.client.connections()]


async def quiet(rig: Rig[ClientAgent]) -> None:
    """Until the agent has heard everything and looked at its host."""
    await rig.until_known()
    device = rig.machine
    revision = (await device.sync()).revision
    await wait_for(lambda: rig.agent.netmap is not None and rig.agent.netmap.revision >= revision)


# --- connecting ---------------------------------------------------------------------------------


async def test_an_agent_without_connections_waits_with_an_empty_interface(stage: Stage) -> None:
    rig = await stage.client()
    async with rig.running():
        await wait_for(lambda: "hzc0" in rig.host.links and rig.link.up)
        assert rig.link.peers == {}
        assert rig.host.tables == {"hzc0": EMPTY}


async def test_connecting_ends_in_a_handshake(stage: Stage, horizon: Harness) -> None:
    fra1 = await a_server(horizon)
    rig = await stage.client()
    async with rig.running() as agent:
        answer = await rig.ask("connect", server="fra1")
        (connection,) = await rig.machine.client.connections()
        own6 = horizon.broker.pools.ipv6[2]
        until = agent.netmap.peers[fra1.id].authorized_until.isoformat() if agent.netmap else None
        steps = answer.pop("steps")
        assert set(steps) == {"broker", "host", "handshake"}
        assert answer.pop("seconds") == pytest.approx(sum(steps.values()), abs=0.001)
        assert answer == {
            "server": "fra1",
            "connection_id": connection.connection_id,
            "endpoint": f"{ENDPOINT}:51820",
            "addresses": ["10.64.0.2/20", f"{own6}/64"],
            "server_addresses": ["10.64.0.1", str(horizon.broker.pools.ipv6[1])],
            "authorized_until": until,
        }
        peer = rig.link.peers[key(fra1)]
        subnets = {ip_network("10.64.0.0/20"), ip_interface(f"{own6}/64").network}
        assert peer.allowed_ips == subnets
        assert (str(peer.endpoint), peer.persistent_keepalive) == (f"{ENDPOINT}:51820", 25)
        assert set(rig.link.addresses) == {ip_interface("10.64.0.2/20"), ip_interface(f"{own6}/64")}
        refused = frozenset({ip_network("10.64.0.1"), ip_network(horizon.broker.pools.ipv6[1])})
        assert rig.host.tables["hzc0"] == digest(ClientFirewall("hzc0", frozenset(subnets), refused))


async def test_connecting_twice_is_the_same_connection(stage: Stage, horizon: Harness) -> None:
    await a_server(horizon)
    rig = await stage.client()
    async with rig.running() as agent:
        first, again = await agent.connect("fra1"), await agent.connect("fra1")
        assert first["connection_id"] == again["connection_id"]


async def test_a_device_connects_to_several_servers(stage: Stage, horizon: Harness) -> None:
    fra1, ams1 = await a_server(horizon), await a_server(horizon, "ams1", "192.0.2.2")
    rig = await stage.client()
    async with rig.running() as agent:
        await agent.connect("fra1")
        answer = await agent.connect(ams1.id)
        assert answer["server"] == "ams1"
        assert set(rig.link.peers) == {key(fra1), key(ams1)}
        assert len(rig.link.addresses) == 4


async def test_a_server_that_does_not_answer_is_a_typed_error_and_the_tunnel_stays(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "HANDSHAKE_WAIT", 0.05)
    fra1 = await a_server(horizon)
    rig = await stage.client(answering=False)
    async with rig.running() as agent:
        with pytest.raises(NoHandshake, match=rf"'fra1' at {ENDPOINT}:51820 .* is its UDP port open\?"):
            await agent.connect("fra1")
        with pytest.raises(AgentRefused) as caught:
            await rig.ask("connect", server="fra1")
        assert caught.value.code == "no-handshake"
        assert rig.host.peer("hzc0", key(fra1))
        rig.host.handshake("hzc0", key(fra1), horizon.clock())
        assert (await agent.connect("fra1"))["server"] == "fra1"


async def test_what_the_broker_refuses_is_said_in_its_words(stage: Stage, horizon: Harness) -> None:
    await horizon.server("ams1", online=False)
    rig = await stage.client()
    async with rig.running() as agent:
        await rig.until_known()
        with pytest.raises(ProblemError, match="'ams1' is offline"):
            await agent.connect("ams1")
        with pytest.raises(AgentRefused, match="no server 'nowhere': known are ams1") as caught:
            await rig.ask("connect", server="nowhere")
        assert caught.value.code == "not-found"
        assert rig.link.peers == {}


async def test_a_named_endpoint_is_resolved_and_kept_when_it_resolves_no_more(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    fra1 = await a_server(horizon, host="fra1.example")
    found: list[Any] = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("203.0.113.5", 51820))]

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        assert (host, port) == ("fra1.example", 51820)
        if not found:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return found

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(agent_module, "TICK", 0.01)
    rig = await stage.client()
    async with rig.running() as agent:
        await agent.connect("fra1")
        assert rig.link.peers[key(fra1)].endpoint == Endpoint("203.0.113.5", 51820)
        found.clear()
        del rig.host.links["hzc0"]
        await rig.until_peer(key(fra1))
        assert rig.link.peers[key(fra1)].endpoint == Endpoint("203.0.113.5", 51820)


async def test_a_name_that_does_not_resolve_leaves_a_peer_without_endpoint(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(client_module, "HANDSHAKE_WAIT", 0.05)
    fra1 = await a_server(horizon, host="fra1.example")
    rig = await stage.client()
    async with rig.running() as agent:
        with pytest.raises(NoHandshake, match=r"fra1\.example:51820"):
            await agent.connect("fra1")
        assert rig.link.peers[key(fra1)].endpoint is None


async def test_the_watch_brings_nothing_while_a_connect_is_under_way(stage: Stage, horizon: Harness) -> None:
    """The broker answers a connect when the server has the peer; a handshake before is lost."""
    fra1 = await a_server(horizon)
    rig = await stage.client()
    async with rig.running() as agent:
        await rig.until_known()
        rig.line.held = lambda request: request.url.path.endswith("/connections")
        answered = rig.line.answered

        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(agent.connect("fra1"))
            await wait_for(lambda: rig.line.answered > answered)
            assert rig.host.peer("hzc0", key(fra1)) is None
            rig.line.release()
        assert connecting.result()["server"] == "fra1"


# --- disconnecting ------------------------------------------------------------------------------


async def test_disconnecting_removes_the_peer_here_and_at_the_broker(stage: Stage, horizon: Harness) -> None:
    await a_server(horizon)
    rig = await stage.client()
    async with rig.running() as agent:
        connection_id = (await agent.connect("fra1"))["connection_id"]
        ended = await rig.ask("disconnect", server="fra1")
        assert ended == [{"server": "fra1", "connection_id": connection_id, "broker_told": True}]
        assert rig.link.peers == {}
        assert rig.host.tables["hzc0"] == EMPTY
        assert await peers_at_broker(rig) == []
        await quiet(rig)
        assert rig.store.load_ended() == set()
        assert await rig.ask("disconnect", server=None) == []
        with pytest.raises(CommandRefused, match="not connected to 'fra1', but to nothing"):
            await agent.disconnect("fra1")


async def test_without_a_name_all_connections_end(stage: Stage, horizon: Harness) -> None:
    await a_server(horizon)
    await a_server(horizon, "ams1", "192.0.2.2")
    rig = await stage.client()
    async with rig.running() as agent:
        await agent.connect("fra1")
        await agent.connect("ams1")
        with pytest.raises(CommandRefused, match="not connected to 'lon1', but to fra1, ams1"):
            await agent.disconnect("lon1")
        ended = await agent.disconnect(None)
        assert {one["server"] for one in ended} == {"fra1", "ams1"}
        assert rig.link.peers == {}
        assert await peers_at_broker(rig) == []


async def test_an_ended_connection_does_not_come_back_before_the_netmap_is_without_it(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker has ended it, and the watch's answer is slow: ticks still see the old netmap."""
    monkeypatch.setattr(agent_module, "TICK", 0.01)
    fra1 = await a_server(horizon)
    rig = await stage.client()
    async with rig.running() as agent:
        await agent.connect("fra1")
        await quiet(rig)
        rig.line.held = lambda request: request.url.path.endswith("/netmap")
        (ended,) = await agent.disconnect("fra1")
        assert ended["broker_told"]
        looks = rig.host.looks
        await wait_for(lambda: rig.host.looks >= looks + 3)
        assert agent.netmap is not None
        assert agent.netmap.peers
        assert rig.host.peer("hzc0", key(fra1)) is None
        rig.line.release()
        await wait_for(lambda: agent.netmap is not None and not agent.netmap.peers)
        await wait_for(lambda: rig.store.load_ended() == set())


async def test_an_interface_that_went_away_comes_back_with_the_next_command(
    stage: Stage, horizon: Harness
) -> None:
    fra1 = await a_server(horizon)
    rig = await stage.client()
    async with rig.running() as agent:
        await agent.connect("fra1")
        await quiet(rig)
        del rig.host.links["hzc0"]
        await agent.disconnect("fra1")
        assert rig.link.peers == {}
        await quiet(rig)
        del rig.host.links["hzc0"]
        await agent.connect("fra1")
        assert rig.host.peer("hzc0", key(fra1))
        assert rig.link.up


async def test_disconnecting_with_the_broker_away_is_told_later(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    fra1 = await a_server(horizon)
    rig = await stage.client()
    async with rig.running() as agent:
        await agent.connect("fra1")
        await quiet(rig)
        rig.line.cut()
        (ended,) = await agent.disconnect("fra1")
        assert not ended["broker_told"]
        assert rig.link.peers == {}
        assert await peers_at_broker(rig) == ["fra1"]
    monkeypatch.setattr(agent_module, "TICK", 0.01)
    async with rig.running():
        await wait_for(lambda: rig.line.refused > 3)
        assert rig.host.peer("hzc0", key(fra1)) is None, "ended also after a restart"
        assert rig.store.load_ended() == {ended["connection_id"]}
        rig.line.mend()
        await wait_for(lambda: rig.store.load_ended() == set())
        assert await peers_at_broker(rig) == []
    assert rig.link.peers == {}


async def test_what_the_broker_does_not_know_needs_no_telling(stage: Stage) -> None:
    rig = await stage.client()
    rig.store.save_ended({"con_unknown"})
    async with rig.running():
        await wait_for(lambda: rig.store.load_ended() == set())
        await rig.until_broker(True)


async def test_reconnecting_with_the_broker_away_is_by_the_authorisation_at_hand(
    stage: Stage, horizon: Harness
) -> None:
    fra1 = await a_server(horizon)
    rig = await stage.client()
    async with rig.running() as agent:
        first = await agent.connect("fra1")
        await quiet(rig)
        rig.line.cut()
        await agent.disconnect("fra1")
        assert rig.link.peers == {}
        again = await agent.connect("fra1")
        assert again["connection_id"] == first["connection_id"]
        assert rig.host.peer("hzc0", key(fra1))
        assert rig.store.load_ended() == set()
        rig.line.mend()
        await rig.until_broker(True)
        await agent.tick()
        assert await peers_at_broker(rig) == ["fra1"], "nobody is told of an end that was taken back"


async def test_an_authorisation_that_is_over_or_was_never_given_needs_the_broker(
    stage: Stage, horizon: Harness
) -> None:
    await a_server(horizon)
    await a_server(horizon, "ams1", "192.0.2.2")
    rig = await stage.client()
    async with rig.running() as agent:
        await agent.connect("fra1")
        await quiet(rig)
        rig.line.cut()
        with pytest.raises(BrokerUnreachable):
            await agent.connect("ams1")
        await agent.disconnect("fra1")
        horizon.advance(days=8)
        with pytest.raises(AgentRefused, match="no answer from the broker") as caught:
            await rig.ask("connect", server="fra1")
        assert caught.value.code == "broker-unreachable"
        assert rig.link.peers == {}


async def test_a_cold_start_without_the_broker_brings_back_the_connections(
    stage: Stage, horizon: Harness
) -> None:
    fra1, ams1 = await a_server(horizon), await a_server(horizon, "ams1", "192.0.2.2")
    rig = await stage.client()
    async with rig.running() as agent:
        await agent.connect("fra1")
        await agent.connect("ams1")
        await quiet(rig)
        rig.line.cut()
        await agent.disconnect("ams1")
    rig.host.links.clear()
    async with rig.running():
        assert set(rig.link.peers) == {key(fra1)}
        assert key(ams1) not in rig.link.peers


# --- the rest -----------------------------------------------------------------------------------


async def test_servers_are_the_brokers_list(stage: Stage, horizon: Harness) -> None:
    await a_server(horizon)
    await horizon.server("ams1", online=False)
    rig = await stage.client()
    async with rig.running():
        listed = await rig.ask("servers")
        assert [(one["name"], one["online"]) for one in listed] == [("ams1", False), ("fra1", True)]
        rig.line.cut()
        with pytest.raises(AgentRefused) as caught:
            await rig.ask("servers")
        assert caught.value.code == "broker-unreachable"


async def test_an_unknown_command_is_named(stage: Stage) -> None:
    rig = await stage.client()
    async with rig.running():
        with pytest.raises(AgentRefused, match="a client agent knows no 'reboot'") as caught:
            await rig.ask("reboot")
        assert caught.value.code == "unknown-command"


async def test_a_connect_that_names_no_server_is_malformed(stage: Stage) -> None:
    rig = await stage.client()
    async with rig.running():
        with pytest.raises(AgentRefused, match="'connect' needs 'server'") as caught:
            await rig.ask("connect")
        assert caught.value.code == "malformed"


async def test_two_agents_and_a_broker_make_a_connection_that_both_ends_have(
    stage: Stage, horizon: Harness
) -> None:
    """The main job on two fake hosts: asked by the client, in place at the server, active at the broker."""
    server, client = await stage.server(), await stage.client()
    async with server.running(), client.running() as agent:
        await server.until_known()
        await agent.connect("fra1")
        await server.until_peer(client.key)
        assert server.link.peers[client.key].allowed_ips == {
            ip_network(address.ip) for address in client.link.addresses
        }
        server.host.handshake("hz0", client.key, horizon.clock())
        await server.agent.tick()
        (connection,) = await client.machine.client.connections()
        assert connection.status is ConnectionStatus.active
        await agent.disconnect("fra1")
        await server.until_peer(client.key, there=False)
