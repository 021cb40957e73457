"""Connections: from intent to end, and the peers, addresses and revisions that follow. *Use cases.*

Each function is one transaction on the session it is given and returns what the caller answers. A
device's row in `peers` keeps its address on a server; connecting again revives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

from sqlalchemy import func
from sqlmodel import Session, col, select

from controlplane.broker import Broker
from controlplane.db import next_revision, touch
from controlplane.enrolment import check_personal_key, new_id
from controlplane.errors import KeyInUse, NotFound, Revoked, ServerOffline, ServerRevoked
from controlplane.ipam import next_host
from controlplane.models import Connection, Device, Peer, PersonalKey, Server
from controlplane.netmap import authorized_until, renewal_due
from controlplane.protocol.messages import (
    ConnectionInfo,
    ConnectionStatus,
    ConnectionType,
    ConnectRequest,
    ExportRequest,
)

ONLINE_WITHIN = timedelta(seconds=90)
"""Three heartbeats."""
EXPORT_LIFETIME = timedelta(days=3650)
"""A plain WireGuard peer has no agent that could renew: it holds until revoked or its user's key expires."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection that was asked for, and the revision at which the server has its peer."""

    connection: ConnectionInfo
    server_id: str
    device_id: str
    revision: int


def connect(
    broker: Broker, session: Session, device: Device, request: ConnectRequest, client_ip: str
) -> Opened:
    """Record a device's intent and give it a peer on the server."""
    if device.status == "revoked":  # since its signature was verified
        raise Revoked(f"device {device.device_name!r} was revoked")
    server = find_server(session, request.server)
    if server.status == "revoked":
        raise ServerRevoked(f"server {server.hostname!r} was revoked: choose another")
    if not is_online(broker, server):
        heard = (
            f"last heard of at {server.last_heartbeat:%H:%M:%S} UTC" if server.last_heartbeat else "never up"
        )
        raise ServerOffline(f"server {server.hostname!r} is offline ({heard}): choose another, or try again")
    key = _personal_key(session, device)
    check_personal_key(key, broker.now())
    return _open(broker, session, server, device, key, request.connection_type, client_ip)


def export(broker: Broker, session: Session, request: ExportRequest, client_ip: str) -> Opened:
    """Make a device without an agent, for plain WireGuard, and its lasting peer on the server."""
    server = find_server(session, request.server)
    keys = session.exec(
        select(PersonalKey).where(PersonalKey.user_name == request.user_name, PersonalKey.status == "active")
    ).all()
    key = next((key for key in keys if not _expired(broker, key)), None)
    if key is None:
        raise NotFound(
            f"no active user {request.user_name!r}: create one with "
            f"`horizon admin personal-key create {request.user_name}`"
        )
    if server.status == "revoked":
        raise ServerRevoked(f"server {server.hostname!r} was revoked: choose another")
    if session.exec(select(Device).where(Device.public_key == str(request.public_key))).first():
        raise KeyInUse(f"WireGuard key {request.public_key} belongs to another device: make a new one")
    device = Device(
        device_id=new_id("dev"),
        key_id=key.key_id,
        hardware_fingerprint="",
        device_name=request.device_name,
        platform="wireguard",
        first_seen=broker.now(),
        last_seen=broker.now(),
        public_key=str(request.public_key),
        revision=next_revision(session),
    )
    session.add(device)
    session.flush()
    return _open(broker, session, server, device, key, ConnectionType.vpn, client_ip)


def disconnect(broker: Broker, session: Session, connection_id: str, device_id: str | None) -> ConnectionInfo:
    """End a connection; `device_id` must be its owner (None: an administrator). Idempotent."""
    connection = session.get(Connection, connection_id)
    if connection is None or (device_id is not None and connection.device_id != device_id):
        raise NotFound(f"no connection {connection_id!r} of this device")
    peer = session.exec(
        select(Peer).where(Peer.connection_id == connection_id, col(Peer.removed_at).is_(None))
    ).first()
    if peer is not None:
        remove_peers(broker, session, [peer])
    return describe(session, connection)


