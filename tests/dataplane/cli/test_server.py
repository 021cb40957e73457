"""`horizon server …` as a user types it, and what both roles' command lines share."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_interface
from pathlib import Path

import pytest

import horizon as command
from controlplane.protocol.enrolment import InviteKind
from dataplane.actions import Action, CreateInterface, RemoveInterface
from dataplane.errors import NoBackend
from dataplane.store import Store, hold_interface
from tests.dataplane.agents import FakeHost, Stage
from tests.fake_kernel import FakeLink
from tests.harness.broker import Harness
from tests.harness.tls import tls_broker
from tests.harness.waiting import wait_for

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """One that listens, as the command opens its own connection."""
    with tls_broker(tmp_path_factory.mktemp("broker")) as harness:
        yield harness


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The host of a command that needs one itself."""
    made = FakeHost()
    monkeypatch.setattr("dataplane.host.Host", lambda backend: made)
    return made


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of this machine; no agent runs."""
    locks = partial(hold_interface, directory=tmp_path / "run")
    monkeypatch.setattr("dataplane.store.hold_interface", locks)
    monkeypatch.setenv("HORIZON_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HORIZON_SOCKET", str(tmp_path / "server.sock"))
    return tmp_path / "state"


def run(output: Output, *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    output.readouterr()
    status = command.main(list(words))
    said = output.readouterr()
    return status, said.out, said.err


async def ran(output: Output, *words: str) -> tuple[int, str, str]:
    """The same beside a running event loop."""
    return await asyncio.to_thread(run, output, *words)


def registration(broker: Harness) -> str:
    return broker.broker.invite(broker.registration_key()).reveal()


def uses(broker: Harness) -> list[str]:
    """The registration keys as the database has them: who used one is noted there."""
    return broker.dump()["registration_keys"]


# --- join ---------------------------------------------------------------------------------------


def test_join_says_what_it_got(broker: Harness, host: FakeHost, here: Path, capsys: Output) -> None:
    words = ["--name", "fra1", "--endpoint", "192.0.2.1", "--country", "DE", "--city", "Frankfurt"]
    status, out, err = run(capsys, "server", "join", registration(broker), *words)
    assert (status, err) == (0, "")
    kept = Store(here, "server").load()
    assert f"registered as server 'fra1' ({kept.agent_id})" in out
    assert "run it with `horizon server run`" in out
    assert (kept.interface, kept.listen_port, kept.backend) == ("hz0", 51820, "auto")
    assert host.applied == [CreateInterface("hz0"), RemoveInterface("hz0")], "tried, and left as it was"
    assert host.closed == 1


def test_join_prints_json_without_the_secret(
    broker: Harness, host: FakeHost, here: Path, capsys: Output
) -> None:
    status, out, _ = run(capsys, "server", "join", registration(broker), "--name", "ams1", "--json")
    assert status == 0
    kept = Store(here, "server").load()
    printed = json.loads(out)
    assert set(printed) == {"server_id", "name", "broker_key", "addresses"}
    assert (printed["server_id"], printed["name"]) == (kept.agent_id, "ams1")
    assert kept.verification_secret
    assert kept.verification_secret not in out


def test_an_invite_may_come_from_stdin(
    broker: Harness, host: FakeHost, here: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no other user sees it in a list of processes."""
    monkeypatch.setattr("sys.stdin", io.StringIO(registration(broker) + "\n"))
    assert run(capsys, "server", "join", "-", "--name", "lon1")[0] == 0
    assert Store(here, "server").load().name == "lon1"


def test_joining_twice_is_refused(broker: Harness, host: FakeHost, here: Path, capsys: Output) -> None:
    assert run(capsys, "server", "join", registration(broker), "--name", "par1")[0] == 0
    invite, before = registration(broker), uses(broker)
    status, out, err = run(capsys, "server", "join", invite, "--name", "par2")
    assert (status, out) == (1, "")
    assert "has joined" in err
    assert f"remove '{here}' to join anew" in err
    assert uses(broker) != []
    assert uses(broker) == before


