"""Who signed a request: the one authentication of the API. *Shell* over `protocol.signing`.

Servers, devices and administrators' machines sign by RFC 9421 with the identity they enrolled. Enrolment
itself is signed too, by the identity that the request names (its key id is that public key), which
proves its possession.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from sqlmodel import Session

from controlplane.broker import Broker
from controlplane.errors import Forbidden, Revoked
from controlplane.models import Admin, AdminMachine, Device, Server
from controlplane.protocol.errors import KeyFormatError, SignatureError
from controlplane.protocol.keys import IdentityPublicKey
from controlplane.protocol.signing import SignedBy, verify_request


class Role(StrEnum):
    server = "server"
    device = "device"
    admin = "admin"


_WORDS = {Role.server: "a server", Role.device: "a device", Role.admin: "an administrator"}
_PREFIX = {"srv": Role.server, "dev": Role.device, "adm": Role.admin}


@dataclass(frozen=True, slots=True)
class Principal:
    """An enrolled signer that may act."""

    role: Role
    id: str
    name: str


async def get_broker(request: Request) -> Broker:
    broker: Broker = request.app.state.broker
    return broker


BrokerDep = Annotated[Broker, Depends(get_broker)]


def client_ip(request: Request) -> str:
    """The address a request came from; an IPv4 address in its own form also on a dual-stack socket."""
    host = request.client.host if request.client else "unknown"
    return host.removeprefix("::ffff:")


async def _verify(
    request: Request, broker: Broker, resolve: Callable[[str], IdentityPublicKey | None]
) -> SignedBy:
    body = await request.body()
    url = f"https://{request.headers.get('host', '')}{request.scope['raw_path'].decode('ascii', 'replace')}"
    if request.url.query:
        url += f"?{request.url.query}"
    return await run_in_threadpool(
        verify_request,
        request.method,
        url,
        request.headers,
        body,
        resolve=resolve,
        now=broker.clock(),
        guard=broker.guard,
    )


async def signed_identity(request: Request, broker: BrokerDep) -> IdentityPublicKey:
    """The identity that signed an enrolment: the key id is the public key itself."""

    def resolve(key_id: str) -> IdentityPublicKey | None:
        try:
            return IdentityPublicKey.parse(key_id)
        except KeyFormatError:
            return None

    signed = await _verify(request, broker, resolve)
    return IdentityPublicKey.parse(signed.key_id)


SignedIdentity = Annotated[IdentityPublicKey, Depends(signed_identity)]


def check_identity(signed: IdentityPublicKey, named: IdentityPublicKey) -> None:
    """An enrolment must name the identity that signed it."""
    if signed != named:
        raise SignatureError(f"the request is signed by {signed}, but names the identity {named}")


async def principal(request: Request, broker: BrokerDep) -> Principal:
    """The enrolled server, device or admin that signed the request; revoked ones are refused."""
    found: list[_Signer] = []

    def resolve(key_id: str) -> IdentityPublicKey | None:
        with broker.database.read() as session:
            signer = _find(session, key_id)
        if signer is None:
            return None
        found.append(signer)
        return signer.identity

    await _verify(request, broker, resolve)
    signer = found[0]
    if signer.revoked:
        raise Revoked(f"{signer.principal.role.value} {signer.principal.name!r} was revoked")
    return signer.principal


@dataclass(frozen=True, slots=True)
class _Signer:
    principal: Principal
    identity: IdentityPublicKey
    revoked: bool


def _find(session: Session, key_id: str) -> _Signer | None:
    """The signer with a key id, by the id's prefix."""
    role = _PREFIX.get(key_id.partition("_")[0])
    if role is Role.server and (server := session.get(Server, key_id)):
        name, identity, revoked = server.hostname, server.identity, server.status == "revoked"
    elif role is Role.device and (device := session.get(Device, key_id)) and device.identity:
        name, identity, revoked = device.device_name, device.identity, device.status == "revoked"
    elif role is Role.admin and (machine := session.get(AdminMachine, key_id)):
        admin = session.get_one(Admin, machine.admin_id)
        revoked = machine.status != "active" or admin.status != "active"
        name, identity = admin.username, machine.identity
    else:
        return None
    return _Signer(Principal(role, key_id, name), IdentityPublicKey.parse(identity), revoked)


def require(*roles: Role) -> Callable[[Principal], Awaitable[Principal]]:
    """A dependency: the signer, if it has one of `roles`."""

    async def check(signer: Annotated[Principal, Depends(principal)]) -> Principal:
        if signer.role not in roles:
            wanted = " or ".join(_WORDS[role] for role in roles)
            raise Forbidden(f"only {wanted} may do this, not {signer.role.value} {signer.name!r}")
        return signer

    return check


ServerSigner = Annotated[Principal, Depends(require(Role.server))]
DeviceSigner = Annotated[Principal, Depends(require(Role.device))]
AdminSigner = Annotated[Principal, Depends(require(Role.admin))]
AgentSigner = Annotated[Principal, Depends(require(Role.server, Role.device))]
DeviceOrAdmin = Annotated[Principal, Depends(require(Role.device, Role.admin))]
