"""What both agents are: a watch on the broker, a reconcile loop, and a local socket. *Shell.*

    watch ─▶ accept ─▶ (journal, reconcile) ─▶ the next watch acknowledges

The netmap on disk comes first: an agent that starts without its broker brings back what it may. A
broker that is away, or says what does not hold, changes nothing (fail static). Ending the process
leaves everything up; only `down` removes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, TypeVar

from controlplane.client.broker import BrokerClient
from controlplane.protocol.envelope import Signed
from controlplane.protocol.errors import BrokerUnreachable, ProblemError, ProtocolError
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.netmap import NetMap, NetMapPeer, NetMapUpdate, apply_update
from controlplane.protocol.wireguard import PeerSpec
from dataplane.backoff import Backoff
from dataplane.desired import Own, changed_peers
from dataplane.errors import DataplaneError, NameTaken, NoBackend, NotPermitted, StoreError
from dataplane.local import LocalSocket
from dataplane.reconcile import HostLike, Reconciler
from dataplane.state import Desired, InterfaceState, PeerState
from dataplane.status import addresses, describe_peer
from dataplane.store import AgentState, Store, open_update

log = logging.getLogger(__name__)
Result = TypeVar("Result")
WATCH_WAIT = 50.0
"""Seconds of a long-poll."""
TICK = 30.0
"""Seconds between full reconciliations, and between heartbeats (specification)."""
SETTLE = 0.25
"""Seconds after a change until the host is looked at again: whoever waits for the change goes first."""


@dataclass(slots=True)
class BrokerHealth:
    """Whether the broker answers, since when (Unix seconds), and what it last said if not."""

    reachable: bool | None = None
    since: float | None = None
    error: str | None = None

    def note(self, reachable: bool, now: float, error: str | None = None) -> None:
        if reachable != self.reachable:
            self.reachable, self.since = reachable, now
            log.log(logging.INFO if reachable else logging.WARNING, "broker %s", error or "answers")
        self.error = error


class Agent(ABC):
    """One agent, from its files on disk to its interface."""

    singly: ClassVar[bool]
    """Whether a change of peers is planned for these alone; else all is looked at."""

    def __init__(
        self,
        store: Store,
        state: AgentState,
        make_host: Callable[[], HostLike],
        client: BrokerClient,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.state = state
        self.client = client
        self.clock = clock
        self.own = Own(state.interface, state.private_key, state.listen_port)
        self.netmap: NetMap | None = store.load_netmap(state)
        self.broker = BrokerHealth()
        self.revoked: str | None = None
        self.trouble: str | None = None
        """Why the host is not as desired."""
        self._make_host = make_host
        self._host_thread = ThreadPoolExecutor(1, "host")
        self._disk_thread = ThreadPoolExecutor(1, "disk")
        self._reconciler: Reconciler | None = None
        self._lock = asyncio.Lock()
        self._settled = False
        self._want_snapshot = False
        self._stop = asyncio.Event()
        self._look = asyncio.Event()

    # --- what servers and clients do differently --------------------------------------------

    @abstractmethod
    def desire(self, netmap: NetMap, peers: Mapping[PublicKey, PeerState], now: float) -> Desired:
        """What shall be on the host, given the peers observed."""

    def single_changes(
        self, changes: Mapping[PublicKey, NetMapPeer | None], peers: Mapping[PublicKey, PeerState]
    ) -> Mapping[PublicKey, PeerSpec | None]:
        """The changed peers as `plan_peers` takes them; asked only of who is `singly`."""
        raise NotImplementedError

    @abstractmethod
    async def tick(self) -> None:
        """Each `TICK` seconds, after the reconciliation."""

    @abstractmethod
    async def command(self, name: str, arguments: dict[str, Any]) -> Any:
        """Answer a command from the local socket. Raises `DataplaneError` and the like."""

    # --- running ----------------------------------------------------------------------------

    async def run(self, socket: LocalSocket, ready: Callable[[], None] = lambda: None) -> None:
        """Run until `stop`. Raises `DataplaneError` if the host refuses at the very start."""
        try:
            self._reconciler = await self._on_host(
                lambda: Reconciler(self._make_host(), self.state.interface, self.clock)
            )
            await self._start()
            async with socket.serving(self._answer):
                ready()
                await self._loops()
        finally:
            await self.client.close()
            if self._reconciler is not None:
                await self._on_host(self._reconciler.close)
            self._host_thread.shutdown()
            self._disk_thread.shutdown()
            self.store.unlock()

    async def _start(self) -> None:
        """What the netmap on disk says, before anybody is asked. Only what no waiting mends is fatal."""
        try:
            await self._reconcile()
        except (NameTaken, NoBackend, NotPermitted):
            raise
        except Exception as error:
            await self._note(error)

    def stop(self) -> None:
        self._stop.set()

    async def _loops(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop) for loop in self.loops()]
            await self._stop.wait()
            for task in running:
                task.cancel()

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What runs until the end."""
        return [self._watch(), self._ticks()]

    async def _watch(self) -> None:
        """List and watch. Asking for what follows a revision says that it is in place."""
        backoff = Backoff()
        while True:
            try:
                await self._settle()
                since = None if self.netmap is None or self._want_snapshot else self.netmap.revision
                self._want_snapshot = False
                # Who has not heard the broker asks first, as a long-poll says nothing until it ends.
                wait = WATCH_WAIT if self.broker.reachable else 0.0
                signed = await self.client.netmap(since, wait)
                self.broker.note(True, self.clock())
                if self.revoked:
                    self.revoked = None
                if signed is not None:
                    await self.accept(signed)
                backoff.reset()
            except Exception as error:
                await self._note(error)
                await asyncio.sleep(backoff.next())

    async def _ticks(self) -> None:
        """Look at everything, then do what is due: a host in trouble is no reason to be silent."""
        while True:
            self._want_snapshot |= self.store.wants_snapshot
            for work in (self._look_at_all, self.tick):
                try:
                    await work()
                except Exception as error:
                    await self._note(error)
            await self._pause()

    async def _look_at_all(self) -> None:
        async with self._lock:
            await self._reconcile()

    async def _pause(self) -> None:
        """Until the next tick, or until shortly after a change that left the host unknown."""
        try:
            async with asyncio.timeout(TICK):
                await self._look.wait()
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE)
        self._look.clear()

    async def _note(self, error: Exception) -> None:
        """Remember what went wrong; say it once."""
        now = self.clock()
        if isinstance(error, BrokerUnreachable):
            self.broker.note(False, now, str(error))
        elif isinstance(error, ProblemError) and error.code == "revoked":
            self.broker.note(True, now)
            if self.revoked is None:
                log.error("%s", error)
                self.revoked = str(error)
                await self._give_up()
        elif isinstance(error, ProblemError | ProtocolError):
            self.broker.note(False, now, f"refused: {error}")
        else:
            if str(error) != self.trouble:
                log.error("%s", error, exc_info=None if isinstance(error, DataplaneError) else error)
            self.trouble = str(error) or type(error).__name__

    async def _give_up(self) -> None:
        """Revoked: nothing stays, not even what a restart without the broker would bring back."""
        self.store.forget()
        try:
            await self._look_at_all()
        except DataplaneError as refused:
            await self._note(refused)
        self.netmap = None

    # --- netmap and host --------------------------------------------------------------------

    async def accept(self, signed: Signed) -> None:
        """Take an update from the broker: verify, then write it down and bring it about, at once.

        Raises `ProtocolError` for one that does not hold; nothing changes then.
        """
        update = open_update(signed, self.state)
        async with self._lock:
            if self.netmap and update.since is not None and update.revision <= self.netmap.revision:
                return
            changes = self._only_peers(update)
            if changes is None:
                self.netmap = await self._checked(update)
            else:
                self.netmap = apply_update(self.netmap, update)
            loop = asyncio.get_running_loop()
            saving = loop.run_in_executor(
                self._disk_thread, self.store.save_update, signed, update.since is None
            )
            try:
                await self._bring(changes)
            finally:
                try:
                    await saving
                    self._want_snapshot |= self.store.wants_snapshot
                except StoreError as error:
                    await self._note(error)  # the next tick asks for what makes the file whole

    async def _checked(self, update: NetMapUpdate) -> NetMap:
        """The netmap after `update`, if it makes an interface; the one held is not changed."""
        held = self.netmap
        if held is not None and update.since is not None:
            held = replace(held, peers=dict(held.peers))
        netmap = apply_update(held, update)
        await self._on_host(lambda: self.desire(netmap, {}, self.clock()))
        return netmap

    def _only_peers(self, update: NetMapUpdate) -> dict[PublicKey, NetMapPeer | None] | None:
        """The peers an update changes, if it changes nothing else."""
        if self.netmap is None or update.since is None or not self._settled or self.revoked:
            return None
        if not self.singly:
            return None
        if update.interface not in {None, self.netmap.interface}:
            return None
        return changed_peers(self.netmap, update)

    async def _bring(self, changes: dict[PublicKey, NetMapPeer | None] | None) -> None:
        reconciler = self._need_reconciler()
        if changes is not None and reconciler.ready:
            single = self.single_changes(changes, reconciler.known_peers)
            try:
                await self._on_host(lambda: reconciler.reconcile_peers(single))
            except DataplaneError as error:
                log.warning("%s: looking at everything", error)
                self._settled = False
            else:
                return
        await self._reconcile(look=not self._settled)

    async def _reconcile(self, *, look: bool = True) -> None:
        """Bring everything to what is desired; hold the lock.

        Who has no netmap yet knows of nothing to change, and leaves alone what an earlier run made.
        Who is ending changes nothing any more: whatever waited while `down` worked would undo it.
        """
        if self._stop.is_set():
            return
        if self.netmap is None and not self.revoked:
            self._settled = True
            return
        reconciler = self._need_reconciler()
        self._settled = False
        try:
            await self._on_host(lambda: reconciler.reconcile(self._desire, look=look))
        except DataplaneError as error:
            if look:
                raise
            log.warning("%s: looking at everything", error)
            await self._on_host(lambda: reconciler.reconcile(self._desire))
        self._settled = True
        self.trouble = None
        if reconciler.stale:
            self._look.set()

    def _desire(self, peers: Mapping[PublicKey, PeerState], now: float) -> Desired:
        if self.revoked or self.netmap is None:
            return Desired()
        return self.desire(self.netmap, peers, now)

    async def _settle(self) -> None:
        """Nothing is acknowledged before it is in place."""
        if not self._settled:
            async with self._lock:
                await self._reconcile()

    async def down(self) -> None:
        """Remove all that is ours from the host, and stop."""
        reconciler = self._need_reconciler()
        async with self._lock:
            await self._on_host(lambda: reconciler.reconcile(lambda peers, now: Desired()))
            self._settled = False
            self.stop()

    async def observe(self) -> InterfaceState | None:
        reconciler = self._need_reconciler()
        async with self._lock:
            return await self._on_host(reconciler.observe)

    async def observe_peers(self) -> Mapping[PublicKey, PeerState]:
        return await self._on_host(self._need_reconciler().observe_peers)

    def _need_reconciler(self) -> Reconciler:
        if self._reconciler is None:
            raise RuntimeError("the agent is not running")
        return self._reconciler

    async def _on_host(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._host_thread, work)

    # --- status -----------------------------------------------------------------------------

    async def _answer(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "status":
            return await self.status()
        if name == "down":
            await self.down()
            return {"down": self.state.interface}
        return await self.command(name, arguments)

    async def status(self) -> dict[str, Any]:
        """What is, observed now: a peer is connected if its handshake is younger than 180 s."""
        interface = await self.observe()
        now = self.clock()
        by_key = {peer.public_key: peer for peer in self.netmap.peers.values()} if self.netmap else {}
        peers = interface.peers if interface else {}
        return {
            "role": self.store.role,
            "id": self.state.agent_id,
            "name": self.state.name,
            "interface": self.state.interface,
            "up": bool(interface and interface.up),
            "backend": interface.backend if interface else None,
            "public_key": str(self.state.private_key.public_key),
            "listen_port": interface.listen_port if interface else None,
            "addresses": addresses(interface),
            "broker": {"url": self.client.address.url, **asdict(self.broker)},
            "revision": self.netmap.revision if self.netmap else None,
            "revoked": self.revoked,
            "trouble": self.trouble,
            "peers": [describe_peer(by_key.get(key), peer, now) for key, peer in sorted(peers.items())],
        }
