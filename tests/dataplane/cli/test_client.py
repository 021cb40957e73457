"""`horizon client …` as a user types it, against an agent and a broker in this process."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import horizon as command
from controlplane.protocol.enrolment import InviteKind
from controlplane.protocol.messages import Location
from dataplane import client as client_module
from dataplane.client import ClientAgent
from dataplane.store import Store, hold_interface
from tests.dataplane.agents import ENDPOINT, FakeHost, Rig, Stage
from tests.harness.broker import Harness
from tests.harness.tls import tls_broker

Output = pytest.CaptureFixture[str]
SECONDS = re.compile(r"in \d+ ms")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """One that listens, as the command opens its own connection."""
    with tls_broker(tmp_path_factory.mktemp("broker")) as harness:
        yield harness


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of this machine; no agent runs, and no real host is looked at."""
    monkeypatch.setattr("dataplane.host.Host", lambda backend: FakeHost())
    locks = partial(hold_interface, directory=tmp_path / "run")
    monkeypatch.setattr("dataplane.store.hold_interface", locks)
    monkeypatch.setenv("HORIZON_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HORIZON_SOCKET", str(tmp_path / "client.sock"))
    return tmp_path / "state"


@pytest.fixture
async def alice(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig[ClientAgent]]:
    """A running client agent, to which the commands speak; fra1 is there to connect to."""
    await horizon.server("fra1", endpoint_host=ENDPOINT, location=Location(country="DE", city="Frankfurt"))
    rig = await stage.client("alice")
    monkeypatch.setenv("HORIZON_SOCKET", str(rig.socket))
    async with rig.running():
        await rig.until_known()
        yield rig


