"""Servers: heartbeats, being online, and what is listed of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlmodel import select

from controlplane import servers
from controlplane.errors import Revoked
from controlplane.models import Device as DeviceRow
from controlplane.models import Heartbeat as HeartbeatRow
from controlplane.models import Peer, Server
from controlplane.protocol.messages import (
    ConnectionStatus,
    Heartbeat,
    PeerReport,
    ServerChange,
    ServerInfo,
)
from tests.harness import raw
from tests.harness.broker import Harness
from tests.harness.machines import Device


async def listed(device: Device) -> ServerInfo:
    (info,) = await device.client.servers()
    return info


async def test_a_server_is_pending_until_it_is_heard(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1", online=False), await horizon.device()
    info = await listed(alice)
    assert (info.status, info.online, info.last_heartbeat) == ("pending", False, None)
    await fra1.beat(version="2.0")
    info = await listed(alice)
    assert (info.status, info.online, info.version) == ("active", True, "2.0")
    assert info.last_heartbeat is not None
    assert info.last_heartbeat.timestamp() == horizon.clock()


async def test_a_server_is_online_for_ninety_seconds(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    horizon.advance(seconds=89.9)
    assert (await listed(alice)).online
    horizon.advance(seconds=0.1)
    info = await listed(alice)
    assert (info.status, info.online) == ("active", False)
    await fra1.beat()
    assert (await listed(alice)).online


async def test_a_heartbeat_is_kept_with_its_metrics(horizon: Harness) -> None:
    fra1 = await horizon.server("fra1", online=False)
    await fra1.client.heartbeat(
        Heartbeat(revision=3, version="1.0", active_connections=7, metrics={"cpu_percent": 12.5, "load": 0.5})
    )
    with horizon.broker.database.read() as session:
        (row,) = session.exec(select(HeartbeatRow)).all()
    assert (row.server_id, row.active_connections, row.signature_valid) == (fra1.id, 7, True)
    assert row.received_time.timestamp() == horizon.clock()
    assert json.loads(row.system_metrics or "") == {"cpu_percent": 12.5, "load": 0.5}


async def test_a_heartbeat_changes_no_netmap(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    await alice.connect("fra1")
    held = (await fra1.sync()).revision, (await alice.sync()).revision
    await fra1.beat(handshake_of=alice, at=datetime.fromtimestamp(horizon.clock(), UTC))
    assert await fra1.update(held[0]) is None
    assert await alice.update(held[1]) is None


async def test_a_handshake_makes_an_intent_active(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    await alice.connect("fra1")
    await fra1.beat(handshake_of=alice, at=None)
    assert (await alice.client.connections())[0].status is ConnectionStatus.intent
    horizon.advance(seconds=30)
    seen = datetime.fromtimestamp(horizon.clock(), timezone(timedelta(hours=2)))
    await fra1.beat(handshake_of=alice, at=seen)
    assert (await alice.client.connections())[0].status is ConnectionStatus.active
    with horizon.broker.database.read() as session:
        peer = session.exec(select(Peer)).one()
        assert (peer.latest_handshake, peer.received, peer.sent) == (seen, 10, 20)
        assert session.get_one(DeviceRow, alice.id).last_seen == seen
    await fra1.beat(handshake_of=alice, at=None)
    assert (await alice.client.connections())[0].status is ConnectionStatus.active


async def test_a_report_on_a_peer_that_left_is_passed_over(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    made = (await alice.connect("fra1")).connection
    await alice.client.disconnect(made.connection_id)
    now = datetime.fromtimestamp(horizon.clock(), UTC)
    await fra1.beat(handshake_of=alice, at=now)
    await fra1.client.heartbeat(
        Heartbeat(
            revision=None,
            version="1.0",
            active_connections=0,
            peers=(PeerReport(peer_id="dev_unknown", latest_handshake=now, received=0, sent=0),),
        )
    )
    (ended,) = await alice.client.connections(include_ended=True)
    assert ended.status is ConnectionStatus.ended


async def test_a_server_reports_on_its_own_peers_only(horizon: Harness) -> None:
    ams1, alice = await horizon.server("ams1"), await horizon.device()
    await horizon.server("fra1")
    await alice.connect("fra1")
    await ams1.beat(handshake_of=alice, at=datetime.fromtimestamp(horizon.clock(), UTC))
    assert (await alice.client.connections())[0].status is ConnectionStatus.intent


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"active_connections": -1}, "active_connections"),
        ({"metrics": {"x" * 65: 1}}, "metrics"),
        ({"metrics": {"cpu": "hot"}}, "metrics.cpu"),
        (
            {"peers": [{"peer_id": "d", "latest_handshake": None, "received": -1, "sent": 0}]},
            "peers.0.received",
        ),
        (
            {"peers": [{"peer_id": "d", "latest_handshake": "soon", "received": 0, "sent": 0}]},
            "latest_handshake",
        ),
        ({"mood": "good"}, "mood"),
    ],
)
async def test_a_heartbeat_that_makes_no_sense_is_refused(
    horizon: Harness, change: dict[str, object], place: str
) -> None:
    fra1 = await horizon.server("fra1")
    content = {"revision": 1, "version": "1.0", "active_connections": 0, **change}
    problem = await raw.refused(horizon, raw.signed(horizon, fra1.signer, "POST", "/heartbeat", content))
    assert (problem.status, problem.code) == (422, "invalid-request")
    assert place in problem.detail


async def test_a_handshake_time_without_a_zone_is_refused(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device()
    await alice.connect("fra1")
    report = {"peer_id": alice.id, "latest_handshake": "2027-01-15T08:00:00", "received": 0, "sent": 0}
    content = {"revision": 1, "version": "1.0", "active_connections": 0, "peers": [report]}
    problem = await raw.refused(horizon, raw.signed(horizon, fra1.signer, "POST", "/heartbeat", content))
    assert (problem.status, problem.code) == (422, "invalid-request")


async def test_a_server_revoked_meanwhile_is_not_alive_again(horizon: Harness) -> None:
    """Its signature was verified, then an administrator was faster."""
    fra1 = await horizon.server("fra1")
    with horizon.broker.database.write() as session:
        session.get_one(Server, fra1.id).status = "revoked"
    before = horizon.dump()

    def beat() -> None:
        with horizon.broker.database.write() as session:
            servers.heartbeat(
                horizon.broker, session, fra1.id, Heartbeat(revision=1, version="1.0", active_connections=0)
            )

    with pytest.raises(Revoked, match="server 'fra1' was revoked"):
        beat()
    assert horizon.dump() == before


async def test_servers_are_listed_by_name_and_revoked_ones_on_request(horizon: Harness) -> None:
    admin, alice = await horizon.admin(), await horizon.device()
    for name in ("fra1", "ams1", "par1"):
        await horizon.server(name)
    await admin.revoke_server("fra1")
    assert [info.name for info in await alice.client.servers()] == ["ams1", "par1"]
    assert [info.name for info in (await admin.all_servers()).servers] == ["ams1", "par1"]
    every = {info.name: info.status for info in (await admin.all_servers(include_revoked=True)).servers}
    assert every == {"ams1": "active", "fra1": "revoked", "par1": "active"}


async def test_a_change_keeps_what_it_does_not_name(horizon: Harness) -> None:
    admin = await horizon.admin()
    await horizon.server("fra1", endpoint_host="fra1.example")
    info = await admin.change_server("fra1", ServerChange(client_to_client=False))
    assert (info.client_to_client, info.endpoint) == (False, "fra1.example:51820")
    info = await admin.change_server(info.server_id, ServerChange(endpoint_host="192.0.2.7"))
    assert (info.client_to_client, info.endpoint) == (False, "192.0.2.7:51820")


async def test_a_server_that_is_not_there_cannot_be_changed(horizon: Harness) -> None:
    admin = await horizon.admin()
    problem = await horizon.refuses(admin.change_server("par1", ServerChange(client_to_client=True)))
    assert (problem.status, problem.code) == (404, "not-found")
    assert problem.detail == "no server 'par1': none is registered yet"


async def test_a_heartbeat_reads_all_its_peers_at_once(horizon: Harness) -> None:
    fra1 = await horizon.server("fra1")
    now = datetime.fromtimestamp(horizon.clock(), UTC)
    counts = []
    for number in (1, 12):
        devices = [await horizon.device(f"user{number}.{n}") for n in range(number)]
        for device in devices:
            await device.connect("fra1")
        beat = Heartbeat(
            revision=None,
            version="1.0",
            active_connections=0,
            peers=tuple(PeerReport(peer_id=d.id, latest_handshake=now, received=1, sent=1) for d in devices),
        )
        with horizon.selects() as selects:
            await fra1.client.heartbeat(beat)
        counts.append(len(selects))
        for device in devices:
            assert (await device.client.connections())[0].status is ConnectionStatus.active
    assert counts[0] == counts[1]
