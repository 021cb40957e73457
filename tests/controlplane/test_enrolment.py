"""Getting in: each key lets in whom it is for, as often and as long as it says, and leaves no trace
where it does not."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import argon2
import pytest
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST
from sqlalchemy import QueuePool
from sqlmodel import select

from controlplane import enrolment
from controlplane.errors import KeyUsed
from controlplane.keyhash import PersonalKeyHasher, digest
from controlplane.models import PersonalKey, RegistrationKey, Server
from controlplane.protocol.enrolment import EnrolmentKey, Invite, InviteKind
from controlplane.protocol.errors import Problem
from controlplane.protocol.keys import IdentityKey, PrivateKey
from controlplane.protocol.messages import LoginRequest, PersonalKeyRequest
from tests.harness.broker import Harness

Redeem = Callable[[Harness, EnrolmentKey, IdentityKey], Awaitable[Any]]


async def register(horizon: Harness, key: EnrolmentKey, identity: IdentityKey) -> Any:
    return await horizon.enrolling(identity).register(horizon.register_request(key, identity))


async def authenticate(horizon: Harness, key: EnrolmentKey, identity: IdentityKey) -> Any:
    return await horizon.enrolling(identity).authenticate(horizon.auth_request(key, identity))


async def login(horizon: Harness, key: EnrolmentKey, identity: IdentityKey) -> Any:
    request = LoginRequest(admin_key=key, identity=identity.public_key, machine="desk")
    return await horizon.enrolling(identity).login(request)


REDEEM: dict[InviteKind, Redeem] = {
    InviteKind.server: register,
    InviteKind.device: authenticate,
    InviteKind.admin: login,
}
kinds = pytest.mark.parametrize("kind", list(InviteKind))


def make(horizon: Harness, kind: InviteKind) -> EnrolmentKey:
    """A key of each kind that expires in a day."""
    if kind is InviteKind.server:
        return horizon.registration_key(expires_in=86_400)
    if kind is InviteKind.device:
        return horizon.personal_key(expires_in=86_400)
    return horizon.admin_key()


async def refuse(horizon: Harness, key: EnrolmentKey, kind: InviteKind | None = None) -> Problem:
    return await horizon.refuses(REDEEM[kind or key.kind](horizon, key, IdentityKey.generate()))


# --- refusals that all keys share ---------------------------------------------------------------


@kinds
async def test_a_key_lets_in_until_it_expires(horizon: Harness, kind: InviteKind) -> None:
    early, late = make(horizon, kind), make(horizon, kind)
    horizon.advance(seconds=86_399)
    await REDEEM[kind](horizon, early, IdentityKey.generate())
    horizon.advance(seconds=1)
    problem = await refuse(horizon, late)
    assert (problem.status, problem.code) == (403, "expired-key")
    assert f"key {late.key_id} expired on 2027-01-16 08:00 UTC" in problem.detail
    assert "ask" in problem.detail
    assert "for a new invite" in problem.detail


@kinds
async def test_a_key_of_another_broker_is_refused(horizon: Harness, kind: InviteKind) -> None:
    problem = await refuse(horizon, EnrolmentKey.generate(kind))
    assert (problem.status, problem.code) == (401, "unknown-key")
    assert "copy the invite again, or ask for a new one" in problem.detail


@kinds
async def test_a_wrong_secret_looks_like_an_unknown_key(horizon: Harness, kind: InviteKind) -> None:
    key = make(horizon, kind)
    wrong = replace(key, secret=EnrolmentKey.generate(kind).secret)
    assert await refuse(horizon, wrong) == await refuse(horizon, EnrolmentKey.generate(kind))
    await REDEEM[kind](horizon, key, IdentityKey.generate())


@kinds
async def test_a_key_for_something_else_is_refused(horizon: Harness, kind: InviteKind) -> None:
    for other in InviteKind:
        if other is kind:
            continue
        problem = await refuse(horizon, make(horizon, other), kind)
        assert (problem.status, problem.code) == (400, "wrong-key-kind")
        assert (
            "devices join with a personal key" in problem.detail
            or f"for a {other.value}, not for a" in problem.detail
        )


async def test_a_key_under_another_prefix_is_refused(horizon: Harness) -> None:
    """Registration and admin keys lie in one table: the prefix alone must not turn one to the other."""
    key, admin = horizon.registration_key(), horizon.admin_key()
    assert (await refuse(horizon, replace(key, kind=InviteKind.admin))).code == "unknown-key"
    assert (await refuse(horizon, replace(admin, kind=InviteKind.server))).code == "unknown-key"


@kinds
async def test_an_enrolment_must_name_who_signed_it(horizon: Harness, kind: InviteKind) -> None:
    """Nobody can enrol a key that they do not hold."""
    key, mine, theirs = make(horizon, kind), IdentityKey.generate(), IdentityKey.generate()
    client = horizon.enrolling(mine)
    call: Awaitable[object]
    if kind is InviteKind.server:
        call = client.register(horizon.register_request(key, theirs))
    elif kind is InviteKind.device:
        call = client.authenticate(horizon.auth_request(key, theirs))
    else:
        call = client.login(LoginRequest(admin_key=key, identity=theirs.public_key, machine="desk"))
    problem = await horizon.refuses(call)
    assert (problem.status, problem.code) == (401, "bad-signature")
    assert f"signed by {mine.public_key}, but names the identity {theirs.public_key}" in problem.detail


async def test_a_revoked_registration_key_lets_nobody_in(horizon: Harness) -> None:
    admin, key = await horizon.admin(), horizon.registration_key()
    await admin.revoke_registration_key(key.key_id)
    problem = await refuse(horizon, key)
    assert (problem.status, problem.code) == (403, "revoked-key")
    assert problem.detail == f"server key {key.key_id} was revoked: ask for a new invite"


async def test_a_revoked_personal_key_lets_nobody_in(horizon: Harness) -> None:
    admin, key = await horizon.admin(), horizon.personal_key()
    await admin.revoke_personal_key(key.key_id)
    problem = await refuse(horizon, key)
    assert (problem.status, problem.code) == (403, "revoked-key")
    assert problem.detail == (
        f"personal key {key.key_id} was revoked: ask your administrator for a new invite"
    )


async def test_a_revoked_admin_key_lets_nobody_in(horizon: Harness) -> None:
    admin, key = await horizon.admin(), horizon.admin_key()
    await admin.revoke_registration_key(key.key_id)
    assert (await refuse(horizon, key)).code == "revoked-key"


# --- uses and time ------------------------------------------------------------------------------


async def test_a_single_use_key_lets_in_one(horizon: Harness) -> None:
    key = horizon.registration_key()
    await horizon.server("fra1", key=key)
    problem = await horizon.refuses(horizon.server("ams1", key=key))
    assert (problem.status, problem.code) == (403, "used-key")
    assert problem.detail == f"server key {key.key_id} was used already (1 of 1): ask for a new invite"


async def test_an_admin_key_lets_in_one_machine(horizon: Harness) -> None:
    key = horizon.admin_key()
    await login(horizon, key, IdentityKey.generate())
    problem = await refuse(horizon, key)
    assert problem.code == "used-key"
    assert f"admin key {key.key_id} was used already (1 of 1)" in problem.detail


async def test_uses_and_time_limit_both(horizon: Harness) -> None:
    """Two uses within an hour: neither the time alone nor the uses alone let in."""
    used, expired = horizon.registration_key(2, 3600), horizon.registration_key(2, 3600)
    for name in ("fra1", "fra2"):
        await horizon.server(name, key=used)
    await horizon.server("fra3", key=expired)
    problem = await horizon.refuses(horizon.server("fra4", key=used))
    assert problem.code == "used-key"
    assert "(2 of 2)" in problem.detail
    horizon.advance(hours=1)
    assert (await horizon.refuses(horizon.server("fra4", key=expired))).code == "expired-key"
    assert (await horizon.refuses(horizon.server("fra4", key=used))).code == "expired-key"


async def test_fifty_at_once_and_one_gets_in(horizon: Harness) -> None:
    """On the real database file, each in a thread and a transaction of its own."""
    key, barrier = horizon.registration_key(), threading.Barrier(50)
    requests = [horizon.register_request(key, IdentityKey.generate(), f"fra{i}") for i in range(50)]

    def redeem(request: Any) -> str | None:
        barrier.wait(10)
        try:
            with horizon.broker.database.write() as session:
                return enrolment.register(horizon.broker, session, request, "192.0.2.1").server_id
        except KeyUsed:
            return None

    with ThreadPoolExecutor(50) as threads:
        answers = await asyncio.to_thread(lambda: list(threads.map(redeem, requests)))
    won = [answer for answer in answers if answer]
    assert len(won) == 1
    with horizon.broker.database.read() as session:
        assert [server.server_id for server in session.exec(select(Server)).all()] == won
        assert session.get_one(RegistrationKey, key.key_id).uses == 1


async def test_parallel_requests_share_out_the_uses(horizon: Harness) -> None:
    key = horizon.registration_key(max_uses=3)
    answers = await asyncio.gather(
        *(horizon.server(f"fra{i}", key=key, online=False) for i in range(8)), return_exceptions=True
    )
    assert sum(isinstance(answer, BaseException) for answer in answers) == 5


async def test_a_personal_key_lets_in_many_devices_of_its_user(horizon: Harness) -> None:
    key = horizon.personal_key("alice")
    laptop, phone = [await horizon.device(name=name, key=key) for name in ("laptop", "phone")]
    assert laptop.id != phone.id
    admin = await horizon.admin()
    (info,) = (await admin.personal_keys()).personal_keys
    assert (info.user_name, info.devices, info.status) == ("alice", 2, "active")


# --- lost answers -------------------------------------------------------------------------------


async def test_who_lost_the_answer_asks_again_and_is_the_same_server(horizon: Harness) -> None:
    key, identity = horizon.registration_key(), IdentityKey.generate()
    first = await register(horizon, key, identity)
    again = await register(horizon, key, identity)
    assert (again.server_id, again.name, again.addresses) == (first.server_id, first.name, first.addresses)
    assert again.verification_secret != first.verification_secret
    with horizon.broker.database.read() as session:
        (server,) = session.exec(select(Server)).all()
        assert server.verification_secret == again.verification_secret
        assert session.get_one(RegistrationKey, key.key_id).uses == 1


async def test_the_lost_answer_is_given_again_after_the_key_is_gone(horizon: Harness) -> None:
    key, identity = horizon.registration_key(expires_in=60), IdentityKey.generate()
    first = await register(horizon, key, identity)
    horizon.advance(hours=1)
    assert (await register(horizon, key, identity)).server_id == first.server_id


async def test_anybody_else_with_the_used_key_is_refused(horizon: Harness) -> None:
    key, identity = horizon.registration_key(), IdentityKey.generate()
    await register(horizon, key, identity)
    mallory = IdentityKey.generate()
    request = horizon.register_request(key, mallory, "fra2")
    assert (await horizon.refuses(horizon.enrolling(mallory).register(request))).code == "used-key"


async def test_a_server_that_is_in_needs_no_second_key(horizon: Harness) -> None:
    identity = IdentityKey.generate()
    await register(horizon, horizon.registration_key(), identity)
    problem = await horizon.refuses(register(horizon, horizon.registration_key(), identity))
    assert (problem.status, problem.code) == (409, "key-in-use")
    assert problem.detail == "this server is registered as 'fra1' with another key already"


async def test_a_revoked_server_does_not_come_back_by_its_key(horizon: Harness) -> None:
    admin, key, identity = await horizon.admin(), horizon.registration_key(max_uses=5), IdentityKey.generate()
    await register(horizon, key, identity)
    await admin.revoke_server("fra1")
    problem = await horizon.refuses(register(horizon, key, identity))
    assert (problem.status, problem.code) == (403, "revoked")
    assert "server 'fra1' was revoked" in problem.detail


async def test_a_device_asks_again_and_is_the_same(horizon: Harness) -> None:
    key, identity = horizon.personal_key("alice", expires_in=3600), IdentityKey.generate()
    first = await authenticate(horizon, key, identity)
    assert await authenticate(horizon, key, identity) == first
    assert first.user_name == "alice"
    assert first.broker_key == horizon.broker.signing_key.public_key
    assert first.expires_at.timestamp() == horizon.clock() + 3600


async def test_a_device_belongs_to_one_user(horizon: Harness) -> None:
    identity = IdentityKey.generate()
    await authenticate(horizon, horizon.personal_key("alice"), identity)
    problem = await horizon.refuses(authenticate(horizon, horizon.personal_key("bob"), identity))
    assert (problem.status, problem.code) == (409, "key-in-use")
    assert problem.detail == "this device joined as 'laptop' with another personal key already"


async def test_a_revoked_device_does_not_come_back_by_its_key(horizon: Harness) -> None:
    admin, key, identity = await horizon.admin(), horizon.personal_key(), IdentityKey.generate()
    answer = await authenticate(horizon, key, identity)
    await admin.revoke_device(answer.device_id)
    problem = await horizon.refuses(authenticate(horizon, key, identity))
    assert (problem.status, problem.code) == (403, "revoked")
    assert problem.detail == "device 'laptop' was revoked: ask your administrator"


async def test_a_machine_that_logs_in_again_is_the_same(horizon: Harness) -> None:
    key, identity = horizon.admin_key(), IdentityKey.generate()
    assert await login(horizon, key, identity) == await login(horizon, key, identity)


# --- personal keys ------------------------------------------------------------------------------


async def test_unknown_and_wrong_personal_keys_cost_one_verification_each(horizon: Harness) -> None:
    class Counting(argon2.PasswordHasher):
        verified = 0

        def verify(self, hash: Any, password: Any) -> Any:
            Counting.verified += 1
            return super().verify(hash, password)

    horizon.broker.hasher = PersonalKeyHasher(Counting.from_parameters(CHEAPEST))
    key = horizon.personal_key()
    for given in (
        EnrolmentKey.generate(InviteKind.device),
        replace(key, secret="a" * 52),
        replace(key, key_id="a" * 10),
    ):
        before = Counting.verified
        assert (await refuse(horizon, given)).code == "unknown-key"
        assert Counting.verified == before + 1


async def test_the_state_of_a_key_is_told_only_to_who_holds_it(horizon: Harness) -> None:
    admin = await horizon.admin()
    for key in (horizon.personal_key(), horizon.registration_key()):
        revoke = admin.revoke_personal_key if key.kind is InviteKind.device else admin.revoke_registration_key
        await revoke(key.key_id)
        assert (await refuse(horizon, key)).code == "revoked-key"
        assert (await refuse(horizon, replace(key, secret="a" * 52))).code == "unknown-key"


async def test_secrets_are_stored_only_as_hashes(horizon: Harness) -> None:
    registration, personal = horizon.registration_key(), horizon.personal_key()
    stored = str(horizon.dump())
    assert registration.secret not in stored
    assert personal.secret not in stored
    with horizon.broker.database.read() as session:
        assert session.get_one(RegistrationKey, registration.key_id).key_hash == digest(registration.secret)
        assert session.get_one(PersonalKey, personal.key_id).key_hash.startswith("$argon2id$")


async def test_two_devices_cannot_have_one_wireguard_key(horizon: Harness) -> None:
    alice, bob = await horizon.device("alice"), IdentityKey.generate()
    taken = alice.wireguard.public_key
    request = horizon.auth_request(horizon.personal_key("bob"), bob, public_key=taken)
    problem = await horizon.refuses(horizon.enrolling(bob).authenticate(request))
    assert (problem.status, problem.code) == (409, "key-in-use")
    assert problem.detail == f"WireGuard key {taken} belongs to another device: make a new one"


# --- logs ---------------------------------------------------------------------------------------


async def test_no_secret_reaches_a_log(horizon: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = [horizon.broker.signing_key.reveal()]
    for kind in InviteKind:
        key, identity = make(horizon, kind), IdentityKey.generate()
        answer = await REDEEM[kind](horizon, key, identity)
        await refuse(horizon, replace(key, secret="a" * 52))
        secrets += [key.secret, identity.reveal(), getattr(answer, "verification_secret", key.secret)]
        assert getattr(answer, "verification_secret", "hzreg") not in repr(answer)
    wireguard = PrivateKey.generate()
    fra1, alice = await horizon.server("fra2"), await horizon.device()
    await alice.connect("fra2")
    await fra1.sync()
    secrets += [
        wireguard.reveal(),
        fra1.wireguard.reveal(),
        alice.wireguard.reveal(),
        fra1.verification_secret,
    ]
    assert len(caplog.records) > 5
    for secret in secrets:
        assert secret not in caplog.text


async def test_a_new_wireguard_key_needs_a_new_enrolment(horizon: Harness) -> None:
    key, identity = horizon.registration_key(), IdentityKey.generate()
    await register(horizon, key, identity)
    other = horizon.register_request(key, identity, "fra1", public_key=PrivateKey.generate().public_key)
    problem = await horizon.refuses(horizon.enrolling(identity).register(other))
    assert (problem.status, problem.code) == (409, "key-in-use")
    assert "join with a new invite" in problem.detail


async def test_a_flood_of_keys_is_answered_busy(horizon: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.routes.enrolment.HASHES_WAITING", 0)
    problem = await horizon.refuses(authenticate(horizon, horizon.personal_key(), IdentityKey.generate()))
    assert (problem.status, problem.code) == (503, "busy")


async def test_nobody_waits_for_a_hash(horizon: Harness) -> None:
    """It is computed while no connection to the database is held, let alone the writer's lock."""
    held: list[int] = []
    pool = horizon.broker.database.engine.pool
    assert isinstance(pool, QueuePool)
    connections = pool.checkedout
    real = PasswordHasher.from_parameters(CHEAPEST)

    class Watching(PasswordHasher):
        def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
            held.append(connections())
            return real.hash(password, salt=salt)

        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
            held.append(connections())
            return real.verify(hash, password)

    admin = await horizon.admin()
    horizon.broker.hasher = PersonalKeyHasher(Watching())
    created = await admin.create_personal_key(PersonalKeyRequest(user_name="alice"))
    assert held == [0]
    await horizon.device(key=Invite.parse(created.invite).key)
    assert held[1:]
    assert set(held) == {0}
