"""WireGuard's cross-platform text protocol, as wireguard-go speaks it. *Core.*

https://www.wireguard.com/xplatform/: a request is lines `key=value` and an empty line; the answer ends
with `errno=N`. Requests and answers hold private keys: neither may reach a log or an error message.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import Endpoint, IPNetwork
from dataplane.actions import PeerChange
from dataplane.errors import BackendError, UnresolvedEndpoint
from dataplane.state import DeviceState, PeerState

GET = b"get=1\n\n"
LINES_AT_ONCE = 500


def set_device(private_key: PrivateKey | None, listen_port: int | None, fwmark: int | None) -> bytes:
    """A request that sets what is not None."""
    lines = ["set=1"]
    if private_key is not None:
        lines.append(f"private_key={private_key.hex}")
    if listen_port is not None:
        lines.append(f"listen_port={listen_port}")
    if fwmark is not None:
        lines.append(f"fwmark={fwmark}")
    return _request(lines)


def set_peers(changes: Iterable[PeerChange]) -> Iterator[bytes]:
    """One request for all these changes, in parts: the daemon works while the next is written."""
    lines = ["set=1"]
    for change in changes:
        lines += _peer_lines(change)
        if len(lines) >= LINES_AT_ONCE:
            yield "\n".join([*lines, ""]).encode()
            lines.clear()
    yield _request(lines)


def check(answer: bytes) -> None:
    """Raise `BackendError` with the system's words if the answer's errno is not 0."""
    _, _, number = answer.rstrip(b"\n").rpartition(b"errno=")
    try:
        code = abs(int(number))
    except ValueError:
        raise BackendError(
            "WireGuard in user space closed its socket in the middle of an answer", errno.EPROTO
        ) from None
    if code:
        raise BackendError(f"WireGuard in user space refused: {os.strerror(code)}", code)


def read_device(answer: bytes) -> DeviceState:
    """The answer to `GET`; the private key in it is turned into the public one and dropped."""
    device, peer = DeviceState(), None
    for line in answer.decode().splitlines():
        key, _, value = line.partition("=")
        if key == "public_key":
            _keep(device, peer)
            peer = _Peer(PublicKey(bytes.fromhex(value)))
        elif peer is not None:
            peer.read(key, value)
        elif key == "private_key":
            raw = bytes.fromhex(value)
            device.public_key = PrivateKey(raw).public_key if any(raw) else None
        elif key == "listen_port":
            device.listen_port = int(value)
        elif key == "fwmark":
            device.fwmark = int(value)
    _keep(device, peer)
    return device


@dataclass(slots=True)
class _Peer:
    """A peer whose lines are being read."""

    public_key: PublicKey
    allowed_ips: list[IPNetwork] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

    def read(self, key: str, value: str) -> None:
        if key == "allowed_ip":
            self.allowed_ips.append(ip_network(value, strict=False))
        else:
            self.fields[key] = value

    def state(self) -> PeerState:
        preshared = bytes.fromhex(self.fields.get("preshared_key", "")) or bytes(32)
        endpoint = self.fields.get("endpoint")
        handshake = int(self.fields.get("last_handshake_time_sec", 0))
        nanoseconds = int(self.fields.get("last_handshake_time_nsec", 0))
        return PeerState(
            self.public_key,
            frozenset(self.allowed_ips),
            Endpoint.parse(endpoint) if endpoint else None,
            PresharedKey(preshared) if any(preshared) else None,
            int(self.fields.get("persistent_keepalive_interval", 0)),
            handshake + nanoseconds / 1e9 if handshake else None,
            int(self.fields.get("rx_bytes", 0)),
            int(self.fields.get("tx_bytes", 0)),
        )


def _keep(device: DeviceState, peer: _Peer | None) -> None:
    if peer is not None:
        device.peers[peer.public_key] = peer.state()


def _peer_lines(change: PeerChange) -> Iterator[str]:
    yield f"public_key={change.public_key.hex}"
    if change.remove:
        yield "remove=true"
        return
    if change.update_only:
        yield "update_only=true"
    if change.preshared_key is not None:
        yield f"preshared_key={change.preshared_key.hex}"
    if change.endpoint is not None:
        if change.endpoint.address is None:
            raise UnresolvedEndpoint(str(change.endpoint))
        yield f"endpoint={change.endpoint}"
    if change.persistent_keepalive is not None:
        yield f"persistent_keepalive_interval={change.persistent_keepalive}"
    if change.allowed_ips is not None:
        yield "replace_allowed_ips=true"
        for network in change.allowed_ips:
            yield f"allowed_ip={network}"


def _request(lines: list[str]) -> bytes:
    return "\n".join([*lines, "", ""]).encode()
