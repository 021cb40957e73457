"""Agents in this process: a host in memory, and a line to the in-process broker that can be cut.

rig = await stage.client("alice", answering=True)
async with rig.running():
    await rig.agent.connect("fra1")
    rig.line.cut()
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx2

from controlplane.client.agent import ask
from controlplane.client.broker import BrokerClient
from controlplane.protocol.envelope import Signed
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.messages import Heartbeat
from dataplane.actions import Action, SetPeers
from dataplane.agent import Agent
from dataplane.client import ClientAgent
from dataplane.errors import BackendError
from dataplane.local import LocalSocket
from dataplane.server import ServerAgent
from dataplane.state import HostState, PeerState
from dataplane.store import AgentState, Store
from tests.fake_kernel import FakeKernel, FakeLink, FakePeer
from tests.harness.broker import START, Harness
from tests.harness.machines import Device, Machine
from tests.harness.waiting import wait_for

AnyAgent = TypeVar("AnyAgent", bound=Agent)
ENDPOINT = "192.0.2.1"
"""Where servers of the tests are: an address, so that nothing is resolved."""


@dataclass
class FakeHost(FakeKernel):
    """The fake kernel as an agent's host; counts how often it is looked at."""

    clock: Callable[[], float] = lambda: START
    answering: bool = False
    """Whether every peer with an endpoint answers a handshake at once."""
    looks: int = 0
    closed: int = 0
    before_peers: Callable[[], None] = lambda: None

    def observe(self, name: str) -> HostState:
        self.looks += 1
        return super().observe(name)

    def peers(self, name: str) -> dict[PublicKey, PeerState]:
        self.before_peers()
        link = self.links.get(name)
        return self._peers(link) if link and link.kind == "wireguard" else {}

    def apply(self, action: Action) -> None:
        super().apply(action)
        if isinstance(action, SetPeers) and self.answering:
            for change in action.changes:
                if change.public_key in self.links[action.name].peers and change.endpoint:
                    self.handshake(action.name, change.public_key, self.clock())

    def close(self) -> None:
        self.closed += 1

    def __enter__(self) -> FakeHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def peer(self, name: str, key: PublicKey) -> FakePeer | None:
        """A peer, if interface and peer are there."""
        link = self.links.get(name)
        return link.peers.get(key) if link else None


