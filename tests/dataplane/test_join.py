"""Joining: which keys are used, and that an answer that is lost loses nothing."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from controlplane.client.broker import BrokerClient
from controlplane.protocol.enrolment import EnrolmentKey, Invite
from controlplane.protocol.errors import BrokerUnreachable, ProblemError
from controlplane.protocol.messages import Location
from controlplane.protocol.version import VERSION
from controlplane.protocol.wireguard import Endpoint
from dataplane import join as join_module
from dataplane.join import AlreadyJoined, begin, default_name, hardware_fingerprint, join_client, join_server
from dataplane.store import NotJoined, Store
from tests.dataplane.agents import Line
from tests.harness.broker import Harness


@pytest.fixture
def line(horizon: Harness, monkeypatch: pytest.MonkeyPatch) -> Line:
    """The way that a join takes to the in-process broker."""
    assert horizon.transport is not None
    line = Line(horizon.transport)
    client = partial(BrokerClient, clock=horizon.clock, transport=line)
    monkeypatch.setattr(join_module, "BrokerClient", client)
    return line


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state", "server")


def invite(horizon: Harness, key: EnrolmentKey) -> Invite:
    return horizon.broker.invite(key)


async def test_a_server_joins(horizon: Harness, store: Store, line: Line) -> None:
    given = invite(horizon, horizon.registration_key())
    state = begin(store, given, "hz7", "userspace", 7000)
    with pytest.raises(NotJoined):
        store.load()
    endpoint = Endpoint("fra1.example", 7001)
    response = await join_server(store, state, given, "fra1", endpoint, Location(country="DE", city="Köln"))
    kept = store.load()
    assert (kept.agent_id, kept.name) == (response.server_id, "fra1")
    assert kept.verification_secret == response.verification_secret
    assert kept.broker_key == horizon.broker.signing_key.public_key
    assert kept.broker == horizon.address
    assert (kept.interface, kept.backend, kept.listen_port) == ("hz7", "userspace", 7000)
    assert (kept.identity, kept.private_key) == (state.identity, state.private_key)
    (listed,) = (await (await horizon.admin()).all_servers()).servers
    assert (listed.name, listed.endpoint, listed.version) == ("fra1", "fra1.example:7001", VERSION)
    assert (listed.location.country, listed.location.city) == ("DE", "Köln")
    assert listed.public_key == kept.private_key.public_key
    assert [capability.type for capability in listed.capabilities] == ["vpn"]


async def test_without_an_endpoint_it_is_where_the_broker_sees_it(
    horizon: Harness, store: Store, line: Line
) -> None:
    given = invite(horizon, horizon.registration_key())
    state = begin(store, given, "hz0", "auto", 7000)
    await join_server(store, state, given, "fra1", None, Location())
    (listed,) = (await (await horizon.admin()).all_servers()).servers
    assert listed.endpoint == "127.0.0.1:7000"


async def test_a_client_joins(horizon: Harness, tmp_path: Path, line: Line) -> None:
    store = Store(tmp_path / "client", "client")
    given = invite(horizon, horizon.personal_key("alice"))
    response = await join_client(store, begin(store, given, "hzc0", "auto", 0), given, "laptop")
    assert response.user_name == "alice"
    kept = store.load()
    assert (kept.agent_id, kept.name, kept.verification_secret) == (response.device_id, "laptop", "")
    (device,) = (await (await horizon.admin()).devices()).devices
    assert (device.name, device.user_name, device.agent) == ("laptop", "alice", True)
    assert device.public_key == kept.private_key.public_key


async def test_no_private_key_leaves_the_machine(horizon: Harness, store: Store, line: Line) -> None:
    given = invite(horizon, horizon.registration_key())
    state = begin(store, given, "hz0", "auto", 7000)
    await join_server(store, state, given, "fra1", None, Location())
    for request in line.requests:
        assert state.private_key.reveal().encode() not in request.content
        assert state.identity.reveal().encode() not in request.content


async def test_after_a_lost_answer_the_same_keys_join_by_the_same_invite(
    horizon: Harness, store: Store, line: Line
) -> None:
    """The invite is for one use; the broker counted it and its answer never came."""
    given = invite(horizon, horizon.registration_key(max_uses=1))
    first = begin(store, given, "hz0", "auto", 51820)
    line.lose_answers = True
    with pytest.raises(BrokerUnreachable):
        await join_server(store, first, given, "fra1", None, Location())
    with pytest.raises(NotJoined):
        store.load()
    line.lose_answers = False
    again = begin(Store(store.directory, "server"), given, "hz0", "auto", 51820)
    assert again == first
    response = await join_server(store, again, given, "fra1", None, Location())
    servers = (await (await horizon.admin()).all_servers()).servers
    assert [server.server_id for server in servers] == [response.server_id]


async def test_after_a_lost_answer_a_device_joins_as_the_same(
    horizon: Harness, tmp_path: Path, line: Line
) -> None:
    store = Store(tmp_path / "client", "client")
    given = invite(horizon, horizon.personal_key("alice"))
    line.lose_answers = True
    with pytest.raises(BrokerUnreachable):
        await join_client(store, begin(store, given, "hzc0", "auto", 0), given, "laptop")
    line.lose_answers = False
    await join_client(store, begin(store, given, "hzc0", "auto", 0), given, "laptop")
    assert len((await (await horizon.admin()).devices()).devices) == 1


async def test_a_broken_off_join_takes_the_choices_of_the_new_one(
    horizon: Harness, store: Store, line: Line
) -> None:
    given = invite(horizon, horizon.registration_key())
    first = begin(store, given, "hz0", "auto", 51820)
    again = begin(store, given, "hz1", "kernel", 7000)
    assert again == replace(first, interface="hz1", backend="kernel", listen_port=7000)
    assert store.peek() == again


async def test_a_refusal_leaves_the_join_begun(horizon: Harness, store: Store, line: Line) -> None:
    key = horizon.registration_key()
    await horizon.server("ams1", key=key)
    given = invite(horizon, key)
    state = begin(store, given, "hz0", "auto", 51820)
    with pytest.raises(ProblemError):
        await join_server(store, state, given, "fra1", None, Location())
    assert store.peek() == state


@pytest.mark.parametrize("change", [{"host": "other.example"}, {"port": 9}, {"pin": "A" * 43}])
async def test_another_brokers_invite_gives_new_keys(
    horizon: Harness, store: Store, change: dict[str, object]
) -> None:
    """Or two brokers could tell that they know the same machine."""
    given = invite(horizon, horizon.registration_key())
    first = begin(store, given, "hz0", "auto", 51820)
    other = replace(given, **change)  # type: ignore[arg-type]
    second = begin(store, other, "hz0", "auto", 51820)
    assert second.identity != first.identity
    assert second.private_key != first.private_key
    assert second.broker.url == other.url


async def test_a_machine_that_has_joined_is_not_joined_again(
    horizon: Harness, store: Store, line: Line
) -> None:
    given = invite(horizon, horizon.registration_key(max_uses=2))
    await join_server(store, begin(store, given, "hz0", "auto", 7000), given, "fra1", None, Location())
    kept, asked = store.state_path.read_bytes(), len(line.requests)
    with pytest.raises(AlreadyJoined, match=r"has joined .* as 'fra1' already: remove '.*' to join anew"):
        begin(store, given, "hz0", "auto", 7000)
    assert store.state_path.read_bytes() == kept
    assert len(line.requests) == asked


async def test_a_damaged_enrolment_is_joined_over(
    horizon: Harness, store: Store, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """What it says is to join again, so joining goes on, with new keys."""
    first = begin(store, invite(horizon, horizon.registration_key()), "hz0", "auto", 51820)
    store.state_path.write_text("{")
    second = begin(store, invite(horizon, horizon.registration_key()), "hz0", "auto", 51820)
    assert second.identity != first.identity
    assert "damaged" in caplog.text
    assert (store.directory / "agent.json.damaged-1").read_text() == "{"


async def test_joining_forgets_an_earlier_netmap(horizon: Harness, store: Store) -> None:
    store.directory.mkdir()
    store.netmap_path.write_text("from before\n")
    store.ended_path.write_text('["con_1"]')
    begin(store, invite(horizon, horizon.registration_key()), "hz0", "auto", 51820)
    assert not store.netmap_path.exists()
    assert store.load_ended() == set()


def test_the_machine_id_itself_is_never_sent(tmp_path: Path) -> None:
    path = tmp_path / "machine-id"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    fingerprint = hardware_fingerprint(path)
    assert len(fingerprint) == 64
    assert "0123456789abcdef" not in fingerprint
    assert fingerprint == hardware_fingerprint(path)
    path.write_text("ffffffffffffffffffffffffffffffff\n")
    assert hardware_fingerprint(path) != fingerprint
    assert hardware_fingerprint(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("host", "name"),
    [("fra1.example.org", "fra1"), ("_odd host!", "odd-host-"), ("x" * 80, "x" * 63), ("...", "machine")],
)
def test_a_default_name_is_the_host_name_as_far_as_it_may_be(
    monkeypatch: pytest.MonkeyPatch, host: str, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert default_name() == name
