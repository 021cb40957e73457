"""Signatures on requests: who is let in, and every way of not being."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from controlplane.client.broker import BrokerClient, Signer
from controlplane.protocol.keys import IdentityKey
from controlplane.protocol.messages import API, RegistrationKeyRequest, ServerChange
from controlplane.protocol.signing import WINDOW
from tests.harness import raw
from tests.harness.broker import Harness

OPEN = {"/status"}
ENROLMENT = {"/register", "/auth", "/admin/login"}
"""Signed too, by an identity that the broker does not know yet."""


async def test_every_route_but_status_refuses_an_unsigned_request(horizon: Harness) -> None:
    seen = set()
    for route in iter_route_contexts(horizon.app.routes):
        assert route.path is not None
        path = route.path.removeprefix(API).replace("{", "").replace("}", "")
        assert route.path.startswith(API), f"{route.path} is served outside of the API"
        seen.add(path)
        for method in route.methods or ():
            content: Any = {} if method in {"POST", "PATCH"} else None
            request = raw.request(horizon, method, path, content)
            if path in OPEN:
                assert (await raw.send(horizon, request)).status_code == 200
                continue
            problem = await raw.refused(horizon, request)
            assert (problem.status, problem.code) == (401, "bad-signature"), f"{method} {path}"
            assert "not signed: send Signature-Input and Signature (RFC 9421)" in problem.detail
    assert seen >= OPEN | ENROLMENT | {"/netmap", "/connections", "/exports", "/heartbeat"}


async def test_only_enrolment_takes_a_signer_without_an_id(horizon: Harness) -> None:
    """A valid signature by a key that enrolled nowhere opens nothing."""
    stranger = Signer.enrolling(IdentityKey.generate())
    for route in iter_route_contexts(horizon.app.routes):
        assert route.path is not None
        path = route.path.removeprefix(API).replace("{", "").replace("}", "")
        if path in OPEN | ENROLMENT:
            continue
        for method in route.methods or ():
            request = raw.signed(horizon, stranger, method, path, {} if method in {"POST", "PATCH"} else None)
            problem = await raw.refused(horizon, request)
            assert (problem.status, problem.code) == (401, "bad-signature"), f"{method} {path}"


async def test_the_same_signed_bytes_are_accepted_once(horizon: Harness) -> None:
    alice = await horizon.device("alice")
    request = raw.signed(horizon, alice.signer, "GET", "/servers")
    assert (await raw.send(horizon, request)).status_code == 200
    problem = await raw.refused(horizon, request)
    assert (problem.status, problem.code) == (401, "replayed-signature")
    assert "was used before: sign again" in problem.detail


async def test_of_parallel_replays_one_is_accepted(horizon: Harness) -> None:
    alice = await horizon.device("alice")
    request = raw.signed(horizon, alice.signer, "GET", "/servers")
    answers = await asyncio.gather(*(raw.send(horizon, request) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200, *[401] * 19]


async def test_a_replayed_enrolment_takes_no_second_use(horizon: Harness) -> None:
    key, identity = horizon.registration_key(max_uses=2), IdentityKey.generate()
    body = horizon.register_request(key, identity).model_dump_json().encode()
    request = raw.signed(horizon, Signer.enrolling(identity), "POST", "/register", body)
    assert (await raw.send(horizon, request)).status_code == 200
    problem = await raw.refused(horizon, request)
    assert problem.code == "replayed-signature"


async def test_what_a_former_run_may_have_accepted_is_refused(horizon: Harness) -> None:
    alice = await horizon.device("alice")
    request = raw.signed(horizon, alice.signer, "GET", "/servers", created=horizon.clock() - 5)
    problem = await raw.refused(horizon, request)
    assert problem.code == "replayed-signature"
    assert "created before the broker started: sign again" in problem.detail


@pytest.mark.parametrize("skew", [-WINDOW - 1, WINDOW + 1, -86_400, 86_400])
async def test_a_skewed_clock_is_named(horizon: Harness, skew: float) -> None:
    alice = await horizon.device("alice")
    horizon.advance(days=2)
    client = horizon.client(BrokerClient, alice.signer, clock=lambda: horizon.clock() + skew)
    problem = await horizon.refuses(client.servers())
    assert (problem.status, problem.code) == (401, "clock-skew")
    assert problem.model_dump()["skew"] == skew
    side = "ahead of" if skew > 0 else "behind"
    assert f"created {abs(skew):.0f} s {side} the broker's clock" in problem.detail
    assert "set the clock, for example with NTP" in problem.detail


@pytest.mark.parametrize("skew", [-WINDOW, WINDOW])
async def test_a_clock_within_the_window_is_accepted(horizon: Harness, skew: float) -> None:
    alice = await horizon.device("alice")
    horizon.advance(days=2)
    client = horizon.client(BrokerClient, alice.signer, clock=lambda: horizon.clock() + skew)
    assert await client.servers() == ()


async def test_a_body_changed_after_signing_is_refused(horizon: Harness) -> None:
    fra1, alice = await horizon.server("fra1"), await horizon.device("alice")
    await horizon.server("ams1")
    made = raw.signed(horizon, alice.signer, "POST", "/connections", {"server": "fra1"})
    forged = raw.request(horizon, "POST", "/connections", {"server": "ams1"})
    forged.headers.update({name: made.headers[name] for name in ("signature", "signature-input")})
    for digest in (made.headers["content-digest"], None):
        forged.headers.pop("content-digest", None)
        if digest:
            forged.headers["content-digest"] = digest
        problem = await raw.refused(horizon, forged)
        assert (problem.status, problem.code) == (401, "bad-signature")
    assert (await raw.send(horizon, made)).status_code == 200
    assert list((await fra1.sync()).peers) == [alice.id]


@pytest.mark.parametrize(
    ("method", "path", "host"),
    [
        ("GET", "/connections", "other.example:8443"),
        ("POST", "/connections", "broker.example:8443"),
        ("GET", "/servers", "broker.example:8443"),
        ("GET", "/connections?include_ended=true", "broker.example:8443"),
    ],
)
async def test_what_the_signature_covers_cannot_be_changed(
    horizon: Harness, method: str, path: str, host: str
) -> None:
    alice = await horizon.device("alice")
    made = raw.signed(horizon, alice.signer, "GET", "/connections")
    forged = raw.request(horizon, method, path)
    forged.headers.update({**made.headers, "host": host})
    problem = await raw.refused(horizon, forged)
    assert (problem.status, problem.code) == (401, "bad-signature")
    assert "unknown key or wrong signature" in problem.detail
    assert (await raw.send(horizon, made)).status_code == 200, "as it was signed it is accepted"


async def test_an_unknown_key_id_looks_like_a_wrong_signature(horizon: Harness) -> None:
    alice = await horizon.device("alice")
    details = set()
    for key_id in (
        alice.id,
        "dev_000000000000",
        "srv_000000000000",
        "adm_0",
        "nonsense",
        "",
        alice.id.upper(),
    ):
        stranger = Signer(IdentityKey.generate(), key_id)
        problem = await raw.refused(horizon, raw.signed(horizon, stranger, "GET", "/servers"))
        assert (problem.status, problem.code) == (401, "bad-signature")
        details.add(problem.detail)
    assert len(details) == 1


async def test_a_wrong_signature_does_not_use_up_a_nonce(horizon: Harness) -> None:
    alice = await horizon.device("alice")
    before = len(horizon.broker.guard)
    stranger = Signer(IdentityKey.generate(), alice.id)
    await raw.refused(horizon, raw.signed(horizon, stranger, "GET", "/servers"))
    assert len(horizon.broker.guard) == before


async def test_a_device_may_not_do_an_administrators_work(horizon: Harness) -> None:
    alice = await horizon.device("alice", "laptop")
    for method, path, content in [
        ("POST", "/admin/registration-keys", {}),
        ("GET", "/admin/registration-keys", None),
        ("POST", "/admin/personal-keys", {"user_name": "mallory"}),
        ("DELETE", f"/admin/devices/{alice.id}", None),
        ("PATCH", "/admin/servers/fra1", {"client_to_client": True}),
        ("POST", "/exports", {}),
    ]:
        problem = await raw.refused(horizon, raw.signed(horizon, alice.signer, method, path, content))
        assert (problem.status, problem.code) == (403, "forbidden"), f"{method} {path}"
        assert problem.detail == "only an administrator may do this, not device 'laptop'"


async def test_servers_devices_and_admins_keep_to_their_own_routes(horizon: Harness) -> None:
    fra1, alice, admin = await horizon.server("fra1"), await horizon.device(), await horizon.admin_signer()
    for signer, method, path, allowed in [
        (fra1.signer, "POST", "/connections", "a device"),
        (fra1.signer, "GET", "/connections", "a device or an administrator"),
        (fra1.signer, "GET", "/servers", "a device or an administrator"),
        (fra1.signer, "GET", "/admin/devices", "an administrator"),
        (alice.signer, "POST", "/heartbeat", "a server"),
        (admin, "POST", "/heartbeat", "a server"),
        (admin, "POST", "/connections", "a device"),
        (admin, "GET", "/netmap", "a server or a device"),
    ]:
        request = raw.signed(horizon, signer, method, path, {} if method == "POST" else None)
        problem = await raw.refused(horizon, request)
        assert (problem.status, problem.code) == (403, "forbidden"), f"{method} {path}"
        assert f"only {allowed} may do this, not " in problem.detail


async def test_who_was_revoked_is_told_so_and_refused(horizon: Harness) -> None:
    admin = await horizon.admin()
    fra1, alice = await horizon.server("fra1"), await horizon.device("alice", "laptop")
    await admin.revoke_device(alice.id)
    await admin.revoke_server("fra1")
    for machine, who in [(fra1, "server 'fra1'"), (alice, "device 'laptop'")]:
        problem = await horizon.refuses(machine.client.netmap())
        assert (problem.status, problem.code) == (403, "revoked")
        assert problem.detail == f"{who} was revoked"


async def test_a_signature_by_another_of_ones_keys_is_refused(horizon: Harness) -> None:
    """Each machine signs with its own identity only, whoever else is enrolled."""
    alice, bob = await horizon.device("alice"), await horizon.device("bob")
    request = raw.signed(horizon, Signer(bob.identity, alice.id), "GET", "/servers")
    assert (await raw.refused(horizon, request)).code == "bad-signature"


async def test_an_administrator_acts_from_each_of_their_machines(horizon: Harness) -> None:
    desk, phone = await horizon.admin(), await horizon.admin()
    await desk.create_registration_key(RegistrationKeyRequest())
    await horizon.server("fra1")
    await phone.change_server("fra1", ServerChange(client_to_client=False))
    assert len((await phone.registration_keys()).registration_keys) == 2
