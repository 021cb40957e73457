"""Both agents' common loop, in process against the in-process broker: from what the broker says to what
is on the host, and what is acknowledged when."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface

import pytest

from controlplane.client.broker import BrokerClient
from controlplane.protocol.envelope import Signed
from controlplane.protocol.messages import ServerChange
from dataplane import agent as agent_module
from dataplane import store as store_module
from dataplane.actions import SetPeers
from dataplane.errors import DataplaneError, NameTaken, StoreError
from dataplane.firewall import digest
from dataplane.local import LocalSocket
from dataplane.server import ServerAgent
from dataplane.state import ServerFirewall
from tests.dataplane.agents import (
    FakeHost,
    Gate,
    Stage,
    connected_device,
    connected_device_when_up,
    fail_on,
    in_place,
)
from tests.fake_kernel import FakeLink
from tests.harness.broker import Harness
from tests.harness.waiting import wait_for


async def test_the_first_snapshot_is_brought_about_and_then_acknowledged(
    stage: Stage, horizon: Harness
) -> None:
    rig = await stage.server()
    async with rig.running() as agent:
        await wait_for(lambda: bool(rig.line.acknowledged()))
        link = rig.link
        assert (link.up, link.listen_port, link.private_key) == (True, 51820, rig.state.private_key)
        assert set(link.addresses) == {ip_interface("10.64.0.1/20"), ip_interface(_ipv6(horizon))}
        assert rig.host.tables.keys() == {"hz0"}
        assert agent.netmap is not None
        assert rig.line.acknowledged()[0] == agent.netmap.revision
        await rig.until_broker(True)
    assert rig.store.netmap_path.exists()
    assert rig.host.closed == 1


def _ipv6(horizon: Harness) -> str:
    return f"{horizon.broker.pools.ipv6[1]}/64"


async def test_a_new_peer_costs_only_itself(stage: Stage, horizon: Harness) -> None:
    """With another there already, the host sees one action, of one peer, and no look."""
    rig = await stage.server()
    bob = await horizon.device("bob")
    async with rig.running():
        await rig.until_known()
        alice = await connected_device(horizon)
        await rig.until_peer(alice.wireguard.public_key)
        before, looks = len(rig.host.applied), rig.host.looks
        connection = (await bob.connect("fra1")).connection
        await rig.until_peer(bob.wireguard.public_key)
        (action,) = rig.host.applied[before:]
        assert isinstance(action, SetPeers)
        assert [change.public_key for change in action.changes] == [bob.wireguard.public_key]
        await bob.client.disconnect(connection.connection_id)
        await rig.until_peer(bob.wireguard.public_key, there=False)
        removal = rig.host.applied[before + 1 :]
        assert len(removal) == 1
        assert rig.host.looks == looks
        assert set(rig.link.peers) == {alice.wireguard.public_key}


async def test_a_change_of_the_interface_is_brought_about_with_everything(
    stage: Stage, horizon: Harness
) -> None:
    rig = await stage.server()
    async with rig.running():
        await wait_for(lambda: rig.host.tables.get("hz0") is not None)
        before = digest(ServerFirewall("hz0", client_to_client=True))
        assert rig.host.tables["hz0"] == before
        await (await horizon.admin()).change_server("fra1", ServerChange(client_to_client=False))
        await wait_for(lambda: rig.host.tables["hz0"] != before)
        assert rig.host.tables["hz0"] == digest(ServerFirewall("hz0", client_to_client=False))


async def test_what_is_not_in_place_is_not_acknowledged(stage: Stage, horizon: Harness) -> None:
    """A host that refuses: the broker keeps waiting, the agent keeps trying and says why."""
    rig = await stage.server()
    async with rig.running() as agent:
        await rig.until_broker(True)
        mend = fail_on(SetPeers, rig.host, "no buffer space for peers")
        alice = await connected_device(horizon)
        await wait_for(lambda: agent.trouble is not None)
        revision = (await alice.sync()).revision
        assert agent.trouble == "no buffer space for peers"
        assert (await rig.ask("status"))["trouble"] == "no buffer space for peers"
        assert revision not in rig.line.acknowledged()
        assert not await in_place(rig, alice)
        mend()
        await rig.until_peer(alice.wireguard.public_key)
        await wait_for(lambda: revision in rig.line.acknowledged())
        await wait_for(lambda: agent.trouble is None)
        assert await in_place(rig, alice)


async def test_an_apply_under_way_is_not_acknowledged(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    gate = Gate()
    async with rig.running():
        await rig.until_broker(True)
        rig.host.before_apply = lambda action: gate()
        alice = await connected_device(horizon)
        revision = (await alice.sync()).revision
        await asyncio.to_thread(gate.reached.wait, 10)
        assert revision not in rig.line.acknowledged()
        assert not await in_place(rig, alice)
        gate.open.set()
        await wait_for(lambda: revision in rig.line.acknowledged())
        assert rig.host.peer("hz0", alice.wireguard.public_key)


async def test_single_peers_that_fail_are_mended_by_looking_at_everything(
    stage: Stage, horizon: Harness
) -> None:
    """The interface went away behind the agent's back: the next change brings it back."""
    rig = await stage.server()
    async with rig.running():
        await rig.until_broker(True)
        alice = await connected_device(horizon)
        await rig.until_peer(alice.wireguard.public_key)
        del rig.host.links["hz0"]
        bob = await connected_device(horizon, "bob")
        await rig.until_peer(bob.wireguard.public_key)
        assert rig.host.peer("hz0", alice.wireguard.public_key)
        assert rig.link.up


