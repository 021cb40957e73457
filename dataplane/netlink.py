"""Peers in the format of WireGuard's netlink interface (linux/wireguard.h). *Core.*

pyroute2 carries the messages; the list of peers inside them is packed and read here, because its own
classes take 0.17 ms for each peer and send one at a time. `pack_peers` fills attributes of up to
`MAX_PEERS_BYTES`; a peer whose allowed IPs do not fit goes on in the next, as the kernel does itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from controlplane.protocol.keys import PresharedKey, PublicKey
from controlplane.protocol.wireguard import Endpoint, IPNetwork
from dataplane.actions import PeerChange
from dataplane.errors import UnresolvedEndpoint
from dataplane.state import PeerState

MAX_PEERS_BYTES = 32 * 1024
"""An attribute's length has 16 bits, and a message must fit the socket's buffer."""
ALLOWED_IPS_AT_ONCE = 500

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
PUBLIC_KEY, PRESHARED_KEY, FLAGS, ENDPOINT, KEEPALIVE = 1, 2, 3, 4, 5
LAST_HANDSHAKE, RX_BYTES, TX_BYTES, ALLOWED_IPS = 6, 7, 8, 9
FAMILY, IP_ADDRESS, CIDR_MASK = 1, 2, 3
REMOVE_ME, REPLACE_ALLOWED_IPS, UPDATE_ONLY = 1, 2, 4

_HEADER = struct.Struct("=HH")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_S64 = struct.Struct("=q")
_SOCKADDR_IN = struct.Struct("=H2s4s8x")
_SOCKADDR_IN6 = struct.Struct("=H2sI16sI")
_ALLOWED_IP4 = struct.Struct("=HH HHHxx HH4s HHBxxx")
_ALLOWED_IP6 = struct.Struct("=HH HHHxx HH16s HHBxxx")


def pack_peers(changes: Iterable[PeerChange]) -> Iterator[bytes]:
    """The contents of WGDEVICE_A_PEERS for these changes, in as many parts as they need."""
    part = bytearray()
    for change in changes:
        for entry in _pack_peer(change):
            if part and len(part) + len(entry) > MAX_PEERS_BYTES:
                yield bytes(part)
                part.clear()
            part += entry
    if part:
        yield bytes(part)


def unpack_peers(data: bytes, peers: dict[PublicKey, PeerState]) -> None:
    """Read the contents of a WGDEVICE_A_PEERS into `peers`; a peer may go on in the next one."""
    for _, start, end in _attributes(data, 0, len(data)):
        peer = _unpack_peer(data, start, end)
        if before := peers.get(peer.public_key):
            peer = replace(before, allowed_ips=before.allowed_ips | peer.allowed_ips)
        peers[peer.public_key] = peer


def _pack_peer(change: PeerChange) -> Iterator[bytes]:
    key = _attribute(PUBLIC_KEY, bytes(change.public_key))
    update = UPDATE_ONLY if change.update_only else 0
    if change.remove:
        yield _nest(0, key + _attribute(FLAGS, _U32.pack(REMOVE_ME)))
        return
    allowed = None if change.allowed_ips is None else list(map(_pack_network, change.allowed_ips))
    flags = update | (0 if allowed is None else REPLACE_ALLOWED_IPS)
    fields = [key, _attribute(FLAGS, _U32.pack(flags))]
    if change.preshared_key is not None:
        fields.append(_attribute(PRESHARED_KEY, bytes(change.preshared_key)))
    if change.endpoint is not None:
        fields.append(_attribute(ENDPOINT, _pack_endpoint(change.endpoint)))
    if change.persistent_keepalive is not None:
        fields.append(_attribute(KEEPALIVE, _U16.pack(change.persistent_keepalive)))
    for first in range(0, len(allowed or ()), ALLOWED_IPS_AT_ONCE):
        if first:
            yield _nest(0, b"".join(fields))
            fields = [key, _attribute(FLAGS, _U32.pack(update))]
        fields.append(_nest(ALLOWED_IPS, b"".join((allowed or [])[first:][:ALLOWED_IPS_AT_ONCE])))
    yield _nest(0, b"".join(fields))


def _pack_network(network: IPNetwork) -> bytes:
    layout, family = (
        (_ALLOWED_IP4, socket.AF_INET) if network.version == 4 else (_ALLOWED_IP6, socket.AF_INET6)
    )
    address = network.network_address.packed
    return layout.pack(
        *(layout.size, NLA_F_NESTED),
        *(6, FAMILY, family),
        *(4 + len(address), IP_ADDRESS, address),
        *(5, CIDR_MASK, network.prefixlen),
    )


def _pack_endpoint(endpoint: Endpoint) -> bytes:
    address, port = endpoint.address, endpoint.port.to_bytes(2, "big")
    if address is None:
        raise UnresolvedEndpoint(str(endpoint))
    if isinstance(address, IPv4Address):
        return _SOCKADDR_IN.pack(socket.AF_INET, port, address.packed)
    scope = socket.if_nametoindex(address.scope_id) if address.scope_id else 0
    return _SOCKADDR_IN6.pack(socket.AF_INET6, port, 0, address.packed, scope)


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return _HEADER.pack(length, kind) + payload + bytes(-length % 4)


def _nest(kind: int, payload: bytes) -> bytes:
    return _attribute(kind | NLA_F_NESTED, payload)


def _attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of the payload of each attribute."""
    while start + 4 <= end:
        length, kind = _HEADER.unpack_from(data, start)
        if length < 4:
            return
        yield kind & NLA_TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


def _unpack_peer(data: bytes, start: int, end: int) -> PeerState:
    fields = {kind: (first, last) for kind, first, last in _attributes(data, start, end)}

    def part(kind: int, default: bytes) -> bytes:
        first, last = fields.get(kind, (0, 0))
        return data[first:last] or default

    preshared = part(PRESHARED_KEY, bytes(32))
    endpoint = part(ENDPOINT, b"")
    handshake = _S64.unpack_from(part(LAST_HANDSHAKE, bytes(16)))[0]
    nanoseconds = _S64.unpack_from(part(LAST_HANDSHAKE, bytes(16)), 8)[0]
    return PeerState(
        PublicKey(part(PUBLIC_KEY, bytes(32))),
        frozenset(_unpack_networks(data, *fields.get(ALLOWED_IPS, (0, 0)))),
        _unpack_endpoint(endpoint) if endpoint else None,
        PresharedKey(preshared) if any(preshared) else None,
        _U16.unpack(part(KEEPALIVE, bytes(2)))[0],
        handshake + nanoseconds / 1e9 if handshake else None,
        _U64.unpack(part(RX_BYTES, bytes(8)))[0],
        _U64.unpack(part(TX_BYTES, bytes(8)))[0],
    )


def _unpack_networks(data: bytes, start: int, end: int) -> Iterator[IPNetwork]:
    for _, first, last in _attributes(data, start, end):
        fields = {kind: data[a:b] for kind, a, b in _attributes(data, first, last)}
        address, length = fields[IP_ADDRESS], fields[CIDR_MASK][0]
        yield IPv4Network((address, length)) if len(address) == 4 else IPv6Network((address, length))


def _unpack_endpoint(data: bytes) -> Endpoint | None:
    port = int.from_bytes(data[2:4], "big")
    if len(data) < _SOCKADDR_IN6.size:
        return Endpoint(str(IPv4Address(data[4:8])), port) if port else None
    address = str(IPv6Address(data[8:24]))
    scope = _U32.unpack_from(data, 24)[0]
    return Endpoint(f"{address}%{_interface_name(scope)}" if scope else address, port) if port else None


def _interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)
