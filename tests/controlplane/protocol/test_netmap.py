"""Netmaps: however the changes arrive, the state is the one a snapshot would give."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, ip_interface

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from controlplane.protocol.envelope import Signed, seal, unseal
from controlplane.protocol.errors import NetMapError
from controlplane.protocol.keys import IdentityKey, PublicKey
from controlplane.protocol.netmap import (
    NETMAP_CONTEXT,
    NetMap,
    NetMapInterface,
    NetMapPeer,
    NetMapUpdate,
    apply_update,
)
from controlplane.protocol.wireguard import Endpoint

law = settings(deadline=None)
TIME = datetime(2026, 1, 1, tzinfo=UTC)
INTERFACE = NetMapInterface(addresses=(ip_interface("10.64.0.1/20"), ip_interface("fd00::1/64")))
IDS = [f"dev_{number}" for number in range(6)]


def peer(peer_id: str, version: int = 0) -> NetMapPeer:
    number = IDS.index(peer_id) + 1
    return NetMapPeer(
        peer_id=peer_id,
        name=f"{peer_id}-{version}",
        public_key=PublicKey(bytes([number] * 31 + [version])),
        addresses=(IPv4Address(f"10.64.0.{number}"),),
        allowed_ips=(IPv4Network(f"10.64.0.{number}/32"),),
        endpoint=Endpoint("2001:db8::1", 51820) if version % 2 else None,
        authorized_until=TIME,
    )


def snapshot(revision: int, *peers: NetMapPeer, subject: str = "srv_1") -> NetMapUpdate:
    return NetMapUpdate(subject=subject, revision=revision, issued_at=TIME, interface=INTERFACE, peers=peers)


def change(
    since: int, revision: int, *peers: NetMapPeer, removed: tuple[str, ...] = (), subject: str = "srv_1"
) -> NetMapUpdate:
    return NetMapUpdate(
        subject=subject, since=since, revision=revision, issued_at=TIME, peers=peers, removed=removed
    )


class Broker:
    """The reference: every state so far, and what changed between any two."""

    def __init__(self) -> None:
        self.states: list[dict[str, int]] = [{}]
        self.mtus = [1380]

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def put(self, peer_id: str, version: int | None) -> None:
        state = dict(self.states[-1])
        state.pop(peer_id, None)
        if version is not None:
            state[peer_id] = version
        self.states.append(state)
        self.mtus.append(self.mtus[-1])

    def set_mtu(self, mtu: int) -> None:
        self.states.append(self.states[-1])
        self.mtus.append(mtu)

    def interface(self) -> NetMapInterface:
        return INTERFACE.model_copy(update={"mtu": self.mtus[-1]})

    def snapshot(self) -> NetMapUpdate:
        peers = (peer(peer_id, version) for peer_id, version in self.states[-1].items())
        return snapshot(self.revision, *peers).model_copy(update={"interface": self.interface()})

    def since(self, since: int) -> NetMapUpdate:
        old, new = self.states[since], self.states[-1]
        touched = [p for p in IDS if len({state.get(p) for state in self.states[since:]}) > 1]
        update = change(
            since,
            self.revision,
            *(peer(p, new[p]) for p in touched if p in new),
            removed=tuple(p for p in touched if p in old and p not in new),
        )
        if len(set(self.mtus[since:])) > 1:
            update = update.model_copy(update={"interface": self.interface()})
        return update


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(IDS), st.none() | st.integers(0, 3)),
        st.tuples(st.just("mtu"), st.integers(1280, 1420)),
        st.tuples(st.just("sync"), st.integers(0, 2)),
        st.tuples(st.just("snapshot")),
    ),
    max_size=30,
)


def over_the_wire(update: NetMapUpdate, key: IdentityKey = IdentityKey(bytes(32))) -> NetMapUpdate:  # noqa: B008
    signed = Signed.model_validate_json(seal(update, NETMAP_CONTEXT, key).model_dump_json())
    return unseal(signed, NETMAP_CONTEXT, NetMapUpdate, trusted=key.public_key)


@law
@given(steps)
def test_changes_one_after_the_other_equal_the_snapshot(steps: list[tuple[object, ...]]) -> None:
    """Also when a change begins earlier than what is held, as after an answer that came late."""
    broker = Broker()
    held = apply_update(None, broker.snapshot())
    for step in steps:
        match step:
            case ("put", str(peer_id), version):
                broker.put(peer_id, version)  # type: ignore[arg-type]
            case ("mtu", int(mtu)):
                broker.set_mtu(mtu)
            case ("sync", int(earlier)):
                held = apply_update(held, over_the_wire(broker.since(max(0, held.revision - earlier))))
                assert held == apply_update(None, broker.snapshot())
            case _:
                held = apply_update(held, over_the_wire(broker.snapshot()))
    held = apply_update(held, broker.since(held.revision))
    assert held == apply_update(None, broker.snapshot())


def test_a_change_costs_only_what_it_names() -> None:
    held = apply_update(None, snapshot(1, peer("dev_0"), peer("dev_1")))
    peers, untouched = held.peers, held.peers["dev_0"]
    held = apply_update(held, change(1, 2, peer("dev_1", 1)))
    assert held.peers is peers
    assert held.peers["dev_0"] is untouched


def test_a_peer_removed_and_made_anew_in_one_change_is_there() -> None:
    held = apply_update(None, snapshot(1, peer("dev_0")))
    held = apply_update(held, change(1, 3, peer("dev_0", 2), removed=("dev_0",)))
    assert held.peers == {"dev_0": peer("dev_0", 2)}


def test_removing_who_is_not_there_is_no_error() -> None:
    held = apply_update(None, snapshot(1))
    assert apply_update(held, change(1, 2, removed=("dev_5",))).revision == 2


def test_an_interface_stays_where_a_change_names_none() -> None:
    held = apply_update(None, snapshot(1))
    assert apply_update(held, change(1, 2)).interface == INTERFACE


# --- refusals -----------------------------------------------------------------------------------

HELD = apply_update(None, snapshot(5, peer("dev_0"), peer("dev_1")))


@pytest.mark.parametrize(
    ("update", "says"),
    [
        (change(6, 7, peer("dev_2")), "follows revision 6, but revision 5 is held"),
        (change(3, 4, removed=("dev_0",)), "goes back from revision 5 to 4"),
        (snapshot(4), "the broker was restored from a backup"),
        (snapshot(9, subject="srv_2"), "for 'srv_2', and this is 'srv_1'"),
        (change(5, 6, removed=("dev_0",), subject="srv_2"), "for 'srv_2', and this is 'srv_1'"),
        (snapshot(6).model_copy(update={"interface": None}), "snapshot without an interface"),
    ],
    ids=["gap", "change-back", "snapshot-back", "foreign-snapshot", "foreign-change", "no-interface"],
)
def test_a_refused_update_changes_nothing(update: NetMapUpdate, says: str) -> None:
    held = deepcopy(HELD)
    with pytest.raises(NetMapError) as caught:
        apply_update(held, update)
    assert says in str(caught.value)
    assert held == HELD


def test_a_change_on_nothing_is_a_gap() -> None:
    with pytest.raises(NetMapError, match="but nothing is held"):
        apply_update(None, change(0, 1))


def test_the_first_netmap_may_be_anybodys_snapshot() -> None:
    held = apply_update(None, snapshot(3, subject="dev_9"))
    assert isinstance(held, NetMap)
    assert (held.subject, held.revision) == ("dev_9", 3)


# --- fields -------------------------------------------------------------------------------------

FIELDS = peer("dev_1", 1).model_dump(mode="json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("public_key", "short"),
        ("addresses", ["10.0.0.256"]),
        ("addresses", ["fe80::1%';reboot;'"]),
        ("allowed_ips", ["10.0.0.1/24"]),
        ("allowed_ips", ["fe80::%x/128"]),
        ("accept_from", ["fe80::%a\nb/128"]),
        ("endpoint", "no port"),
        ("endpoint", "a.example:0"),
        ("persistent_keepalive", 65536),
        ("persistent_keepalive", -1),
        ("unknown", 1),
    ],
)
def test_a_wrong_field_of_a_peer_is_refused(field: str, value: object) -> None:
    NetMapPeer.model_validate(FIELDS)
    with pytest.raises(ValidationError) as caught:
        NetMapPeer.model_validate(FIELDS | {field: value})
    assert {error["loc"][0] for error in caught.value.errors()} == {field}


def test_a_wrong_interface_is_refused() -> None:
    for addresses in (["10.0.0.1/33"], ["fe80::1%a\nb/64"]):
        with pytest.raises(ValidationError):
            NetMapInterface.model_validate({"addresses": addresses})


def test_own_networks_are_single_addresses() -> None:
    assert peer("dev_0").own_networks == (IPv4Network("10.64.0.1/32"),)


@pytest.mark.parametrize(("kind", "field"), [(NetMapPeer, "authorized_until"), (NetMapUpdate, "issued_at")])
def test_a_time_without_its_zone_is_refused(kind: type[NetMapPeer | NetMapUpdate], field: str) -> None:
    """It could not be compared with any clock."""
    good = peer("dev_0") if kind is NetMapPeer else snapshot(1)
    content = good.model_dump(mode="json") | {field: "2026-01-01T00:00:00"}
    with pytest.raises(ValidationError, match=f"{field}\n.*timezone"):
        kind.model_validate(content)
