"""Connecting: from intent to end, and the answer that waits for the server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from controlplane import connections
from controlplane.errors import Revoked
from controlplane.models import Device as DeviceRow
from controlplane.protocol.messages import (
    ConnectionStatus,
    ConnectionType,
    ConnectRequest,
)
from tests.harness.broker import Harness

# --- intent, connection, end --------------------------------------------------------------------


async def test_a_connection_is_an_intent_until_a_handshake(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device("alice", "laptop")
    answer = await alice.connect("fra1", ConnectionType.lan)
    made = answer.connection
    assert (made.status, made.connection_type) == (ConnectionStatus.intent, ConnectionType.lan)
    assert (made.server_name, made.device_name, made.user_name) == ("fra1", "laptop", "alice")
    assert [str(one) for one in made.addresses] == ["10.64.0.2", f"{horizon.broker.pools.ipv6[2]}"]
    await fra1.beat(handshake_of=alice, at=datetime.fromtimestamp(horizon.clock(), UTC))
    (listed,) = await alice.client.connections()
    assert listed == made.model_copy(update={"status": ConnectionStatus.active})
    assert (await alice.client.servers())[0].active_connections == 1


async def test_a_server_is_found_by_its_id_too(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    assert (await alice.connect(fra1.id)).connection.server_name == "fra1"


async def test_asking_twice_gives_the_same_connection(horizon: Harness) -> None:
    await horizon.server("fra1")
    alice = await horizon.device()
    first, again = await alice.connect("fra1"), await alice.connect("fra1")
    assert first.connection == again.connection
    assert len(await alice.client.connections(include_ended=True)) == 1


async def test_a_device_may_be_at_several_servers(horizon: Harness) -> None:
    alice = await horizon.device()
    for name in ("fra1", "ams1"):
        await horizon.server(name)
        await alice.connect(name)
    netmap = await alice.sync()
    assert {peer.name for peer in netmap.peers.values()} == {"fra1", "ams1"}
    assert len(netmap.interface.addresses) == 4


async def test_a_disconnected_device_is_off_the_server(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    made = (await alice.connect("fra1")).connection
    await fra1.sync()
    ended = await alice.client.disconnect(made.connection_id)
    assert ended.status is ConnectionStatus.ended
    assert ended.ended_at is not None
    assert ended.ended_at.timestamp() == horizon.clock()
    assert (await fra1.sync()).peers == {}
    assert (await alice.sync()).peers == {}
    assert await alice.client.connections() == ()
    assert [one.connection_id for one in await alice.client.connections(True)] == [made.connection_id]


async def test_disconnecting_twice_changes_nothing_the_second_time(horizon: Harness) -> None:
    await horizon.server("fra1")
    alice = await horizon.device()
    made = (await alice.connect("fra1")).connection
    first = await alice.client.disconnect(made.connection_id)
    before = horizon.dump()
    horizon.advance(minutes=1)
    assert await alice.client.disconnect(made.connection_id) == first
    assert horizon.dump() == before


async def test_an_ended_connection_does_not_end_the_next_one(horizon: Harness) -> None:
    await horizon.server("fra1")
    alice = await horizon.device()
    old = (await alice.connect("fra1")).connection
    await alice.client.disconnect(old.connection_id)
    new = (await alice.connect("fra1")).connection
    assert new.connection_id != old.connection_id
    await alice.client.disconnect(old.connection_id)
    assert [one.connection_id for one in await alice.client.connections()] == [new.connection_id]


# --- refusals -----------------------------------------------------------------------------------


async def test_an_unknown_server_is_quoted_with_those_known(horizon: Harness) -> None:
    alice = await horizon.device()
    problem = await horizon.refuses(alice.connect("par1"))
    assert (problem.status, problem.code) == (404, "not-found")
    assert problem.detail == "no server 'par1': none is registered yet"
    for name in ("fra1", "ams1"):
        await horizon.server(name)
    assert (await horizon.refuses(alice.connect("par1"))).detail == "no server 'par1': known are ams1, fra1"


async def test_an_offline_server_is_refused_with_when_it_was_heard(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1", online=False), await horizon.device()
    problem = await horizon.refuses(alice.connect("fra1"))
    assert (problem.status, problem.code) == (409, "server-offline")
    assert problem.detail == "server 'fra1' is offline (never up): choose another, or try again"
    await fra1.beat()
    horizon.advance(seconds=90)
    problem = await horizon.refuses(alice.connect("fra1"))
    assert "'fra1' is offline (last heard of at 08:00:00 UTC)" in problem.detail


async def test_a_revoked_server_is_refused(horizon: Harness) -> None:
    admin, alice = await horizon.admin(), await horizon.device()
    await horizon.server("fra1")
    await admin.revoke_server("fra1")
    problem = await horizon.refuses(alice.connect("fra1"))
    assert (problem.status, problem.code) == (409, "server-revoked")
    assert problem.detail == "server 'fra1' was revoked: choose another"


async def test_an_expired_personal_key_connects_nobody(horizon: Harness) -> None:
    fra1 = await horizon.server("fra1")
    alice = await horizon.device(key=horizon.personal_key("alice", expires_in=3600))
    horizon.advance(hours=1)
    await fra1.beat()
    problem = await horizon.refuses(alice.connect("fra1"))
    assert (problem.status, problem.code) == (403, "expired-key")


async def test_somebody_elses_connection_is_not_found(horizon: Harness) -> None:
    await horizon.server("fra1")
    alice, bob = await horizon.device("alice"), await horizon.device("bob")
    made = (await alice.connect("fra1")).connection
    problem = await horizon.refuses(bob.client.disconnect(made.connection_id))
    unknown = await horizon.refuses(bob.client.disconnect("con_000000000000"))
    assert (problem.status, problem.code) == (unknown.status, unknown.code) == (404, "not-found")
    assert problem.detail == unknown.detail.replace("con_000000000000", made.connection_id)
    assert await bob.client.connections(include_ended=True) == ()


async def test_an_administrator_sees_and_ends_every_connection(horizon: Harness) -> None:
    admin = await horizon.admin()
    await horizon.server("fra1")
    for user in ("alice", "bob"):
        await (await horizon.device(user)).connect("fra1")
    listed = await admin.connections()
    assert {one.user_name for one in listed} == {"alice", "bob"}
    await admin.disconnect(listed[0].connection_id)
    assert await admin.connections() == listed[1:]


async def test_a_device_revoked_meanwhile_gets_no_peer(horizon: Harness) -> None:
    """Its signature was verified, then an administrator was faster."""
    await horizon.server("fra1")
    alice = await horizon.device("alice", "laptop")
    with horizon.broker.database.write() as session:
        session.get_one(DeviceRow, alice.id).status = "revoked"
    before = horizon.dump()

    def connect() -> None:
        with horizon.broker.database.write() as session:
            device = session.get_one(DeviceRow, alice.id)
            connections.connect(horizon.broker, session, device, ConnectRequest(server="fra1"), "192.0.2.1")

    with pytest.raises(Revoked, match="'laptop' was revoked"):
        connect()
    assert horizon.dump() == before


# --- until the server has it --------------------------------------------------------------------


async def test_connect_waits_for_the_servers_acknowledgement(horizon: Harness) -> None:
    """And is answered by it: the bound of 50 s is never reached."""
    horizon.configure(connect_wait=50)
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    held = (await fra1.sync()).revision
    async with horizon.watching(fra1, held) as watch:
        connecting = asyncio.gather(alice.connect("fra1"))
    update = watch.result()
    assert update is not None
    assert [peer.peer_id for peer in update.peers] == [alice.id]
    assert not connecting.done()
    await fra1.update(update.revision)
    async with asyncio.timeout(5):
        (answer,) = await connecting
    assert answer.in_place
    peer = alice.read(answer.netmap).peers[0]
    assert (peer.name, peer.public_key) == ("fra1", fra1.wireguard.public_key)


async def test_the_wait_is_bounded_and_the_answer_says_so(horizon: Harness) -> None:
    horizon.configure(connect_wait=0.05)
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    await fra1.sync()
    answer = await alice.connect("fra1")
    assert not answer.in_place
    assert alice.read(answer.netmap).peers[0].name == "fra1"
    await fra1.sync()


async def test_an_acknowledgement_of_a_revision_never_given_is_none(horizon: Harness) -> None:
    """A server that holds more than a broker restored from a backup ever gave out."""
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    await fra1.update(since=1_000_000)
    assert not (await alice.connect("fra1")).in_place


async def test_the_answer_carries_what_follows_the_revision_held(horizon: Harness) -> None:
    await horizon.server("fra1")
    await horizon.server("ams1")
    alice = await horizon.device()
    await alice.connect("fra1")
    held = (await alice.sync()).revision
    change = alice.read((await alice.connect("ams1", since=held)).netmap)
    assert change.since == held
    assert [peer.name for peer in change.peers] == ["ams1"]


async def test_a_list_of_connections_is_one_query(horizon: Harness) -> None:
    admin = await horizon.admin()
    counts = []
    await horizon.server("fra1")
    for number in (1, 8):
        for n in range(number):
            await (await horizon.device(f"user{number}.{n}")).connect("fra1")
        with horizon.selects() as selects:
            listed = await admin.connections()
        counts.append(len(selects))
    assert len(listed) == 9
    assert all(one.addresses and one.server_name == "fra1" for one in listed)
    assert counts[0] == counts[1]
