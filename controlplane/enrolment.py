"""Enrolment: registration keys let servers in, personal keys devices, admin keys machines of admins.

*Use cases*: each function is one transaction on the session it is given. A key's two limits hold both,
uses AND expiry, and a use is taken by one conditional UPDATE, so parallel redemptions of a single-use
key let exactly one in. Who presents a key again with the identity it let in gets the same answer again:
the response may have been lost.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, update
from sqlmodel import Session, col, select

from controlplane.broker import Broker
from controlplane.db import next_revision, touch
from controlplane.errors import (
    AddressesExhausted,
    KeyExpired,
    KeyInUse,
    KeyRefused,
    KeyRevoked,
    KeyUsed,
    NameTaken,
    Revoked,
    WrongKind,
)
from controlplane.ipam import SERVER_HOST
from controlplane.keyhash import digest, digest_matches
from controlplane.models import (
    Admin,
    AdminMachine,
    Device,
    PersonalKey,
    RegistrationKey,
    Server,
    ServerCapability,
)
from controlplane.protocol.enrolment import EnrolmentKey, InviteKind
from controlplane.protocol.messages import (
    AuthRequest,
    AuthResponse,
    InviteCreated,
    LoginRequest,
    LoginResponse,
    PersonalKeyRequest,
    RegisterRequest,
    RegisterResponse,
    RegistrationKeyRequest,
)
from controlplane.protocol.wireguard import DEFAULT_MTU

_REFUSED = "no such key, or it is not whole: copy the invite again, or ask for a new one"


def new_id(prefix: str) -> str:
    """A random public id, e.g. `srv_3f9c2a51e0b7`."""
    return f"{prefix}_{secrets.token_hex(6)}"


# --- making keys --------------------------------------------------------------------------------


def create_registration_key(
    broker: Broker, session: Session, request: RegistrationKeyRequest
) -> InviteCreated:
    return _create_key(broker, session, InviteKind.server, request, None)


def create_admin_key(
    broker: Broker, session: Session, admin_id: str, expires_in: timedelta = timedelta(days=1)
) -> InviteCreated:
    request = RegistrationKeyRequest(expires_in=int(expires_in.total_seconds()))
    return _create_key(broker, session, InviteKind.admin, request, admin_id)


def _create_key(
    broker: Broker,
    session: Session,
    kind: InviteKind,
    request: RegistrationKeyRequest,
    admin_id: str | None,
) -> InviteCreated:
    key = EnrolmentKey.generate(kind)
    row = RegistrationKey(
        key_id=key.key_id,
        kind=kind.value,
        key_hash=digest(key.secret),
        max_uses=request.max_uses,
        creation_date=broker.now(),
        expiration_date=broker.now() + timedelta(seconds=request.expires_in),
        admin_id=admin_id,
        notes=request.notes,
    )
    session.add(row)
    return InviteCreated(
        key_id=key.key_id, invite=broker.invite(key).reveal(), expires_at=row.expiration_date
    )


@dataclass(frozen=True, slots=True)
class HashedKey:
    """A new personal key and what is stored of it."""

    key: EnrolmentKey
    key_hash: str
    key_salt: str


def generate_personal_key(broker: Broker) -> HashedKey:
    """Takes a tenth of a second, so it comes before the transaction."""
    key = EnrolmentKey.generate(InviteKind.device)
    return HashedKey(key, *broker.hasher.hash(key.secret))


def create_personal_key(
    broker: Broker, session: Session, request: PersonalKeyRequest, hashed: HashedKey
) -> InviteCreated:
    lifetime = None if request.expires_in is None else timedelta(seconds=request.expires_in)
    row = PersonalKey(
        key_id=hashed.key.key_id,
        user_name=request.user_name,
        user_email=request.user_email,
        key_hash=hashed.key_hash,
        key_salt=hashed.key_salt,
        creation_date=broker.now(),
        expiration_date=None if lifetime is None else broker.now() + lifetime,
        notes=request.notes,
    )
    session.add(row)
    return InviteCreated(
        key_id=row.key_id, invite=broker.invite(hashed.key).reveal(), expires_at=row.expiration_date
    )


# --- redeeming them -----------------------------------------------------------------------------


def register(broker: Broker, session: Session, request: RegisterRequest, public_ip: str) -> RegisterResponse:
    """A server redeems its registration key; the broker gives it a name, a subnet and a secret."""
    key = _find_key(session, request.registration_key, InviteKind.server)
    server = session.exec(select(Server).where(Server.identity == str(request.identity))).first()
    if server is None:
        _take_use(broker, session, key)
        _check_names(session, request)
        server = _new_server(broker, session, request, public_ip, key)
    elif server.registration_key_id != key.key_id:
        raise KeyInUse(f"this server is registered as {server.hostname!r} with another key already")
    elif server.status == "revoked":
        raise Revoked(
            f"server {server.hostname!r} was revoked: to register it anew, remove its state directory "
            "and join with a new invite"
        )
    elif server.public_key != str(request.public_key):
        raise KeyInUse(
            f"server {server.hostname!r} registered with WireGuard key {server.public_key}: to change "
            "it, remove its state directory and join with a new invite"
        )
    else:
        server.verification_secret = secrets.token_urlsafe(32)
    return RegisterResponse(
        server_id=server.server_id,
        name=server.hostname,
        verification_secret=server.verification_secret,
        broker_key=broker.signing_key.public_key,
        addresses=broker.pools.subnet(server.subnet).interfaces(SERVER_HOST),
    )


def authenticate(broker: Broker, session: Session, request: AuthRequest, key_id: str) -> AuthResponse:
    """A device joins with the personal key `key_id`, which `verify_personal_key` has verified.

    Two steps, because the hash takes a tenth of a second and nobody shall hold the writer's lock, or a
    connection to the database, for it.
    """
    key = session.exec(select(PersonalKey).where(PersonalKey.key_id == key_id)).one()
    check_personal_key(key, broker.now())
    device = session.exec(select(Device).where(Device.identity == str(request.identity))).first()
    now = broker.now()
    if device is None:
        if session.exec(select(Device).where(Device.public_key == str(request.public_key))).first():
            raise KeyInUse(f"WireGuard key {request.public_key} belongs to another device: make a new one")
        device = Device(
            device_id=new_id("dev"),
            key_id=key.key_id,
            hardware_fingerprint=request.hardware_fingerprint,
            device_name=request.device_name,
            platform=request.platform,
            first_seen=now,
            last_seen=now,
            public_key=str(request.public_key),
            identity=str(request.identity),
            revision=next_revision(session),
        )
        session.add(device)
    elif device.status == "revoked":
        raise Revoked(f"device {device.device_name!r} was revoked: ask your administrator")
    elif device.key_id != key.key_id:
        raise KeyInUse(f"this device joined as {device.device_name!r} with another personal key already")
    elif device.public_key != str(request.public_key):
        raise KeyInUse(
            f"device {device.device_name!r} joined with WireGuard key {device.public_key}: to change it, "
            "remove its state directory and join anew"
        )
    return AuthResponse(
        device_id=device.device_id,
        user_name=key.user_name,
        broker_key=broker.signing_key.public_key,
        expires_at=key.expiration_date,
    )


def login(broker: Broker, session: Session, request: LoginRequest) -> LoginResponse:
    """An administrator's machine redeems an admin key."""
    key = _find_key(session, request.admin_key, InviteKind.admin)
    identity = str(request.identity)
    machine = session.exec(select(AdminMachine).where(AdminMachine.identity == identity)).first()
    if machine is None:
        _take_use(broker, session, key)
        machine = AdminMachine(
            machine_id=new_id("adm"),
            admin_id=str(key.admin_id),
            name=request.machine,
            identity=identity,
            key_id=key.key_id,
            creation_date=broker.now(),
        )
        session.add(machine)
    elif machine.status != "active":
        raise Revoked(f"machine {machine.name!r} was revoked: log in again with a new invite")
    admin = session.exec(select(Admin).where(Admin.admin_id == machine.admin_id)).one()
    admin.last_login = broker.now()
    return LoginResponse(
        admin_id=machine.machine_id,
        username=admin.username,
        broker_key=broker.signing_key.public_key,
    )


