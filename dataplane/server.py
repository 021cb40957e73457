"""The server agent: devices as peers, heartbeats, and what it saw of its peers. *Shell.*"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any

from controlplane.protocol.errors import BrokerUnreachable, ProblemError
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.messages import Heartbeat, PeerReport
from controlplane.protocol.netmap import NetMap, NetMapPeer
from controlplane.protocol.version import VERSION
from controlplane.protocol.wireguard import PeerSpec
from dataplane.agent import Agent
from dataplane.desired import connected, server_desired, server_peer_specs
from dataplane.errors import DataplaneError
from dataplane.local import CommandRefused
from dataplane.metrics import read_metrics
from dataplane.state import Desired, PeerState

log = logging.getLogger(__name__)
REPORTS = 300
"""Peers in one heartbeat at most; the rest follow in the next."""
EXPECT = 15.0
"""Seconds in which a new peer's first handshake is looked for, to report it at once."""
LOOK_EVERY = 0.5
"""Seconds between looks for it."""


class ServerAgent(Agent):
    """See the module."""

    singly = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reported: dict[PublicKey, tuple[float | None, int, int]] = {}
        """What was last said of each peer; whoever was reported last stands last."""
        self._expected: set[PublicKey] = set()
        self._added = asyncio.Event()

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        return [*super().loops(), self._announce()]

    def desire(self, netmap: NetMap, peers: Mapping[PublicKey, PeerState], now: float) -> Desired:
        return server_desired(self.own, netmap, peers, now)

    def single_changes(
        self, changes: Mapping[PublicKey, NetMapPeer | None], peers: Mapping[PublicKey, PeerState]
    ) -> Mapping[PublicKey, PeerSpec | None]:
        new = {key for key, peer in changes.items() if peer and key not in peers}
        if new:
            self._expected |= new
            self._added.set()
        return server_peer_specs(changes, peers, self.clock())

    async def tick(self) -> None:
        if not self.revoked:
            await self._beat(await self.observe_peers())

    async def command(self, name: str, arguments: dict[str, Any]) -> Any:
        raise CommandRefused("unknown-command", f"a server agent knows no {name!r}: it has status and down")

    async def _announce(self) -> None:
        """Report the first handshake of a new peer when it comes, not at the next heartbeat."""
        while True:
            await self._added.wait()
            self._added.clear()
            deadline = self.clock() + EXPECT
            while self._expected and self.clock() < deadline:
                await asyncio.sleep(LOOK_EVERY)
                try:
                    peers = await self.observe_peers()
                    seen = {key for key in self._expected if connected(peers.get(key), self.clock())}
                    if seen:
                        self._expected -= seen
                        await self._beat(peers)
                except (BrokerUnreachable, ProblemError, DataplaneError) as error:
                    log.debug("the handshake is reported later: %s", error)
            self._expected.clear()

    async def _beat(self, peers: Mapping[PublicKey, PeerState]) -> None:
        now = self.clock()
        ids = {peer.public_key: peer.peer_id for peer in self.netmap.peers.values()} if self.netmap else {}
        changed = {key for key in ids if key in peers and self._reported.get(key) != _figures(peers[key])}
        # Who was reported longest ago goes first, so that none waits for ever behind busier peers.
        order = [*(changed - self._reported.keys()), *(key for key in self._reported if key in changed)]
        reported = order[:REPORTS]
        await self.client.heartbeat(
            Heartbeat(
                revision=self.netmap.revision if self.netmap else None,
                version=VERSION,
                active_connections=sum(connected(peer, now) for peer in peers.values()),
                metrics=read_metrics(self.state.interface),
                peers=tuple(_report(ids[key], peers[key]) for key in reported),
            )
        )
        for key in reported:
            self._reported.pop(key, None)
            self._reported[key] = _figures(peers[key])
        for gone in self._reported.keys() - ids.keys():
            del self._reported[gone]


def _figures(peer: PeerState) -> tuple[float | None, int, int]:
    return peer.latest_handshake, peer.received, peer.sent


def _report(peer_id: str, peer: PeerState) -> PeerReport:
    handshake = peer.latest_handshake
    return PeerReport(
        peer_id=peer_id,
        latest_handshake=None if handshake is None else datetime.fromtimestamp(handshake, UTC),
        received=peer.received,
        sent=peer.sent,
    )
