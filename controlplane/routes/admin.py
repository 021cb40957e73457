"""Administration: keys, devices, servers, exports. Every route asks for an administrator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool

from controlplane import admin, connections, enrolment, servers
from controlplane.auth import AdminSigner, BrokerDep, client_ip
from controlplane.connections import Opened
from controlplane.models import Device, Server
from controlplane.protocol.messages import (
    AdminMachineList,
    DeviceList,
    ExportRequest,
    ExportResponse,
    InviteCreated,
    PersonalKeyList,
    PersonalKeyRequest,
    RegistrationKeyList,
    RegistrationKeyRequest,
    ServerChange,
    ServerInfo,
    ServerList,
)

router = APIRouter(tags=["administration"])
IncludeRevoked = Annotated[bool, Query(description="also what was revoked")]


@router.post("/admin/registration-keys", status_code=201)
def create_registration_key(
    body: RegistrationKeyRequest, broker: BrokerDep, signer: AdminSigner
) -> InviteCreated:
    """A new registration key, as an invite for a server; shown this once."""
    with broker.database.write() as session:
        return enrolment.create_registration_key(broker, session, body)


@router.get("/admin/registration-keys")
def list_registration_keys(broker: BrokerDep, signer: AdminSigner) -> RegistrationKeyList:
    with broker.database.read() as session:
        return admin.list_registration_keys(broker, session)


@router.delete("/admin/registration-keys/{key_id}", status_code=204)
def revoke_registration_key(key_id: str, broker: BrokerDep, signer: AdminSigner) -> None:
    """No further server gets in by this key; those it let in stay."""
    with broker.database.write() as session:
        admin.revoke_registration_key(session, key_id)


@router.post("/admin/personal-keys", status_code=201)
def create_personal_key(body: PersonalKeyRequest, broker: BrokerDep, signer: AdminSigner) -> InviteCreated:
    """A new user's personal key, as an invite for their devices; shown this once."""
    hashed = enrolment.generate_personal_key(broker)
    with broker.database.write() as session:
        return enrolment.create_personal_key(broker, session, body, hashed)


@router.get("/admin/personal-keys")
def list_personal_keys(broker: BrokerDep, signer: AdminSigner) -> PersonalKeyList:
    with broker.database.read() as session:
        return admin.list_personal_keys(broker, session)


@router.delete("/admin/personal-keys/{key_id}", status_code=204)
def revoke_personal_key(key_id: str, broker: BrokerDep, signer: AdminSigner) -> None:
    """The key and all devices that joined by it are out at once."""
    with broker.database.write() as session:
        admin.revoke_personal_key(broker, session, key_id)


@router.get("/admin/machines")
def list_machines(broker: BrokerDep, signer: AdminSigner) -> AdminMachineList:
    with broker.database.read() as session:
        return admin.list_machines(session)


@router.delete("/admin/machines/{machine_id}", status_code=204)
def revoke_machine(machine_id: str, broker: BrokerDep, signer: AdminSigner) -> None:
    """A machine that logged in signs nothing more; also the one that asks."""
    with broker.database.write() as session:
        admin.revoke_machine(session, machine_id)


@router.get("/admin/devices")
def list_devices(
    broker: BrokerDep, signer: AdminSigner, include_revoked: IncludeRevoked = False
) -> DeviceList:
    with broker.database.read() as session:
        return admin.list_devices(session, include_revoked)


@router.delete("/admin/devices/{device_id}", status_code=204)
def revoke_device(device_id: str, broker: BrokerDep, signer: AdminSigner) -> None:
    """A device is out at once: its peers leave their servers."""
    with broker.database.write() as session:
        admin.revoke_device(broker, session, device_id)


@router.get("/admin/servers")
def list_servers(
    broker: BrokerDep, signer: AdminSigner, include_revoked: IncludeRevoked = False
) -> ServerList:
    with broker.database.read() as session:
        return ServerList(servers=servers.list_servers(broker, session, include_revoked))


@router.patch("/admin/servers/{server}")
def change_server(server: str, body: ServerChange, broker: BrokerDep, signer: AdminSigner) -> ServerInfo:
    """Change a server, by name or id; it and its devices are told."""
    with broker.database.write() as session:
        return servers.change_server(broker, session, server, body)


@router.delete("/admin/servers/{server}", status_code=204)
def revoke_server(server: str, broker: BrokerDep, signer: AdminSigner) -> None:
    """A server is out: its connections end, and its agent is told."""
    with broker.database.write() as session:
        admin.revoke_server(broker, session, server)


@router.post("/exports", status_code=201)
async def export(
    body: ExportRequest, request: Request, broker: BrokerDep, signer: AdminSigner
) -> ExportResponse:
    """A peer for plain WireGuard, and all its configuration needs but the private key."""

    def open_peer() -> Opened:
        with broker.database.write() as session:
            return connections.export(broker, session, body, client_ip(request))

    opened = await run_in_threadpool(open_peer)
    in_place = await broker.applied.wait(opened.server_id, opened.revision, broker.config.connect_wait)

    def describe() -> ExportResponse:
        with broker.database.read() as session:
            device = session.get_one(Device, opened.device_id)
            server = session.get_one(Server, opened.server_id)
            return admin.describe_export(broker, session, device, server, in_place)

    return await run_in_threadpool(describe)
