"""A kernel in memory that does what Linux and WireGuard do where it matters to a plan.

It keeps its own tables, written from the manuals and not from `dataplane.plan`, so that laws tested on
it say something. Modelled: an allowed IP belongs to one peer and moves; secondaries go with the primary
IPv4 address, and IPv4 routes with the last one; an interface that is down has no routes; below MTU 1280
there is no IPv6; a route that another interface has is not taken over.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import Endpoint, IPInterface, IPNetwork
from dataplane.actions import (
    Action,
    AddAddress,
    AddRoute,
    CreateInterface,
    PeerChange,
    RemoveAddress,
    RemoveFirewall,
    RemoveInterface,
    RemoveRoute,
    ReplaceFirewall,
    SetAlias,
    SetDevice,
    SetMtu,
    SetPeers,
    SetSysctl,
    SetUp,
)
from dataplane.errors import BackendError, RouteTaken
from dataplane.firewall import digest
from dataplane.state import HostState, InterfaceState, Obstacle, PeerState


@dataclass
class FakePeer:
    """One peer."""

    allowed_ips: set[IPNetwork] = field(default_factory=set)
    endpoint: Endpoint | None = None
    preshared_key: PresharedKey | None = None
    persistent_keepalive: int = 0
    latest_handshake: float | None = None
    received: int = 0
    sent: int = 0


@dataclass
class FakeLink:
    """One link of any kind."""

    kind: str = "wireguard"
    alias: str = ""
    mtu: int = 1420
    up: bool = False
    addresses: list[IPInterface] = field(default_factory=list)
    """In the order they were added: the first of a subnet is its primary."""
    routes: set[IPNetwork] = field(default_factory=set)
    private_key: PrivateKey | None = None
    listen_port: int = 0
    fwmark: int = 0
    peers: dict[PublicKey, FakePeer] = field(default_factory=dict)
    owners: dict[IPNetwork, PublicKey] = field(default_factory=dict)
    """Cryptokey routing: which peer has an allowed IP."""


@dataclass
class FakeKernel:
    """A host. Tests may change every field; `applied` holds all actions so far."""

    links: dict[str, FakeLink] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    """Digest of the firewall of each interface; `""` where someone altered it."""
    sysctls: dict[str, str] = field(
        default_factory=lambda: {"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"}
    )
    routed_elsewhere: set[IPNetwork] = field(default_factory=set)
    ipv6: bool = True
    applied: list[Action] = field(default_factory=list)
    before_apply: Callable[[Action], None] = lambda action: None
    """Called first; may raise a `DataplaneError`."""

    def handshake(self, name: str, peer: PublicKey, now: float, endpoint: Endpoint | None = None) -> None:
        """Let a peer have a session, some traffic, and (roaming) another endpoint."""
        found = self.links[name].peers[peer]
        found.latest_handshake = now
        found.received += 1000
        found.sent += 500
        found.endpoint = endpoint or found.endpoint

    def observe(self, name: str) -> HostState:
        link = self.links.get(name)
        interface = obstacle = None
        if link is not None and link.kind == "wireguard":
            interface = InterfaceState(
                name,
                "kernel",
                link.alias,
                link.mtu,
                link.up,
                frozenset(link.addresses),
                set(link.routes),
                link.private_key.public_key if link.private_key else None,
                link.listen_port,
                link.fwmark,
                self._peers(link),
            )
        elif link is not None:
            obstacle = Obstacle(link.kind, link.alias.startswith("horizon:"))
        return HostState(name, interface, obstacle, self.tables.get(name), dict(self.sysctls), self.ipv6)

    def apply(self, action: Action) -> None:
        self.before_apply(action)
        match action:
            case CreateInterface(name):
                if name in self.links:
                    raise BackendError(f"interface {name!r} exists", errno.EEXIST)
                self.links[name] = FakeLink()
            case RemoveInterface(name):
                self.links.pop(name, None)
            case SetAlias(name, alias):
                self._link(name).alias = alias
            case SetDevice():
                self._set_device(self._link(action.name), action)
            case SetPeers(name, changes):
                for change in changes:
                    self._set_peer(self._link(name), change)
            case AddAddress(name, address):
                self._add_address(self._link(name), address)
            case RemoveAddress(name, address):
                self._remove_address(self._link(name), address)
            case SetMtu(name, mtu):
                link = self._link(name)
                link.mtu = mtu
                if mtu < 1280:
                    self._drop(link, 6)
            case SetUp(name):
                self._link(name).up = True
            case AddRoute(name, network):
                self._add_route(name, network)
            case RemoveRoute(name, network):
                self._link(name).routes.discard(network)
            case SetSysctl(key, value):
                self.sysctls[key] = value
            case ReplaceFirewall(spec):
                self.tables[spec.interface] = digest(spec)
            case RemoveFirewall(name):
                self.tables.pop(name, None)
        self.applied.append(action)

    def take_down(self, name: str) -> None:
        """What `ip link set down` does."""
        link = self.links[name]
        link.up = False
        link.routes.clear()
        link.addresses = [a for a in link.addresses if a.version == 4]

    def _link(self, name: str) -> FakeLink:
        if name not in self.links:
            raise BackendError(f"no interface {name!r}", errno.ENODEV)
        return self.links[name]

    def _peers(self, link: FakeLink) -> dict[PublicKey, PeerState]:
        return {
            key: PeerState(
                key,
                frozenset(peer.allowed_ips),
                peer.endpoint,
                peer.preshared_key,
                peer.persistent_keepalive,
                peer.latest_handshake,
                peer.received,
                peer.sent,
            )
            for key, peer in link.peers.items()
        }

    def _set_device(self, link: FakeLink, action: SetDevice) -> None:
        if action.private_key is not None:
            link.private_key = action.private_key
            self._remove_peer(link, action.private_key.public_key)
        if action.listen_port is not None:
            link.listen_port = action.listen_port
        if action.fwmark is not None:
            link.fwmark = action.fwmark

    def _set_peer(self, link: FakeLink, change: PeerChange) -> None:
        key = change.public_key
        if change.remove:
            self._remove_peer(link, key)
            return
        if key not in link.peers:
            if change.update_only or (link.private_key and link.private_key.public_key == key):
                return
            link.peers[key] = FakePeer()
        peer = link.peers[key]
        if change.allowed_ips is not None:
            for network in peer.allowed_ips:
                del link.owners[network]
            for network in change.allowed_ips & link.owners.keys():
                link.peers[link.owners[network]].allowed_ips.discard(network)
            link.owners.update(dict.fromkeys(change.allowed_ips, key))
            peer.allowed_ips = set(change.allowed_ips)
        if change.endpoint is not None:
            peer.endpoint = change.endpoint
        if change.preshared_key is not None:
            peer.preshared_key = change.preshared_key if any(bytes(change.preshared_key)) else None
        if change.persistent_keepalive is not None:
            peer.persistent_keepalive = change.persistent_keepalive

    def _remove_peer(self, link: FakeLink, key: PublicKey) -> None:
        peer = link.peers.pop(key, None)
        for network in peer.allowed_ips if peer else ():
            del link.owners[network]

    def _add_address(self, link: FakeLink, address: IPInterface) -> None:
        if address.version == 6 and (not self.ipv6 or link.mtu < 1280):
            raise BackendError(f"cannot add {address}: no IPv6", errno.EACCES)
        if address not in link.addresses:
            link.addresses.append(address)

    def _remove_address(self, link: FakeLink, address: IPInterface) -> None:
        if address not in link.addresses:
            return
        subnet = [a for a in link.addresses if a.network == address.network]
        gone = subnet if address.version == 4 and subnet[0] == address else [address]
        link.addresses = [a for a in link.addresses if a not in gone]
        if address.version == 4 and not any(a.version == 4 for a in link.addresses):
            link.routes = {n for n in link.routes if n.version == 6}

    def _drop(self, link: FakeLink, version: int) -> None:
        link.addresses = [a for a in link.addresses if a.version != version]
        link.routes = {n for n in link.routes if n.version != version}

    def _add_route(self, name: str, network: IPNetwork) -> None:
        link = self._link(name)
        if not link.up:
            raise BackendError(f"interface {name!r} is down", errno.ENETDOWN)
        if network.version == 6 and (not self.ipv6 or link.mtu < 1280):
            raise BackendError(f"cannot route {network}: no IPv6", errno.ENODEV)
        if network in self.routed_elsewhere:
            raise RouteTaken(str(network), name)
        link.routes.add(network)
