"""What an agent keeps on disk, and what it makes of damage."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.client.broker import BrokerAddress
from controlplane.protocol.envelope import Signed, seal
from controlplane.protocol.errors import EnvelopeError, NetMapError
from controlplane.protocol.keys import IdentityKey, PrivateKey
from controlplane.protocol.netmap import (
    NETMAP_CONTEXT,
    NetMap,
    NetMapInterface,
    NetMapPeer,
    NetMapUpdate,
    apply_update,
)
from dataplane import store as store_module
from dataplane.errors import AlreadyRunning, StoreError
from dataplane.store import AgentState, NotJoined, Store, hold_interface, open_update

BROKER, OTHER = IdentityKey(bytes([1]) * 32), IdentityKey(bytes([2]) * 32)
NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
STATE = AgentState(
    identity=IdentityKey(bytes([3]) * 32),
    private_key=PrivateKey(bytes([4]) * 32),
    broker=BrokerAddress("https://broker.example:8443", "p" * 43),
    interface="hz0",
    backend="auto",
    listen_port=51820,
    agent_id="srv_1",
    name="fra1",
    broker_key=BROKER.public_key,
    verification_secret="the-verification-secret",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state", "server")
    made.save(STATE)
    return made


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def peer(number: int, key: int | None = None) -> NetMapPeer:
    address = ip_address(f"10.64.0.{number + 2}")
    return NetMapPeer(
        peer_id=f"dev_{number}",
        name=f"laptop{number}",
        public_key=PrivateKey(bytes([key or number + 10]) * 32).public_key,
        addresses=(address,),
        allowed_ips=(ip_network(address),),
        authorized_until=NOW,
    )


def snapshot(revision: int, *peers: NetMapPeer, subject: str = "srv_1") -> NetMapUpdate:
    interface = NetMapInterface(addresses=(ip_interface("10.64.0.1/20"),))
    return NetMapUpdate(subject=subject, revision=revision, issued_at=NOW, interface=interface, peers=peers)


def change(since: int, revision: int, *peers: NetMapPeer, removed: tuple[str, ...] = ()) -> NetMapUpdate:
    return NetMapUpdate(
        subject="srv_1", since=since, revision=revision, issued_at=NOW, peers=peers, removed=removed
    )


def signed(update: NetMapUpdate, key: IdentityKey = BROKER) -> Signed:
    return seal(update, NETMAP_CONTEXT, key)


def save(store: Store, *updates: NetMapUpdate) -> NetMap | None:
    """Keep updates as an agent does; the netmap in memory after them."""
    netmap = store.load_netmap(STATE)
    for update in updates:
        netmap = apply_update(netmap, update)
        store.save_update(signed(update), update.since is None)
    return netmap


def reopened(store: Store) -> NetMap | None:
    return Store(store.directory, store.role).load_netmap(STATE)


def asides(store: Store) -> list[str]:
    return sorted(path.name for path in store.directory.glob("*.damaged-*"))


# --- the enrolment ------------------------------------------------------------------------------


def test_an_enrolment_comes_back_as_it_was_saved(store: Store) -> None:
    assert Store(store.directory, "server").load() == STATE


def test_an_enrolment_that_is_only_begun_comes_back_and_is_not_joined(tmp_path: Path) -> None:
    store = Store(tmp_path / "state", "client")
    begun = AgentState(STATE.identity, STATE.private_key, STATE.broker, "hzc0", "userspace")
    store.save(begun)
    assert store.peek() == begun
    with pytest.raises(NotJoined, match=r"horizon client join INVITE"):
        store.load()


def test_only_the_owner_may_read_what_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "state", "server")
    store.save(STATE)
    save(store, snapshot(1), change(1, 2, peer(0)))
    store.save_ended({"con_1"})
    assert mode(store.directory) == 0o700
    assert {path.name: mode(path) for path in store.directory.iterdir()} == {
        "agent.json": 0o600,
        "netmap.jsonl": 0o600,
        "ended.json": 0o600,
    }


def test_a_journal_begun_by_a_change_is_private_too(store: Store) -> None:
    """The file may have been removed by hand between two changes."""
    save(store, snapshot(1), change(1, 2, peer(0)))
    store.netmap_path.unlink()
    store.save_update(signed(change(2, 3)), snapshot=False)
    assert mode(store.netmap_path) == 0o600


def test_no_enrolment_names_the_command(tmp_path: Path) -> None:
    store = Store(tmp_path / "none", "server")
    assert store.peek() is None
    with pytest.raises(NotJoined, match=r"has not joined.*horizon server join INVITE"):
        store.load()


DAMAGE: dict[str, Callable[[str], str]] = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "zeros": lambda text: "\0" * len(text),
    "a list": lambda text: "[]",
    "a number": lambda text: "5",
    "null": lambda text: "null",
    "a key cut short": lambda text: text.replace(STATE.private_key.reveal(), "AAAA"),
    "a field missing": lambda text: text.replace('"interface"', '"interfaze"'),
    "the broker as text": lambda text: json.dumps({**json.loads(text), "broker": "https://x"}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_enrolment_is_put_aside_and_says_to_join_again(
    store: Store, damage: Callable[[str], str]
) -> None:
    damaged = damage(store.state_path.read_text())
    store.state_path.write_text(damaged)
    with pytest.raises(NotJoined, match=r"damaged.*join again.*horizon server join INVITE") as caught:
        store.load()
    for secret in (STATE.private_key.reveal(), STATE.identity.reveal(), STATE.verification_secret):
        assert secret not in str(caught.value)
    assert asides(store) == ["agent.json.damaged-1"]
    assert (store.directory / "agent.json.damaged-1").read_text() == damaged
    with pytest.raises(NotJoined, match="has not joined"):
        store.load()


def test_a_second_damage_is_kept_beside_the_first(store: Store) -> None:
    for _ in range(2):
        store.state_path.write_text("{")
        with pytest.raises(NotJoined):
            store.peek()
    assert asides(store) == ["agent.json.damaged-1", "agent.json.damaged-2"]


def test_nothing_secret_is_shown(store: Store) -> None:
    for shown in (repr(STATE), str(STATE), f"{STATE.signer}", repr(store)):
        for secret in (STATE.private_key.reveal(), STATE.identity.reveal(), STATE.verification_secret):
            assert secret not in shown


# --- the netmap ---------------------------------------------------------------------------------


def test_without_a_file_there_is_no_netmap(store: Store) -> None:
    assert store.load_netmap(STATE) is None
    assert not store.wants_snapshot


def test_a_change_is_appended_and_a_snapshot_replaces(store: Store) -> None:
    save(store, snapshot(1, peer(0)))
    first = store.netmap_path.read_text()
    save(store, change(1, 2, peer(1)))
    assert store.netmap_path.read_text().startswith(first)
    assert store.netmap_path.read_text().count("\n") == 2
    save(store, snapshot(3))
    assert store.netmap_path.read_text().count("\n") == 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("snapshot"), st.sets(st.integers(0, 4))),
        st.tuples(st.just("set"), st.integers(0, 4), st.integers(20, 25)),
        st.tuples(st.just("remove"), st.integers(0, 4)),
        st.tuples(st.just("again")),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_what_is_replayed_is_what_was_in_memory(sequence: list[tuple[object, ...]]) -> None:
    with TemporaryDirectory() as directory:
        store = Store(Path(directory), "server")
        netmap = save(store, snapshot(1))
        for number, step in enumerate(sequence, 1):
            match step:
                case ("snapshot", set(numbers)):
                    update = snapshot(number + 1, *map(peer, sorted(numbers)))
                case ("set", int(which), int(key)):
                    update = change(number, number + 1, peer(which, key))
                case ("remove", int(which)):
                    update = change(number, number + 1, removed=(f"dev_{which}",))
                case _:
                    store = Store(Path(directory), "server")
                    assert store.load_netmap(STATE) == netmap
                    update = change(number, number + 1)
            netmap = apply_update(netmap, update)
            store.save_update(signed(update), update.since is None)
            assert reopened(store) == netmap


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_half_written_last_line_is_dropped(
    store: Store, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, snapshot(1, peer(0)), change(1, 2, peer(1)))
    whole = store.netmap_path.read_bytes()
    store.netmap_path.write_bytes(whole[:-cut])
    netmap = reopened(store)
    assert netmap is not None
    assert (netmap.revision, list(netmap.peers)) == (1, ["dev_0"])
    assert "half-written" in caplog.text
    assert asides(store) == []


def test_behind_a_dropped_half_line_changes_are_appended_again(store: Store) -> None:
    save(store, snapshot(1, peer(0)), change(1, 2, peer(1)))
    whole = store.netmap_path.read_bytes()
    store.netmap_path.write_bytes(whole[:-40])
    again = save(store, change(1, 2, peer(1)))
    assert store.netmap_path.read_bytes() == whole
    assert reopened(store) == again


def test_behind_half_a_line_that_stays_nothing_is_appended_and_a_snapshot_is_wanted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, snapshot(1, peer(0)), change(1, 2, peer(1)))
    cut = store.netmap_path.read_bytes()[:-40]
    store.netmap_path.write_bytes(cut)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    again = Store(store.directory, "server")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        save(again, change(1, 2, peer(1)))
    assert store.netmap_path.read_bytes() == cut
    assert again.wants_snapshot
    netmap = save(again, snapshot(3, peer(2)))
    assert not again.wants_snapshot
    assert reopened(store) == netmap


def test_a_change_that_could_not_be_written_whole_is_told_and_not_appended_to(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, snapshot(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"netmap.jsonl' cannot be written: No space left on device"):
            store.save_update(signed(change(1, 2)), snapshot=False)
        with pytest.raises(StoreError, match="No space left"):
            store.save_update(signed(snapshot(2)), snapshot=True)
        with pytest.raises(StoreError, match=r"ended.json' cannot be written"):
            store.save_ended({"con_1"})
    assert store.wants_snapshot
    left = store.netmap_path.read_bytes()
    store.save_update(signed(change(2, 3)), snapshot=False)
    assert store.netmap_path.read_bytes() == left
    assert {path.name for path in store.directory.iterdir()} == {"agent.json", "netmap.jsonl"}


def test_one_agent_at_a_time_has_a_directory_and_an_interface(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = partial(hold_interface, directory=tmp_path / "run")
    monkeypatch.setattr(store_module, "hold_interface", hold)
    other, elsewhere = Store(store.directory, "server"), Store(tmp_path / "elsewhere", "client")
    store.lock("hz0")
    try:
        with pytest.raises(AlreadyRunning, match=r"runs already with .* a --state-dir of its own"):
            other.lock("hz1")
        with pytest.raises(AlreadyRunning, match="another agent runs interface 'hz0'"):
            elsewhere.lock("hz0")
        assert mode(store.directory / "lock") == 0o600
    finally:
        store.unlock()
        elsewhere.unlock()
    other.lock("hz0")
    other.unlock()


@pytest.mark.parametrize("left", [b"", b"{", b"\0\0\0"])
def test_a_half_written_snapshot_is_as_none(store: Store, left: bytes) -> None:
    save(store, snapshot(1, peer(0)))
    store.netmap_path.write_bytes(left)
    assert reopened(store) is None
    assert asides(store) == []
    netmap = save(store, snapshot(2))
    assert reopened(store) == netmap


def forged(update: NetMapUpdate) -> Signed:
    """What our broker signed, with another payload."""
    payload = update.model_dump_json().replace("10.64.0.", "10.65.0.")
    return signed(update).model_copy(update={"payload": payload})


BAD_LINES = {
    "no JSON": "{not json}",
    "an empty line": "",
    "an unknown field": '{"payload": "x", "more": 1}',
    "another broker": signed(change(2, 3), OTHER).model_dump_json(),
    "changed": forged(change(2, 3, peer(3))).model_dump_json(),
    "another context": seal(change(2, 3), "config", BROKER).model_dump_json(),
    "another subject": signed(snapshot(3, subject="srv_2")).model_dump_json(),
    "going back": signed(change(0, 1)).model_dump_json(),
    "a gap": signed(change(7, 8)).model_dump_json(),
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
@pytest.mark.parametrize("after", [0, 1], ids=["last", "middle"])
def test_a_journal_that_does_not_hold_is_put_aside(
    store: Store, bad: str, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, snapshot(1, peer(0)), change(1, 2, peer(1)))
    rest = [signed(change(2, 3)).model_dump_json()] * after
    damaged = "".join(f"{line}\n" for line in [*store.netmap_path.read_text().splitlines(), bad, *rest])
    store.netmap_path.write_text(damaged)
    assert reopened(store) is None
    assert asides(store) == ["netmap.jsonl.damaged-1"]
    assert (store.directory / "netmap.jsonl.damaged-1").read_text() == damaged
    assert "the saved netmap is damaged" in caplog.text

    fresh = save(store, snapshot(9, peer(2)))
    assert reopened(store) == fresh


def test_a_journal_that_begins_with_a_change_is_put_aside(store: Store) -> None:
    store.netmap_path.write_text(signed(change(1, 2)).model_dump_json() + "\n")
    assert reopened(store) is None
    assert asides(store) == ["netmap.jsonl.damaged-1"]


def test_a_journal_that_is_no_text_is_put_aside(store: Store) -> None:
    store.netmap_path.write_bytes(b"\xff\xfe\n")
    assert reopened(store) is None
    assert asides(store) == ["netmap.jsonl.damaged-1"]


def test_a_long_journal_asks_for_a_snapshot(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "COMPACT_AFTER", 3)
    save(store, snapshot(1), change(1, 2), change(2, 3))
    assert not store.wants_snapshot
    save(store, change(3, 4))
    assert store.wants_snapshot
    again = Store(store.directory, "server")
    again.load_netmap(STATE)
    assert again.wants_snapshot
    save(again, snapshot(5))
    assert not again.wants_snapshot


def test_an_update_opens_only_for_whom_our_broker_signed_it() -> None:
    update = snapshot(1, peer(0))
    assert open_update(signed(update), STATE) == update
    with pytest.raises(EnvelopeError, match=r"signed by .*, but this machine trusts"):
        open_update(signed(update, OTHER), STATE)
    with pytest.raises(EnvelopeError, match="changed on the way"):
        open_update(forged(update), STATE)
    with pytest.raises(NetMapError, match=r"for 'srv_2', and this is 'srv_1'"):
        open_update(signed(snapshot(1, subject="srv_2")), STATE)
    begun = AgentState(STATE.identity, STATE.private_key, STATE.broker, "hz0", "auto")
    with pytest.raises(EnvelopeError, match="has not joined"):
        open_update(signed(update), begun)


# --- ended connections, and forgetting ----------------------------------------------------------


def test_ended_connections_come_back(store: Store) -> None:
    assert store.load_ended() == set()
    store.save_ended({"con_2", "con_1"})
    assert Store(store.directory, "server").load_ended() == {"con_1", "con_2"}
    store.save_ended(set())
    assert store.load_ended() == set()


@pytest.mark.parametrize("text", ["", '["con_1"', "5", "null", "\0"])
def test_a_damaged_list_of_ended_connections_is_put_aside(
    store: Store, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    store.ended_path.write_text(text)
    assert store.load_ended() == set()
    assert asides(store) == ["ended.json.damaged-1"]
    assert "ended.json" in caplog.text


def test_forgetting_drops_the_netmap_and_keeps_the_keys(store: Store) -> None:
    save(store, snapshot(1, peer(0)))
    store.save_ended({"con_1"})
    store.forget()
    assert reopened(store) is None
    assert store.load_ended() == set()
    assert store.load() == STATE
    store.forget()
