"""How an agent describes what it sees, in plain values for JSON. *Core.*"""

from __future__ import annotations

from typing import Any

from controlplane.protocol.netmap import NetMapPeer
from dataplane.desired import connected
from dataplane.state import InterfaceState, PeerState


def addresses(interface: InterfaceState | None) -> list[str]:
    """The addresses that were given to it; IPv6's link-local one is nobody's concern."""
    found = interface.addresses if interface else ()
    return sorted(str(address) for address in found if not address.is_link_local)


def describe_peer(entry: NetMapPeer | None, peer: PeerState, now: float) -> dict[str, Any]:
    return {
        "id": entry.peer_id if entry else None,
        "name": entry.name if entry else None,
        "public_key": str(peer.public_key),
        "endpoint": str(peer.endpoint) if peer.endpoint else None,
        "addresses": [str(address) for address in entry.addresses] if entry else [],
        "allowed_ips": sorted(map(str, peer.allowed_ips)),
        "connected": connected(peer, now),
        "latest_handshake": peer.latest_handshake,
        "received": peer.received,
        "sent": peer.sent,
        "authorized_until": entry.authorized_until.isoformat() if entry else None,
        "connection_id": entry.connection_id if entry else None,
    }