@pytest.mark.parametrize("kind", ["bridge", "wireguard"])
def test_a_taken_interface_name_is_refused_before_the_invite_is_used(
    broker: Harness, host: FakeHost, here: Path, capsys: Output, kind: str
) -> None:
    taken = FakeLink(kind=kind, up=True, addresses=[ip_interface("192.0.2.9/24")])
    host.links["hz0"] = taken
    invite, before = registration(broker), uses(broker)
    status, out, err = run(capsys, "server", "join", invite, "--name", f"rom-{kind}")
    assert (status, out) == (1, "")
    assert err.startswith(f"horizon: interface 'hz0' exists and is not ours (kind '{kind}')")
    assert "--interface OTHER" in err
    assert host.applied == []
    assert host.links == {"hz0": taken}
    assert uses(broker) == before
    assert not here.exists()
    assert run(capsys, "server", "join", invite, "--name", f"rom-{kind}", "--interface", "hz9")[0] == 0


@pytest.mark.parametrize("kind", ["kernel", "userspace"])
def test_a_backend_that_is_not_there_is_said_before_the_invite_is_used(
    broker: Harness, host: FakeHost, here: Path, capsys: Output, kind: str
) -> None:
    def lacks(action: Action) -> None:
        raise NoBackend(f"no WireGuard of kind {kind}")

    host.before_apply = lacks
    invite, before = registration(broker), uses(broker)
    status, _, err = run(capsys, "server", "join", invite, "--backend", kind)
    assert (status, err) == (1, f"horizon: no WireGuard of kind {kind}\n")
    assert uses(broker) == before
    assert not here.exists()


def test_a_port_that_is_taken_is_said_before_the_invite_is_used(
    broker: Harness, host: FakeHost, here: Path, capsys: Output
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        invite, before = registration(broker), uses(broker)
        status, _, err = run(capsys, "server", "join", invite, "--listen-port", str(port))
    assert status == 1
    assert f"UDP port {port} cannot be used: Address already in use" in err
    assert uses(broker) == before
    assert not here.exists()


@pytest.mark.parametrize(
    ("kind", "right"), [(InviteKind.device, "client join"), (InviteKind.admin, "admin login")]
)
def test_an_invite_for_something_else_names_the_right_command(
    broker: Harness, host: FakeHost, here: Path, capsys: Output, kind: InviteKind, right: str
) -> None:
    keys = {InviteKind.device: broker.personal_key, InviteKind.admin: broker.admin_key}
    invite = broker.broker.invite(keys[kind]())
    status, _, err = run(capsys, "server", "join", invite.reveal())
    assert status == 1
    says = f"this invite is for a {kind.value}, not for a server: `horizon {right}` takes it"
    assert err == f"horizon: {says}\n"
    assert invite.key.secret not in err
    assert not here.exists()


@pytest.mark.parametrize("text", ["https://example.org", "horizon://x", "nonsense"])
def test_what_is_no_invite_is_said_in_one_line(host: FakeHost, here: Path, capsys: Output, text: str) -> None:
    status, _, err = run(capsys, "server", "join", text, "--json")
    assert status == 1
    problem = json.loads(err)
    assert problem["error"] == "malformed-invite"
    assert not here.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--endpoint", "fra1:99999"], "not between 1 and 65535"),
        (["--interface", "a/b"], "is not an interface name"),
        (["--interface", "x" * 16], "is not an interface name"),
        (["--name", "not a name"], "name"),
        (["--listen-port", "99999"], "port"),
        (["--country", "Germany"], "country"),
    ],
)
def test_a_bad_option_is_said_in_one_line_before_the_invite_is_used(
    broker: Harness, host: FakeHost, here: Path, capsys: Output, words: list[str], says: str
) -> None:
    invite, before = registration(broker), uses(broker)
    status, out, err = run(capsys, "server", "join", invite, "--name", "osl1", *words)
    assert (status, out) == (1, "")
    assert says in err
    assert len(err.splitlines()) == 1
    assert uses(broker) == before


# --- status, down, and no agent -----------------------------------------------------------------


@pytest.mark.parametrize("words", [["status"], ["status", "--json"]])
def test_without_an_agent_status_names_the_command(here: Path, capsys: Output, words: list[str]) -> None:
    status, out, err = run(capsys, "server", *words)
    assert (status, out) == (1, "")
    assert "start it with `horizon server run`" in err
    if "--json" in words:
        assert json.loads(err)["error"] == "agent-not-running"


