"""Address management: which subnet a server gets, and which addresses a device gets in it. *Core.*

A pool of each family is cut into equal subnets, one per server: subnet number n of both pools. In a
subnet, host number 1 is the server, 2 and up are devices; the same host number gives a device's IPv4
and IPv6 address. All arithmetic is `ipaddress`'s.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from controlplane.errors import AddressesExhausted

SERVER_HOST = 1
FIRST_DEVICE_HOST = 2
IPV6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class Pools:
    """The address space of all servers."""

    ipv4: IPv4Network
    ipv4_prefix: int
    """Length of a server's IPv4 subnet."""
    ipv6: IPv6Network

    def __post_init__(self) -> None:
        if not self.ipv4.prefixlen <= self.ipv4_prefix <= 29:
            raise ValueError(
                f"a server's subnet /{self.ipv4_prefix} must lie between the pool's "
                f"/{self.ipv4.prefixlen} and /29"
            )
        if self.ipv6.prefixlen > IPV6_PREFIX:
            raise ValueError(f"IPv6 pool {self.ipv6} is smaller than one server's /{IPV6_PREFIX}")

    @property
    def subnets(self) -> int:
        """How many servers fit."""
        return int(
            min(2 ** (self.ipv4_prefix - self.ipv4.prefixlen), 2 ** (IPV6_PREFIX - self.ipv6.prefixlen))
        )

    def subnet(self, number: int) -> Subnet:
        """Subnet `number` of both pools, from 0."""
        if not 0 <= number < self.subnets:
            raise AddressesExhausted(
                f"the address pool {self.ipv4} holds {self.subnets} servers of /{self.ipv4_prefix} "
                "each, and all are given out: set up the broker with a larger pool or smaller subnets"
            )
        return Subnet(
            IPv4Network(
                (int(self.ipv4.network_address) + (number << (32 - self.ipv4_prefix)), self.ipv4_prefix)
            ),
            IPv6Network((int(self.ipv6.network_address) + (number << (128 - IPV6_PREFIX)), IPV6_PREFIX)),
        )


@dataclass(frozen=True, slots=True)
class Subnet:
    """A server's IPv4 and IPv6 subnet."""

    ipv4: IPv4Network
    ipv6: IPv6Network

    @property
    def last_host(self) -> int:
        """The highest host number: the one below the IPv4 broadcast address."""
        return self.ipv4.num_addresses - 2

    def addresses(self, host: int) -> tuple[IPv4Address, IPv6Address]:
        if not SERVER_HOST <= host <= self.last_host:
            raise ValueError(f"host {host} is not between {SERVER_HOST} and {self.last_host} in {self.ipv4}")
        return self.ipv4.network_address + host, self.ipv6.network_address + host

    def interfaces(self, host: int) -> tuple[IPv4Interface, IPv6Interface]:
        """The addresses of `host` with the subnets' prefix lengths, as an interface carries them."""
        ipv4, ipv6 = self.addresses(host)
        return (
            IPv4Interface((ipv4, self.ipv4.prefixlen)),
            IPv6Interface((ipv6, self.ipv6.prefixlen)),
        )


def next_host(subnet: Subnet, highest: int | None, oldest_free: int | None, server: str) -> int:
    """The host number of a new device.

    `highest` is the highest host number ever given out here, `oldest_free` one whose quarantine is
    over. Fresh numbers go first, so that an address rests as long as possible before its reuse.
    Raises `AddressesExhausted`.
    """
    fresh = FIRST_DEVICE_HOST if highest is None else highest + 1
    if fresh <= subnet.last_host:
        return fresh
    if oldest_free is not None:
        return oldest_free
    raise AddressesExhausted(
        f"server {server!r} has no free address left in {subnet.ipv4} "
        f"({subnet.last_host - FIRST_DEVICE_HOST + 1} devices): revoke devices that are gone, or "
        "connect to another server"
    )


def random_ula() -> IPv6Network:
    """A random unique local /48 (RFC 4193 section 3.2)."""
    return IPv6Network(((0xFD << 120) | (secrets.randbits(40) << 80), 48))
