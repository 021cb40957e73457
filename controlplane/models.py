"""The tables: the specification's eight, and those that orchestration needs. *Vocabulary.*

Keys and addresses are stored as text. `Peer` is at once lease, netmap entry and tombstone: one row for
each (server, device) that keeps its address; `removed_at` set means that the peer is gone, and after
the quarantine its address may go to another device. Two revisions order its changes, one for each side
that watches.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

NO_PASSWORD = "!"  # noqa: S105  (not a password but the lack of one)
"""In place of a hash: no password is ever right."""


class Server(SQLModel, table=True):
    __tablename__: ClassVar[str] = "servers"
    __table_args__ = (
        Index("idx_servers_status", "status"),
        Index("idx_servers_last_heartbeat", "last_heartbeat"),
        Index("idx_servers_location", "location"),
    )

    server_id: str = Field(primary_key=True)
    hostname: str = Field(unique=True)
    """The server's name, unique among servers."""
    public_ip: str
    """As the broker saw it."""
    public_key: str = Field(unique=True)
    """WireGuard."""
    identity: str = Field(unique=True)
    """Ed25519."""
    verification_secret: str
    version: str
    location: str | None = None
    """ISO 3166-1 country."""
    city: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    registration_date: datetime
    last_heartbeat: datetime | None = None
    status: str = "pending"
    """pending (never heard of since it registered), active or revoked."""
    available: bool = False
    registration_key_id: str = Field(foreign_key="registration_keys.key_id", index=True)
    hardware_fingerprint: str = ""
    endpoint_host: str
    listen_port: int
    mtu: int
    client_to_client: bool = True
    subnet: int = Field(unique=True)
    """Which subnet of the address pools is this server's."""
    revision: int
    pruned_revision: int = 0
    """Changes up to this revision may be forgotten: who holds less gets a snapshot."""


class ServerCapability(SQLModel, table=True):
    __tablename__: ClassVar[str] = "server_capabilities"

    capability_id: int | None = Field(default=None, primary_key=True)
    server_id: str = Field(foreign_key="servers.server_id", ondelete="CASCADE", index=True)
    capability_type: str
    capability_details: str
    enabled: bool = True


class RegistrationKey(SQLModel, table=True):
    """Lets a server (or, of kind admin, an administrator's machine) in. 260 random bits, so a plain
    hash of the secret is enough."""

    __tablename__: ClassVar[str] = "registration_keys"

    key_id: str = Field(primary_key=True)
    kind: str
    """server or admin."""
    key_hash: str
    """SHA-256 of the secret, hexadecimal."""
    status: str = "active"
    """active or revoked; used and expired follow from the other columns."""
    uses: int = 0
    max_uses: int = 1
    creation_date: datetime
    expiration_date: datetime
    admin_id: str | None = Field(default=None, foreign_key="admins.admin_id")
    """Of an admin key: whose machine it lets in."""
    notes: str = ""


class PersonalKey(SQLModel, table=True):
    __tablename__: ClassVar[str] = "personal_keys"
    __table_args__ = (
        Index("idx_personal_keys_status", "status"),
        Index("idx_personal_keys_user", "user_name"),
    )

    key_id: str = Field(primary_key=True)
    user_name: str
    user_email: str | None = None
    key_hash: str
    """Argon2id in PHC form."""
    key_salt: str
    """Its salt, base64 (the PHC form repeats it)."""
    status: str = "active"
    creation_date: datetime
    expiration_date: datetime | None = None
    last_rotation_date: datetime | None = None
    notes: str = ""


class Device(SQLModel, table=True):
    __tablename__: ClassVar[str] = "devices"
    __table_args__ = (
        Index("idx_devices_key_id", "key_id"),
        Index("idx_devices_last_seen", "last_seen"),
    )

    device_id: str = Field(primary_key=True)
    key_id: str = Field(foreign_key="personal_keys.key_id")
    hardware_fingerprint: str
    device_name: str
    platform: str
    first_seen: datetime
    last_seen: datetime
    status: str = "active"
    public_key: str = Field(unique=True)
    """WireGuard."""
    identity: str | None = Field(default=None, unique=True)
    """Ed25519; None for a plain WireGuard device, which has no agent."""
    revision: int
    pruned_revision: int = 0


