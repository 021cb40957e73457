"""The netmap: all that a server or device is told, as a snapshot and the changes since. *Core.*

    netmap = apply_update(None, snapshot)          # since is None: the whole state
    netmap = apply_update(netmap, change)          # since <= netmap.revision: only what changed

A change holds the present state of what changed after `since`, so one that begins earlier than the
revision held may be applied too.

Updates travel and are stored as `Signed` envelopes of context "netmap". A server's peers are devices,
a device's peers are servers; both read the same types. `NetMap.peers` is updated in place, so a change
costs O(change) however many peers there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_serializer, field_validator

from controlplane.protocol.errors import NetMapError
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.wireguard import (
    DEFAULT_MTU,
    Endpoint,
    IPAddress,
    IPInterface,
    IPNetwork,
    check_unscoped,
)

NETMAP_CONTEXT = "netmap"


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class NetMapInterface(_Message):
    """The subject's own WireGuard interface."""

    addresses: tuple[IPInterface, ...]
    listen_port: int = 0
    mtu: int = DEFAULT_MTU
    client_to_client: bool = False
    """On a server: whether it forwards between its peers."""

    @field_validator("addresses")
    @classmethod
    def _check_unscoped(cls, value: tuple[IPInterface, ...]) -> tuple[IPInterface, ...]:
        check_unscoped(value)
        return value


class NetMapPeer(_Message):
    """One peer of the subject."""

    peer_id: str
    """The device's id in a server's netmap, the server's id in a device's."""
    name: str
    public_key: PublicKey
    addresses: tuple[IPAddress, ...]
    """The peer's own addresses in the tunnel."""
    allowed_ips: tuple[IPNetwork, ...]
    endpoint: Endpoint | None = None
    persistent_keepalive: int = Field(default=0, ge=0, le=65535)
    authorized_until: AwareDatetime
    """Until then both sides may start a session without asking the broker again."""
    accept_from: tuple[IPNetwork, ...] = ()
    """Sources behind this peer that may open connections to the subject; its own addresses never."""
    connection_id: str = ""

    @property
    def own_networks(self) -> tuple[IPNetwork, ...]:
        """The peer's own addresses, each as a network of one."""
        return tuple(ip_network(address) for address in self.addresses)

    @field_validator("endpoint", mode="before")
    @classmethod
    def _parse_endpoint(cls, value: object) -> object:
        return Endpoint.parse(value) if isinstance(value, str) else value

    @field_validator("addresses", "allowed_ips", "accept_from")
    @classmethod
    def _check_unscoped(cls, value: tuple[IPAddress | IPNetwork, ...]) -> tuple[IPAddress | IPNetwork, ...]:
        check_unscoped(value)
        return value

    @field_serializer("endpoint")
    def _write_endpoint(self, value: Endpoint | None) -> str | None:
        return None if value is None else str(value)


class NetMapUpdate(_Message):
    """A snapshot (`since` is None) or the changes after revision `since`."""

    subject: str
    """The id of the server or device that this is for."""
    since: int | None = None
    revision: int
    issued_at: AwareDatetime
    interface: NetMapInterface | None = None
    """Always there in a snapshot; in a change only if it changed."""
    peers: tuple[NetMapPeer, ...] = ()
    removed: tuple[str, ...] = ()
    """Ids of peers that are no longer."""


@dataclass(slots=True)
class NetMap:
    """The state after all updates so far."""

    subject: str
    revision: int
    issued_at: datetime
    interface: NetMapInterface
    peers: dict[str, NetMapPeer]


def apply_update(netmap: NetMap | None, update: NetMapUpdate) -> NetMap:
    """The netmap after `update`; `netmap` itself is changed and must not be used further.

    Raises `NetMapError`, and then changes nothing, if the update is for another subject, goes back
    behind the revision held, or leaves a gap (ask for a snapshot then).
    """
    if netmap is not None and update.subject != netmap.subject:
        raise NetMapError(f"the netmap is for {update.subject!r}, and this is {netmap.subject!r}")
    if netmap is not None and update.revision < netmap.revision:
        raise NetMapError(
            f"the netmap goes back from revision {netmap.revision} to {update.revision}: "
            "if the broker was restored from a backup, remove this agent's netmap.jsonl and start it again"
        )
    if update.since is None:
        if update.interface is None:
            raise NetMapError("the netmap is a snapshot without an interface")
        return NetMap(
            update.subject,
            update.revision,
            update.issued_at,
            update.interface,
            {peer.peer_id: peer for peer in update.peers},
        )
    if netmap is None or update.since > netmap.revision:
        held = "nothing" if netmap is None else f"revision {netmap.revision}"
        raise NetMapError(f"the change follows revision {update.since}, but {held} is held")
    for peer_id in update.removed:
        netmap.peers.pop(peer_id, None)
    for peer in update.peers:
        netmap.peers[peer.peer_id] = peer
    netmap.revision = update.revision
    netmap.issued_at = update.issued_at
    netmap.interface = update.interface or netmap.interface
    return netmap
