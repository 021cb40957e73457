"""A broker in this process: its own data directory and libSQL file, a clock that tests move, and the
real clients talking to it.

    async with in_process(tmp_path) as horizon:
        admin = await horizon.admin()
        fra1 = await horizon.server("fra1")
        alice = await horizon.device("alice")
        problem = await horizon.refuses(alice.connect("ams1"))

`refuses` also compares the whole database before and after: what is refused leaves no trace.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import argon2
import httpx2
import pytest
import sqlalchemy
from argon2.profiles import CHEAPEST
from fastapi import FastAPI
from sqlmodel import SQLModel, select

from controlplane.app import create_app
from controlplane.auth import Principal
from controlplane.broker import Broker, open_broker
from controlplane.client.broker import AdminClient, BrokerAddress, BrokerClient, Signer
from controlplane.config import BrokerConfig
from controlplane.enrolment import (
    create_admin_key,
    create_personal_key,
    create_registration_key,
    ensure_owner,
    generate_personal_key,
)
from controlplane.keyhash import PersonalKeyHasher
from controlplane.models import Admin
from controlplane.protocol.enrolment import EnrolmentKey, Invite
from controlplane.protocol.envelope import Signed
from controlplane.protocol.errors import Problem, ProblemError
from controlplane.protocol.keys import IdentityKey, PrivateKey
from controlplane.protocol.messages import (
    AuthRequest,
    LoginRequest,
    PersonalKeyRequest,
    RegisterRequest,
    RegistrationKeyRequest,
)
from controlplane.protocol.netmap import NetMapUpdate
from controlplane.protocol.wireguard import Endpoint
from controlplane.routes import netmap as netmap_route
from tests.harness.machines import Device, Machine, Server
from tests.harness.waiting import wait_for

START = 1_800_000_000.0
_apps: list[FastAPI] = []
"""Applications that are free again: all their state is the broker, and their routes take long to build."""
Client = TypeVar("Client", bound=BrokerClient)


class Clock:
    """Unix seconds that pass only when told to."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, **time: float) -> None:
        """Move by the arguments of a `timedelta`."""
        self.now += timedelta(**time).total_seconds()


