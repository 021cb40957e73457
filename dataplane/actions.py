"""The single steps from what is to what shall be. *Vocabulary.*

`str(action)` is one line in the manner of wg-quick's `[#] ...`, without secrets. Actions are applied
in the order planned; to remove what is gone already is no error.
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import Endpoint, IPInterface, IPNetwork
from dataplane.state import ALIAS, FirewallSpec

NO_PRESHARED_KEY = PresharedKey(bytes(32))
"""All zeros, as WireGuard writes "none"."""


@dataclass(frozen=True, slots=True)
class PeerChange:
    """What to change of one peer; None leaves a field as it is."""

    public_key: PublicKey
    remove: bool = False
    update_only: bool = False
    """Never make the peer anew: it was there when the change was planned."""
    allowed_ips: frozenset[IPNetwork] | None = None
    """Replaces all; takes an allowed IP away from a peer that has it."""
    endpoint: Endpoint | None = None
    preshared_key: PresharedKey | None = None
    """`NO_PRESHARED_KEY` clears it."""
    persistent_keepalive: int | None = None
    """Seconds; 0 is off."""


@dataclass(frozen=True, slots=True)
class CreateInterface:
    """Make a WireGuard interface, down and blank."""

    name: str

    def __str__(self) -> str:
        return f"create WireGuard interface {self.name}"


@dataclass(frozen=True, slots=True)
class RemoveInterface:
    """Remove the interface with its peers, addresses and routes."""

    name: str

    def __str__(self) -> str:
        return f"ip link delete dev {self.name}"


@dataclass(frozen=True, slots=True)
class SetAlias:
    """Mark the interface as ours."""

    name: str
    alias: str = ALIAS

    def __str__(self) -> str:
        return f"ip link set dev {self.name} alias '{self.alias}'"


@dataclass(frozen=True, slots=True)
class SetDevice:
    """Change WireGuard's own settings of the interface; None leaves one as it is."""

    name: str
    private_key: PrivateKey | None = None
    listen_port: int | None = None
    fwmark: int | None = None

    def __str__(self) -> str:
        words = [f"wg set {self.name}"]
        if self.private_key is not None:
            words.append("private-key (hidden)")
        if self.listen_port is not None:
            words.append(f"listen-port {self.listen_port}")
        if self.fwmark is not None:
            words.append(f"fwmark {self.fwmark:#x}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class SetPeers:
    """Change peers, in this order; a backend may send many at once."""

    name: str
    changes: tuple[PeerChange, ...]

    def __str__(self) -> str:
        if len(self.changes) == 1:
            change = self.changes[0]
            return f"wg set {self.name} peer {change.public_key}{' remove' * change.remove}"
        removed = sum(change.remove for change in self.changes)
        return f"wg set {self.name} ({len(self.changes) - removed} peers set, {removed} removed)"


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Give the interface an address, without IPv6's duplicate address detection."""

    name: str
    address: IPInterface

    def __str__(self) -> str:
        return f"ip address add {self.address} dev {self.name}"


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Take an address from the interface."""

    name: str
    address: IPInterface

    def __str__(self) -> str:
        return f"ip address delete {self.address} dev {self.name}"


@dataclass(frozen=True, slots=True)
class SetMtu:
    """Set the MTU, in bytes of inner packet."""

    name: str
    mtu: int

    def __str__(self) -> str:
        return f"ip link set mtu {self.mtu} dev {self.name}"


@dataclass(frozen=True, slots=True)
class SetUp:
    """Bring the interface up."""

    name: str

    def __str__(self) -> str:
        return f"ip link set up dev {self.name}"


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Route a network into the interface (main table)."""

    name: str
    network: IPNetwork

    def __str__(self) -> str:
        return f"ip route add {self.network} dev {self.name}"


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove a route of ours."""

    name: str
    network: IPNetwork

    def __str__(self) -> str:
        return f"ip route delete {self.network} dev {self.name}"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """Set a kernel parameter, by its path below /proc/sys. It stays when the interface goes: others
    on the host may have come to depend on it."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"sysctl -w {self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class ReplaceFirewall:
    """Put our nftables table in place, in one transaction."""

    spec: FirewallSpec

    def __str__(self) -> str:
        return f"nft -f - (the table of {self.spec.interface})"


@dataclass(frozen=True, slots=True)
class RemoveFirewall:
    """Remove our nftables table."""

    name: str

    def __str__(self) -> str:
        return f"nft delete table (the table of {self.name})"


Action = (
    CreateInterface
    | RemoveInterface
    | SetAlias
    | SetDevice
    | SetPeers
    | AddAddress
    | RemoveAddress
    | SetMtu
    | SetUp
    | AddRoute
    | RemoveRoute
    | SetSysctl
    | ReplaceFirewall
    | RemoveFirewall
)
