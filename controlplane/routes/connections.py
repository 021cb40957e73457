"""Connections: a device asks for a server and is answered when its peer is in place there."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from controlplane import connections
from controlplane.auth import BrokerDep, DeviceOrAdmin, DeviceSigner, Role, client_ip
from controlplane.broker import Broker
from controlplane.connections import Opened
from controlplane.models import Device
from controlplane.netmap import device_update
from controlplane.protocol.envelope import Signed
from controlplane.protocol.messages import (
    ConnectionInfo,
    ConnectionList,
    ConnectRequest,
    ConnectResponse,
)

router = APIRouter(tags=["connections"])


@router.post("/connections")
async def connect(
    body: ConnectRequest, request: Request, broker: BrokerDep, signer: DeviceSigner
) -> ConnectResponse:
    """Record the intent, give the device a peer on the server, and wait until the server has it.

    The wait is bounded; `in_place` says how it ended. Asking twice gives the same connection.
    """

    def open_connection() -> Opened:
        with broker.database.write() as session:
            device = session.get_one(Device, signer.id)
            return connections.connect(broker, session, device, body, client_ip(request))

    opened = await run_in_threadpool(open_connection)
    async with asyncio.TaskGroup() as tasks:  # the netmap is made ready while the server works
        netmap = tasks.create_task(run_in_threadpool(_device_netmap, broker, signer.id, body.since))
        in_place = await broker.applied.wait(opened.server_id, opened.revision, broker.config.connect_wait)
    return ConnectResponse(connection=opened.connection, in_place=in_place, netmap=netmap.result())


@router.get("/connections")
def list_connections(broker: BrokerDep, signer: DeviceOrAdmin, include_ended: bool = False) -> ConnectionList:
    """A device's own connections, or for an administrator all; newest first, at most 1,000."""
    owner = signer.id if signer.role is Role.device else None
    with broker.database.read() as session:
        return ConnectionList(connections=connections.list_connections(session, owner, include_ended))


@router.delete("/connections/{connection_id}")
def disconnect(connection_id: str, broker: BrokerDep, signer: DeviceOrAdmin) -> ConnectionInfo:
    """End a connection: its peer leaves the server."""
    owner = signer.id if signer.role is Role.device else None
    with broker.database.write() as session:
        return connections.disconnect(broker, session, connection_id, owner)


def _device_netmap(broker: Broker, device_id: str, since: int | None) -> Signed:
    with broker.database.read() as session:
        device = session.get_one(Device, device_id)
        update = device_update(broker, session, device, since)
        if update is None:  # the device's watch was faster: give the whole again
            update = device_update(broker, session, device, None)
    if update is None:
        raise RuntimeError("a snapshot is never empty")
    return update
