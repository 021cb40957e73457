"""WireGuard's own nouns, as desired state: interface, peer, endpoint. *Vocabulary.*

Names and meanings are those of `wg(8)`. A spec that WireGuard could not hold is refused when it is
made: the kernel would silently move an allowed IP from one peer to the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)

from controlplane.protocol.errors import SpecError
from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

DEFAULT_MTU = 1380
"""Fits PPPoE, LTE and an IPv6 underlay (1420 breaks on those)."""
PERSISTENT_KEEPALIVE = 25
"""Seconds; keeps a NAT mapping open, as wg(8) recommends."""
HANDSHAKE_FRESH = 180
"""Seconds: a session older than WireGuard's REJECT_AFTER_TIME carries nothing."""

_INTERFACE_NAME = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
"""Of a DNS name; with the underscore, which RFC 1123 lacks and names of machines have."""
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,253}")


def check_interface_name(name: str) -> str:
    """`name`, if Linux and wg-quick accept it as an interface name; else `SpecError`."""
    if not _INTERFACE_NAME.fullmatch(name) or name in {".", ".."}:
        raise SpecError(f"{name!r} is not an interface name: use 1 to 15 letters, digits and _ = + . -")
    return name


def check_host(text: str) -> str:
    """`text`, if it is an IP address or a DNS name in the form of RFC 1123; else `SpecError`.

    A last label of digits only would be half an IPv4 address, which resolvers complete as they like.
    """
    try:
        if "%" not in text and ip_address(text):
            return text
    except ValueError:
        labels = text.split(".")
        if len(text) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit():
            return text
    raise SpecError(
        f"{text[:80]!r} is neither an IP address nor a DNS name: write 192.0.2.1, 2001:db8::1 or "
        "vpn.example.org, without a port"
    )


def check_unscoped(items: Iterable[IPAddress | IPInterface | IPNetwork]) -> None:
    """Refuse IPv6 scope ids with `SpecError`: WireGuard takes none in its addresses.

    `ipaddress` accepts any text after the %, also what nft or a shell would obey.
    """
    for item in items:
        address = getattr(item, "network_address", item)
        if getattr(address, "scope_id", None) is not None:
            raise SpecError(
                f"{str(item)!r} has a scope id, which WireGuard does not take: end it before the %"
            )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer's UDP port is: an address or a name, and a port."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise SpecError(f"{self.host!r} is neither an address nor a host name")
        if not 0 < self.port < 65536:
            raise SpecError(f"port {self.port} of {self.host!r} is not between 1 and 65535")

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Endpoint:
        """Read `HOST:PORT` or `[IPV6]:PORT` (the port may lack if there is a default)."""
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", text.strip())
        if match is None:
            raise SpecError(f"{text!r} is not an endpoint: write HOST:PORT or [IPV6]:PORT")
        host, port = match[1] or match[2], match[3] or default_port
        if port is None:
            raise SpecError(f"{text!r} has no port: write {text}:51820")
        return cls(host, int(port))

    @property
    def address(self) -> IPAddress | None:
        """The address, or None where `host` is a name that must be resolved."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """One peer as it shall be."""

    public_key: PublicKey
    allowed_ips: frozenset[IPNetwork] = frozenset()
    endpoint: Endpoint | None = None
    """None: learnt from the peer's own packets, and left alone."""
    preshared_key: PresharedKey | None = None
    persistent_keepalive: int = 0
    """Seconds; 0 is off."""


@dataclass(frozen=True, slots=True)
class InterfaceSpec:
    """One interface as it shall be, with its peers by public key."""

    name: str
    private_key: PrivateKey
    addresses: frozenset[IPInterface] = frozenset()
    listen_port: int = 0
    """0: the kernel chooses."""
    mtu: int = DEFAULT_MTU
    fwmark: int = 0
    peers: Mapping[PublicKey, PeerSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_interface_name(self.name)
        if not 0 <= self.listen_port < 65536:
            raise SpecError(f"listen port {self.listen_port} is not between 0 and 65535")
        if not 576 <= self.mtu <= 65535:
            raise SpecError(f"MTU {self.mtu} is not between 576 and 65535")
        check_allowed_ips(self.peers.values())

    @property
    def routes(self) -> frozenset[IPNetwork]:
        """What must be routed into the interface: all allowed IPs of all peers."""
        return frozenset(net for peer in self.peers.values() for net in peer.allowed_ips)


def check_allowed_ips(peers: Iterable[PeerSpec]) -> None:
    """Refuse two peers with the same allowed IP: WireGuard would keep it at one of them only."""
    owner: dict[IPNetwork, PublicKey] = {}
    for peer in peers:
        for network in peer.allowed_ips:
            other = owner.setdefault(network, peer.public_key)
            if other != peer.public_key:
                raise SpecError(
                    f"allowed IP {network} is given to two peers, {other} and {peer.public_key}: "
                    "WireGuard can route it to one only; remove it from the other"
                )