class Connection(SQLModel, table=True):
    __tablename__: ClassVar[str] = "connections"
    __table_args__ = (
        Index("idx_connections_status", "status"),
        Index("idx_connections_server_id", "server_id"),
        Index("idx_connections_device_id", "device_id"),
        Index("idx_connections_user", "user_name"),
    )

    connection_id: str = Field(primary_key=True)
    server_id: str = Field(foreign_key="servers.server_id")
    device_id: str = Field(foreign_key="devices.device_id")
    key_id: str = Field(foreign_key="personal_keys.key_id")
    user_name: str
    connection_start: datetime
    connection_end: datetime | None = None
    status: str = "intent"
    """intent, active or ended."""
    connection_type: str
    client_ip: str


class Peer(SQLModel, table=True):
    __tablename__: ClassVar[str] = "peers"
    __table_args__ = (
        UniqueConstraint("server_id", "device_id"),
        UniqueConstraint("server_id", "host"),
        Index("idx_peers_server_revision", "server_id", "server_revision"),
        Index("idx_peers_device_revision", "device_id", "device_revision"),
        Index("idx_peers_server_removed", "server_id", "removed_at"),
        Index("idx_peers_connection_id", "connection_id"),
        Index("idx_peers_authorized_until", "authorized_until", sqlite_where=text("removed_at IS NULL")),
    )

    peer_id: int | None = Field(default=None, primary_key=True)
    server_id: str = Field(foreign_key="servers.server_id")
    device_id: str = Field(foreign_key="devices.device_id")
    connection_id: str = Field(foreign_key="connections.connection_id")
    host: int
    """The host number within the server's subnets."""
    ipv4: str = Field(unique=True)
    ipv6: str = Field(unique=True)
    authorized_until: datetime
    removed_at: datetime | None = None
    server_revision: int
    device_revision: int
    latest_handshake: datetime | None = None
    received: int = 0
    sent: int = 0


class Heartbeat(SQLModel, table=True):
    __tablename__: ClassVar[str] = "heartbeats"
    __table_args__ = (
        Index("idx_heartbeats_server_id", "server_id"),
        Index("idx_heartbeats_received_time", "received_time"),
    )

    heartbeat_id: int | None = Field(default=None, primary_key=True)
    server_id: str = Field(foreign_key="servers.server_id", ondelete="CASCADE")
    received_time: datetime
    signature_valid: bool
    active_connections: int = 0
    current_location: str | None = None
    system_metrics: str | None = None
    """JSON: CPU, memory, network."""


class SecurityEvent(SQLModel, table=True):
    __tablename__: ClassVar[str] = "security_events"
    __table_args__ = (Index("idx_security_events_severity", "severity"),)

    event_id: int | None = Field(default=None, primary_key=True)
    timestamp: datetime
    event_type: str
    severity: str
    component: str
    source_id: str | None = None
    description: str
    handled: bool = False
    user_name: str | None = None


class Admin(SQLModel, table=True):
    __tablename__: ClassVar[str] = "admins"

    admin_id: str = Field(primary_key=True)
    username: str = Field(unique=True)
    password_hash: str = NO_PASSWORD
    """Argon2id; none where no password was set, as the command line needs none."""
    email: str | None = Field(default=None, unique=True)
    role: str
    status: str = "active"
    last_login: datetime | None = None


class AdminMachine(SQLModel, table=True):
    """A machine from which an administrator's command line signs."""

    __tablename__: ClassVar[str] = "admin_machines"

    machine_id: str = Field(primary_key=True)
    admin_id: str = Field(foreign_key="admins.admin_id", index=True)
    name: str
    identity: str = Field(unique=True)
    key_id: str = Field(foreign_key="registration_keys.key_id")
    creation_date: datetime
    status: str = "active"


class SignedAhead(SQLModel, table=True):
    """The newest accepted signature of a signer whose clock is ahead of the broker's: after a restart
    nothing of theirs up to it is accepted. A row is of use for a minute."""

    __tablename__: ClassVar[str] = "signed_ahead"

    key_id: str = Field(primary_key=True)
    created: float
    """Unix seconds, by the signer's clock."""


class Setting(SQLModel, table=True):
    """What all brokers on one database share: address pools, the revision counter."""

    __tablename__: ClassVar[str] = "settings"

    name: str = Field(primary_key=True)
    value: str


class Revision(SQLModel, table=True):
    """One row: the last revision given out. Taken within the transaction that uses it, so revisions
    become visible in their order."""

    __tablename__: ClassVar[str] = "revision"

    id: int = Field(default=1, primary_key=True)
    value: int = 0
