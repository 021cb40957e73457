"""Every refusal is a problem (RFC 9457): validation, size, routes, and what nobody foresaw."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import exc

from controlplane import servers
from controlplane.client.broker import BrokerClient, Signer
from controlplane.libsql.errors import BusyError, OperationalError
from controlplane.protocol.keys import IdentityKey, PrivateKey
from controlplane.protocol.messages import API, MAX_BODY
from controlplane.protocol.version import VERSION
from tests.harness import raw
from tests.harness.broker import Harness


async def test_status_says_who_answers(horizon: Harness) -> None:
    stranger = horizon.client(BrokerClient, Signer.enrolling(IdentityKey.generate()))
    status = await stranger.status()
    assert (status.name, status.version) == ("horizon", VERSION)
    assert status.time.timestamp() == horizon.clock()
    assert status.broker_key == horizon.broker.signing_key.public_key


# --- validation ---------------------------------------------------------------------------------


async def test_an_unknown_field_is_named(horizon: Harness) -> None:
    alice = await horizon.device("alice")
    content = {"server": "fra1", "colour": "red"}
    problem = await raw.refused(horizon, raw.signed(horizon, alice.signer, "POST", "/connections", content))
    assert (problem.status, problem.code) == (422, "invalid-request")
    assert problem.detail == "colour: Extra inputs are not permitted (given 'red')"


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ({}, "server: Field required"),
        ({"server": "x" * 256}, "server: String should have at most 255 characters"),
        (
            {"server": "fra1", "connection_type": "tor"},
            "connection_type: Input should be 'vpn', 'lan' or 'exit'",
        ),
        ({"server": "fra1", "since": "now"}, "since: Input should be a valid integer"),
        ([], "body: Input should be a valid dictionary"),
        (b"{", "JSON decode error"),
        (b"\xff\xfe", ""),
    ],
)
async def test_what_is_wrong_is_said_with_its_place(horizon: Harness, content: Any, detail: str) -> None:
    alice = await horizon.device("alice")
    problem = await raw.refused(horizon, raw.signed(horizon, alice.signer, "POST", "/connections", content))
    assert (problem.status, problem.code) == (422, "invalid-request")
    assert detail in problem.detail


async def test_wrong_queries_are_quoted(horizon: Harness) -> None:
    alice = await horizon.device("alice")
    problem = await raw.refused(
        horizon, raw.signed(horizon, alice.signer, "GET", "/netmap?since=-1&wait=3600")
    )
    assert problem.status == 422
    assert "since: Input should be greater than or equal to 0 (given '-1')" in problem.detail
    assert "wait: Input should be less than or equal to 55 (given '3600')" in problem.detail


@pytest.mark.parametrize("field", ["personal_key", "personal_keyy", "identity"])
async def test_a_damaged_key_in_the_body_is_not_echoed(
    horizon: Harness, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    identity, key = IdentityKey.generate(), horizon.personal_key()
    content = horizon.auth_request(key, identity).model_dump(mode="json")
    content[field] = key.reveal() + "x"
    request = raw.signed(horizon, Signer.enrolling(identity), "POST", "/auth", content)
    problem = await raw.refused(horizon, request)
    assert (problem.status, problem.code) == (422, "invalid-request")
    assert problem.detail.startswith(f"{field}: ")
    assert key.secret not in problem.model_dump_json()
    assert key.secret not in caplog.text


async def test_a_cut_off_key_says_so(horizon: Harness) -> None:
    identity, key = IdentityKey.generate(), horizon.personal_key()
    content = horizon.auth_request(key, identity).model_dump(mode="json")
    content["personal_key"] = key.reveal()[:-1]
    problem = await raw.refused(
        horizon, raw.signed(horizon, Signer.enrolling(identity), "POST", "/auth", content)
    )
    assert "is not an enrolment key: expected hzreg_, hzper_ or hzadm_" in problem.detail
    assert "was it cut off when copied?" in problem.detail
    assert key.secret[:20] not in problem.detail


async def test_a_private_key_where_a_public_one_belongs_is_not_mistaken(horizon: Harness) -> None:
    identity, key = IdentityKey.generate(), horizon.personal_key()
    content = horizon.auth_request(key, identity).model_dump(mode="json")
    content["private_key"] = PrivateKey.generate().reveal()
    problem = await raw.refused(
        horizon, raw.signed(horizon, Signer.enrolling(identity), "POST", "/auth", content)
    )
    assert problem.code == "invalid-request"
    assert content["private_key"] not in problem.detail


# --- size ---------------------------------------------------------------------------------------


async def test_a_declared_oversize_is_refused_unread(horizon: Harness) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(2):
            read += 1
            yield b"x" * MAX_BODY

    made = httpx2.Request(
        "POST",
        horizon.address.url + API + "/auth",
        content=body(),
        headers={"Content-Length": str(2 * MAX_BODY)},
    )
    problem = await raw.refused(horizon, made)
    assert (problem.status, problem.code) == (413, "body-too-large")
    assert problem.detail == "the request body is larger than 65536 bytes"
    assert read == 0


@pytest.mark.parametrize("path", ["/auth", "/connections", "/netmap", "/admin/personal-keys"])
@pytest.mark.parametrize("length", [None, "1"])
async def test_an_undeclared_oversize_is_refused_at_the_limit(
    horizon: Harness, path: str, length: str | None
) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * (MAX_BODY // 4)

    headers = {"Content-Length": length} if length else {}
    method = "GET" if path == "/netmap" else "POST"
    made = httpx2.Request(method, horizon.address.url + API + path, content=body(), headers=headers)
    if path == "/netmap":  # its signature is read with the body
        alice = await horizon.device("alice")
        signature = raw.signed(horizon, alice.signer, "GET", path)
        made.headers.update({k: v for k, v in signature.headers.items() if "signature" in k})
    problem = await raw.refused(horizon, made)
    assert (problem.status, problem.code) == (413, "body-too-large")
    assert read == 5


async def test_a_body_of_the_limit_is_read(horizon: Harness) -> None:
    alice = await horizon.device("alice")
    content = b" " * (MAX_BODY - 18) + b'{"server": "fra1"}'
    assert len(content) == MAX_BODY
    problem = await raw.refused(horizon, raw.signed(horizon, alice.signer, "POST", "/connections", content))
    assert problem.code == "not-found"
    problem = await raw.refused(
        horizon, raw.signed(horizon, alice.signer, "POST", "/connections", b" " + content)
    )
    assert problem.code == "body-too-large"


async def test_a_length_that_is_no_number_is_refused(horizon: Harness) -> None:
    made = raw.request(horizon, "POST", "/auth", {})
    made.headers["content-length"] = "many"
    assert (await raw.refused(horizon, made)).status == 413


# --- routes and accidents -----------------------------------------------------------------------


async def test_unknown_routes_and_methods_are_problems(horizon: Harness) -> None:
    problem = await raw.refused(horizon, raw.request(horizon, "GET", "/nowhere"))
    assert (problem.status, problem.code) == (404, "no-such-route")
    assert problem.detail == "GET /api/v1/nowhere: Not Found"
    assert (await raw.refused(horizon, raw.request(horizon, "GET", "/servers/"))).code == "no-such-route"
    problem = await raw.refused(horizon, raw.request(horizon, "PUT", "/servers"))
    assert (problem.status, problem.code) == (405, "method-not-allowed")
    assert problem.detail == "PUT /api/v1/servers: Method Not Allowed"


async def test_what_nobody_foresaw_is_logged_and_not_told(
    horizon: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the database password is swordfish")

    alice = await horizon.device("alice")
    monkeypatch.setattr("controlplane.servers.list_servers", fail)
    problem = await raw.refused(horizon, raw.signed(horizon, alice.signer, "GET", "/servers"))
    assert (problem.status, problem.code) == (500, "internal-error")
    assert "swordfish" not in problem.model_dump_json()
    assert "GET /api/v1/servers failed" in caplog.text
    assert "swordfish" in caplog.text


# --- what the API can say -----------------------------------------------------------------------


def test_no_response_has_a_field_for_a_private_key(openapi: dict[str, Any]) -> None:
    names = {name for path, name in _response_fields(openapi)}
    assert {"public_key", "broker_key", "verification_secret", "invite", "payload"} <= names
    private = re.compile(r"private|preshared|secret|password|seed|hash|salt|token|_key$|^key$")
    assert {name for name in names if private.search(name)} == {
        "public_key",
        "server_public_key",
        "broker_key",
        "verification_secret",
    }


def test_only_registration_tells_a_secret_and_only_making_tells_an_invite(openapi: dict[str, Any]) -> None:
    fields = _response_fields(openapi)
    assert {path for path, name in fields if name == "verification_secret"} == {f"POST {API}/register"}
    assert {path for path, name in fields if name == "invite"} == {
        f"POST {API}/admin/registration-keys",
        f"POST {API}/admin/personal-keys",
    }


@pytest.fixture
def openapi(horizon: Harness) -> dict[str, Any]:
    return horizon.app.openapi()


def _response_fields(document: dict[str, Any]) -> set[tuple[str, str]]:
    """(operation, property name) of all that responses hold, however deep."""
    found: set[tuple[str, str]] = set()

    def walk(operation: str, schema: Any, seen: frozenset[str]) -> None:
        if isinstance(schema, list):
            for item in schema:
                walk(operation, item, seen)
        elif isinstance(schema, dict):
            reference = schema.get("$ref")
            if reference and reference not in seen:
                walk(
                    operation, document["components"]["schemas"][reference.split("/")[-1]], seen | {reference}
                )
            found.update((operation, name) for name in schema.get("properties", {}))
            for key, value in schema.items():
                walk(operation, list(value.values()) if key == "properties" else value, seen)

    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if status.startswith("2"):
                    walk(f"{method.upper()} {path}", response.get("content", {}), frozenset())
    return found


# --- the database -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [exc.OperationalError("UPDATE", {}, BusyError("database is locked")), exc.TimeoutError("pool")]
)
async def test_a_busy_database_is_a_reason_to_try_again(
    horizon: Harness, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await horizon.device("alice")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(servers, "list_servers", fail)
    problem = await raw.refused(horizon, raw.signed(horizon, alice.signer, "GET", "/servers"))
    assert (problem.status, problem.code) == (503, "busy")
    assert "try again" in problem.detail


async def test_another_fault_of_the_database_is_not_called_busy(
    horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await horizon.device("alice")

    def fail(*_: object) -> None:
        raise exc.OperationalError("SELECT secret", {}, OperationalError("no such table: servers"))

    monkeypatch.setattr(servers, "list_servers", fail)
    problem = await raw.refused(horizon, raw.signed(horizon, alice.signer, "GET", "/servers"))
    assert (problem.status, problem.code) == (500, "internal-error")
    assert "table" not in problem.detail
