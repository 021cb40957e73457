"""Servers: listing, heartbeats, changes. *Use cases* on the session they are given."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from controlplane.broker import Broker
from controlplane.connections import find_server, is_online
from controlplane.db import next_revision, touch
from controlplane.errors import Revoked
from controlplane.ipam import SERVER_HOST
from controlplane.models import Connection, Device, Peer, Server, ServerCapability
from controlplane.models import Heartbeat as HeartbeatRow
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.messages import Capability, Heartbeat, Location, ServerChange, ServerInfo
from controlplane.protocol.wireguard import Endpoint

HEARTBEATS_KEPT = timedelta(days=7)
HANDSHAKE_SLACK = timedelta(seconds=5)
"""By how much a server's clock may be behind ours and still tell a new connection from the one before."""


def list_servers(broker: Broker, session: Session, include_revoked: bool = False) -> tuple[ServerInfo, ...]:
    statement = select(Server).order_by(Server.hostname)
    if not include_revoked:
        statement = statement.where(Server.status != "revoked")
    return describe_servers(broker, session, session.exec(statement).all())


def describe_servers(broker: Broker, session: Session, servers: Sequence[Server]) -> tuple[ServerInfo, ...]:
    ids = [server.server_id for server in servers]
    capabilities = _capabilities(session, ids)
    active = dict(
        session.exec(
            select(Connection.server_id, func.count())
            .where(Connection.status == "active", col(Connection.server_id).in_(ids))
            .group_by(Connection.server_id)
        ).all()
    )
    return tuple(
        ServerInfo(
            server_id=server.server_id,
            name=server.hostname,
            status=server.status,
            online=is_online(broker, server),
            location=Location(
                country=server.location,
                city=server.city,
                latitude=server.latitude,
                longitude=server.longitude,
            ),
            version=server.version,
            capabilities=tuple(capabilities[server.server_id]),
            public_key=PublicKey.parse(server.public_key),
            endpoint=str(Endpoint(server.endpoint_host, server.listen_port)),
            addresses=broker.pools.subnet(server.subnet).interfaces(SERVER_HOST),
            client_to_client=server.client_to_client,
            active_connections=active.get(server.server_id, 0),
            registered_at=server.registration_date,
            last_heartbeat=server.last_heartbeat,
        )
        for server in servers
    )


def _capabilities(session: Session, ids: Iterable[str]) -> defaultdict[str, list[Capability]]:
    found: defaultdict[str, list[Capability]] = defaultdict(list)
    rows = session.exec(select(ServerCapability).where(col(ServerCapability.server_id).in_(list(ids)))).all()
    for row in rows:
        found[row.server_id].append(
            Capability(type=row.capability_type, details=row.capability_details, enabled=row.enabled)
        )
    return found


def heartbeat(broker: Broker, session: Session, server_id: str, beat: Heartbeat) -> None:
    """Record that a server lives, and what it saw of its peers since it last said so."""
    now = broker.now()
    server = session.get_one(Server, server_id)
    if server.status == "revoked":  # since its signature was verified
        raise Revoked(f"server {server.hostname!r} was revoked")
    server.last_heartbeat = now
    server.version = beat.version
    server.status = "active"
    server.available = True
    session.add(
        HeartbeatRow(
            server_id=server_id,
            received_time=now,
            signature_valid=True,
            active_connections=beat.active_connections,
            current_location=server.location,
            system_metrics=json.dumps(beat.metrics),
        )
    )
    reports = {report.peer_id: report for report in beat.peers}
    rows = session.exec(
        select(Peer, Connection, Device)
        .join(Connection, col(Connection.connection_id) == col(Peer.connection_id))
        .join(Device, col(Device.device_id) == col(Peer.device_id))
        .where(
            Peer.server_id == server_id,
            col(Peer.device_id).in_(reports),
            col(Peer.removed_at).is_(None),
        )
    ).all()
    for peer, connection, device in rows:
        report = reports[peer.device_id]
        peer.received, peer.sent = report.received, report.sent
        if report.latest_handshake is not None:
            peer.latest_handshake = device.last_seen = report.latest_handshake
            _activate(connection, report.latest_handshake)


def _activate(connection: Connection, handshake: datetime) -> None:
    """A handshake turns an intent into an active connection, unless it is of the one before."""
    if connection.status == "intent" and handshake >= connection.connection_start - HANDSHAKE_SLACK:
        connection.status = "active"


def prune_heartbeats(broker: Broker, session: Session) -> None:
    """Forget heartbeats of more than a week ago: one each 30 s adds up."""
    session.execute(
        delete(HeartbeatRow).where(col(HeartbeatRow.received_time) < broker.now() - HEARTBEATS_KEPT)
    )


def change_server(broker: Broker, session: Session, name: str, change: ServerChange) -> ServerInfo:
    """Change what an administrator may; the server and its devices are told."""
    server = find_server(session, name)
    if change.client_to_client is not None:
        server.client_to_client = change.client_to_client
    if change.endpoint_host is not None:
        server.endpoint_host = change.endpoint_host
    announce(session, server)
    session.flush()
    return describe_servers(broker, session, [server])[0]


def announce(session: Session, server: Server) -> None:
    """Tell a server and all its devices that something of the server changed."""
    revision = next_revision(session)
    server.revision = revision
    live = (col(Peer.server_id) == server.server_id, col(Peer.removed_at).is_(None))
    devices = session.exec(select(Peer.device_id).where(*live)).all()
    session.execute(update(Peer).where(*live).values(device_revision=revision))
    session.execute(
        update(Device)
        .where(col(Device.device_id).in_(select(Peer.device_id).where(*live)))
        .values(revision=revision)
    )
    touch(session, server.server_id, *devices)
