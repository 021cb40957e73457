"""From what is observed to what is desired, as ordered actions. *Core.*

    actions = plan(desired, observed, now)                   # everything
    actions = plan_peers({key: spec, gone: None}, observed, now)   # only these peers: O(change)

- What is as desired is not named: planning again after applying plans nothing, from any point on.
- What is not ours is never named. An interface is ours if its alias says so or if it has the private
  key we want it to have; a blank one is adopted (a crash came between its creation and its alias).
- The firewall stands before the interface goes up and falls after the interface is gone. A change of one
  that stands comes last: it is strict with a peer it does not know, and its transaction takes longer
  than all the rest (the kernel waits for its readers).
- Removals come before additions (allowed IPs move between peers), routes after addresses.
- The endpoint of a peer with a fresh handshake is left alone: the peer may have roamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from controlplane.protocol.keys import PublicKey
from controlplane.protocol.wireguard import (
    HANDSHAKE_FRESH,
    Endpoint,
    InterfaceSpec,
    IPInterface,
    IPNetwork,
    PeerSpec,
)
from dataplane.actions import (
    NO_PRESHARED_KEY,
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
from dataplane.errors import NameTaken, UnresolvedEndpoint
from dataplane.firewall import FORWARDING, digest, needs_forwarding
from dataplane.state import Desired, FirewallSpec, HostState, InterfaceState, PeerState

MIN_IPV6_MTU = 1280
"""RFC 8200 section 5: below it Linux has no IPv6 on the interface."""


def plan(desired: Desired, observed: HostState, now: float) -> tuple[Action, ...]:
    """What to do, in order, so that the host becomes as desired. `now` is in Unix seconds.

    Raises `NameTaken` if the interface name is not ours to use, `UnresolvedEndpoint` for a name.
    """
    if desired.interface is None:
        return tuple(_down(desired, observed))
    return tuple(_up(desired.interface, desired.firewall, observed, now))


def plan_peers(
    changes: Mapping[PublicKey, PeerSpec | None], observed: HostState, now: float
) -> tuple[Action, ...]:
    """What to do for these peers only (None: remove it); costs nothing for all the others.

    The changed peers together with the others must be a valid `InterfaceSpec`, and the interface
    must be there and ours: plan everything otherwise.
    """
    state = observed.interface
    if state is None:
        raise ValueError(f"interface {observed.name!r} was not observed: plan everything")
    inside = _covered_by(state.addresses)
    ipv6 = observed.ipv6 and state.mtu >= MIN_IPV6_MTU
    wanted: set[IPNetwork] = set()
    held: set[IPNetwork] = set()
    for key, spec in changes.items():
        if spec is not None:
            wanted.update(_routed(spec.allowed_ips, inside, ipv6))
        if before := state.peers.get(key):
            held.update(before.allowed_ips)
    return (
        *_remove_routes(state, (held & state.routes) - wanted),
        *_set_peers(state.name, changes.items(), state.peers, now),
        *_add_routes(state.name, wanted - state.routes),
    )


def record(observed: HostState, actions: Iterable[Action]) -> bool:
    """Change `observed` as these actions, once applied, changed the host.

    False where that cannot be told from the actions alone: `observed` holds no more, observe again.
    """
    state = observed.interface
    if state is None:
        return False
    for action in actions:
        match action:
            case SetPeers(changes=changes):
                for change in changes:
                    _record_peer(state.peers, change)
            case AddRoute(network=network):
                state.routes.add(network)
            case RemoveRoute(network=network):
                state.routes.discard(network)
            case AddAddress(address=address):
                state.addresses |= {address}
            case ReplaceFirewall(spec=spec):
                observed.firewall = digest(spec)
            case _:
                return False
    return True


def ours(state: InterfaceState, public_key: PublicKey | None) -> bool:
    """Whether the interface may be changed, by one who wants it to have `public_key`."""
    return state.marked or (public_key is not None and (state.blank or state.public_key == public_key))


def _down(desired: Desired, observed: HostState) -> Iterator[Action]:
    state, obstacle = observed.interface, observed.obstacle
    if (state and ours(state, None)) or (obstacle and obstacle.marked):
        yield RemoveInterface(observed.name)
    yield from _firewall(desired.firewall, observed)


def _up(
    spec: InterfaceSpec, firewall: FirewallSpec | None, observed: HostState, now: float
) -> Iterator[Action]:
    state, obstacle = observed.interface, observed.obstacle
    public_key = spec.private_key.public_key
    if obstacle and not obstacle.marked:
        raise NameTaken(spec.name, obstacle.kind)
    if state and not ours(state, public_key):
        raise NameTaken(spec.name, "wireguard")

    if not observed.firewall:
        yield from _firewall(firewall, observed)
    if obstacle:
        yield RemoveInterface(spec.name)
    if state is None:
        yield CreateInterface(spec.name)
        state = InterfaceState(spec.name, "kernel")
    if not state.marked:
        yield SetAlias(spec.name)

    ipv6 = observed.ipv6 and spec.mtu >= MIN_IPV6_MTU
    addresses = {a for a in spec.addresses if ipv6 or a.version == 4}
    inside = _covered_by(spec.addresses)
    routes = {network for peer in spec.peers.values() for network in _routed(peer.allowed_ips, inside, ipv6)}
    yield from _remove_routes(state, state.routes - routes)
    removed = [a for a in _ordered(state.addresses - addresses) if not a.is_link_local]
    for address in removed:
        yield RemoveAddress(spec.name, address)
    left_addresses, left_routes = _after_removing(removed, state)
    if state.mtu != spec.mtu:
        yield SetMtu(spec.name, spec.mtu)
    yield from _device(spec, state, public_key)
    gone = ((key, None) for key in state.peers.keys() - spec.peers.keys())
    yield from _set_peers(spec.name, (*gone, *spec.peers.items()), state.peers, now)
    for address in _ordered(addresses - left_addresses):
        yield AddAddress(spec.name, address)
    if not state.up:
        yield SetUp(spec.name)
    yield from _add_routes(spec.name, routes - left_routes)
    if observed.firewall:
        yield from _firewall(firewall, observed)


def _after_removing(
    removed: Iterable[IPInterface], state: InterfaceState
) -> tuple[set[IPInterface], set[IPNetwork]]:
    """The addresses and routes that are left for certain. With an IPv4 address Linux may remove the
    others of its subnet, its secondaries, and with the last one all IPv4 routes of the interface."""
    networks = {address.network for address in removed if address.version == 4}
    if not networks:
        return set(state.addresses.difference(removed)), state.routes
    addresses = {a for a in state.addresses if a.network not in networks} - set(removed)
    return addresses, {network for network in state.routes if network.version == 6}


def _firewall(spec: FirewallSpec | None, observed: HostState) -> Iterator[Action]:
    if spec is None:
        if observed.firewall is not None:
            yield RemoveFirewall(observed.name)
        return
    if observed.firewall != digest(spec):
        yield ReplaceFirewall(spec)
    if needs_forwarding(spec):
        # A host that forwards ignores router advertisements unless told otherwise (ip-sysctl,
        # accept_ra): it would lose its own IPv6 uplink.
        yield from (
            SetSysctl(key, "2")
            for key, value in sorted(observed.sysctls.items())
            if key.endswith("/accept_ra") and value == "1"
        )
        yield from (SetSysctl(key, "1") for key in FORWARDING if observed.sysctls.get(key) == "0")


def _device(spec: InterfaceSpec, state: InterfaceState, public_key: PublicKey) -> Iterator[SetDevice]:
    private_key = spec.private_key if state.public_key != public_key else None
    port = spec.listen_port if spec.listen_port not in {0, state.listen_port} else None
    fwmark = spec.fwmark if spec.fwmark != state.fwmark else None
    if (private_key, port, fwmark) != (None, None, None):
        yield SetDevice(spec.name, private_key, port, fwmark)


def _set_peers(
    name: str,
    wanted: Iterable[tuple[PublicKey, PeerSpec | None]],
    peers: Mapping[PublicKey, PeerState],
    now: float,
) -> Iterator[SetPeers]:
    removed, changed = [], []
    for key, spec in wanted:
        state = peers.get(key)
        if spec is None:
            if state is not None:
                removed.append(PeerChange(key, remove=True))
        elif (change := _peer_change(spec, state, now)) is not None:
            changed.append(change)
    if removed or changed:
        yield SetPeers(name, (*removed, *changed))


def _peer_change(spec: PeerSpec, state: PeerState | None, now: float) -> PeerChange | None:
    if spec.endpoint is not None and spec.endpoint.address is None:
        raise UnresolvedEndpoint(str(spec.endpoint))
    if state is None:
        return PeerChange(
            spec.public_key,
            allowed_ips=spec.allowed_ips,
            endpoint=spec.endpoint,
            preshared_key=spec.preshared_key,
            persistent_keepalive=spec.persistent_keepalive or None,
        )
    fresh = state.latest_handshake is not None and now - state.latest_handshake < HANDSHAKE_FRESH
    moved = not fresh and spec.endpoint is not None and not _same(spec.endpoint, state.endpoint)
    change = PeerChange(
        spec.public_key,
        update_only=True,
        allowed_ips=spec.allowed_ips if spec.allowed_ips != state.allowed_ips else None,
        endpoint=spec.endpoint if moved else None,
        preshared_key=(spec.preshared_key or NO_PRESHARED_KEY)
        if spec.preshared_key != state.preshared_key
        else None,
        persistent_keepalive=spec.persistent_keepalive
        if spec.persistent_keepalive != state.persistent_keepalive
        else None,
    )
    return change if change != PeerChange(spec.public_key, update_only=True) else None


def _same(one: Endpoint, other: Endpoint | None) -> bool:
    """Whether two endpoints are one; an IPv6 address has several spellings."""
    if other is None:
        return False
    return one == other or (one.port == other.port and one.address == other.address)


def _record_peer(peers: dict[PublicKey, PeerState], change: PeerChange) -> None:
    if change.remove:
        peers.pop(change.public_key, None)
        return
    before = peers.get(change.public_key) or PeerState(change.public_key)
    after = before
    if change.allowed_ips is not None:
        after = replace(after, allowed_ips=change.allowed_ips)
    if change.endpoint is not None:
        after = replace(after, endpoint=change.endpoint)
    if change.preshared_key is not None:
        cleared = change.preshared_key == NO_PRESHARED_KEY
        after = replace(after, preshared_key=None if cleared else change.preshared_key)
    if change.persistent_keepalive is not None:
        after = replace(after, persistent_keepalive=change.persistent_keepalive)
    peers[change.public_key] = after


def _covered_by(addresses: Iterable[IPInterface]) -> Callable[[IPNetwork], bool]:
    """A test for networks that the connected routes of these addresses hold already."""
    connected = [
        (n.version, n.prefixlen, int(n.network_address), int(n.netmask))
        for n in (address.network for address in addresses)
    ]

    def covered(network: IPNetwork) -> bool:
        first = int(network.network_address)
        return any(
            network.version == version and network.prefixlen >= length and first & mask == start
            for version, length, start, mask in connected
        )

    return covered


def _routed(
    networks: Iterable[IPNetwork], inside: Callable[[IPNetwork], bool], ipv6: bool
) -> Iterator[IPNetwork]:
    """The networks that need a route. A default route is none of them: in the main table it would
    swallow WireGuard's own packets."""
    for network in networks:
        if network.prefixlen and (ipv6 or network.version == 4) and not inside(network):
            yield network


def _remove_routes(state: InterfaceState, networks: Iterable[IPNetwork]) -> Iterator[RemoveRoute]:
    return (RemoveRoute(state.name, network) for network in _ordered_networks(networks))


def _add_routes(name: str, networks: Iterable[IPNetwork]) -> Iterator[AddRoute]:
    return (AddRoute(name, network) for network in _ordered_networks(networks))


def _ordered_networks(networks: Iterable[IPNetwork]) -> list[IPNetwork]:
    # The most specific first, as wg-quick does.
    return sorted(networks, key=lambda n: (-n.prefixlen, n.version, int(n.network_address)))


def _ordered(addresses: Iterable[IPInterface]) -> list[IPInterface]:
    return sorted(addresses, key=lambda a: (a.version, int(a.ip), a.network.prefixlen))
