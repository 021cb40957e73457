"""The client agent: servers as peers; connects and disconnects for whoever may ask. *Shell.*"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any

from controlplane.protocol.envelope import Signed
from controlplane.protocol.errors import BrokerUnreachable, ProblemError
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.messages import ConnectRequest
from controlplane.protocol.netmap import NetMap, NetMapPeer
from controlplane.protocol.wireguard import Endpoint
from dataplane.agent import Agent
from dataplane.desired import client_desired, connected, may_stay
from dataplane.errors import DataplaneError
from dataplane.local import CommandRefused
from dataplane.state import Desired, PeerState

log = logging.getLogger(__name__)
HANDSHAKE_WAIT = 10.0
"""Seconds to wait for the first handshake of a connection."""
LOOK_EVERY = 0.002
"""Seconds between the first looks for it; WireGuard tells nobody when it comes."""


class NoHandshake(DataplaneError):
    """The server did not answer a handshake in time; the tunnel stays configured and keeps trying."""

    code = "no-handshake"


class ClientAgent(Agent):
    """See the module. Its addresses, routes and firewall follow its few peers."""

    singly = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ended = self.store.load_ended()
        self._addresses: dict[Endpoint, Endpoint] = {}
        self._connecting = asyncio.Lock()

    def desire(self, netmap: NetMap, peers: Mapping[PublicKey, PeerState], now: float) -> Desired:
        return client_desired(self.own, netmap, peers, now, self._resolve, self._ended)

    async def accept(self, signed: Signed) -> None:
        """As every agent, but nothing that the watch hears while a connect is under way.

        A handshake that comes before the server has the peer is lost, and WireGuard's next is 5 s
        later (REKEY_TIMEOUT); the broker answers a connect when the peer is in place.
        """
        async with self._connecting:
            await super().accept(signed)
        self._forget_ended()

    async def tick(self) -> None:
        """Tell the broker of connections that ended while it was away."""
        for connection_id in sorted(self._ended):
            try:
                await self.client.disconnect(connection_id)
            except ProblemError as error:
                if error.code != "not-found":
                    raise
        self._forget_ended()

    async def command(self, name: str, arguments: dict[str, Any]) -> Any:
        match name:
            case "servers":
                return [server.model_dump(mode="json") for server in await self.client.servers()]
            case "connect":
                if "server" not in arguments:
                    raise CommandRefused("malformed", "'connect' needs 'server', its name or id")
                return await self.connect(str(arguments["server"]))
            case "disconnect":
                return await self.disconnect(arguments.get("server"))
        raise CommandRefused("unknown-command", f"a client agent knows no {name!r}")

    # --- connecting -------------------------------------------------------------------------

    async def connect(self, server: str) -> dict[str, Any]:
        """Connect and wait for the handshake. Raises `ProblemError` as the broker refuses,
        `BrokerUnreachable`, or `NoHandshake`."""
        clock = asyncio.get_running_loop().time
        times = [clock()]
        try:
            request = ConnectRequest(server=server, since=self.netmap.revision if self.netmap else None)
            async with self._connecting:
                response = await self.client.connect(request)
            times.append(clock())
        except BrokerUnreachable:
            peer = self._authorised(server)
            if peer is None:
                raise
            times.append(clock())
            log.warning("broker away: connecting to %s by the authorisation at hand", peer.name)
        else:
            await self.accept(response.netmap)
            peer = self._find(server)
        if peer is None:
            raise CommandRefused("not-connected", f"the broker gave no peer for {server!r}: see its log")
        if peer.connection_id in self._ended:
            self._remember_ended(self._ended - {peer.connection_id})
            await self._bring_now()
        times.append(clock())
        await self._await_handshake(peer)
        times.append(clock())
        netmap = self.netmap
        return {
            "server": peer.name,
            "connection_id": peer.connection_id,
            "endpoint": str(peer.endpoint),
            "addresses": [str(address) for address in netmap.interface.addresses] if netmap else [],
            "server_addresses": [str(address) for address in peer.addresses],
            "authorized_until": peer.authorized_until.isoformat(),
            "seconds": round(times[-1] - times[0], 4),
            "steps": {
                step: round(end - start, 4)
                for step, start, end in zip(("broker", "host", "handshake"), times, times[1:], strict=False)
            },
        }

    async def disconnect(self, server: str | None) -> list[dict[str, Any]]:
        """End the connection to `server` (None: all). The tunnel goes at once, also without a broker,
        which then hears of it later."""
        peers = list(self.netmap.peers.values()) if self.netmap else []
        chosen = [peer for peer in peers if server in {None, peer.name, peer.peer_id}]
        if not chosen and server is not None:
            names = ", ".join(peer.name for peer in peers) or "nothing"
            raise CommandRefused("not-connected", f"not connected to {server!r}, but to {names}")
        try:
            self._remember_ended(self._ended | {peer.connection_id for peer in chosen})
        finally:  # a full disk keeps no tunnel up
            await self._bring_now()
        try:
            await self.tick()
            told = True
        except BrokerUnreachable as error:
            log.warning("%s: telling it later", error)
            told = False
        return [
            {"server": peer.name, "connection_id": peer.connection_id, "broker_told": told} for peer in chosen
        ]

    async def _await_handshake(self, peer: NetMapPeer) -> None:
        delays = chain(repeat(LOOK_EVERY, 100), repeat(10 * LOOK_EVERY))
        try:
            async with asyncio.timeout(HANDSHAKE_WAIT):
                while not connected((await self.observe_peers()).get(peer.public_key), self.clock()):  # noqa: ASYNC110
                    await asyncio.sleep(next(delays))
        except TimeoutError:
            raise NoHandshake(
                f"server {peer.name!r} at {peer.endpoint} has not answered within {HANDSHAKE_WAIT:.0f} s: "
                "is its UDP port open? The tunnel keeps trying"
            ) from None

    async def _bring_now(self) -> None:
        async with self._lock:
            await self._reconcile(look=not self._settled)

    def _find(self, server: str) -> NetMapPeer | None:
        peers = self.netmap.peers.values() if self.netmap else ()
        return next((peer for peer in peers if server in {peer.name, peer.peer_id}), None)

    def _authorised(self, server: str) -> NetMapPeer | None:
        peer = self._find(server)
        return peer if peer and may_stay(peer, None, self.clock()) else None

    def _forget_ended(self) -> None:
        """Drop what the netmap is without. Until then an ended connection would come back by it."""
        if self.netmap is not None:
            held = {peer.connection_id for peer in self.netmap.peers.values()}
            if self._ended - held:
                self._remember_ended(self._ended & held)

    def _remember_ended(self, ended: set[str]) -> None:
        self._ended = ended
        self.store.save_ended(ended)

    def _resolve(self, endpoint: Endpoint) -> Endpoint | None:
        """In the host thread: the address behind a name, or the last one known."""
        if endpoint.address is not None:
            return endpoint
        try:
            found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name that DNS could hold
            log.warning("endpoint %s does not resolve: %s", endpoint, error)
            return self._addresses.get(endpoint)
        address = Endpoint(str(found[0][4][0]), endpoint.port)
        self._addresses[endpoint] = address
        return address
