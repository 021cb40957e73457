"""`horizon broker`: the first run, the way back in, and the real process behind TLS."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from controlplane.broker import Broker
from controlplane.cli import broker as cli
from controlplane.client.broker import BrokerAddress, BrokerClient, Signer
from controlplane.errors import StartError
from controlplane.protocol.enrolment import Invite, InviteKind
from controlplane.protocol.errors import BrokerUnreachable
from controlplane.protocol.keys import IdentityKey
from controlplane.tls import ensure_certificate
from horizon import main
from tests.harness.waiting import block_until

INVITE = re.compile(r"horizon admin login '(horizon://\S+)'")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Broker]:
    """The brokers that `run` would have served until a signal."""
    brokers: list[Broker] = []

    def serve(broker: Broker, listening: socket.socket, verbose: bool) -> None:
        brokers.append(broker)
        broker.close()

    monkeypatch.setattr(cli, "serve", serve)
    monkeypatch.setattr(cli, "listening_socket", lambda host, port: socket.create_server(("127.0.0.1", 0)))
    return brokers


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HORIZON_ADVERTISE", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HORIZON_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def run(*words: str) -> int:
    return main(["broker", "run", *words])


def printed_invite(capsys: pytest.CaptureFixture[str]) -> Invite:
    found = INVITE.findall(capsys.readouterr().out)
    assert len(found) == 1
    return Invite.parse(found[0], InviteKind.admin)


def test_the_first_run_prints_one_invite_and_no_other_run_does(
    served: list[Broker], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--advertise", "broker.example") == 0
    invite = printed_invite(capsys)
    assert (invite.host, invite.port, invite.pin) == ("broker.example", 8443, served[0].pin)
    assert run() == 0
    assert capsys.readouterr().out == ""


def test_options_reach_the_configuration(served: list[Broker]) -> None:
    run("--listen", "127.0.0.1:9443", "--ipv4-pool", "10.9.0.0/16", "--ipv4-prefix", "24")
    config = served[0].config
    assert (config.listen_host, config.listen_port) == ("127.0.0.1", 9443)
    assert served[0].advertise.port == 9443
    assert (str(served[0].pools.ipv4), served[0].pools.ipv4_prefix) == ("10.9.0.0/16", 24)


def test_an_invite_leads_to_where_the_broker_said_it_is(
    served: list[Broker], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HORIZON_ADVERTISE", "broker.example:443")
    run()
    first = printed_invite(capsys)
    monkeypatch.delenv("HORIZON_ADVERTISE")
    assert main(["broker", "invite"]) == 0
    again = printed_invite(capsys)
    assert (again.host, again.port, again.pin) == (first.host, first.port, first.pin)
    assert again.key.secret != first.key.secret
    assert main(["broker", "invite", "--advertise", "other.example", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["invite"].startswith("horizon://other.example:8443/admin/hzadm_")
    assert set(answer) == {"key_id", "invite", "expires_at"}


def test_an_invite_pins_the_certificate_that_was_given(
    served: list[Broker], data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, key = ensure_certificate(tmp_path / "given", ["broker.example"])
    assert run("--tls-certificate", str(certificate), "--tls-key", str(key)) == 0
    first = printed_invite(capsys)
    before = sorted(path.name for path in data_dir.iterdir())
    certificate.rename(tmp_path / "out-of-reach.crt")
    assert main(["broker", "invite"]) == 0
    assert printed_invite(capsys).pin == first.pin == served[0].pin
    assert sorted(path.name for path in data_dir.iterdir()) == before
    assert "tls.crt" not in before


def test_an_invite_needs_a_broker_that_ran_with_this_database(
    served: list[Broker], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    capsys.readouterr()
    other = f"sqlite+libsql:///{tmp_path}/other.db"
    assert main(["broker", "invite", "--database-url", other]) == 1
    assert "has not run with this database yet" in capsys.readouterr().err


def test_the_first_invite_may_be_json(served: list[Broker], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert Invite.parse(answer["invite"], InviteKind.admin).pin == served[0].pin
    assert run("--json") == 0
    assert capsys.readouterr().out == ""


def test_a_printed_invite_tells_how_to_keep_it_from_process_lists(
    served: list[Broker], capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    assert main(["broker", "invite"]) == 0
    assert capsys.readouterr().out.count("(With - in place of the invite it is read from stdin") == 2


@pytest.mark.parametrize("exists", [True, False])
def test_an_invite_makes_no_broker(data_dir: Path, exists: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if exists:
        data_dir.mkdir()
    assert main(["broker", "invite"]) == 1
    assert capsys.readouterr().err == (
        f"horizon: no broker in {str(data_dir)!r}: give --data-dir, or start one with `horizon broker run`\n"
    )
    assert not exists or list(data_dir.iterdir()) == []


def test_what_cannot_start_is_said_in_a_line(
    served: list[Broker], data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    (data_dir / "signing.key").write_text("damaged")
    capsys.readouterr()
    assert run() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"horizon: '{data_dir}/signing.key' is damaged")


def test_a_taken_port_is_refused_with_the_option_that_helps() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}: .*--listen"):
            cli.listening_socket("127.0.0.1", port)


def test_a_broker_that_cannot_listen_makes_nothing_and_shows_no_invite(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        assert run("--listen", f"127.0.0.1:{taken.getsockname()[1]}") == 1
    said = capsys.readouterr()
    assert "Address already in use; choose another with --listen" in said.err
    assert said.out == ""
    assert not data_dir.exists()


def test_a_second_broker_on_the_same_directory_is_refused(
    served: list[Broker], data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with cli.only_broker(data_dir):
        assert run() == 1
    assert f"a broker runs already with '{data_dir}'" in capsys.readouterr().err
    assert served == []
    assert run() == 0


def test_where_the_broker_is_is_given_once(served: list[Broker], monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    run("--advertise", "broker.example:443")
    run("--listen", "127.0.0.1:9443")
    assert served[0].advertise.host != "broker.example"
    assert [str(broker.advertise) for broker in served[1:]] == ["broker.example:443"] * 2


def test_all_addresses_are_both_families() -> None:
    with cli.listening_socket("::", 0) as listening:
        port = listening.getsockname()[1]
        for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
            socket.create_connection((host, port), timeout=5).close()


def test_arguments_that_make_no_sense_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--ipv4-pool", "10.9.0.1/16"], ["--ipv4-prefix", "x"], ["--colour"]):
        with pytest.raises(SystemExit) as caught:
            run(*words)
        assert caught.value.code == 2
        assert words[-1] in capsys.readouterr().err


# --- the process --------------------------------------------------------------------------------


@pytest.fixture
def process(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "horizon", "broker", "run"]
    command += ["--listen", f"127.0.0.1:{port}", "--advertise", f"127.0.0.1:{port}"]
    environment = {**os.environ, "HORIZON_DATA_DIR": str(data_dir)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        yield started
        started.kill()


def test_a_broker_serves_until_it_is_told_to_end(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    found = None
    while found is None:
        line = process.stdout.readline()
        assert line, "it ended without an invite"
        found = INVITE.search(line)
    address = BrokerAddress.of(Invite.parse(found[1]))

    def answers() -> bool:
        async def ask() -> str:
            async with BrokerClient(address, Signer.enrolling(IdentityKey.generate())) as client:
                return (await client.status()).name

        try:
            return asyncio.run(ask()) == "horizon"
        except BrokerUnreachable:
            return False

    block_until(answers)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=15)
    assert process.returncode in {0, -signal.SIGTERM}
    assert "ERROR" not in out + err
    assert "Traceback" not in out + err


def test_the_parser_needs_a_command() -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([])
