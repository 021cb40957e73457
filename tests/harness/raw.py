"""Requests below the client: signed as asked, and changed afterwards as an attacker would."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from controlplane.client.broker import Signer
from controlplane.protocol.errors import PROBLEM_MEDIA_TYPE, Problem
from controlplane.protocol.messages import API
from controlplane.protocol.signing import sign_request
from tests.harness.broker import Harness


def request(horizon: Harness, method: str, path: str, content: Any = None) -> httpx2.Request:
    """An unsigned request; `content` is bytes as they are, or what JSON holds."""
    body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
    headers = {"Content-Type": "application/json"} if body else {}
    return httpx2.Request(method, horizon.address.url + API + path, content=body, headers=headers)


def signed(
    horizon: Harness,
    signer: Signer,
    method: str,
    path: str,
    content: Any = None,
    created: float | None = None,
) -> httpx2.Request:
    """A request with the headers of its signature."""
    made = request(horizon, method, path, content)
    headers = sign_request(
        method,
        str(made.url),
        made.content,
        key=signer.key,
        key_id=signer.key_id,
        created=horizon.clock() if created is None else created,
    )
    made.headers.update(headers)
    return made


async def send(horizon: Harness, made: httpx2.Request) -> httpx2.Response:
    """The answer, also where the application raised."""
    assert isinstance(horizon.transport, httpx2.ASGITransport)
    transport = httpx2.ASGITransport(horizon.transport.app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport) as client:
        return await client.send(made)


async def refused(horizon: Harness, made: httpx2.Request) -> Problem:
    """The problem that answers `made`; the database is as before."""
    before = horizon.dump()
    response = await send(horizon, made)
    assert horizon.dump() == before
    return problem(response)


def problem(response: httpx2.Response) -> Problem:
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    found = Problem.model_validate_json(response.content)
    assert found.status == response.status_code
    assert found.type == f"urn:horizon:problem:{found.code}"
    return found
