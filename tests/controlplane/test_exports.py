"""Exports: peers for plain WireGuard, which last and have no agent."""

from __future__ import annotations

import asyncio

from sqlmodel import select

from controlplane.models import Device as DeviceRow
from controlplane.models import Peer
from controlplane.protocol.keys import PrivateKey
from controlplane.protocol.messages import (
    ExportRequest,
)
from tests.harness.broker import Harness

# --- exports ------------------------------------------------------------------------------------


def wanted(user: str = "alice", server: str = "fra1", key: PrivateKey | None = None) -> ExportRequest:
    public_key = (key or PrivateKey.generate()).public_key
    return ExportRequest(user_name=user, server=server, device_name="phone", public_key=public_key)


async def test_an_exported_peer_lasts_and_needs_no_agent(horizon: Harness) -> None:
    admin, fra1 = await horizon.admin(), await horizon.server("fra1", endpoint_host="fra1.example")
    key = PrivateKey.generate()
    horizon.personal_key("alice")
    answer = await admin.export(wanted(key=key))
    assert str(answer.addresses[0]) == "10.64.0.2/20"
    assert (answer.endpoint, answer.mtu, answer.persistent_keepalive) == ("fra1.example:51820", 1380, 25)
    assert answer.server_public_key == fra1.wireguard.public_key
    assert str(answer.allowed_ips[0]) == "10.64.0.0/20"
    assert str(answer.server_addresses[0]) == "10.64.0.1"
    assert answer.accept_from == answer.allowed_ips
    (peer,) = (await fra1.sync()).peers.values()
    assert (peer.peer_id, peer.public_key) == (answer.device_id, key.public_key)
    assert peer.authorized_until is not None
    assert peer.authorized_until.timestamp() - horizon.clock() > 9 * 365 * 86_400
    (device,) = (await admin.devices()).devices
    assert (device.name, device.platform, device.user_name, device.agent) == (
        "phone",
        "wireguard",
        "alice",
        False,
    )


async def test_an_export_is_answered_when_the_server_has_the_peer(horizon: Harness) -> None:
    horizon.configure(connect_wait=50)
    admin, fra1 = await horizon.admin(), await horizon.server("fra1")
    horizon.personal_key("alice")
    async with horizon.watching(fra1, (await fra1.sync()).revision) as watch:
        exporting = asyncio.gather(admin.export(wanted()))
    update = watch.result()
    assert update is not None
    await fra1.update(update.revision)
    async with asyncio.timeout(5):
        (answer,) = await exporting
    assert answer.in_place


async def test_an_export_waits_for_no_heartbeat(horizon: Harness) -> None:
    """A server that is down now will have the peer when it is up."""
    admin = await horizon.admin()
    await horizon.server("fra1", online=False)
    horizon.personal_key("alice")
    assert not (await admin.export(wanted())).in_place


async def test_exports_that_cannot_be_are_refused(horizon: Harness) -> None:
    admin, alice = await horizon.admin(), await horizon.device("alice")
    await horizon.server("fra1")
    problem = await horizon.refuses(admin.export(wanted("bob")))
    assert (problem.status, problem.code) == (404, "not-found")
    assert problem.detail == ("no active user 'bob': create one with `horizon admin personal-key create bob`")
    problem = await horizon.refuses(admin.export(wanted(server="par1")))
    assert problem.detail == "no server 'par1': known are fra1"
    problem = await horizon.refuses(admin.export(wanted(key=alice.wireguard)))
    assert (problem.status, problem.code) == (409, "key-in-use")
    assert f"WireGuard key {alice.wireguard.public_key} belongs to another device" in problem.detail
    key = PrivateKey.generate()
    await admin.export(wanted(key=key))
    assert (await horizon.refuses(admin.export(wanted(key=key)))).code == "key-in-use"
    horizon.personal_key("carol", expires_in=60)
    horizon.advance(seconds=60)
    assert (await horizon.refuses(admin.export(wanted("carol")))).code == "not-found"
    await admin.revoke_server("fra1")
    assert (await horizon.refuses(admin.export(wanted()))).code == "server-revoked"


async def test_an_export_takes_an_active_key_of_the_user(horizon: Harness) -> None:
    """Alice's first key is revoked, her second expired, her third good."""
    admin, revoked = await horizon.admin(), horizon.personal_key("alice")
    await horizon.server("fra1")
    await admin.revoke_personal_key(revoked.key_id)
    horizon.personal_key("alice", expires_in=60)
    horizon.advance(seconds=60)
    good = horizon.personal_key("alice")
    answer = await admin.export(wanted())
    with horizon.broker.database.read() as session:
        assert session.get_one(DeviceRow, answer.device_id).key_id == good.key_id
        assert session.exec(select(Peer)).one().device_id == answer.device_id
