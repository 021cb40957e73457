"""Starting: what the first run makes, later runs keep, and damage is refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from controlplane.broker import Broker, open_broker, outward_address
from controlplane.config import BrokerConfig
from controlplane.errors import StartError
from controlplane.models import Setting, SignedAhead
from controlplane.protocol.enrolment import EnrolmentKey, Invite, InviteKind
from controlplane.protocol.wireguard import Endpoint
from controlplane.tls import CertificateError, spki_pin
from tests.harness import raw
from tests.harness.broker import Harness

Start = Callable[..., Broker]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Open the broker of this test's directory, and close it again."""

    def start(**config: Any) -> Broker:
        broker = open_broker(BrokerConfig(data_dir=tmp_path / "data", **config))
        broker.close()
        return broker

    return start


def test_the_first_run_makes_everything_and_keeps_it_private(start: Start, tmp_path: Path) -> None:
    start()
    data = tmp_path / "data"
    assert data.stat().st_mode & 0o777 == 0o700
    made = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}
    assert {"horizon.db", "signing.key", "tls.crt", "tls.key"} <= made.keys()
    assert made["signing.key"] == made["tls.key"] == 0o600


def test_later_runs_keep_keys_pin_and_pools(start: Start) -> None:
    first, second = start(), start()
    assert second.signing_key == first.signing_key
    assert second.pin == first.pin
    assert second.pools == first.pools


def test_two_brokers_share_nothing(tmp_path: Path) -> None:
    one, two = [open_broker(BrokerConfig(data_dir=tmp_path / name)) for name in ("one", "two")]
    assert one.signing_key != two.signing_key
    assert one.pin != two.pin
    assert one.pools.ipv6 != two.pools.ipv6
    one.close()
    two.close()


