"""The server agent: what it tells the broker of its peers, and when."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controlplane.client.agent import AgentRefused
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.messages import ConnectionStatus, Heartbeat, PeerReport
from controlplane.protocol.version import VERSION
from dataplane import agent as agent_module
from dataplane import server as server_module
from dataplane.errors import BackendError
from dataplane.server import ServerAgent
from tests.dataplane.agents import Rig, Stage
from tests.harness.broker import Harness
from tests.harness.machines import Device
from tests.harness.waiting import wait_for


async def peered(rig: Rig[ServerAgent], user: str) -> Device:
    """A device with a peer on the server, which has it in place."""
    device = await rig.horizon.device(user)
    await device.connect("fra1")
    await rig.until_peer(device.wireguard.public_key)
    return device


def reports(rig: Rig[ServerAgent]) -> list[PeerReport]:
    return [report for beat in rig.line.beats() for report in beat.peers]


async def beat(rig: Rig[ServerAgent]) -> Heartbeat:
    """One more heartbeat, as each tick sends it."""
    await rig.agent.tick()
    return rig.line.beats()[-1]


async def test_a_heartbeat_follows_the_start_at_once(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running():
        await wait_for(lambda: bool(rig.line.beats()))
        first = rig.line.beats()[0]
        assert (first.version, first.active_connections, first.peers) == (VERSION, 0, ())
        assert "cpu_percent" in first.metrics
        device = await horizon.device()
        await wait_for(lambda: rig.line.answered >= 2)
        (listed,) = await device.client.servers()
        assert listed.online


async def test_a_heartbeat_comes_each_tick(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "TICK", 0.01)
    rig = await stage.server()
    async with rig.running():
        await wait_for(lambda: len(rig.line.beats()) >= 4)
    assert agent_module.TICK < 1
    assert rig.line.beats()[-1].revision is not None


def test_ticks_are_30_s_apart() -> None:
    """The specification's interval; three missed and a server counts as offline."""
    assert agent_module.TICK == 30.0