async def test_status_in_words_and_in_json(
    stage: Stage, horizon: Harness, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await stage.server()
    monkeypatch.setenv("HORIZON_SOCKET", str(rig.socket))
    async with rig.running():
        await rig.until_known()
        status, out, _ = await ran(capsys, "server", "status")
        assert status == 0
        assert "peers       none" in out
        alice = await horizon.device()
        await alice.connect("fra1")
        await rig.until_peer(alice.wireguard.public_key)
        _, out, _ = await ran(capsys, "server", "status")
        lines = out.splitlines()
        assert lines[0] == f"server 'fra1' ({rig.machine.id})"
        assert lines[1] == "  interface   hz0, up, kernel"
        assert lines[2].startswith("  addresses   10.64.0.1/20, ")
        assert lines[3].startswith("  broker      https://broker.example:8443, answers since ")
        assert "  peer        laptop: no recent handshake, never yet" in lines
        rig.host.handshake("hz0", alice.wireguard.public_key, horizon.clock())
        _, out, _ = await ran(capsys, "server", "status")
        assert "laptop: connected, handshake" in out
        assert "1000 B received, 500 B sent" in out
        assert "authorised until" not in out
        _, out, _ = await ran(capsys, "server", "status", "--json")
        assert json.loads(out) == await rig.ask("status")
        rig.line.cut()
        await rig.until_broker(False)
        _, out, _ = await ran(capsys, "server", "status")
        assert "AWAY since" in out
        assert "no answer from the broker" in out
        assert "authorised until" in out


async def test_status_says_that_a_server_was_revoked(
    stage: Stage, horizon: Harness, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await stage.server()
    monkeypatch.setenv("HORIZON_SOCKET", str(rig.socket))
    async with rig.running() as agent:
        await rig.until_known()
        await (await horizon.admin()).revoke_server("fra1")
        await wait_for(lambda: agent.revoked is not None and not rig.host.links)
        _, out, _ = await ran(capsys, "server", "status")
        assert "  revoked     server 'fra1' was revoked" in out
        assert "  interface   hz0, down, not made yet" in out


async def test_down_by_the_agent(
    stage: Stage, host: FakeHost, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await stage.server()
    monkeypatch.setenv("HORIZON_SOCKET", str(rig.socket))
    async with rig.running():
        await rig.until_known()
        assert await ran(capsys, "server", "down") == (0, "hz0 is down\n", "")
    assert not rig.host.links
    assert not rig.host.tables
    assert host.looks == 0, "the command itself touched nothing"


@pytest.mark.parametrize("words", [[], ["--json"]])
async def test_down_without_an_agent(
    stage: Stage, capsys: Output, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    rig = await stage.server()
    async with rig.running():
        await rig.until_known()
    assert rig.link.up
    rig.host.links["eth0"] = other = FakeLink(kind="device")
    monkeypatch.setattr("dataplane.host.Host", lambda backend: rig.host)
    monkeypatch.setenv("HORIZON_STATE_DIR", str(rig.store.directory))
    status, out, err = await ran(capsys, "server", "down", *words)
    assert (status, err) == (0, "")
    assert (json.loads(out) if words else out) == ({"down": "hz0"} if words else "hz0 is down\n")
    assert rig.host.links == {"eth0": other}
    assert not rig.host.tables
    assert rig.host.closed == 2
    before = len(rig.host.applied)
    assert (await ran(capsys, "server", "down"))[0] == 0
    assert rig.host.applied[before:] == []


async def test_down_leaves_a_link_of_that_name_that_is_not_ours(
    stage: Stage, host: FakeHost, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await stage.server()
    host.links["hz0"] = theirs = FakeLink(kind="bridge")
    monkeypatch.setenv("HORIZON_STATE_DIR", str(rig.store.directory))
    assert (await ran(capsys, "server", "down"))[0] == 0
    assert host.links == {"hz0": theirs}


@pytest.mark.parametrize("words", [["down"], ["run"]])
def test_before_joining_there_is_nothing_to_run_or_take_down(
    here: Path, host: FakeHost, capsys: Output, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    status, _, err = run(capsys, "server", *words)
    assert status == 1
    assert "has not joined a broker: `horizon server join INVITE`" in err
    assert host.applied == []