def test_the_signing_key_is_in_no_log_or_repr(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    broker = start()
    assert str(broker.signing_key.public_key) in caplog.text
    assert broker.signing_key.reveal() not in caplog.text + repr(broker)


@pytest.mark.parametrize("content", [b"", b"AAAA", b"\xff\xfe\x00", b"hunter2" * 10, b"A" * 44])
def test_a_damaged_signing_key_is_refused_by_its_file(start: Start, tmp_path: Path, content: bytes) -> None:
    start()
    path = tmp_path / "data" / "signing.key"
    path.write_bytes(content)
    with pytest.raises(StartError, match=r"signing\.key' is damaged .*restore it from a backup") as caught:
        start()
    assert str(path) in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert path.read_bytes() == content, "it is not replaced by a new one"


def test_pools_are_fixed_at_the_first_run(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    first = start(ipv4_pool=IPv4Network("10.9.0.0/16"), ipv4_prefix=24)
    again = start(ipv4_pool=IPv4Network("10.200.0.0/16"), ipv4_prefix=25)
    assert again.pools == first.pools
    assert "keeping address pool 10.9.0.0/16 with /24 per server, as first set" in caplog.text


@pytest.mark.parametrize("prefix", [30, 15])
def test_pools_that_hold_no_server_are_refused_and_not_kept(start: Start, prefix: int) -> None:
    with pytest.raises(StartError, match=f"/{prefix} must lie between .*give another --ipv4-pool or"):
        start(ipv4_pool=IPv4Network("10.9.0.0/16"), ipv4_prefix=prefix)
    assert start(ipv4_pool=IPv4Network("10.9.0.0/16"), ipv4_prefix=24).pools.ipv4_prefix == 24


def test_half_a_certificate_is_refused(start: Start, tmp_path: Path) -> None:
    for half in ({"tls_certificate": tmp_path / "x.crt"}, {"tls_key": tmp_path / "x.key"}):
        with pytest.raises(StartError, match="give --tls-certificate and --tls-key"):
            start(**half)


def test_a_certificate_that_is_not_there_is_refused_by_its_file(start: Start, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"x\.crt: No such file"):
        start(tls_certificate=tmp_path / "x.crt", tls_key=tmp_path / "x.key")


def test_a_given_certificate_is_used_and_pinned(start: Start, tmp_path: Path) -> None:
    own = start()
    assert own.certificate is not None
    given = open_broker(
        BrokerConfig(
            data_dir=tmp_path / "other", tls_certificate=own.certificate, tls_key=own.certificate_key
        )
    )
    given.close()
    assert given.pin == own.pin == spki_pin(own.certificate)
    assert not (tmp_path / "other" / "tls.key").exists()


def test_a_data_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"data directory '.*/file/data': Not a directory"):
        open_broker(BrokerConfig(data_dir=tmp_path / "file" / "data"))


def test_a_file_that_is_no_database_is_refused_by_its_url(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "horizon.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StartError, match=r"horizon\.db'.*not a database"):
        start()


def test_a_database_url_that_is_none_is_refused(start: Start) -> None:
    for url, message in [
        ("nonsense:swordfish", "database URL cannot be read: write sqlite"),
        ("sqlite+nonsense:///x", r"database 'sqlite\+nonsense:///x' \(DATABASE_URL\): Can't load plugin"),
        ("sqlite+libsql:///x?colour=red", "'colour' in the database URL is not understood"),
        ("sqlite+libsql:////no/such/x.db", "'sqlite\\+libsql:////no/such/x.db'"),
    ]:
        with pytest.raises(StartError, match=message) as caught:
            start(database_url=url)
        assert "swordfish" not in str(caught.value)


def test_the_password_of_a_database_is_not_told(start: Start) -> None:
    with pytest.raises(StartError) as caught:
        start(database_url="sqlite+libsql://:swordfish@127.0.0.1:1")
    assert "swordfish" not in str(caught.value)


def test_an_invite_says_where_the_broker_is(start: Start) -> None:
    key = EnrolmentKey.generate(InviteKind.server)
    broker = start(advertise=Endpoint("2001:db8::1", 443))
    invite = broker.invite(key)
    assert invite == Invite("2001:db8::1", 443, broker.pin, key)
    assert Invite.parse(invite.reveal()) == invite


def test_without_being_told_a_broker_is_at_this_machines_address(start: Start) -> None:
    broker = start(listen_port=9443)
    assert broker.advertise == Endpoint(outward_address(), 9443)
    if broker.advertise.address is not None:
        assert not ip_address(broker.advertise.host).is_unspecified


def test_the_database_url_decides_where_the_data_is(tmp_path: Path) -> None:
    url = f"sqlite+libsql:///{tmp_path}/elsewhere.db"
    broker = open_broker(BrokerConfig(data_dir=tmp_path / "data", database_url=url))
    with broker.database.read() as session:
        assert session.get(Setting, "ipv4_pool") is not None
    broker.close()
    assert (tmp_path / "elsewhere.db").exists()
    assert not (tmp_path / "data" / "horizon.db").exists()


async def test_a_replay_from_ahead_of_the_clock_is_refused_by_the_next_run_too(horizon: Harness) -> None:
    alice, bob = await horizon.device("alice"), await horizon.device("bob")
    made = raw.signed(horizon, alice.signer, "GET", "/servers", created=horizon.clock() + 30)
    older = raw.signed(horizon, alice.signer, "GET", "/servers", created=horizon.clock() + 20)
    for request in (made, older):
        assert (await raw.send(horizon, request)).status_code == 200
    horizon.advance(seconds=5)
    again = open_broker(horizon.broker.config, horizon.clock)
    horizon.broker.guard = again.guard
    again.close()
    for request in (made, older):
        assert (await raw.refused(horizon, request)).code == "replayed-signature"
    assert await bob.client.servers() == ()
    horizon.advance(minutes=10)
    ahead = raw.signed(horizon, bob.signer, "GET", "/servers", created=horizon.clock() + 10)
    assert (await raw.send(horizon, ahead)).status_code == 200
    with horizon.broker.database.read() as session:
        (row,) = session.exec(select(SignedAhead)).all()
    assert (row.key_id, row.created) == (bob.id, horizon.clock() + 10), "what is over is forgotten"


def test_a_pair_that_does_not_match_is_refused_by_its_files(start: Start, tmp_path: Path) -> None:
    own = start()
    other = open_broker(BrokerConfig(data_dir=tmp_path / "other"))
    other.close()
    with pytest.raises(CertificateError, match=r"other/tls\.key .*(mismatch).*: give a PEM certificate"):
        start(tls_certificate=own.certificate, tls_key=other.certificate_key)
    with pytest.raises(CertificateError, match=r"cannot read .*x\.key: No such file"):
        start(tls_certificate=own.certificate, tls_key=tmp_path / "x.key")
