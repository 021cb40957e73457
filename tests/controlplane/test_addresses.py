"""Leases: addresses that are kept, rest and are given again, and how long a device may come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from controlplane import connections
from controlplane.errors import BrokerError
from controlplane.models import Device as DeviceRow
from controlplane.protocol.messages import (
    ConnectRequest,
)
from tests.harness.broker import Harness, in_process
from tests.harness.machines import Device


@pytest.fixture
async def tiny(tmp_path: Path) -> AsyncIterator[Harness]:
    """Room for five devices: hosts 2 to 6 of a /29."""
    async with in_process(tmp_path / "tiny", ipv4_pool=IPv4Network("10.9.0.0/28"), ipv4_prefix=29) as made:
        yield made


async def address(device: Device, server: str = "fra1") -> IPv4Address:
    """The IPv4 address that a device gets by connecting."""
    ipv4 = (await device.connect(server)).connection.addresses[0]
    assert isinstance(ipv4, IPv4Address)
    return ipv4


# --- addresses ----------------------------------------------------------------------------------


async def test_parallel_connects_get_different_addresses(horizon: Harness) -> None:
    await horizon.server("fra1")
    key = horizon.personal_key()
    devices = [await horizon.device(name=f"d{i}", key=key) for i in range(12)]
    answers = await asyncio.gather(*(device.connect("fra1") for device in devices))
    given = [one.connection.addresses for one in answers]
    assert {int(ipv4) & 0xFFF for ipv4, _ in given} == set(range(2, 14))
    assert all(int(ipv4) & 0xFFF == int(ipv6) & 0xFFFF for ipv4, ipv6 in given)


async def test_parallel_connects_to_a_tiny_server_fill_it_exactly(tiny: Harness) -> None:
    """Five addresses, eight threads on the real file: five get in, each at its own address."""
    fra1, key = await tiny.server("fra1"), tiny.personal_key()
    devices = [await tiny.device(name=f"d{i}", key=key) for i in range(8)]

    def connect(device: Device) -> str:
        try:
            with tiny.broker.database.write() as session:
                row = session.get_one(DeviceRow, device.id)
                opened = connections.connect(
                    tiny.broker, session, row, ConnectRequest(server=fra1.id), "192.0.2.1"
                )
                return str(opened.connection.addresses[0])
        except BrokerError as error:
            return error.code

    with ThreadPoolExecutor(8) as threads:
        answers = await asyncio.to_thread(lambda: list(threads.map(connect, devices)))
    assert sorted(answers) == [f"10.9.0.{host}" for host in range(2, 7)] + ["addresses-exhausted"] * 3
    assert len((await fra1.sync()).peers) == 5


async def test_both_ends_of_a_subnet(tiny: Harness) -> None:
    await tiny.server("fra1")
    await tiny.server("ams1")
    key = tiny.personal_key()
    devices = [await tiny.device(name=f"d{i}", key=key) for i in range(6)]
    given = [str(await address(device, "ams1")) for device in devices[:5]]
    assert given == ["10.9.0.10", "10.9.0.11", "10.9.0.12", "10.9.0.13", "10.9.0.14"]
    problem = await tiny.refuses(devices[5].connect("ams1"))
    assert (problem.status, problem.code) == (409, "addresses-exhausted")
    assert "server 'ams1' has no free address left in 10.9.0.8/29 (5 devices)" in problem.detail
    assert "revoke devices that are gone, or connect to another server" in problem.detail
    assert str(await address(devices[5], "fra1")) == "10.9.0.2"


async def test_an_address_is_kept_while_away(horizon: Harness) -> None:
    fra1, alice, bob = (
        await horizon.server("fra1"),
        await horizon.device("alice"),
        await horizon.device("bob"),
    )
    made = (await alice.connect("fra1")).connection
    await alice.client.disconnect(made.connection_id)
    horizon.advance(days=30)
    await fra1.beat()
    assert str(await address(bob)) == "10.64.0.3"
    assert (await alice.connect("fra1")).connection.addresses == made.addresses


async def test_an_address_rests_before_another_device_gets_it(tiny: Harness) -> None:
    fra1, key = await tiny.server("fra1"), tiny.personal_key()
    devices = [await tiny.device(name=f"d{i}", key=key) for i in range(6)]
    made = [(await device.connect("fra1")).connection for device in devices[:5]]
    for number in (3, 1):
        await devices[number].client.disconnect(made[number].connection_id)
        tiny.advance(minutes=10)
    tiny.advance(minutes=39, seconds=59)
    await fra1.beat()
    assert (await tiny.refuses(devices[5].connect("fra1"))).code == "addresses-exhausted"
    tiny.advance(seconds=1)
    assert await address(devices[5]) == made[3].addresses[0], "the one that rested longest"
    assert (await devices[1].connect("fra1")).connection.addresses == made[1].addresses
    assert (await tiny.refuses(devices[3].connect("fra1"))).code == "addresses-exhausted"


async def test_a_forgotten_removal_gives_snapshots_to_who_missed_it(tiny: Harness) -> None:
    """Server and first device slept through the removal; its row is gone, so only a snapshot is true."""
    fra1, key = await tiny.server("fra1"), tiny.personal_key()
    devices = [await tiny.device(name=f"d{i}", key=key) for i in range(6)]
    made = [(await device.connect("fra1")).connection for device in devices[:5]]
    slept, (first, *_, last) = (await fra1.sync()).revision, devices
    held = (await first.sync()).revision
    await first.client.disconnect(made[0].connection_id)
    removed = (await first.sync()).revision
    tiny.advance(hours=1)
    await fra1.beat()
    assert await address(last) == made[0].addresses[0]

    update = await fra1.update(slept)
    assert update is not None
    assert update.since is None
    assert {peer.peer_id for peer in update.peers} == {device.id for device in devices[1:]}
    snapshot = await first.update(held)
    assert snapshot is not None
    assert (snapshot.since, snapshot.peers) == (None, ())
    assert await first.update(removed) is None, "who saw the removal needs nothing"
    fra1.netmap = None
    await fra1.sync()
    await last.client.disconnect((await last.client.connections())[0].connection_id)
    change = await fra1.update(fra1.revision)
    assert change is not None
    assert (change.since, change.removed) == (fra1.revision, (last.id,))


# --- authorisation ------------------------------------------------------------------------------


async def until(device: Device) -> timedelta:
    """How long the one authorisation of a device lasts from the netmap's date on."""
    update = await device.update()
    assert update is not None
    peer = update.peers[0]
    assert peer.authorized_until is not None
    return peer.authorized_until - update.issued_at


