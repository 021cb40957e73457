"""Servers: the list for devices and administrators, and heartbeats."""

from __future__ import annotations

from fastapi import APIRouter

from controlplane import servers
from controlplane.auth import BrokerDep, DeviceOrAdmin, ServerSigner
from controlplane.protocol.messages import Heartbeat, ServerList

router = APIRouter(tags=["servers"])


@router.get("/servers")
def list_servers(broker: BrokerDep, signer: DeviceOrAdmin) -> ServerList:
    """All servers that are not revoked."""
    with broker.database.read() as session:
        return ServerList(servers=servers.list_servers(broker, session))


@router.post("/heartbeat", status_code=204)
def heartbeat(body: Heartbeat, broker: BrokerDep, signer: ServerSigner) -> None:
    """A server lives; each 30 s."""
    with broker.database.write() as session:
        servers.heartbeat(broker, session, signer.id, body)
