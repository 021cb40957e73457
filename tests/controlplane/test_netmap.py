"""Netmaps: a snapshot, then what changed, signed by the broker and told at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import pytest
from sqlalchemy import event

from controlplane.models import Connection, Peer
from controlplane.models import Device as DeviceRow
from controlplane.protocol.envelope import unseal
from controlplane.protocol.errors import EnvelopeError
from controlplane.protocol.keys import IdentityKey, PrivateKey
from controlplane.protocol.messages import ServerChange
from controlplane.protocol.netmap import NETMAP_CONTEXT, NetMapUpdate
from tests.harness.broker import Harness
from tests.harness.machines import Device, Machine, Server


async def updated(machine: Machine, since: int | None = None) -> NetMapUpdate:
    update = await machine.update(since)
    assert update is not None
    return update


# --- what is told -------------------------------------------------------------------------------


async def test_a_new_server_has_an_interface_and_no_peers(horizon: Harness) -> None:
    fra1 = await horizon.server("fra1", listen_port=4500)
    snapshot = await updated(fra1)
    assert (snapshot.subject, snapshot.since, snapshot.peers) == (fra1.id, None, ())
    assert snapshot.issued_at.timestamp() == horizon.clock()
    interface = snapshot.interface
    assert interface is not None
    assert [str(one) for one in interface.addresses] == ["10.64.0.1/20", f"{horizon.broker.pools.ipv6[1]}/64"]
    assert (interface.listen_port, interface.mtu, interface.client_to_client) == (4500, 1380, True)


async def test_a_new_device_has_neither(horizon: Harness) -> None:
    snapshot = await updated(await horizon.device())
    assert snapshot.interface is not None
    assert (snapshot.peers, snapshot.interface.addresses) == ((), ())


async def test_server_and_device_are_told_of_each_other(horizon: Harness) -> None:
    fra1 = await horizon.server("fra1", endpoint_host="2001:db8::7")
    alice = await horizon.device("alice", "laptop")
    made = (await alice.connect("fra1")).connection

    (peer,) = (await updated(fra1)).peers
    assert (peer.peer_id, peer.name) == (alice.id, "laptop")
    assert peer.public_key == alice.wireguard.public_key
    assert peer.addresses == made.addresses
    assert peer.allowed_ips == tuple(ip_network(one) for one in made.addresses), "its own addresses only"
    assert (peer.endpoint, peer.persistent_keepalive, peer.accept_from) == (None, 0, ())

    (peer,) = (await updated(alice)).peers
    assert (peer.peer_id, peer.name) == (fra1.id, "fra1")
    assert peer.public_key == fra1.wireguard.public_key
    assert str(peer.endpoint) == "[2001:db8::7]:51820"
    assert peer.persistent_keepalive == 25
    assert peer.connection_id == made.connection_id
    assert all(one in network for one, network in zip(made.addresses, peer.allowed_ips, strict=True))
    assert all(one in network for one, network in zip(peer.addresses, peer.allowed_ips, strict=True))


async def test_nobody_is_told_of_strangers(horizon: Harness) -> None:
    fra1, ams1 = await horizon.server("fra1"), await horizon.server("ams1")
    alice, bob = await horizon.device("alice"), await horizon.device("bob")
    await alice.connect("fra1")
    await bob.connect("ams1")
    told = {
        machine.id: {peer.peer_id for peer in (await updated(machine)).peers}
        for machine in (fra1, ams1, alice, bob)
    }
    assert told == {fra1.id: {alice.id}, ams1.id: {bob.id}, alice.id: {fra1.id}, bob.id: {ams1.id}}


async def test_a_netmap_is_signed_by_the_broker(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    signed = (await alice.connect("fra1")).netmap
    assert signed.signed_by == horizon.broker.signing_key.public_key == fra1.broker_key
    assert alice.read(signed).subject == alice.id
    with pytest.raises(EnvelopeError, match="this machine trusts the broker"):
        unseal(signed, NETMAP_CONTEXT, NetMapUpdate, trusted=IdentityKey.generate().public_key)
    forged = signed.model_copy(update={"payload": signed.payload.replace("fra1", "evil")})
    with pytest.raises(EnvelopeError, match="changed on the way"):
        alice.read(forged)


async def test_a_netmap_holds_no_secret(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    answer = await alice.connect("fra1")
    signed = await fra1.client.netmap()
    assert signed is not None
    secrets = [fra1.verification_secret, horizon.broker.signing_key.reveal()]
    secrets += [key.reveal() for machine in (fra1, alice) for key in (machine.identity, machine.wireguard)]
    for secret in secrets:
        assert secret not in answer.model_dump_json() + signed.model_dump_json()


# --- changes ------------------------------------------------------------------------------------


def crowd(horizon: Harness, server: Server, count: int) -> None:
    """`count` connected devices of one user, straight into the tables."""
    key, now = horizon.personal_key("crowd"), datetime.fromtimestamp(horizon.clock(), UTC)
    subnet, rows = horizon.broker.pools.subnet(0), []
    with horizon.broker.database.write() as session:
        for number in range(count):
            name, (ipv4, ipv6) = f"crowd{number}", subnet.addresses(1000 + number)
            device = DeviceRow(
                device_id=f"dev_{name}",
                key_id=key.key_id,
                hardware_fingerprint="",
                device_name=name,
                platform="linux",
                first_seen=now,
                last_seen=now,
                public_key=str(PrivateKey.generate().public_key),
                revision=0,
            )
            connection = Connection(
                connection_id=f"con_{name}",
                server_id=server.id,
                device_id=device.device_id,
                key_id=key.key_id,
                user_name="crowd",
                connection_start=now,
                connection_type="vpn",
                client_ip="",
            )
            peer = Peer(
                server_id=server.id,
                device_id=device.device_id,
                connection_id=connection.connection_id,
                host=1000 + number,
                ipv4=str(ipv4),
                ipv6=str(ipv6),
                authorized_until=now,
                server_revision=0,
                device_revision=0,
            )
            rows.append((device, connection, peer))
        for kind in zip(*rows, strict=True):
            session.add_all(kind)
            session.flush()


@contextmanager
def loaded() -> Iterator[list[Any]]:
    """Collects every row of peers and devices that is read from the database."""
    rows: list[Any] = []

    def load(target: Any, context: Any) -> None:
        rows.append(target)

    for model in (Peer, DeviceRow):
        event.listen(model, "load", load)
    try:
        yield rows
    finally:
        for model in (Peer, DeviceRow):
            event.remove(model, "load", load)


async def test_a_change_among_five_hundred_peers_carries_and_reads_only_itself(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    crowd(horizon, fra1, 500)
    held = (await fra1.sync()).revision
    assert len(fra1.netmap.peers if fra1.netmap else ()) == 500
    made = (await alice.connect("fra1")).connection
    with loaded() as rows:
        change = await updated(fra1, held)
    assert (change.since, [peer.peer_id for peer in change.peers], change.removed) == (held, [alice.id], ())
    assert len(rows) <= 2, "one peer and its device"

    held = change.revision
    with loaded() as rows:
        await alice.client.disconnect(made.connection_id)
        change = await updated(fra1, held)
    assert (change.peers, change.removed) == ((), (alice.id,))
    assert len(rows) < 12


async def test_a_change_counts_from_each_revision(horizon: Harness) -> None:
    fra1 = await horizon.server("fra1")
    devices = [await horizon.device(name=name) for name in ("laptop", "phone")]
    revisions = [(await updated(fra1)).revision]
    for device in devices:
        await device.connect("fra1")
        revisions.append((await updated(fra1)).revision)
    assert revisions == sorted(set(revisions))
    for number, revision in enumerate(revisions[:-1]):
        change = await updated(fra1, revision)
        assert {peer.peer_id for peer in change.peers} == {device.id for device in devices[number:]}
    assert await fra1.update(revisions[-1]) is None


async def test_coming_back_before_anyone_looked_is_one_change(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    held = (await fra1.sync()).revision
    made = (await alice.connect("fra1")).connection
    await alice.client.disconnect(made.connection_id)
    await alice.connect("fra1")
    change = await updated(fra1, held)
    assert ([peer.peer_id for peer in change.peers], change.removed) == ([alice.id], ())


async def test_applying_changes_ends_where_a_snapshot_begins(horizon: Harness) -> None:
    """The law of list and watch, over a story of everything that can happen."""
    fra1, admin = await horizon.server("fra1"), await horizon.admin()
    devices = [await horizon.device(name=f"d{number}") for number in range(4)]
    followers: list[Machine] = [fra1, *devices]

    async def agree() -> None:
        for machine in followers:
            netmap = await machine.sync()
            snapshot = await updated(machine)
            assert netmap.revision == snapshot.revision
            assert netmap.interface == snapshot.interface
            assert netmap.peers == {peer.peer_id: peer for peer in snapshot.peers}

    await agree()
    for device in devices:
        await device.connect("fra1")
    await agree()
    await devices[0].client.disconnect((await devices[0].client.connections())[0].connection_id)
    await admin.change_server("fra1", ServerChange(client_to_client=False, endpoint_host="fra1.example"))
    await agree()
    await devices[0].connect("fra1")
    await admin.revoke_device(devices[1].id)
    followers.remove(devices[1])
    await agree()


@pytest.mark.parametrize("ahead", [1, 2**63])
async def test_a_revision_of_the_future_gets_a_snapshot(horizon: Harness, ahead: int) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    await alice.connect("fra1")
    for machine in (fra1, alice):
        netmap = await machine.sync()
        update = await updated(machine, netmap.revision + ahead)
        assert update.since is None
        assert len(update.peers) == 1


# --- watching -----------------------------------------------------------------------------------


async def test_a_watch_without_change_ends_empty_in_its_time(horizon: Harness) -> None:
    alice = await horizon.device()
    held = (await alice.sync()).revision
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await alice.update(held, wait=0.1) is None
    assert 0.1 <= loop.time() - began < 5
    assert await alice.update(held, wait=0) is None
    assert horizon.broker.notifier.watchers == 0


async def test_a_connect_wakes_server_and_device(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    held = (await fra1.sync()).revision, (await alice.sync()).revision
    async with horizon.watching(fra1, held[0]) as there, horizon.watching(alice, held[1]) as here:
        await alice.connect("fra1")
    for task, held_before, peer in ((there, held[0], alice), (here, held[1], fra1)):
        update = task.result()
        assert update is not None
        assert (update.since, [one.peer_id for one in update.peers]) == (held_before, [peer.id])


async def test_a_disconnect_wakes_the_server(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    made = (await alice.connect("fra1")).connection
    async with horizon.watching(fra1, (await fra1.sync()).revision) as watch:
        await alice.client.disconnect(made.connection_id)
    update = watch.result()
    assert update is not None
    assert update.removed == (alice.id,)


async def test_a_change_elsewhere_wakes_nobody(horizon: Harness) -> None:
    fra1, ams1, alice = await horizon.server("fra1"), await horizon.server("ams1"), await horizon.device()
    held = (await ams1.sync()).revision
    idle = horizon.idle[ams1.id]
    async with horizon.watching(ams1, held) as watch:
        await alice.connect("fra1")
        await fra1.sync()
        assert not watch.done()
        await alice.connect("ams1")
    update = watch.result()
    assert update is not None
    assert [peer.peer_id for peer in update.peers] == [alice.id]
    assert horizon.idle[ams1.id] == idle + 1, "asked the database only when its own netmap changed"


async def test_a_refused_change_wakes_nobody(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    async with horizon.watching(fra1, (await fra1.sync()).revision) as watch:
        await horizon.refuses(alice.connect("par1"))
        assert not watch.done()
        await alice.connect("fra1")
    assert watch.result() is not None


# --- from client to client ----------------------------------------------------------------------


async def test_the_client_to_client_switch_is_told_to_the_server_and_all_its_devices(
    horizon: Harness,
) -> None:
    admin, fra1 = await horizon.admin(), await horizon.server("fra1")
    alice, bob, carol = [await horizon.device(user) for user in ("alice", "bob", "carol")]
    for device in (alice, bob):
        await device.connect("fra1")
    revisions = {machine.id: (await machine.sync()).revision for machine in (fra1, alice, bob, carol)}
    async with (
        horizon.watching(fra1, revisions[fra1.id]) as server_watch,
        horizon.watching(alice, revisions[alice.id]) as alices,
        horizon.watching(bob, revisions[bob.id]) as bobs,
    ):
        info = await admin.change_server("fra1", ServerChange(client_to_client=False))
    assert not info.client_to_client
    told = server_watch.result()
    assert told is not None
    assert told.interface is not None
    assert not told.interface.client_to_client
    for watch in (alices, bobs):
        told = watch.result()
        assert told is not None
        assert [(peer.peer_id, peer.accept_from) for peer in told.peers] == [(fra1.id, ())]
    assert await carol.update(revisions[carol.id]) is None

    await admin.change_server("fra1", ServerChange(client_to_client=True))
    (peer,) = (await updated(alice)).peers
    assert peer.accept_from == peer.allowed_ips


async def test_a_device_that_left_is_not_told(horizon: Harness) -> None:
    admin, fra1, alice = await horizon.admin(), await horizon.server("fra1"), await horizon.device()
    made = (await alice.connect("fra1")).connection
    await alice.client.disconnect(made.connection_id)
    held = (await alice.sync()).revision
    await admin.change_server("fra1", ServerChange(endpoint_host="fra1.example"))
    assert await alice.update(held) is None
    assert (await updated(fra1)).peers == ()


async def test_a_new_endpoint_reaches_the_devices(horizon: Harness) -> None:
    admin, _, alice = await horizon.admin(), await horizon.server("fra1"), await horizon.device()
    await alice.connect("fra1")
    await admin.change_server("fra1", ServerChange(endpoint_host="fra1.example"))
    assert isinstance(alice, Device)
    (peer,) = (await updated(alice)).peers
    assert str(peer.endpoint) == "fra1.example:51820"
