"""Administration: lists and revocations. *Use cases* on the session they are given."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func
from sqlmodel import Session, col, select

from controlplane.broker import Broker
from controlplane.connections import find_server, remove_peers
from controlplane.db import next_revision, touch
from controlplane.errors import NotFound
from controlplane.ipam import SERVER_HOST
from controlplane.models import Admin, AdminMachine, Device, Peer, PersonalKey, RegistrationKey, Server
from controlplane.netmap import server_peer
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.messages import (
    AdminMachineInfo,
    AdminMachineList,
    DeviceInfo,
    DeviceList,
    ExportResponse,
    PersonalKeyInfo,
    PersonalKeyList,
    RegistrationKeyInfo,
    RegistrationKeyList,
)


def list_registration_keys(broker: Broker, session: Session) -> RegistrationKeyList:
    rows = session.exec(
        select(RegistrationKey)
        .where(RegistrationKey.kind == "server")
        .order_by(col(RegistrationKey.creation_date).desc())
    ).all()
    return RegistrationKeyList(
        registration_keys=tuple(
            RegistrationKeyInfo(
                key_id=row.key_id,
                status=_key_status(row, broker.now()),
                uses=row.uses,
                max_uses=row.max_uses,
                created_at=row.creation_date,
                expires_at=row.expiration_date,
                notes=row.notes,
            )
            for row in rows
        )
    )


def _key_status(row: RegistrationKey, now: datetime) -> str:
    if row.status != "active":
        return row.status
    if row.uses >= row.max_uses:
        return "used"
    return "expired" if row.expiration_date <= now else "active"


def revoke_registration_key(session: Session, key_id: str) -> None:
    row = session.get(RegistrationKey, key_id)
    if row is None:
        raise NotFound(f"no registration key {key_id!r}: `horizon admin registration-key list` shows them")
    row.status = "revoked"


def list_personal_keys(broker: Broker, session: Session) -> PersonalKeyList:
    rows = session.exec(select(PersonalKey).order_by(PersonalKey.user_name)).all()
    devices = dict(
        session.exec(
            select(Device.key_id, func.count()).where(Device.status == "active").group_by(Device.key_id)
        ).all()
    )
    now = broker.now()
    return PersonalKeyList(
        personal_keys=tuple(
            PersonalKeyInfo(
                key_id=row.key_id,
                user_name=row.user_name,
                user_email=row.user_email,
                status="expired"
                if row.status == "active" and row.expiration_date is not None and row.expiration_date <= now
                else row.status,
                created_at=row.creation_date,
                expires_at=row.expiration_date,
                devices=devices.get(row.key_id, 0),
                notes=row.notes,
            )
            for row in rows
        )
    )


def revoke_personal_key(broker: Broker, session: Session, key_id: str) -> None:
    """Revoke a key and every device that joined by it."""
    key = session.get(PersonalKey, key_id)
    if key is None:
        raise NotFound(f"no personal key {key_id!r}: `horizon admin personal-key list` shows them")
    key.status = "revoked"
    for device in session.exec(select(Device).where(Device.key_id == key_id)).all():
        _revoke_device(broker, session, device)


def list_machines(session: Session) -> AdminMachineList:
    rows = session.exec(
        select(AdminMachine, Admin.username)
        .join(Admin, col(Admin.admin_id) == col(AdminMachine.admin_id))
        .order_by(Admin.username, col(AdminMachine.creation_date))
    ).all()
    return AdminMachineList(
        machines=tuple(
            AdminMachineInfo(
                machine_id=machine.machine_id,
                name=machine.name,
                username=username,
                status=machine.status,
                created_at=machine.creation_date,
            )
            for machine, username in rows
        )
    )


def revoke_machine(session: Session, machine_id: str) -> None:
    """An administrator's machine signs no more; `horizon broker invite` lets the last one back in."""
    machine = session.get(AdminMachine, machine_id)
    if machine is None:
        raise NotFound(f"no machine {machine_id!r}: `horizon admin machine list` shows them")
    machine.status = "revoked"


def list_devices(session: Session, include_revoked: bool) -> DeviceList:
    statement = (
        select(Device, PersonalKey.user_name)
        .join(PersonalKey, col(PersonalKey.key_id) == col(Device.key_id))
        .order_by(PersonalKey.user_name, Device.device_name)
    )
    if not include_revoked:
        statement = statement.where(Device.status == "active")
    return DeviceList(
        devices=tuple(
            DeviceInfo(
                device_id=device.device_id,
                name=device.device_name,
                platform=device.platform,
                user_name=user_name,
                status=device.status,
                public_key=PublicKey.parse(device.public_key),
                agent=device.identity is not None,
                first_seen=device.first_seen,
                last_seen=device.last_seen,
            )
            for device, user_name in session.exec(statement).all()
        )
    )


def revoke_device(broker: Broker, session: Session, device_id: str) -> None:
    device = session.get(Device, device_id)
    if device is None:
        raise NotFound(f"no device {device_id!r}: `horizon admin device list` shows them")
    _revoke_device(broker, session, device)


def _revoke_device(broker: Broker, session: Session, device: Device) -> None:
    device.status = "revoked"
    peers = session.exec(
        select(Peer).where(Peer.device_id == device.device_id, col(Peer.removed_at).is_(None))
    ).all()
    remove_peers(broker, session, list(peers))
    touch(session, device.device_id)


def revoke_server(broker: Broker, session: Session, name: str) -> None:
    """A server is out: its name and subnet are not given again."""
    server = find_server(session, name)
    server.status = "revoked"
    server.available = False
    server.revision = next_revision(session)
    peers = session.exec(
        select(Peer).where(Peer.server_id == server.server_id, col(Peer.removed_at).is_(None))
    ).all()
    remove_peers(broker, session, list(peers))
    touch(session, server.server_id)


def describe_export(
    broker: Broker, session: Session, device: Device, server: Server, in_place: bool
) -> ExportResponse:
    peer = session.exec(
        select(Peer).where(Peer.server_id == server.server_id, Peer.device_id == device.device_id)
    ).one()
    as_peer = server_peer(broker, peer, server)
    subnet = broker.pools.subnet(server.subnet)
    return ExportResponse(
        device_id=device.device_id,
        server_name=server.hostname,
        in_place=in_place,
        addresses=subnet.interfaces(peer.host),
        mtu=server.mtu,
        server_public_key=as_peer.public_key,
        server_addresses=subnet.addresses(SERVER_HOST),
        endpoint=str(as_peer.endpoint),
        allowed_ips=as_peer.allowed_ips,
        accept_from=as_peer.accept_from,
        persistent_keepalive=as_peer.persistent_keepalive,
    )