async def test_the_host_is_looked_at_each_tick(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "TICK", 0.02)
    rig = await stage.server()
    async with rig.running():
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
        del rig.host.links["hz0"]
        await rig.until_peer(alice.wireguard.public_key)
        horizon.advance(days=8)
        await rig.until_peer(alice.wireguard.public_key, there=False)


async def test_a_long_journal_is_made_short_again(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "COMPACT_AFTER", 3)
    monkeypatch.setattr(agent_module, "TICK", 0.01)
    rig = await stage.server()
    longest = 0
    async with rig.running():
        await rig.until_broker(True)
        for number in range(6):
            device = await connected_device(horizon, f"user{number}")
            await rig.until_peer(device.wireguard.public_key)
            longest = max(longest, rig.store.netmap_path.read_text().count("\n"))
        await wait_for(lambda: rig.store.netmap_path.read_text().count("\n") <= 4)
    assert longest > 1
    assert len(rig.link.peers) == 6
    again = rig.start_over()
    assert again.netmap is not None
    assert len(again.netmap.peers) == 6


async def test_a_disk_that_is_full_is_trouble_and_keeps_no_peer_out(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await stage.server()
    async with rig.running() as agent:
        await rig.until_known()

        def full(signed: Signed, snapshot: bool) -> None:
            raise StoreError("'netmap.jsonl' cannot be written: No space left on device")

        monkeypatch.setattr(agent.store, "save_update", full)
        alice = await connected_device(horizon)
        await rig.until_peer(alice.wireguard.public_key)
        await wait_for(lambda: "No space left on device" in str(agent.trouble))
        await wait_for(lambda: agent.netmap is not None and agent.netmap.revision in rig.line.acknowledged())


# --- starting, and the host's refusals ----------------------------------------------------------


async def test_a_taken_name_at_the_start_is_an_error_and_touches_nothing(stage: Stage) -> None:
    rig = await stage.server()
    async with rig.running():
        await wait_for(lambda: "hz0" in rig.host.links)
    taken = FakeLink(kind="bridge", addresses=[ip_interface("192.0.2.9/24")])
    rig.host.links = {"hz0": taken}
    before = len(rig.host.applied)
    agent = rig.start_over()
    with pytest.raises(NameTaken, match=r"'hz0' exists and is not ours .*--interface OTHER"):
        await agent.run(LocalSocket(rig.socket))
    assert rig.host.links == {"hz0": taken}
    assert rig.host.applied[before:] == []
    assert not rig.socket.exists()
    assert rig.host.closed == 2


async def test_a_name_taken_before_the_first_netmap_is_trouble_that_ends(stage: Stage) -> None:
    rig = await stage.server()
    rig.host.links["hz0"] = FakeLink(kind="dummy")
    async with rig.running() as agent:
        await wait_for(lambda: agent.trouble is not None)
        assert "'hz0' exists and is not ours (kind 'dummy')" in str(agent.trouble)
        assert rig.host.applied == []
        assert rig.line.acknowledged() == []
        del rig.host.links["hz0"]
        await wait_for(lambda: bool(rig.line.acknowledged()))
        assert rig.link.up


async def test_a_host_that_cannot_be_made_ends_the_agent(stage: Stage) -> None:
    rig = await stage.server()
    agent = rig.start_over()

    def broken() -> FakeHost:
        raise DataplaneError("no netlink here")

    agent._make_host = broken
    with pytest.raises(DataplaneError, match="no netlink here"):
        await agent.run(LocalSocket(rig.socket))


async def test_a_second_agent_is_refused_and_the_first_goes_on(stage: Stage) -> None:
    rig = await stage.server()
    async with rig.running():
        await rig.until_broker(True)
        client = rig.horizon.client(BrokerClient, rig.machine.signer)
        second = ServerAgent(rig.store, rig.state, lambda: rig.host, client)
        with pytest.raises(DataplaneError, match="an agent runs already"):
            await second.run(LocalSocket(rig.socket))
        assert (await rig.ask("status"))["up"]


async def test_status_says_what_is_observed(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running() as agent:
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
        rig.host.handshake("hz0", alice.wireguard.public_key, horizon.clock() - 10)
        status = await rig.ask("status")
        (peer,) = status.pop("peers")
        until = agent.netmap.peers[alice.id].authorized_until if agent.netmap else None
        assert status == {
            "role": "server",
            "id": rig.machine.id,
            "name": "fra1",
            "interface": "hz0",
            "up": True,
            "backend": "kernel",
            "public_key": str(rig.key),
            "listen_port": 51820,
            "addresses": sorted(["10.64.0.1/20", _ipv6(horizon)]),
            "broker": {
                "url": "https://broker.example:8443",
                "reachable": True,
                "since": horizon.clock(),
                "error": None,
            },
            "revision": agent.netmap.revision if agent.netmap else None,
            "revoked": None,
            "trouble": None,
        }
        assert peer == {
            "id": alice.id,
            "name": "laptop",
            "public_key": str(alice.wireguard.public_key),
            "endpoint": None,
            "addresses": ["10.64.0.2", str(horizon.broker.pools.ipv6[2])],
            "allowed_ips": ["10.64.0.2/32", f"{horizon.broker.pools.ipv6[2]}/128"],
            "connected": True,
            "latest_handshake": horizon.clock() - 10,
            "received": 1000,
            "sent": 500,
            "authorized_until": until.isoformat() if until else None,
            "connection_id": agent.netmap.peers[alice.id].connection_id if agent.netmap else None,
        }
        horizon.advance(seconds=171)
        (peer,) = (await rig.ask("status"))["peers"]
        assert not peer["connected"]


async def test_nothing_secret_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    rig = await stage.server()
    async with rig.running():
        await connected_device_when_up(rig)
        status = str(await rig.ask("status"))
    assert "wg set hz0" in caplog.text
    for secret in (
        rig.state.private_key.reveal(),
        rig.state.identity.reveal(),
        rig.state.verification_secret,
    ):
        assert secret not in caplog.text
        assert secret not in status
