"""The machines of the stories: servers and devices that speak to a broker by the real client.

fra1 = await horizon.server("fra1")
alice = await horizon.device("alice")
answer = await alice.connect("fra1")
await fra1.sync()                          # fra1's netmap holds alice
await fra1.beat(handshake_of=alice)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from controlplane.client.broker import BrokerClient, Signer
from controlplane.protocol.envelope import Signed, unseal
from controlplane.protocol.keys import IdentityKey, IdentityPublicKey, PrivateKey
from controlplane.protocol.messages import (
    ConnectionType,
    ConnectRequest,
    ConnectResponse,
    Heartbeat,
    PeerReport,
)
from controlplane.protocol.netmap import NETMAP_CONTEXT, NetMap, NetMapUpdate, apply_update


@dataclass
class Machine:
    """One that enrolled and holds a netmap."""

    id: str
    name: str
    identity: IdentityKey
    wireguard: PrivateKey
    client: BrokerClient
    broker_key: IdentityPublicKey
    netmap: NetMap | None = None

    def read(self, signed: Signed) -> NetMapUpdate:
        """What the broker signed; raises if another did."""
        return unseal(signed, NETMAP_CONTEXT, NetMapUpdate, trusted=self.broker_key)

    async def update(self, since: int | None = None, wait: float = 0) -> NetMapUpdate | None:
        """The netmap as it changed after `since`; does not apply it."""
        signed = await self.client.netmap(since, wait)
        return None if signed is None else self.read(signed)

    async def sync(self) -> NetMap:
        """Fetch and apply what changed, until nothing does: the last question acknowledges."""
        while update := await self.update(self.netmap.revision if self.netmap else None):
            self.netmap = apply_update(self.netmap, update)
        assert self.netmap is not None
        return self.netmap

    @property
    def signer(self) -> Signer:
        return Signer(self.identity, self.id)

    @property
    def revision(self) -> int:
        assert self.netmap is not None
        return self.netmap.revision


@dataclass
class Device(Machine):
    user: str = ""

    async def connect(
        self, server: str, kind: ConnectionType = ConnectionType.vpn, since: int | None = None
    ) -> ConnectResponse:
        return await self.client.connect(ConnectRequest(server=server, connection_type=kind, since=since))


@dataclass
class Server(Machine):
    verification_secret: str = ""

    async def beat(
        self, handshake_of: Machine | None = None, at: datetime | None = None, version: str = "1.0"
    ) -> None:
        """A heartbeat, perhaps with the latest handshake of one peer."""
        report = (
            PeerReport(peer_id=handshake_of.id, latest_handshake=at, received=10, sent=20)
            if handshake_of
            else None
        )
        await self.client.heartbeat(
            Heartbeat(
                revision=self.netmap.revision if self.netmap else None,
                version=version,
                active_connections=0,
                metrics={"cpu_percent": 1.5},
                peers=(report,) if report else (),
            )
        )
