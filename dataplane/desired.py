"""From a netmap to what shall be on the host. *Core.*

A peer whose authorisation is over is left out, unless its session is alive: an outage of the broker
cuts nobody who is connected, and lets nobody in past `authorized_until`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.protocol.keys import PrivateKey, PublicKey
from controlplane.protocol.netmap import NetMap, NetMapPeer, NetMapUpdate
from controlplane.protocol.wireguard import HANDSHAKE_FRESH, Endpoint, InterfaceSpec, PeerSpec
from dataplane.state import ClientFirewall, Desired, PeerState, ServerFirewall

Peers = Mapping[PublicKey, PeerState]
Resolve = Callable[[Endpoint], Endpoint | None]
"""An endpoint with a name to one with an address; None where the name does not resolve now."""


@dataclass(frozen=True, slots=True)
class Own:
    """What the agent itself brings to its interface."""

    name: str
    private_key: PrivateKey
    listen_port: int = 0


def server_desired(own: Own, netmap: NetMap, observed: Peers, now: float) -> Desired:
    """A server: devices as peers, and what it forwards between them."""
    peers = {
        peer.public_key: peer_spec(peer, _no_endpoint)
        for peer in netmap.peers.values()
        if may_stay(peer, observed.get(peer.public_key), now)
    }
    return Desired(
        InterfaceSpec(
            name=own.name,
            private_key=own.private_key,
            addresses=frozenset(netmap.interface.addresses),
            listen_port=own.listen_port or netmap.interface.listen_port,
            mtu=netmap.interface.mtu,
            peers=peers,
        ),
        ServerFirewall(own.name, netmap.interface.client_to_client),
    )


def client_desired(
    own: Own, netmap: NetMap, observed: Peers, now: float, resolve: Resolve, ended: Set[str] = frozenset()
) -> Desired:
    """A client: its servers as peers, but for connections that were `ended` here.

    Without any the interface waits, up and empty, so that a connection later needs only a peer.
    """
    wanted = [
        peer
        for peer in netmap.peers.values()
        if peer.connection_id not in ended and may_stay(peer, observed.get(peer.public_key), now)
    ]
    interface = InterfaceSpec(
        name=own.name,
        private_key=own.private_key,
        addresses=frozenset(netmap.interface.addresses),
        listen_port=own.listen_port,
        mtu=netmap.interface.mtu,
        peers={peer.public_key: peer_spec(peer, resolve) for peer in wanted},
    )
    firewall = ClientFirewall(
        own.name,
        accept_from=frozenset(network for peer in wanted for network in peer.accept_from),
        refuse_from=frozenset(network for peer in wanted for network in peer.own_networks),
    )
    return Desired(interface, firewall)


def changed_peers(netmap: NetMap, update: NetMapUpdate) -> dict[PublicKey, NetMapPeer | None]:
    """Which peers a change of `netmap` touches, by public key; None: gone. Ask before it is applied.

    A peer with a new key is both: its old key goes.
    """
    changes: dict[PublicKey, NetMapPeer | None] = {}
    for peer_id in (*update.removed, *(peer.peer_id for peer in update.peers)):
        if former := netmap.peers.get(peer_id):
            changes[former.public_key] = None
    for peer in update.peers:
        changes[peer.public_key] = peer
    return changes


def server_peer_specs(
    changes: Mapping[PublicKey, NetMapPeer | None], observed: Peers, now: float
) -> dict[PublicKey, PeerSpec | None]:
    """The changed peers of a server as `plan_peers` takes them."""
    return {
        key: peer_spec(peer, _no_endpoint) if peer and may_stay(peer, observed.get(key), now) else None
        for key, peer in changes.items()
    }


def may_stay(peer: NetMapPeer, observed: PeerState | None, now: float) -> bool:
    """Whether a peer is authorised, or at least still connected."""
    if peer.authorized_until > datetime.fromtimestamp(now, UTC):
        return True
    return connected(observed, now)


def connected(peer: PeerState | None, now: float) -> bool:
    """Whether a session is alive: its latest handshake is younger than 180 s."""
    return (
        peer is not None
        and peer.latest_handshake is not None
        and now - peer.latest_handshake < HANDSHAKE_FRESH
    )


def peer_spec(peer: NetMapPeer, resolve: Resolve) -> PeerSpec:
    return PeerSpec(
        public_key=peer.public_key,
        allowed_ips=frozenset(peer.allowed_ips),
        endpoint=resolve(peer.endpoint) if peer.endpoint else None,
        persistent_keepalive=peer.persistent_keepalive,
    )


def _no_endpoint(endpoint: Endpoint) -> Endpoint | None:
    """A server learns its devices' endpoints from their packets."""
    return None