def ensure_owner(broker: Broker, session: Session) -> InviteCreated | None:
    """On the first run: an owner, and the one invite that lets them in. None afterwards."""
    if session.exec(select(Admin)).first() is not None:
        return None
    owner = Admin(admin_id=new_id("own"), username="owner", role="owner")
    session.add(owner)
    session.flush()
    return create_admin_key(broker, session, owner.admin_id)


def verify_personal_key(broker: Broker, given: EnrolmentKey) -> str:
    """The id of a personal key that is whole; `authenticate` checks whether it holds still.

    Opens its own read, and no longer than it takes to find the hash.
    """
    if given.kind is not InviteKind.device:
        raise WrongKind(f"{given.visible}… is not a personal key: devices join with a personal key")
    with broker.database.read() as session:
        key = session.get(PersonalKey, given.key_id)
        expected = key.key_hash if key else None
    if not broker.hasher.matches(given.secret, expected):
        raise KeyRefused(_REFUSED)
    return given.key_id


def check_personal_key(key: PersonalKey, now: datetime) -> None:
    """Raise if a personal key holds no longer."""
    if key.status != "active":
        raise KeyRevoked(f"personal key {key.key_id} was revoked: ask your administrator for a new invite")
    if key.expiration_date is not None and key.expiration_date <= now:
        raise KeyExpired(
            f"personal key {key.key_id} expired on {key.expiration_date:%Y-%m-%d %H:%M} UTC: "
            "ask your administrator for a new invite"
        )