def remove_peers(broker: Broker, session: Session, peers: list[Peer]) -> None:
    """Take peers off their servers and devices, and end their connections."""
    for peer in peers:
        revision = next_revision(session)
        peer.removed_at = broker.now()
        _mark(session, peer, revision)
        connection = session.get(Connection, peer.connection_id)
        if connection is not None and connection.status != "ended":
            connection.status = "ended"
            connection.connection_end = broker.now()


def end_lapsed(broker: Broker, session: Session) -> int:
    """End what is authorised no longer, and say how many: the personal key expired, or the device did not
    ask for its netmap in all the time (it may connect again)."""
    peers = session.exec(
        select(Peer).where(col(Peer.authorized_until) <= broker.now(), col(Peer.removed_at).is_(None))
    ).all()
    remove_peers(broker, session, list(peers))
    return len(peers)


def renewals(broker: Broker, session: Session, device: Device) -> list[Peer]:
    """The peers of a device whose authorisation is to be prolonged: half of it is gone."""
    key = _personal_key(session, device)
    peers = session.exec(
        select(Peer).where(Peer.device_id == device.device_id, col(Peer.removed_at).is_(None))
    ).all()
    return [peer for peer in peers if renewal_due(broker, peer, key)]


def list_connections(
    session: Session, device_id: str | None, include_ended: bool
) -> tuple[ConnectionInfo, ...]:
    """The connections of a device (None: of all), newest first, at most 1,000."""
    statement = (
        select(Connection, Server, Device, Peer)
        .join(Server, col(Server.server_id) == col(Connection.server_id))
        .join(Device, col(Device.device_id) == col(Connection.device_id))
        .outerjoin(Peer, col(Peer.connection_id) == col(Connection.connection_id))
        .order_by(col(Connection.connection_start).desc())
        .limit(1000)
    )
    if device_id is not None:
        statement = statement.where(Connection.device_id == device_id)
    if not include_ended:
        statement = statement.where(Connection.status != "ended")
    return tuple(_info(*row) for row in session.exec(statement).all())


def renew(broker: Broker, session: Session, device: Device) -> None:
    """Prolong the authorisation of a device that asks for its netmap."""
    for peer in renewals(broker, session, device):
        peer.authorized_until = authorized_until(
            broker, _personal_key(session, device), broker.config.authorization
        )
        _mark(session, peer, next_revision(session))


def find_server(session: Session, name_or_id: str) -> Server:
    """The server of that id, else of that name. Raises `NotFound`, which names those there are."""
    server = session.get(Server, name_or_id)
    if server is None:
        server = session.exec(select(Server).where(Server.hostname == name_or_id)).first()
    if server is None:
        names = session.exec(
            select(Server.hostname).where(Server.status != "revoked").order_by(Server.hostname).limit(10)
        ).all()
        known = f"known are {', '.join(names)}" if names else "none is registered yet"
        raise NotFound(f"no server {name_or_id!r}: {known}")
    return server


def is_online(broker: Broker, server: Server) -> bool:
    heard = server.last_heartbeat
    return server.status == "active" and heard is not None and broker.now() - heard < ONLINE_WITHIN


def describe(session: Session, connection: Connection, peer: Peer | None = None) -> ConnectionInfo:
    """A connection as it is shown; its `peer` if the caller has it at hand."""
    server = session.get_one(Server, connection.server_id)
    device = session.get_one(Device, connection.device_id)
    if peer is None:
        peer = session.exec(select(Peer).where(Peer.connection_id == connection.connection_id)).first()
    return _info(connection, server, device, peer)


