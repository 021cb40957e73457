"""The lab's address plan: documentation prefixes, one subnet per network (core).

Network number N (from 0) has a /28 of RFC 5737 (192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, in
turn, so that neighbours are told apart at a glance) and a /64 of RFC 3849. Behind a NAT router:

- IPv4: the router has the public address; hosts have private ones of 10.255.N.0/24, translated.
- IPv6: hosts have global addresses, *routed*, and the router lets no connection in from outside.
  This is what home routers do (RFC 6092); translation of IPv6 is rare, and would hide faults that
  users meet.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from lab.errors import LabError

DOCUMENTATION = tuple(map(IPv4Network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")))
CAPACITY = len(DOCUMENTATION) * 16
"""How many networks one lab can have."""


@dataclass(frozen=True)
class Subnet:
    """An IPv4 and an IPv6 prefix; number 1 of each is the router, hosts count from 2."""

    ipv4: IPv4Network
    ipv6: IPv6Network

    @property
    def capacity(self) -> int:
        """The highest host number."""
        return self.ipv4.num_addresses - 2

    def address4(self, number: int) -> str:
        return str(self.ipv4[number])

    def address6(self, number: int) -> str:
        return str(self.ipv6[number])


def public(number: int) -> Subnet:
    """The subnet of network `number` at the internet router; LabError when there are no more."""
    if not 0 <= number < CAPACITY:
        raise LabError(f"network number {number}: a lab has at most {CAPACITY} networks")
    block, turn = number % len(DOCUMENTATION), number // len(DOCUMENTATION)
    ipv4 = IPv4Network((int(DOCUMENTATION[block].network_address) + 16 * turn, 28))
    return Subnet(ipv4, IPv6Network(f"2001:db8:{number + 1:x}::/64"))


def private(number: int) -> Subnet:
    """The subnet behind the NAT router of network `number`."""
    ipv4, ipv6 = f"10.255.{number}.0/24", f"2001:db8:{number + 1:x}:1::/64"
    return Subnet(IPv4Network(ipv4), IPv6Network(ipv6))
