"""What is observed on the host, and what is desired of it. *Vocabulary.*

`HostState` is everything that bears one interface name, ours or not: the link, WireGuard's own state,
addresses, routes, and the nftables table. It holds no private key. The peers and routes of an
`InterfaceState` are mutable, so that a change of one peer costs one entry (see `plan.record`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from controlplane.protocol.keys import PresharedKey, PublicKey
from controlplane.protocol.wireguard import Endpoint, InterfaceSpec, IPInterface, IPNetwork

BackendKind = Literal["kernel", "userspace"]

ALIAS = "horizon: kept by the Horizon agent"
"""The alias (IFLA_IFALIAS, shown by `ip link`) that says an interface is ours."""
ALIAS_PREFIX = "horizon:"
ROUTE_PROTOCOL = 72
"""Who made a route, as `ip route` shows it; unassigned in rtnetlink.h. Only routes of this number on
our interface are ours."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """One peer as WireGuard has it."""

    public_key: PublicKey
    allowed_ips: frozenset[IPNetwork] = frozenset()
    endpoint: Endpoint | None = None
    preshared_key: PresharedKey | None = None
    persistent_keepalive: int = 0
    """Seconds; 0 is off."""
    latest_handshake: float | None = None
    """Unix seconds; None: never."""
    received: int = 0
    """Bytes."""
    sent: int = 0
    """Bytes."""


@dataclass(slots=True)
class DeviceState:
    """What a backend knows of an interface: WireGuard's part."""

    public_key: PublicKey | None = None
    """None: it has no private key yet."""
    listen_port: int = 0
    fwmark: int = 0
    peers: dict[PublicKey, PeerState] = field(default_factory=dict)


@dataclass(slots=True)
class InterfaceState:
    """A WireGuard interface, whoever made it."""

    name: str
    backend: BackendKind
    alias: str = ""
    mtu: int = 0
    up: bool = False
    addresses: frozenset[IPInterface] = frozenset()
    routes: set[IPNetwork] = field(default_factory=set)
    """Those of `ROUTE_PROTOCOL` only."""
    public_key: PublicKey | None = None
    listen_port: int = 0
    fwmark: int = 0
    peers: dict[PublicKey, PeerState] = field(default_factory=dict)

    @property
    def marked(self) -> bool:
        """Whether its alias says that it is ours."""
        return self.alias.startswith(ALIAS_PREFIX)

    @property
    def blank(self) -> bool:
        """Whether it is as just created: no key, no peer, down."""
        return self.public_key is None and not self.peers and not self.up and not self.alias


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A link of the wanted name that is not WireGuard, or answers no more."""

    kind: str
    """As `ip -details link` names it; `device` for hardware."""
    marked: bool = False
    """Whether its alias says that it is ours: what is left of a userspace interface."""


@dataclass(slots=True)
class HostState:
    """Everything on the host that concerns the interface `name`; at most one of interface and
    obstacle is set."""

    name: str
    interface: InterfaceState | None = None
    obstacle: Obstacle | None = None
    firewall: str | None = None
    """Digest of the text our table was made from; `""` if it was altered since, None without one."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """Forwarding, and `accept_ra` of interfaces that live by router advertisements; by path below
    /proc/sys."""
    ipv6: bool = True
    """Whether an interface here can have IPv6 addresses."""


@dataclass(frozen=True, slots=True)
class ServerFirewall:
    """A server's table: what is forwarded from and to the interface."""

    interface: str
    client_to_client: bool = False


@dataclass(frozen=True, slots=True)
class ClientFirewall:
    """A client's table: who may open connections to this host through the interface."""

    interface: str
    accept_from: frozenset[IPNetwork] = frozenset()
    refuse_from: frozenset[IPNetwork] = frozenset()
    """The servers' own addresses: refused also where `accept_from` holds them."""


FirewallSpec = ServerFirewall | ClientFirewall


@dataclass(frozen=True, slots=True)
class Desired:
    """What shall be there: None of both is "down", and removes all that is ours."""

    interface: InterfaceSpec | None = None
    firewall: FirewallSpec | None = None