def _info(connection: Connection, server: Server, device: Device, peer: Peer | None) -> ConnectionInfo:
    return ConnectionInfo(
        connection_id=connection.connection_id,
        server_id=server.server_id,
        server_name=server.hostname,
        device_id=device.device_id,
        device_name=device.device_name,
        user_name=connection.user_name,
        addresses=(ip_address(peer.ipv4), ip_address(peer.ipv6)) if peer else (),
        connection_type=ConnectionType(connection.connection_type),
        status=ConnectionStatus(connection.status),
        started_at=connection.connection_start,
        ended_at=connection.connection_end,
    )


def _personal_key(session: Session, device: Device) -> PersonalKey:
    return session.get_one(PersonalKey, device.key_id)


def _expired(broker: Broker, key: PersonalKey) -> bool:
    return key.expiration_date is not None and key.expiration_date <= broker.now()


def _open(
    broker: Broker,
    session: Session,
    server: Server,
    device: Device,
    key: PersonalKey,
    connection_type: ConnectionType,
    client_ip: str,
) -> Opened:
    peer = session.exec(
        select(Peer).where(Peer.server_id == server.server_id, Peer.device_id == device.device_id)
    ).first()
    if peer is None or peer.removed_at is not None:
        connection = Connection(
            connection_id=new_id("con"),
            server_id=server.server_id,
            device_id=device.device_id,
            key_id=key.key_id,
            user_name=key.user_name,
            connection_start=broker.now(),
            connection_type=connection_type.value,
            client_ip=client_ip,
        )
        session.add(connection)
        session.flush()
        peer = _place_peer(broker, session, server, device, connection, peer)
    else:
        connection = session.get_one(Connection, peer.connection_id)
    lifetime = EXPORT_LIFETIME if device.identity is None else broker.config.authorization
    peer.authorized_until = authorized_until(broker, key, lifetime)
    _mark(session, peer, next_revision(session))
    session.flush()
    return Opened(
        describe(session, connection, peer), server.server_id, device.device_id, peer.server_revision
    )


def _place_peer(
    broker: Broker,
    session: Session,
    server: Server,
    device: Device,
    connection: Connection,
    former: Peer | None,
) -> Peer:
    """The device's peer row on the server: its former one with its address, or a new one."""
    if former is not None:
        former.removed_at = None
        former.connection_id = connection.connection_id
        former.latest_handshake = None
        return former
    subnet = broker.pools.subnet(server.subnet)
    highest = session.exec(select(func.max(Peer.host)).where(Peer.server_id == server.server_id)).one()
    rested = session.exec(
        select(Peer)
        .where(
            Peer.server_id == server.server_id,
            col(Peer.removed_at) <= broker.now() - broker.config.quarantine,
        )
        .order_by(col(Peer.removed_at))
        .limit(1)
    ).first()
    host = next_host(subnet, highest, rested.host if rested else None, server.hostname)
    if rested is not None and host == rested.host:
        _forget(session, rested)
    ipv4, ipv6 = subnet.addresses(host)
    peer = Peer(
        server_id=server.server_id,
        device_id=device.device_id,
        connection_id=connection.connection_id,
        host=host,
        ipv4=str(ipv4),
        ipv6=str(ipv6),
        authorized_until=broker.now(),
        server_revision=0,
        device_revision=0,
    )
    session.add(peer)
    return peer


def _forget(session: Session, tombstone: Peer) -> None:
    """Drop a removal that not everybody may have seen: who has not gets a snapshot."""
    server = session.get_one(Server, tombstone.server_id)
    device = session.get_one(Device, tombstone.device_id)
    server.pruned_revision = max(server.pruned_revision, tombstone.server_revision)
    device.pruned_revision = max(device.pruned_revision, tombstone.device_revision)
    session.delete(tombstone)
    session.flush()


def _mark(session: Session, peer: Peer, revision: int) -> None:
    """Note that `peer` changed at `revision`, for both sides."""
    peer.server_revision = peer.device_revision = revision
    session.get_one(Server, peer.server_id).revision = revision
    session.get_one(Device, peer.device_id).revision = revision
    touch(session, peer.server_id, peer.device_id)