def run(output: Output, *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `horizon client` + `words`."""
    output.readouterr()
    status = command.main(["client", *words])
    said = output.readouterr()
    return status, said.out, said.err


async def ran(output: Output, *words: str) -> tuple[int, str, str]:
    """The same beside a running event loop."""
    return await asyncio.to_thread(run, output, *words)


# --- join ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True])
def test_join_says_whose_device_it_is(broker: Harness, here: Path, capsys: Output, as_json: bool) -> None:
    invite = broker.broker.invite(broker.personal_key("alice")).reveal()
    words = ["join", invite, "--name", "laptop", *(["--json"] if as_json else [])]
    status, out, err = run(capsys, *words)
    assert (status, err) == (0, "")
    kept = Store(here, "client").load()
    assert (kept.interface, kept.listen_port) == ("hzc0", 0)
    if as_json:
        printed = json.loads(out)
        assert (printed["device_id"], printed["user_name"]) == (kept.agent_id, "alice")
    else:
        assert out.startswith(f"joined as alice's device 'laptop' ({kept.agent_id})\n")
        assert "`horizon client run`, then `horizon client connect SERVER`" in out


def test_a_servers_invite_names_the_right_command(broker: Harness, here: Path, capsys: Output) -> None:
    invite = broker.broker.invite(broker.registration_key())
    assert invite.kind is InviteKind.server
    status, _, err = run(capsys, "join", invite.reveal())
    assert status == 1
    assert "for a server, not for a device: `horizon server join` takes it" in err
    assert not here.exists()


def test_a_broker_that_is_not_there_is_said_and_joining_can_be_tried_again(
    broker: Harness, here: Path, capsys: Output
) -> None:
    invite = replace(broker.broker.invite(broker.personal_key("bob")), port=1)
    status, _, err = run(capsys, "join", invite.reveal(), "--json")
    assert status == 1
    assert "no answer from the broker at https://127.0.0.1:1" in json.loads(err)["detail"]
    state = Store(here, "client").peek()
    assert state is not None
    assert not state.joined


def test_a_broker_with_another_key_is_told_nothing(broker: Harness, here: Path, capsys: Output) -> None:
    before = broker.dump()
    key = broker.broker.invite(broker.personal_key("carol"))
    after = broker.dump()
    status, _, err = run(capsys, "join", replace(key, pin="A" * 43).reveal())
    assert status == 1
    assert "nothing was sent" in err
    assert broker.dump() == after != before


# --- servers, connect, disconnect, status -------------------------------------------------------


async def test_servers_as_a_table_and_in_json(
    alice: Rig[ClientAgent], horizon: Harness, capsys: Output
) -> None:
    await horizon.server("ams1", online=False, endpoint_host="192.0.2.2")
    status, out, _ = await ran(capsys, "servers")
    assert status == 0
    heading, ams1, fra1 = (line.split() for line in out.splitlines())
    assert heading == ["NAME", "ONLINE", "PLACE", "ENDPOINT", "CONNECTIONS", "ID"]
    assert ams1[:4] == ["ams1", "no", "-", "192.0.2.2:51820"]
    assert fra1[:6] == ["fra1", "yes", "Frankfurt,", "DE", f"{ENDPOINT}:51820", "0"]
    _, out, _ = await ran(capsys, "servers", "--json")
    assert [one["name"] for one in json.loads(out)] == ["ams1", "fra1"]


async def test_no_servers_are_said(stage: Stage, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await stage.client()
    monkeypatch.setenv("HORIZON_SOCKET", str(rig.socket))
    async with rig.running():
        status, out, _ = await ran(capsys, "servers")
        assert (status, out) == (0, "no servers yet: an administrator adds one with a registration key\n")
        assert (await ran(capsys, "servers", "--json"))[1] == "[]\n"


async def test_connect_and_disconnect_in_words(alice: Rig[ClientAgent], capsys: Output) -> None:
    status, out, err = await ran(capsys, "connect", "fra1")
    assert (status, err) == (0, "")
    addresses = ", ".join(str(address) for address in alice.link.addresses)
    assert SECONDS.sub("in N ms", out) == f"connected to fra1 in N ms: {addresses}\n"
    assert len(alice.link.peers) == 1
    _, out, _ = await ran(capsys, "status")
    assert "  peer        fra1: connected, handshake" in out
    assert f"10.64.0.1, {alice.horizon.broker.pools.ipv6[1]} at {ENDPOINT}:51820" in out
    assert await ran(capsys, "disconnect", "fra1") == (0, "disconnected from fra1\n", "")
    assert alice.link.peers == {}


async def test_connect_and_disconnect_in_json(alice: Rig[ClientAgent], capsys: Output) -> None:
    status, out, _ = await ran(capsys, "connect", "fra1", "--json")
    assert status == 0
    answer = json.loads(out)
    assert answer["server"] == "fra1"
    assert answer["seconds"] > 0
    _, out, _ = await ran(capsys, "disconnect", "--json")
    assert json.loads(out) == [
        {"server": "fra1", "connection_id": answer["connection_id"], "broker_told": True}
    ]


async def test_status_in_json_is_what_the_agent_says(alice: Rig[ClientAgent], capsys: Output) -> None:
    await ran(capsys, "connect", "fra1")
    status, out, _ = await ran(capsys, "status", "--json")
    assert status == 0
    assert json.loads(out) == await alice.ask("status")
    assert json.loads(out)["role"] == "client"


async def test_with_the_broker_away_disconnecting_says_that_it_is_told_later(
    alice: Rig[ClientAgent], capsys: Output
) -> None:
    await ran(capsys, "connect", "fra1")
    alice.line.cut()
    await alice.until_broker(False)
    _, out, _ = await ran(capsys, "disconnect")
    assert out == "disconnected from fra1 (the broker is away and will be told later)\n"
    status, _, err = await ran(capsys, "servers")
    assert status == 1
    assert err.startswith("horizon: no answer from the broker at https://broker.example:8443")
    _, out, _ = await ran(capsys, "status")
    assert "AWAY since" in out
    assert "peers       none" in out


async def test_nothing_to_disconnect_is_said(alice: Rig[ClientAgent], capsys: Output) -> None:
    assert await ran(capsys, "disconnect") == (0, "no connection to end\n", "")
    assert await ran(capsys, "disconnect", "--json") == (0, "[]\n", "")
    status, _, err = await ran(capsys, "disconnect", "fra1")
    assert (status, err) == (1, "horizon: not connected to 'fra1', but to nothing\n")


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_refusal_is_one_line_and_exit_status_1(
    alice: Rig[ClientAgent], capsys: Output, as_json: bool
) -> None:
    status, out, err = await ran(capsys, "connect", "nowhere", *(["--json"] if as_json else []))
    assert (status, out) == (1, "")
    if as_json:
        assert json.loads(err) == {"error": "not-found", "detail": "no server 'nowhere': known are fra1"}
    else:
        assert err == "horizon: no server 'nowhere': known are fra1\n"


async def test_no_handshake_says_what_to_look_at(
    alice: Rig[ClientAgent], capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "HANDSHAKE_WAIT", 0.05)
    alice.host.answering = False
    status, _, err = await ran(capsys, "connect", "fra1", "--json")
    assert status == 1
    assert json.loads(err)["error"] == "no-handshake"
    assert "is its UDP port open?" in json.loads(err)["detail"]


async def test_down_ends_the_agent_and_leaves_nothing(alice: Rig[ClientAgent], capsys: Output) -> None:
    await ran(capsys, "connect", "fra1")
    assert await ran(capsys, "down", "--json") == (0, '{"down": "hzc0"}\n', "")
    assert not alice.host.links
    assert not alice.host.tables


# --- no agent, wrong words ----------------------------------------------------------------------


@pytest.mark.parametrize("words", [["servers"], ["connect", "fra1"], ["status"], ["disconnect"]])
def test_without_an_agent_the_command_that_starts_one_is_named(
    here: Path, capsys: Output, words: list[str]
) -> None:
    status, out, err = run(capsys, *words)
    assert (status, out) == (1, "")
    assert err == (
        f"horizon: no client agent answers on '{here.parent / 'client.sock'}': "
        "start it with `horizon client run`\n"
    )


@pytest.mark.parametrize("words", [["connect"], ["nonsense"], [], ["join"], ["connect", "a", "b"]])
def test_wrong_words_are_exit_status_2(capsys: Output, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(capsys, *words)
    assert caught.value.code == 2
    assert "usage: horizon client" in capsys.readouterr().err
