"""Joining a broker: make keys, redeem the invite, keep the enrolment. *Shell.*

Keys are written down before the invite is redeemed: if the answer is lost, joining again with the same
invite gives the same enrolment.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import platform
import re
import socket
from dataclasses import replace
from pathlib import Path

from controlplane.client.broker import BrokerAddress, BrokerClient, Signer
from controlplane.protocol.enrolment import Invite
from controlplane.protocol.keys import IdentityKey, PrivateKey
from controlplane.protocol.messages import (
    AuthRequest,
    AuthResponse,
    Capability,
    Location,
    RegisterRequest,
    RegisterResponse,
)
from controlplane.protocol.version import VERSION
from controlplane.protocol.wireguard import Endpoint
from dataplane.errors import DataplaneError
from dataplane.store import AgentState, Damaged, Store

log = logging.getLogger(__name__)


class AlreadyJoined(DataplaneError):
    """This state directory belongs to an enrolment that holds."""

    code = "already-joined"


def begin(store: Store, invite: Invite, interface: str, backend: str, listen_port: int) -> AgentState:
    """The state before the broker has answered: a begun one again, or new keys."""
    try:
        state = store.peek()
    except Damaged as error:
        log.warning("%s", error)
        state = None
    if state is not None and state.joined:
        raise AlreadyJoined(
            f"this machine has joined {state.broker.url} as {state.name!r} already: remove "
            f"{str(store.directory)!r} to join anew"
        )
    if state is None or state.broker != BrokerAddress.of(invite):
        state = AgentState(
            identity=IdentityKey.generate(),
            private_key=PrivateKey.generate(),
            broker=BrokerAddress.of(invite),
            interface=interface,
            backend=backend,
        )
    state = replace(state, interface=interface, backend=backend, listen_port=listen_port)
    store.save(state)
    store.forget()
    return state


async def join_server(
    store: Store, state: AgentState, invite: Invite, name: str, endpoint: Endpoint | None, location: Location
) -> RegisterResponse:
    """Register a server; the state on disk is complete afterwards."""
    request = RegisterRequest(
        registration_key=invite.key,
        identity=state.identity.public_key,
        public_key=state.private_key.public_key,
        name=name,
        endpoint_host=endpoint.host if endpoint else None,
        listen_port=endpoint.port if endpoint else state.listen_port,
        version=VERSION,
        hardware_fingerprint=hardware_fingerprint(),
        location=location,
        capabilities=(Capability(type="vpn"),),
    )
    async with BrokerClient(state.broker, Signer.enrolling(state.identity)) as broker:
        response = await broker.register(request)
    store.save(
        replace(
            state,
            agent_id=response.server_id,
            name=response.name,
            broker_key=response.broker_key,
            verification_secret=response.verification_secret,
        )
    )
    return response


async def join_client(store: Store, state: AgentState, invite: Invite, name: str) -> AuthResponse:
    """Authenticate a device; the state on disk is complete afterwards."""
    request = AuthRequest(
        personal_key=invite.key,
        identity=state.identity.public_key,
        public_key=state.private_key.public_key,
        device_name=name,
        platform=f"{platform.system()} {platform.release()} {platform.machine()}"[:255],
        hardware_fingerprint=hardware_fingerprint(),
    )
    async with BrokerClient(state.broker, Signer.enrolling(state.identity)) as broker:
        response = await broker.authenticate(request)
    store.save(replace(state, agent_id=response.device_id, name=name, broker_key=response.broker_key))
    return response


def hardware_fingerprint(machine_id: Path = Path("/etc/machine-id")) -> str:
    """A keyed hash of the machine id, as machine-id(5) asks for: the id itself is never sent. Empty
    where the machine has none."""
    try:
        identifier = machine_id.read_text().strip()
    except OSError:
        return ""
    return hmac.new(identifier.encode(), b"horizon hardware fingerprint v1", hashlib.sha256).hexdigest()


def default_name() -> str:
    """This machine's host name, as far as it makes a `Name`."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().split(".")[0])[:63].lstrip("._-") or "machine"
