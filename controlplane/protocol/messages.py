"""Requests and responses of the broker's API, version 1. *Vocabulary.*

Unknown fields are refused. No response has a field for a private key; an enrolment key appears in a
response only where it is made (`InviteCreated`), once.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails

from controlplane.protocol.enrolment import EnrolmentKey
from controlplane.protocol.envelope import Signed
from controlplane.protocol.keys import IdentityPublicKey, PublicKey
from controlplane.protocol.wireguard import IPAddress, IPInterface, IPNetwork, check_host

API = "/api/v1"
MAX_BODY = 64 * 1024
"""Bytes; a larger request is refused unread."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", strip_whitespace=True)]
"""Of a server or device: letters, digits, and . _ - after the first."""
UserName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$", strip_whitespace=True)
]
Host = Annotated[str, AfterValidator(check_host)]
"""An IP address or a DNS name."""
Text = Annotated[str, StringConstraints(max_length=255)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Status(Message):
    """`GET /status`: who answers, for anyone."""

    name: str = "horizon"
    version: str
    time: datetime
    """The broker's clock, UTC."""
    broker_key: IdentityPublicKey


class Location(Message):
    """Where a server says it is."""

    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = None
    """ISO 3166-1 alpha-2."""
    city: Text | None = None
    latitude: float | None = Field(default=None, ge=-90, le=90)
    longitude: float | None = Field(default=None, ge=-180, le=180)


class Capability(Message):
    """One thing a server can do, e.g. type "vpn"."""

    type: Text
    details: str = Field(default="", max_length=2000)
    enabled: bool = True


_SECRET = {"registration_key", "personal_key", "admin_key", "verification_secret", "invite"}


def _shown(line: ErrorDetails) -> object:
    """The value an error may quote: a short one of a field that holds no secret, nor looks like one."""
    field, value = line["loc"][:1], line["input"]
    known = field and field[0] not in _SECRET and line["type"] != "extra_forbidden"
    if known and isinstance(value, str | int | float) and len(str(value)) <= 63 and "hz" not in str(value):
        return value
    return "***"


class SecretMessage(Message):
    """A message that carries a secret: an error about it never holds what may be that."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @model_validator(mode="wrap")
    @classmethod
    def _mask_errors(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            lines = [
                InitErrorDetails(
                    type=line["type"], loc=line["loc"], input=_shown(line), ctx=line.get("ctx", {})
                )
                for line in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(error.title, lines, hide_input=True) from None


# --- enrolment ----------------------------------------------------------------------------------


class RegisterRequest(SecretMessage):
    """`POST /register`, signed by the identity it names: a server redeems a registration key."""

    registration_key: EnrolmentKey
    identity: IdentityPublicKey
    public_key: PublicKey
    name: Name
    endpoint_host: Host | None = None
    """Where clients reach the server; None: the address the broker sees."""
    listen_port: int = Field(ge=1, le=65535)
    version: Text
    hardware_fingerprint: Text = ""
    location: Location = Location()
    capabilities: tuple[Capability, ...] = Field(default=(), max_length=32)


class RegisterResponse(SecretMessage):
    server_id: str
    name: str
    verification_secret: str = Field(repr=False)
    """Shared with this server only; answers verification challenges."""
    broker_key: IdentityPublicKey
    addresses: tuple[IPInterface, ...]


class AuthRequest(SecretMessage):
    """`POST /auth`, signed by the identity it names: a device redeems a personal key."""

    personal_key: EnrolmentKey
    identity: IdentityPublicKey
    public_key: PublicKey
    device_name: Name
    platform: Text
    hardware_fingerprint: Text = ""


class AuthResponse(Message):
    device_id: str
    user_name: str
    broker_key: IdentityPublicKey
    expires_at: datetime | None
    """When the personal key expires; None: never."""


class LoginRequest(SecretMessage):
    """`POST /admin/login`, signed by the identity it names: an administrator's machine redeems an
    admin key."""

    admin_key: EnrolmentKey
    identity: IdentityPublicKey
    machine: Name


class LoginResponse(Message):
    admin_id: str
    username: str
    broker_key: IdentityPublicKey


# --- servers and connections --------------------------------------------------------------------


class ServerInfo(Message):
    """A server as devices and admins are shown it."""

    server_id: str
    name: str
    status: str
    """pending, active or revoked."""
    online: bool
    """A heartbeat came within the last 90 s."""
    location: Location
    version: str
    capabilities: tuple[Capability, ...]
    public_key: PublicKey
    endpoint: str
    addresses: tuple[IPInterface, ...]
    client_to_client: bool
    active_connections: int
    registered_at: datetime
    last_heartbeat: datetime | None


class ServerList(Message):
    servers: tuple[ServerInfo, ...]


class ServerChange(Message):
    """`PATCH /admin/servers/{server}`: what is None stays."""

    client_to_client: bool | None = None
    endpoint_host: Host | None = None


class ConnectionType(StrEnum):
    vpn = "vpn"
    lan = "lan"
    exit = "exit"


class ConnectionStatus(StrEnum):
    intent = "intent"
    """Asked for; the server has not seen a handshake yet."""
    active = "active"
    ended = "ended"


class ConnectRequest(Message):
    """`POST /connections`: a device asks for a server."""

    server: Text
    """Name or id."""
    connection_type: ConnectionType = ConnectionType.vpn
    since: int | None = None
    """The netmap revision the device holds; the answer carries what comes after it."""


class ConnectionInfo(Message):
    connection_id: str
    server_id: str
    server_name: str
    device_id: str
    device_name: str
    user_name: str
    addresses: tuple[IPAddress, ...]
    connection_type: ConnectionType
    status: ConnectionStatus
    started_at: datetime
    ended_at: datetime | None = None


class ConnectResponse(Message):
    connection: ConnectionInfo
    in_place: bool
    """Whether the server has acknowledged the peer within the bounded wait."""
    netmap: Signed


class ConnectionList(Message):
    connections: tuple[ConnectionInfo, ...]


class PeerReport(Message):
    """What a server observed of one peer since it last said so."""

    peer_id: str
    latest_handshake: AwareDatetime | None
    received: int = Field(ge=0)
    """Bytes, from the peer."""
    sent: int = Field(ge=0)


class Heartbeat(Message):
    """`POST /heartbeat`: a server, each 30 s."""

    revision: int | None
    """The netmap revision applied."""
    version: Text
    active_connections: int = Field(ge=0)
    metrics: dict[Annotated[str, StringConstraints(max_length=64)], float] = Field(
        default_factory=dict, max_length=64
    )
    peers: tuple[PeerReport, ...] = Field(default=(), max_length=300)


# --- administration -----------------------------------------------------------------------------


class RegistrationKeyRequest(Message):
    """`POST /admin/registration-keys`."""

    max_uses: int = Field(default=1, ge=1, le=1000)
    expires_in: int = Field(default=24 * 3600, ge=60, le=366 * 24 * 3600)
    """Seconds."""
    notes: Text = ""


class PersonalKeyRequest(Message):
    """`POST /admin/personal-keys`."""

    user_name: UserName
    user_email: Text | None = None
    expires_in: int | None = Field(default=None, ge=60, le=10 * 366 * 24 * 3600)
    """Seconds; None: until revoked."""
    notes: Text = ""


class InviteCreated(SecretMessage):
    """A new enrolment key, shown this once."""

    key_id: str
    invite: str = Field(repr=False)
    expires_at: datetime | None


class RegistrationKeyInfo(Message):
    key_id: str
    status: str
    """active, used, expired or revoked."""
    uses: int
    max_uses: int
    created_at: datetime
    expires_at: datetime
    notes: str


class PersonalKeyInfo(Message):
    key_id: str
    user_name: str
    user_email: str | None
    status: str
    created_at: datetime
    expires_at: datetime | None
    devices: int
    notes: str


class DeviceInfo(Message):
    device_id: str
    name: str
    platform: str
    user_name: str
    status: str
    """active or revoked."""
    public_key: PublicKey
    agent: bool
    """False for a plain WireGuard device made by an export."""
    first_seen: datetime
    last_seen: datetime


class RegistrationKeyList(Message):
    registration_keys: tuple[RegistrationKeyInfo, ...]


class PersonalKeyList(Message):
    personal_keys: tuple[PersonalKeyInfo, ...]


class AdminMachineInfo(Message):
    """A machine from which an administrator's command line signs."""

    machine_id: str
    name: str
    username: str
    """Whose it is."""
    status: str
    """active or revoked."""
    created_at: datetime


class AdminMachineList(Message):
    machines: tuple[AdminMachineInfo, ...]


class DeviceList(Message):
    devices: tuple[DeviceInfo, ...]


class ExportRequest(Message):
    """`POST /exports`: a peer for plain WireGuard; its private key stays with whoever asks."""

    user_name: UserName
    server: Text
    device_name: Name
    public_key: PublicKey


class ExportResponse(Message):
    """All that a wg-quick configuration needs but the private key."""

    device_id: str
    server_name: str
    in_place: bool
    addresses: tuple[IPInterface, ...]
    mtu: int
    server_public_key: PublicKey
    server_addresses: tuple[IPAddress, ...]
    endpoint: str
    allowed_ips: tuple[IPNetwork, ...]
    accept_from: tuple[IPNetwork, ...]
    persistent_keepalive: int
