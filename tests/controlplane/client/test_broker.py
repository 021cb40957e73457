"""The client: over real TLS to the pinned key, and against brokers that answer nonsense or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from controlplane.client.broker import AdminClient, BrokerAddress, BrokerClient, Signer
from controlplane.protocol.errors import BrokerUnreachable, PinMismatch, Problem, ProblemError
from controlplane.protocol.keys import IdentityKey
from controlplane.protocol.messages import ConnectRequest
from tests.harness.broker import Harness
from tests.harness.tls import tls_broker

Handler = Callable[[httpx2.Request], httpx2.Response]
PIN = "A" * 43


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with tls_broker(tmp_path_factory.mktemp("broker")) as harness:
        yield harness


def client(handler: Handler | None = None, signer: Signer | None = None) -> AdminClient:
    return AdminClient(
        BrokerAddress("https://broker.example:8443", PIN),
        signer or Signer(IdentityKey.generate(), "dev_1"),
        clock=lambda: 1_800_000_000,
        transport=httpx2.MockTransport(handler) if handler else None,
    )


# --- over TLS -----------------------------------------------------------------------------------


async def test_the_whole_way_over_tls(served: Harness) -> None:
    fra1, alice = await served.server("fra1"), await served.device("alice")
    answer = await alice.connect("fra1")
    async with asyncio.timeout(20):
        await fra1.sync()
        (listed,) = await alice.client.connections()
        assert listed == answer.connection
        held = (await alice.sync()).revision
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(alice.update(held, wait=20))
            await alice.client.disconnect(answer.connection.connection_id)
    update = watch.result()
    assert update is not None
    assert update.removed == (fra1.id,)
    await served.close()


async def test_another_key_is_a_mismatch_and_not_an_outage(served: Harness) -> None:
    address = replace(served.address, pin=PIN)
    async with BrokerClient(address, Signer.enrolling(IdentityKey.generate())) as other:
        with pytest.raises(PinMismatch, match=r"nothing was sent.*ask its administrator for a new invite"):
            await other.status()


async def test_nobody_there_is_an_outage_with_the_address(tmp_path: Path) -> None:
    address = BrokerAddress("https://127.0.0.1:1", PIN)
    async with BrokerClient(address, Signer.enrolling(IdentityKey.generate())) as lonely:
        with pytest.raises(
            BrokerUnreachable, match=r"no answer from the broker at https://127.0.0.1:1: "
        ) as caught:
            await lonely.status()
    assert not isinstance(caught.value, PinMismatch)


# --- what it sends ------------------------------------------------------------------------------


async def test_every_request_is_signed_as_it_is_sent() -> None:
    sent: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(204)

    async with client(handler) as made:
        await made.netmap(since=7, wait=30)
        await made.revoke_device("a/b?c")
    netmap, revoke = sent
    assert str(netmap.url) == "https://broker.example:8443/api/v1/netmap?since=7&wait=30"
    assert revoke.url.raw_path == b"/api/v1/admin/devices/a%2Fb%3Fc"
    for request in sent:
        assert 'keyid="dev_1"' in request.headers["signature-input"]
        assert "created=1800000000" in request.headers["signature-input"]
    assert netmap.extensions["timeout"]["read"] > 30, "a long-poll is waited for"


async def test_a_body_is_json_with_its_digest() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        assert request.headers["content-type"] == "application/json"
        assert request.content == b'{"server":"fra1","connection_type":"vpn","since":null}'
        assert request.headers["content-digest"].startswith("sha-256=:")
        return httpx2.Response(404, text=Problem.of("not-found", 404, "no server 'fra1'").model_dump_json())

    async with client(handler) as made:
        with pytest.raises(ProblemError, match="no server 'fra1'"):
            await made.connect(ConnectRequest(server="fra1"))


# --- what it is answered ------------------------------------------------------------------------


async def test_a_problem_is_raised_with_its_code() -> None:
    problem = Problem.of("clock-skew", 401, "the signature was created 90 s behind", skew=-90.0)
    async with client(lambda _: httpx2.Response(401, text=problem.model_dump_json())) as made:
        with pytest.raises(ProblemError, match="90 s behind") as caught:
            await made.servers()
    assert caught.value.code == "clock-skew"
    assert caught.value.problem == problem


@pytest.mark.parametrize("status", [301, 403, 502])
async def test_an_error_of_something_between_is_a_problem_too(status: int) -> None:
    async with client(lambda _: httpx2.Response(status, text="<h1>proxy</h1>")) as made:
        with pytest.raises(ProblemError, match=f"HTTP {status} from /api/v1/servers") as caught:
            await made.servers()
    assert caught.value.code == "http-error"


@pytest.mark.parametrize(
    "body", ["", "{}", '{"servers": [{}]}', "<h1>welcome</h1>", '{"servers": [], "new": 1}']
)
async def test_an_answer_that_is_not_understood_is_no_answer(body: str) -> None:
    async with client(lambda _: httpx2.Response(200, text=body)) as made:
        with pytest.raises(BrokerUnreachable, match=r"not understood .*same version") as caught:
            await made.servers()
    assert "welcome" not in str(caught.value)


@pytest.mark.parametrize("error", [httpx2.ConnectTimeout, httpx2.ReadTimeout, httpx2.RemoteProtocolError])
async def test_every_failure_on_the_way_is_an_outage(error: type[httpx2.TransportError]) -> None:
    def handler(_: httpx2.Request) -> httpx2.Response:
        raise error("")

    async with client(handler) as made:
        with pytest.raises(BrokerUnreachable, match=error.__name__):
            await made.servers()


async def test_redirects_are_not_followed() -> None:
    """A signature is for one address."""
    seen: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(str(request.url))
        return httpx2.Response(307, headers={"Location": "https://evil.example/"})

    async with client(handler) as made:
        with pytest.raises(ProblemError):
            await made.servers()
    assert seen == ["https://broker.example:8443/api/v1/servers"]


def test_a_signer_shows_no_secret() -> None:
    identity = IdentityKey.generate()
    assert identity.reveal() not in repr(Signer.enrolling(identity))
    assert str(identity.public_key) in repr(Signer.enrolling(identity))


async def test_a_body_that_cannot_be_decoded_is_an_outage_too() -> None:
    def handler(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(
            200, headers={"Content-Encoding": "gzip"}, stream=httpx2.ByteStream(b"no gzip")
        )

    async with client(handler) as made:
        with pytest.raises(BrokerUnreachable, match="no answer from the broker"):
            await made.servers()