def _find_key(session: Session, given: EnrolmentKey, kind: InviteKind) -> RegistrationKey:
    if given.kind is not kind:
        raise WrongKind(f"{given.visible}… is for a {given.kind.value}, not for a {kind.value}")
    key = session.get(RegistrationKey, given.key_id)
    matches = digest_matches(given.secret, key.key_hash if key else "")
    if key is None or not matches or key.kind != kind.value:
        raise KeyRefused(_REFUSED)
    return key


def _take_use(broker: Broker, session: Session, key: RegistrationKey) -> None:
    """Take one use of a key, if uses AND time AND status allow."""
    now = broker.now()
    taken = session.execute(
        update(RegistrationKey)
        .where(
            col(RegistrationKey.key_id) == key.key_id,
            col(RegistrationKey.status) == "active",
            col(RegistrationKey.uses) < col(RegistrationKey.max_uses),
            col(RegistrationKey.expiration_date) > now,
        )
        .values(uses=RegistrationKey.uses + 1)
    )
    if taken.rowcount == 1:  # type: ignore[attr-defined]
        return
    name = f"{key.kind} key {key.key_id}"
    if key.status != "active":
        raise KeyRevoked(f"{name} was revoked: ask for a new invite")
    if key.expiration_date <= now:
        raise KeyExpired(f"{name} expired on {key.expiration_date:%Y-%m-%d %H:%M} UTC: ask for a new invite")
    raise KeyUsed(f"{name} was used already ({key.max_uses} of {key.max_uses}): ask for a new invite")


def _check_names(session: Session, request: RegisterRequest) -> None:
    taken = session.exec(select(Server).where(Server.hostname == request.name)).first()
    if taken is not None and taken.status == "revoked":
        taken.hostname = f"{taken.hostname}.{taken.server_id}"  # its name is free for its successor
        session.flush()
    elif taken is not None:
        raise NameTaken(f"a server named {request.name!r} exists already: join with another --name")
    if session.exec(select(Server).where(Server.public_key == str(request.public_key))).first():
        raise KeyInUse(f"WireGuard key {request.public_key} belongs to another server: make a new one")


def _new_server(
    broker: Broker, session: Session, request: RegisterRequest, public_ip: str, key: RegistrationKey
) -> Server:
    server = Server(
        server_id=new_id("srv"),
        hostname=request.name,
        public_ip=public_ip,
        public_key=str(request.public_key),
        identity=str(request.identity),
        verification_secret=secrets.token_urlsafe(32),
        version=request.version,
        location=request.location.country,
        city=request.location.city,
        latitude=request.location.latitude,
        longitude=request.location.longitude,
        registration_date=broker.now(),
        registration_key_id=key.key_id,
        hardware_fingerprint=request.hardware_fingerprint,
        endpoint_host=request.endpoint_host or public_ip,
        listen_port=request.listen_port,
        mtu=DEFAULT_MTU,
        subnet=_free_subnet(broker, session),
        revision=next_revision(session),
    )
    session.add(server)
    session.flush()
    session.add_all(
        ServerCapability(
            server_id=server.server_id,
            capability_type=capability.type,
            capability_details=capability.details,
            enabled=capability.enabled,
        )
        for capability in request.capabilities
    )
    touch(session, server.server_id)
    return server


def _free_subnet(broker: Broker, session: Session) -> int:
    highest = session.execute(select(func.max(Server.subnet))).scalar()
    number = 0 if highest is None else int(highest) + 1
    if number >= broker.pools.subnets:
        raise AddressesExhausted(
            f"all {broker.pools.subnets} subnets of {broker.pools.ipv4} are given to servers: "
            "set up the broker with a larger pool or smaller subnets"
        )
    return number
