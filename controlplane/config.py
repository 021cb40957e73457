"""The broker's configuration. *Vocabulary.* Everything has a default; nothing must be set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path

from controlplane.protocol.enrolment import DEFAULT_PORT
from controlplane.protocol.wireguard import Endpoint

DEFAULT_IPV4_POOL = IPv4Network("10.64.0.0/10")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    data_dir: Path
    """Holds the database, the signing key and the TLS certificate; mode 0700."""
    listen_host: str = "::"
    listen_port: int = DEFAULT_PORT
    advertise: Endpoint | None = None
    """Where invites say the broker is; None: this machine's own address and `listen_port`."""
    database_url: str | None = None
    """None: an embedded libSQL file in `data_dir`."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    """Both None: a certificate of our own making."""
    ipv4_pool: IPv4Network = DEFAULT_IPV4_POOL
    ipv4_prefix: int = 20
    """Length of each server's IPv4 subnet. Pools are fixed when the broker first runs."""
    quarantine: timedelta = timedelta(hours=1)
    """How long an address rests before another device may get it."""
    authorization: timedelta = timedelta(days=7)
    """How long a device may come back without the broker."""
    connect_wait: float = 5.0
    """Seconds to wait for a server to acknowledge a new peer."""

    @property
    def url(self) -> str:
        return self.database_url or f"sqlite+libsql:///{self.data_dir / 'horizon.db'}"
