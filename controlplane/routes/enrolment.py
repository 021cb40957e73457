"""Enrolment: `register` for servers, `auth` for devices, `admin/login` for administrators."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from controlplane import enrolment
from controlplane.auth import BrokerDep, SignedIdentity, check_identity, client_ip
from controlplane.errors import Busy
from controlplane.protocol.messages import (
    AuthRequest,
    AuthResponse,
    LoginRequest,
    LoginResponse,
    RegisterRequest,
    RegisterResponse,
)

router = APIRouter(tags=["enrolment"])
HASHES_WAITING = 50
"""At a tenth of a second each and two at a time: some seconds' wait for the last."""


@router.post("/register")
def register(
    body: RegisterRequest, signed: SignedIdentity, request: Request, broker: BrokerDep
) -> RegisterResponse:
    """A server redeems its registration key."""
    check_identity(signed, body.identity)
    with broker.database.write() as session:
        return enrolment.register(broker, session, body, client_ip(request))


@router.post("/auth")
async def auth(body: AuthRequest, signed: SignedIdentity, broker: BrokerDep) -> AuthResponse:
    """A device redeems its user's personal key.

    Anyone may make the broker hash, so hashing has few threads of its own and a short queue: a flood of
    keys is answered `busy` and delays nothing else.
    """
    check_identity(signed, body.identity)
    if broker.hashing.statistics().tasks_waiting >= HASHES_WAITING:
        raise Busy(f"{HASHES_WAITING} devices are joining at once: try again in some seconds")

    def verify() -> str:
        return enrolment.verify_personal_key(broker, body.personal_key)

    def join(key_id: str) -> AuthResponse:
        with broker.database.write() as session:
            return enrolment.authenticate(broker, session, body, key_id)

    key_id = await to_thread.run_sync(verify, limiter=broker.hashing)
    return await run_in_threadpool(join, key_id)


@router.post("/admin/login")
def login(body: LoginRequest, signed: SignedIdentity, broker: BrokerDep) -> LoginResponse:
    """An administrator's machine redeems an admin key."""
    check_identity(signed, body.identity)
    with broker.database.write() as session:
        return enrolment.login(broker, session, body)
