"""Enrolment: `register` for servers, `auth` for devices, `admin/login` for administrators."""

from __future__ import annotations

from fastapi import APIRouter, Request

from controlplane import enrolment
from controlplane.auth import BrokerDep, SignedIdentity, check_identity, client_ip
from controlplane.protocol.messages import (
    AuthRequest,
    AuthResponse,
    LoginRequest,
    LoginResponse,
    RegisterRequest,
    RegisterResponse,
)

router = APIRouter(tags=["enrolment"])


@router.post("/register")
def register(
    body: RegisterRequest, signed: SignedIdentity, request: Request, broker: BrokerDep
) -> RegisterResponse:
    """A server redeems its registration key."""
    check_identity(signed, body.identity)
    with broker.database.write() as session:
        return enrolment.register(broker, session, body, client_ip(request))


@router.post("/auth")
def auth(body: AuthRequest, signed: SignedIdentity, broker: BrokerDep) -> AuthResponse:
    """A device redeems its user's personal key."""
    check_identity(signed, body.identity)
    with broker.database.read() as session:
        key_id = enrolment.verify_personal_key(broker, session, body.personal_key)
    with broker.database.write() as session:
        return enrolment.authenticate(broker, session, body, key_id)


@router.post("/admin/login")
def login(body: LoginRequest, signed: SignedIdentity, broker: BrokerDep) -> LoginResponse:
    """An administrator's machine redeems an admin key."""
    check_identity(signed, body.identity)
    with broker.database.write() as session:
        return enrolment.login(broker, session, body)
