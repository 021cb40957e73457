"""The netmap: list and watch, for servers and devices alike."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from controlplane import connections
from controlplane.auth import AgentSigner, BrokerDep, Principal, Role
from controlplane.broker import Broker
from controlplane.models import Device, Server
from controlplane.netmap import device_update, server_update
from controlplane.protocol.envelope import Signed

router = APIRouter(tags=["netmap"])
MAX_WAIT = 55.0
"""Seconds; below the usual idle timeouts of proxies and NATs."""


@router.get("/netmap", responses={204: {"description": "nothing changed in the time"}})
async def netmap(
    broker: BrokerDep,
    signer: AgentSigner,
    since: Annotated[int | None, Query(ge=0)] = None,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT)] = 0,
) -> Signed | None:
    """What changed after revision `since`, at once or within `wait` seconds; without it, everything.

    From a server, `since` also acknowledges: what it names is in place.
    """
    if signer.role is Role.server and since is not None:
        await run_in_threadpool(_acknowledge, broker, signer.id, since)
    elif signer.role is Role.device:
        await run_in_threadpool(_renew, broker, signer.id)
    deadline = asyncio.get_running_loop().time() + wait
    with broker.notifier.subscribe(signer.id) as changed:
        while True:
            changed.clear()
            update = await run_in_threadpool(read_update, broker, signer, since)
            if update is not None:
                return update
            if broker.notifier.closed:
                return Response(status_code=204)  # type: ignore[return-value]
            try:
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
            except TimeoutError:
                return Response(status_code=204)  # type: ignore[return-value]


def read_update(broker: Broker, signer: Principal, since: int | None) -> Signed | None:
    with broker.database.read() as session:
        if signer.role is Role.server:
            return server_update(broker, session, session.get_one(Server, signer.id), since)
        return device_update(broker, session, session.get_one(Device, signer.id), since)


def _acknowledge(broker: Broker, server_id: str, since: int) -> None:
    """Note what a server has in place; a revision never given out is of a database that is lost."""
    with broker.database.read() as session:
        if since <= session.get_one(Server, server_id).revision:
            broker.applied.acknowledge(server_id, since)


def _renew(broker: Broker, device_id: str) -> None:
    """Prolong what is due; the common case, nothing, takes no write."""
    with broker.database.read() as session:
        if not connections.renewals(broker, session, session.get_one(Device, device_id)):
            return
    with broker.database.write() as session:
        connections.renew(broker, session, session.get_one(Device, device_id))