async def test_an_authorisation_is_renewed_after_half_its_time(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    await alice.connect("fra1")
    assert await until(alice) == timedelta(days=7)
    horizon.advance(days=3, hours=12)
    assert await until(alice) == timedelta(days=3, hours=12), "half is left: not yet"
    slept = (await fra1.sync()).revision
    horizon.advance(seconds=1)
    assert await until(alice) == timedelta(days=7)
    change = await fra1.update(slept)
    assert change is not None
    assert change.since == slept
    assert change.peers[0].authorized_until == change.issued_at + timedelta(days=7)


async def test_a_renewal_is_told_to_the_servers_watch(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    await alice.connect("fra1")
    held = (await alice.sync()).revision
    horizon.advance(days=4)
    async with horizon.watching(fra1, (await fra1.sync()).revision) as watch:
        assert await alice.update(held) is not None
    assert watch.result() is not None


async def test_an_authorisation_ends_with_the_personal_key(horizon: Harness) -> None:
    await horizon.server("fra1")
    alice = await horizon.device(key=horizon.personal_key("alice", expires_in=9 * 86_400))
    await alice.connect("fra1")
    assert await until(alice) == timedelta(days=7)
    horizon.advance(days=5)
    assert await until(alice) == timedelta(days=4)
    before = horizon.dump()
    horizon.advance(days=3)
    assert await until(alice) == timedelta(days=1)
    assert horizon.dump() == before, "asking again would prolong nothing, and writes nothing"
    horizon.advance(days=2)
    assert await until(alice) == -timedelta(days=1)


async def test_a_server_asking_renews_nobody(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    await alice.connect("fra1")
    await fra1.sync()
    horizon.advance(days=6)
    before = horizon.dump()
    await fra1.update(fra1.revision)
    assert horizon.dump() == before
