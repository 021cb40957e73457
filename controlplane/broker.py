"""The running broker: what its use cases share. *Shell.*

One object, made once by `open_broker` and passed along; there are no module-level engines or settings.
`clock` gives Unix seconds and is an argument, so tests can move it.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from anyio import CapacityLimiter
from sqlalchemy import delete
from sqlmodel import col, select

from controlplane import ipam
from controlplane.client.files import ensure_private_directory, write_private
from controlplane.config import BrokerConfig
from controlplane.db import Database, create_engine, setting
from controlplane.errors import StartError
from controlplane.keyhash import PersonalKeyHasher
from controlplane.models import Setting, SignedAhead
from controlplane.protocol.enrolment import EnrolmentKey, Invite
from controlplane.protocol.errors import KeyFormatError
from controlplane.protocol.keys import IdentityKey
from controlplane.protocol.signing import WINDOW, ReplayGuard
from controlplane.protocol.wireguard import Endpoint
from controlplane.tls import check_pair, ensure_certificate, spki_pin
from controlplane.watch import Applied, Notifier

log = logging.getLogger(__name__)
SIGNING_KEY = "signing.key"
_ADVERTISE, _FOUND, _PIN = "advertise", "advertise_found", "tls_pin"
"""Settings: where invites say the broker is, as last given; else as last found out; and its pin."""


@dataclass(slots=True)
class Broker:
    """See the module."""

    config: BrokerConfig
    database: Database
    signing_key: IdentityKey
    pools: ipam.Pools
    pin: str
    """Of the TLS certificate, as invites carry it."""
    advertise: Endpoint
    notifier: Notifier
    guard: ReplayGuard
    certificate: Path | None = None
    """None in a broker that was opened to make invites only."""
    certificate_key: Path | None = None
    clock: Callable[[], float] = time.time
    applied: Applied = field(default_factory=Applied)
    hasher: PersonalKeyHasher = field(default_factory=PersonalKeyHasher)
    hashing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    """The threads that may verify personal keys: 64 MiB each."""

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def invite(self, key: EnrolmentKey) -> Invite:
        return Invite(self.advertise.host, self.advertise.port, self.pin, key)

    def close(self) -> None:
        self.database.close()


def open_broker(config: BrokerConfig, clock: Callable[[], float] = time.time) -> Broker:
    """Open or first make everything in the data directory, to serve. Raises `StartError`."""
    try:
        ensure_private_directory(config.data_dir)
    except OSError as error:
        raise StartError(f"data directory {str(config.data_dir)!r}: {error.strerror}") from None
    notifier = Notifier()
    database = Database(create_engine(config.url), notifier.notify)
    advertise = _advertised(database, config)
    certificate, certificate_key = _certificate(config, advertise.host)
    broker = Broker(
        config=config,
        database=database,
        signing_key=_signing_key(config.data_dir / SIGNING_KEY),
        pools=_pools(database, config),
        pin=spki_pin(certificate),
        advertise=advertise,
        notifier=notifier,
        guard=_guard(database, clock),
        certificate=certificate,
        certificate_key=certificate_key,
        clock=clock,
    )
    with database.write() as session:
        session.merge(Setting(name=_ADVERTISE if config.advertise else _FOUND, value=str(broker.advertise)))
        session.merge(Setting(name=_PIN, value=broker.pin))
    return broker


def reopen_broker(config: BrokerConfig, clock: Callable[[], float] = time.time) -> Broker:
    """A broker as it last ran, to make invites beside it; its certificate is not looked for.

    Raises `StartError` where none ran yet; keys and certificates are never made here.
    """
    if not (config.data_dir / SIGNING_KEY).exists():
        raise StartError(
            f"no broker in {str(config.data_dir)!r}: give --data-dir, or start one with `horizon broker run`"
        )
    notifier = Notifier()
    database = Database(create_engine(config.url), notifier.notify)
    with database.read() as session:
        advertise = session.get(Setting, _ADVERTISE) or session.get(Setting, _FOUND)
        pin = session.get(Setting, _PIN)
    if advertise is None or pin is None:
        database.close()
        raise StartError(
            f"the broker in {str(config.data_dir)!r} has not run with this database yet: start it with "
            "`horizon broker run`, or give the same --database-url"
        )
    return Broker(
        config=config,
        database=database,
        signing_key=_signing_key(config.data_dir / SIGNING_KEY),
        pools=_pools(database, config),
        pin=pin.value,
        advertise=config.advertise or Endpoint.parse(advertise.value),
        notifier=notifier,
        guard=ReplayGuard(started=clock()),
        clock=clock,
    )


def _advertised(database: Database, config: BrokerConfig) -> Endpoint:
    """Where invites say the broker is: as given now, as given once, or else found out."""
    with database.read() as session:
        given = session.get(Setting, _ADVERTISE)
    if config.advertise is not None:
        return config.advertise
    return Endpoint.parse(given.value) if given else Endpoint(outward_address(), config.listen_port)


def _guard(database: Database, clock: Callable[[], float]) -> ReplayGuard:
    """A guard that keeps in the database what a later run must still refuse."""
    started = clock()
    with database.read() as session:
        ahead = {row.key_id: row.created for row in session.exec(select(SignedAhead)).all()}

    def keep(key_id: str, created: float) -> None:
        with database.write() as session:
            session.execute(delete(SignedAhead).where(col(SignedAhead.created) < clock() - WINDOW))
            newest = session.get(SignedAhead, key_id)
            if newest is None or newest.created < created:
                session.merge(SignedAhead(key_id=key_id, created=created))

    return ReplayGuard(started, ahead, keep)


def _certificate(config: BrokerConfig, advertise: str) -> tuple[Path, Path]:
    given = config.tls_certificate, config.tls_key
    if given[0] is not None and given[1] is not None:
        check_pair(given[0], given[1])
        return given[0], given[1]
    if given != (None, None):
        raise StartError("a TLS certificate needs its key: give --tls-certificate and --tls-key")
    return ensure_certificate(config.data_dir, [advertise, "localhost"])


def _signing_key(path: Path) -> IdentityKey:
    if not path.exists():
        key = IdentityKey.generate()
        write_private(path, key.reveal() + "\n")
        log.info("made the broker's signing key %s", key.public_key)
        return key
    try:
        return IdentityKey.parse(path.read_bytes().decode(errors="replace").strip())
    except KeyFormatError as error:
        raise StartError(
            f"{str(path)!r} is damaged ({error}): restore it from a backup. With a new key every "
            "server and device would have to join again"
        ) from None


def _pools(database: Database, config: BrokerConfig) -> ipam.Pools:
    """The pools that were fixed at the first run; addresses already given out lie in them."""
    with database.write() as session:
        ipv4 = IPv4Network(setting(session, "ipv4_pool", lambda: str(config.ipv4_pool)))
        prefix = int(setting(session, "ipv4_prefix", lambda: str(config.ipv4_prefix)))
        ipv6 = IPv6Network(setting(session, "ipv6_pool", lambda: str(ipam.random_ula())))
        try:  # before the commit, so that a bad pool is not kept
            pools = ipam.Pools(ipv4, prefix, ipv6)
        except ValueError as error:
            raise StartError(f"{error}: give another --ipv4-pool or --ipv4-prefix") from None
    if (ipv4, prefix) != (config.ipv4_pool, config.ipv4_prefix):
        log.warning("keeping address pool %s with /%d per server, as first set", ipv4, prefix)
    return pools


def outward_address() -> str:
    """This machine's own address towards the internet, else its host name. Sends nothing."""
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))
            except OSError:
                continue
            return str(probe.getsockname()[0])
    return socket.gethostname()