async def test_a_first_handshake_is_reported_at_once(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next tick is half a minute away; the connection is active long before."""
    monkeypatch.setattr(server_module, "LOOK_EVERY", 0.005)
    rig = await stage.server()
    async with rig.running():
        await rig.until_known()
        alice = await peered(rig, "alice")
        assert (await alice.client.connections())[0].status is ConnectionStatus.intent
        rig.host.handshake("hz0", alice.wireguard.public_key, horizon.clock())
        await wait_for(lambda: bool(reports(rig)))
        when = datetime.fromtimestamp(horizon.clock(), UTC)
        assert reports(rig) == [PeerReport(peer_id=alice.id, latest_handshake=when, received=1000, sent=500)]
        assert rig.line.beats()[-1].active_connections == 1
        await wait_for(lambda: rig.line.answered == len(rig.line.requests) - 1)  # all but the watch
        assert (await beat(rig)).peers == ()
        assert (await alice.client.connections())[0].status is ConnectionStatus.active


async def test_a_host_or_broker_that_fails_meanwhile_ends_nothing(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LOOK_EVERY", 0.005)
    rig = await stage.server()
    failures: list[int] = []

    def fail() -> None:
        failures.append(1)
        raise BackendError("no buffer space")

    async with rig.running() as agent:
        await rig.until_known()
        rig.host.before_peers = fail
        alice = await peered(rig, "alice")
        await wait_for(lambda: len(failures) >= 3)
        rig.host.handshake("hz0", alice.wireguard.public_key, horizon.clock())
        rig.line.cut()
        rig.host.before_peers = lambda: None
        await wait_for(lambda: not agent._expected)
        rig.line.mend()
        assert [report.peer_id for report in (await beat(rig)).peers] == [alice.id]
        bob = await peered(rig, "bob")
        rig.host.handshake("hz0", bob.wireguard.public_key, horizon.clock())
        await wait_for(lambda: bob.id in {report.peer_id for report in reports(rig)})


async def test_a_handshake_is_not_looked_for_longer_than_it_takes(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LOOK_EVERY", 0.005)
    rig = await stage.server()
    async with rig.running() as agent:
        await rig.until_known()
        await peered(rig, "alice")
        await wait_for(lambda: bool(agent._expected))
        horizon.advance(seconds=server_module.EXPECT)
        await wait_for(lambda: not agent._expected)


async def test_figures_are_told_only_when_they_changed(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running():
        await rig.until_known()
        alice, bob = await peered(rig, "alice"), await peered(rig, "bob")
        assert {report.peer_id for report in (await beat(rig)).peers} == {alice.id, bob.id}
        assert (await beat(rig)).peers == ()
        rig.link.peers[bob.wireguard.public_key].received += 7
        (report,) = (await beat(rig)).peers
        assert (report.peer_id, report.received, report.latest_handshake) == (bob.id, 7, None)
        assert (await beat(rig)).peers == ()


async def test_what_the_broker_did_not_hear_is_told_again(stage: Stage) -> None:
    rig = await stage.server()
    async with rig.running():
        await rig.until_known()
        alice = await peered(rig, "alice")
        rig.line.cut()
        with pytest.raises(Exception, match="no answer from the broker"):
            await beat(rig)
        rig.line.mend()
        assert [report.peer_id for report in (await beat(rig)).peers] == [alice.id]


async def test_a_heartbeat_holds_300_reports_and_every_peer_gets_its_turn(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all of them are busy all the time."""
    assert server_module.REPORTS == Heartbeat.model_fields["peers"].metadata[0].max_length == 300
    monkeypatch.setattr(server_module, "REPORTS", 2)
    rig = await stage.server()
    async with rig.running():
        await rig.until_known()
        devices = [await peered(rig, f"user{number}") for number in range(5)]
        told: list[str] = []
        for _ in range(5):
            for device in devices:
                rig.link.peers[device.wireguard.public_key].received += 1
            told += [report.peer_id for report in (await beat(rig)).peers]
        assert len(told) == 10
        assert set(told[:5]) == {device.id for device in devices}
        assert all(told.count(device.id) == 2 for device in devices)


async def test_peers_that_are_not_in_the_netmap_are_not_reported(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running():
        await rig.until_known()
        alice = await peered(rig, "alice")
        await beat(rig)
        (connection,) = await alice.client.connections()
        await alice.client.disconnect(connection.connection_id)
        await rig.until_peer(alice.wireguard.public_key, there=False)
        await beat(rig)
        await alice.connect("fra1")
        await rig.until_peer(alice.wireguard.public_key)
        assert [report.peer_id for report in (await beat(rig)).peers] == [alice.id]


async def test_a_revoked_server_sends_no_more_heartbeats(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running() as agent:
        await rig.until_known()
        await (await horizon.admin()).revoke_server("fra1")
        await wait_for(lambda: agent.revoked is not None)
        before = len(rig.line.beats())
        await agent.tick()
        assert len(rig.line.beats()) == before


@pytest.mark.parametrize("command", ["connect", "disconnect", "servers", "nonsense"])
async def test_a_server_agent_refuses_a_clients_commands(stage: Stage, command: str) -> None:
    rig = await stage.server()
    async with rig.running():
        with pytest.raises(AgentRefused, match=f"knows no '{command}': it has status and down") as caught:
            await rig.ask(command, server="fra1")
        assert caught.value.code == "unknown-command"


async def test_new_peers_only_are_expected(stage: Stage, horizon: Harness) -> None:
    """A peer that merely changes is no reason to look for a handshake."""
    rig = await stage.server()
    async with rig.running() as agent:
        await rig.until_known()
        alice = await peered(rig, "alice")
        expected: set[PublicKey] = set(agent._expected)
        assert expected == {alice.wireguard.public_key}
        agent._expected.clear()
        await alice.connect("fra1")
        revision = (await alice.sync()).revision
        await wait_for(lambda: revision in rig.line.acknowledged())
        assert not agent._expected