@dataclass
class Harness:
    """One broker and those who speak to it."""

    broker: Broker
    clock: Callable[[], float]
    transport: httpx2.AsyncBaseTransport | None = None
    """None: TLS to the broker's address."""
    idle: Counter[str] = field(default_factory=Counter)
    """How often a machine's request for its netmap found nothing new."""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def address(self) -> BrokerAddress:
        endpoint = self.broker.advertise
        return BrokerAddress(f"https://{endpoint.host}:{endpoint.port}", self.broker.pin)

    @property
    def app(self) -> FastAPI:
        assert isinstance(self.transport, httpx2.ASGITransport)
        assert isinstance(self.transport.app, FastAPI)
        return self.transport.app

    def advance(self, **time: float) -> None:
        assert isinstance(self.clock, Clock)
        self.clock.advance(**time)

    def configure(self, **changes: Any) -> None:
        self.broker.config = replace(self.broker.config, **changes)

    def client(self, kind: type[Client], signer: Signer, clock: Callable[[], float] | None = None) -> Client:
        """A real client, closed with the harness."""
        client = kind(self.address, signer, clock=clock or self.clock, transport=self.transport)
        self._stack.push_async_callback(client.close)
        return client

    async def close(self) -> None:
        await self._stack.aclose()

    # --- keys and those who redeem them -----------------------------------------------------

    def registration_key(self, max_uses: int = 1, expires_in: int = 3600) -> EnrolmentKey:
        with self.broker.database.write() as session:
            request = RegistrationKeyRequest(max_uses=max_uses, expires_in=expires_in)
            created = create_registration_key(self.broker, session, request)
        return Invite.parse(created.invite).key

    def personal_key(self, user: str = "alice", expires_in: int | None = None) -> EnrolmentKey:
        request = PersonalKeyRequest(user_name=user, expires_in=expires_in)
        hashed = generate_personal_key(self.broker)
        with self.broker.database.write() as session:
            created = create_personal_key(self.broker, session, request, hashed)
        return Invite.parse(created.invite).key

    def admin_key(self) -> EnrolmentKey:
        with self.broker.database.write() as session:
            created = ensure_owner(self.broker, session)
            if created is None:
                owner = session.exec(select(Admin)).one()
                created = create_admin_key(self.broker, session, owner.admin_id)
        return Invite.parse(created.invite).key

    async def admin_signer(self) -> Signer:
        """A machine of the owner, logged in."""
        identity = IdentityKey.generate()
        request = LoginRequest(admin_key=self.admin_key(), identity=identity.public_key, machine="desk")
        answer = await self.enrolling(identity).login(request)
        return Signer(identity, answer.admin_id)

    async def admin(self) -> AdminClient:
        return self.client(AdminClient, await self.admin_signer())

    def register_request(
        self, key: EnrolmentKey, identity: IdentityKey, name: str = "fra1", **fields: Any
    ) -> RegisterRequest:
        fields.setdefault("public_key", PrivateKey(bytes(identity)).public_key)
        fields.setdefault("listen_port", 51820)
        fields.setdefault("version", "1.0")
        return RegisterRequest(registration_key=key, identity=identity.public_key, name=name, **fields)

    def auth_request(self, key: EnrolmentKey, identity: IdentityKey, **fields: Any) -> AuthRequest:
        fields.setdefault("public_key", PrivateKey(bytes(identity)).public_key)
        fields.setdefault("device_name", "laptop")
        return AuthRequest(personal_key=key, identity=identity.public_key, platform="linux", **fields)

    def enrolling(self, identity: IdentityKey) -> AdminClient:
        """A client of one that has no id yet."""
        return self.client(AdminClient, Signer.enrolling(identity))

    async def server(
        self, name: str = "fra1", *, key: EnrolmentKey | None = None, online: bool = True, **fields: Any
    ) -> Server:
        """A registered server; `online` by a first heartbeat."""
        identity, wireguard = IdentityKey.generate(), PrivateKey.generate()
        request = self.register_request(
            key or self.registration_key(), identity, name, public_key=wireguard.public_key, **fields
        )
        answer = await self.enrolling(identity).register(request)
        client = self.client(BrokerClient, Signer(identity, answer.server_id))
        server = Server(
            answer.server_id,
            name,
            identity,
            wireguard,
            client,
            answer.broker_key,
            verification_secret=answer.verification_secret,
        )
        if online:
            await server.beat()
        return server

    async def device(
        self, user: str = "alice", name: str = "laptop", *, key: EnrolmentKey | None = None
    ) -> Device:
        """A device of a user, by `key` or a new one."""
        identity, wireguard = IdentityKey.generate(), PrivateKey.generate()
        request = self.auth_request(
            key or self.personal_key(user), identity, public_key=wireguard.public_key, device_name=name
        )
        answer = await self.enrolling(identity).authenticate(request)
        client = self.client(BrokerClient, Signer(identity, answer.device_id))
        return Device(answer.device_id, name, identity, wireguard, client, answer.broker_key, user=user)

    # --- asserting --------------------------------------------------------------------------

    def dump(self) -> dict[str, list[Any]]:
        """Every row of every table."""
        with self.broker.database.read() as session:
            return {
                table.name: sorted(map(repr, session.execute(sqlalchemy.select(table)).all()))
                for table in SQLModel.metadata.sorted_tables
            }

    @contextmanager
    def selects(self) -> Iterator[list[str]]:
        """The SELECTs that the broker makes in the block."""
        found: list[str] = []

        def note(_: object, __: object, statement: str, *___: object) -> None:
            if statement.lstrip().startswith("SELECT"):
                found.append(statement)

        sqlalchemy.event.listen(self.broker.database.engine, "before_cursor_execute", note)
        try:
            yield found
        finally:
            sqlalchemy.event.remove(self.broker.database.engine, "before_cursor_execute", note)

    async def refuses(self, call: Awaitable[object]) -> Problem:
        """The problem that `call` ends in; the database is as before."""
        before = self.dump()
        with pytest.raises(ProblemError) as caught:
            await call
        assert self.dump() == before
        problem = caught.value.problem
        assert problem.type == f"urn:horizon:problem:{problem.code}"
        return problem

    @asynccontextmanager
    async def watching(
        self, machine: Machine, since: int
    ) -> AsyncIterator[asyncio.Task[NetMapUpdate | None]]:
        """A long-poll that found nothing so far, so only a change told within the block can answer it.

        The task is done when the block ends.
        """
        before = self.idle[machine.id]
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            task = group.create_task(machine.update(since, wait=50))
            await wait_for(lambda: self.idle[machine.id] > before)
            yield task


@asynccontextmanager
async def in_process(directory: Path, **config: Any) -> AsyncIterator[Harness]:
    """A broker of its own in `directory`; `config` are fields of `BrokerConfig`."""
    clock = Clock()
    settings: dict[str, Any] = {"advertise": Endpoint("broker.example", 8443), "connect_wait": 0.0}
    broker = open_broker(BrokerConfig(data_dir=directory, **{**settings, **config}), clock)
    broker.hasher = cheap_hasher()
    app = _apps.pop() if _apps else create_app(broker)
    app.state.broker = broker
    harness = Harness(broker, clock, httpx2.ASGITransport(app))
    read_update = netmap_route.read_update

    def observed(broker: Broker, signer: Principal, since: int | None) -> Signed | None:
        update = read_update(broker, signer, since)
        if update is None:
            harness.idle[signer.id] += 1
        return update

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(netmap_route, "read_update", observed)
        async with app.router.lifespan_context(app):
            yield harness
            await harness.close()
    _apps.append(app)


def cheap_hasher() -> PersonalKeyHasher:
    """Argon2id with parameters for tests: 8 KiB, one pass."""
    return PersonalKeyHasher(argon2.PasswordHasher.from_parameters(CHEAPEST))