class Line(httpx2.AsyncBaseTransport):
    """A way to the broker that can be cut, also under a request, and lied on."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self._under_way: set[asyncio.Timeout] = set()
        self.is_cut = False
        self.refused = 0
        """Requests that found it cut."""
        self.answered = 0
        self.requests: list[httpx2.Request] = []
        self.forge: Callable[[Signed], Signed] | None = None
        """Changes the netmaps that come back."""
        self.held: Callable[[httpx2.Request], bool] = lambda request: False
        """Requests that the broker gets at once, and whose answers come only after `release`."""
        self._let_go = asyncio.Event()
        self.lose_answers = False
        """Whether requests reach the broker and their answers are lost."""

    def cut(self) -> None:
        self.is_cut = True
        now = asyncio.get_running_loop().time()
        for patience in self._under_way:
            patience.reschedule(now)

    def mend(self) -> None:
        self.is_cut = False

    def release(self) -> None:
        self._let_go.set()

    def asked(self, path: str) -> list[httpx2.Request]:
        """The requests so far whose path ends so."""
        return [request for request in self.requests if request.url.path.endswith(path)]

    def beats(self) -> list[Heartbeat]:
        return [Heartbeat.model_validate_json(request.content) for request in self.asked("/heartbeat")]

    def acknowledged(self) -> list[int]:
        """The revisions that were said to be in place."""
        return [
            int(request.url.params["since"])
            for request in self.asked("/netmap")
            if "since" in request.url.params
        ]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if self.is_cut:
            self.refused += 1
            raise httpx2.ConnectError("the line is cut", request=request)
        try:
            async with asyncio.timeout(None) as patience:
                self._under_way.add(patience)
                response = await self._inner.handle_async_request(request)
                if self.held(request):
                    await self._let_go.wait()
        except TimeoutError:
            raise httpx2.ReadError("the line was cut", request=request) from None
        finally:
            self._under_way.discard(patience)
        self.answered += 1
        if self.lose_answers:
            raise httpx2.ReadError("the answer was lost", request=request)
        if self.forge is None or response.status_code != 200 or not request.url.path.endswith("/netmap"):
            return response
        signed = Signed.model_validate_json(await response.aread())
        return httpx2.Response(200, content=self.forge(signed).model_dump_json())


@dataclass
class Rig(Generic[AnyAgent]):
    """One agent with all that it stands on; `agent` is the latest process of it."""

    horizon: Harness
    machine: Machine
    host: FakeHost
    line: Line
    store: Store
    state: AgentState
    socket: Path
    make: Callable[..., AnyAgent]
    agent: AnyAgent = field(init=False)

    @property
    def key(self) -> PublicKey:
        return self.state.private_key.public_key

    @property
    def interface(self) -> str:
        return self.state.interface

    @property
    def link(self) -> FakeLink:
        return self.host.links[self.interface]

    def start_over(self) -> AnyAgent:
        """A new process: what it knows is on the disk and on the host."""
        client = BrokerClient(
            self.horizon.address, self.machine.signer, clock=self.horizon.clock, transport=self.line
        )
        store = Store(self.store.directory, self.store.role)
        self.agent = self.make(store, store.load(), lambda: self.host, client, self.horizon.clock)
        return self.agent

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AnyAgent]:
        """A new process that runs within the block."""
        agent = self.start_over()
        ready = asyncio.Event()
        async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
            tasks.create_task(agent.run(LocalSocket(self.socket), ready.set))
            await ready.wait()
            try:
                yield agent
            finally:
                agent.stop()

    async def ask(self, command: str, **arguments: Any) -> Any:
        """As the command line asks: by the socket, from outside the event loop."""
        return await asyncio.to_thread(partial(ask, self.socket, command, 10.0, **arguments))

    async def until_broker(self, reachable: bool) -> None:
        await wait_for(lambda: self.agent.broker.reachable is reachable)

    async def until_known(self) -> None:
        """Until the agent has looked at the host after the changes of its start."""
        await self.until_broker(True)
        await wait_for(lambda: self.agent._reconciler is not None and self.agent._reconciler.ready)

    async def until_peer(self, key: PublicKey, there: bool = True) -> None:
        await wait_for(lambda: (self.host.peer(self.interface, key) is not None) == there)


@dataclass
class Stage:
    """Makes rigs of machines that have enrolled at one broker."""

    horizon: Harness
    directory: Path

    async def server(self, name: str = "fra1") -> Rig[ServerAgent]:
        machine = await self.horizon.server(name, endpoint_host=ENDPOINT)
        return self._rig(machine, "server", "hz0", 51820, ServerAgent, machine.verification_secret)

    async def client(self, user: str = "alice", answering: bool = True) -> Rig[ClientAgent]:
        machine = await self.horizon.device(user)
        rig = self._rig(machine, "client", "hzc0", 0, ClientAgent)
        rig.host.answering = answering
        return rig

    def _rig(
        self,
        machine: Machine,
        role: str,
        interface: str,
        listen_port: int,
        make: Callable[..., AnyAgent],
        secret: str = "",
    ) -> Rig[AnyAgent]:
        state = AgentState(
            identity=machine.identity,
            private_key=machine.wireguard,
            broker=self.horizon.address,
            interface=interface,
            backend="auto",
            listen_port=listen_port,
            agent_id=machine.id,
            name=machine.name,
            broker_key=machine.broker_key,
            verification_secret=secret,
        )
        store = Store(self.directory / machine.id, role)
        store.save(state)
        assert self.horizon.transport is not None
        return Rig(
            horizon=self.horizon,
            machine=machine,
            host=FakeHost(clock=self.horizon.clock),
            line=Line(self.horizon.transport),
            store=store,
            state=state,
            socket=self.directory / f"{machine.id}.sock",
            make=make,
        )


class Gate:
    """Stops the host's thread at an action, until the test has seen it there."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(10), "the test never opened the gate"


async def connected_device(horizon: Harness, user: str = "alice") -> Device:
    """A device that has a peer on fra1."""
    device = await horizon.device(user)
    await device.connect("fra1")
    return device


async def in_place(rig: Rig[ServerAgent], device: Device) -> bool:
    """Whether the broker counts the device's latest connection as in place on its server."""
    revision = (await device.sync()).revision
    return await rig.horizon.broker.applied.wait(rig.machine.id, revision, 0)


def fail_on(kind: type[Action], host: FakeHost, words: str = "no buffer space") -> Callable[[], None]:
    """Let the host refuse actions of one kind; the function that ends it."""

    def refuse(action: Action) -> None:
        if isinstance(action, kind):
            raise BackendError(words)

    host.before_apply = refuse

    def end() -> None:
        host.before_apply = lambda action: None

    return end


async def connected_device_when_up(rig: Rig[ServerAgent]) -> Device:
    """The same, once the server's agent has heard the broker."""
    await rig.until_broker(True)
    return await connected_device(rig.horizon)
