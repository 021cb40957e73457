"""One step of the loop: what it looks at, and what it believes afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import ip_interface, ip_network

import pytest

from controlplane.protocol.keys import PrivateKey, PublicKey
from controlplane.protocol.wireguard import InterfaceSpec, PeerSpec
from dataplane.actions import Action, AddRoute, CreateInterface, PeerChange, SetMtu, SetPeers
from dataplane.errors import BackendError, NameTaken
from dataplane.reconcile import Reconciler
from dataplane.state import Desired, PeerState, ServerFirewall
from tests.dataplane.agents import FakeHost
from tests.fake_kernel import FakeLink
from tests.harness.broker import START

KEYS = [PrivateKey(bytes([n]) * 32).public_key for n in range(10, 16)]
SPEC = InterfaceSpec("hz0", PrivateKey(bytes([1]) * 32), frozenset({ip_interface("10.64.0.1/20")}), 51820)
Desire = Callable[[Mapping[PublicKey, PeerState], float], Desired]


def spec(number: int) -> PeerSpec:
    return PeerSpec(KEYS[number], frozenset({ip_network(f"10.64.0.{number + 2}")}))


def wanting(*numbers: int) -> Desire:
    interface = replace(SPEC, peers={KEYS[number]: spec(number) for number in numbers})
    return lambda peers, now: Desired(interface, ServerFirewall("hz0"))


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def reconciler(host: FakeHost) -> Reconciler:
    return Reconciler(host, "hz0", lambda: START)


@pytest.fixture
def settled(reconciler: Reconciler) -> Reconciler:
    """Peers 0 and 1 are in place, and that is known."""
    assert reconciler.reconcile(wanting(0, 1)) > 0
    assert reconciler.reconcile(wanting(0, 1)) == 0
    return reconciler


def test_it_brings_about_what_is_desired_and_then_has_nothing_to_do(
    host: FakeHost, reconciler: Reconciler
) -> None:
    assert not reconciler.ready
    assert reconciler.reconcile(wanting(0)) == len(host.applied)
    assert set(host.links["hz0"].peers) == {KEYS[0]}
    assert reconciler.reconcile(wanting(0)) == 0
    assert reconciler.ready
    assert not reconciler.stale


def test_desire_is_asked_with_the_peers_observed_now(host: FakeHost, settled: Reconciler) -> None:
    host.handshake("hz0", KEYS[0], START - 7)
    asked: list[tuple[float | None, float]] = []

    def desire(peers: Mapping[PublicKey, PeerState], now: float) -> Desired:
        asked.append((peers[KEYS[0]].latest_handshake, now))
        return wanting(0, 1)(peers, now)

    settled.reconcile(desire)
    assert asked == [(START - 7, START)]


def test_a_changed_peer_costs_no_look_and_names_no_other(host: FakeHost, settled: Reconciler) -> None:
    before, looks = len(host.applied), host.looks
    assert settled.reconcile_peers({KEYS[2]: spec(2), KEYS[0]: None}) == 1
    assert host.looks == looks
    (action,) = host.applied[before:]
    assert isinstance(action, SetPeers)
    assert [(c.public_key, c.remove) for c in action.changes] == [(KEYS[0], True), (KEYS[2], False)]
    assert set(settled.known_peers) == set(host.links["hz0"].peers) == {KEYS[1], KEYS[2]}
    assert settled.ready
    assert settled.reconcile_peers({KEYS[2]: spec(2)}) == 0


def test_routes_beyond_the_subnet_follow_a_changed_peer(host: FakeHost, settled: Reconciler) -> None:
    before, office = len(host.applied), ip_network("192.168.5.0/24")
    settled.reconcile_peers({KEYS[2]: PeerSpec(KEYS[2], frozenset({office}))})
    assert AddRoute("hz0", office) in host.applied[before:]
    settled.reconcile_peers({KEYS[2]: None})
    assert host.links["hz0"].routes == set()


def test_single_peers_need_everything_reconciled_first(reconciler: Reconciler) -> None:
    with pytest.raises(ValueError, match="reconcile everything first"):
        reconciler.reconcile_peers({KEYS[0]: spec(0)})


def test_without_a_look_what_is_known_is_trusted(host: FakeHost, settled: Reconciler) -> None:
    looks = host.looks
    settled.reconcile(wanting(0, 1, 2), look=False)
    assert host.looks == looks
    assert set(host.links["hz0"].peers) == set(KEYS[:3])
    del host.links["hz0"].peers[KEYS[0]]
    assert settled.reconcile(wanting(0, 1, 2), look=False) == 0
    settled.reconcile(wanting(0, 1, 2))
    assert set(host.links["hz0"].peers) == set(KEYS[:3])


def test_a_change_that_cannot_be_told_makes_it_look_again(host: FakeHost, settled: Reconciler) -> None:
    host.links["hz0"].mtu = 1300
    assert settled.reconcile(wanting(0, 1)) == 1
    assert isinstance(host.applied[-1], SetMtu)
    assert settled.stale
    looks = host.looks
    settled.reconcile(wanting(0, 1), look=False)
    assert host.looks == looks + 1
    assert not settled.stale


@pytest.mark.parametrize("single", [True, False])
def test_after_a_failure_nothing_is_believed(host: FakeHost, settled: Reconciler, single: bool) -> None:
    def fail(action: Action) -> None:
        raise BackendError("no buffer space")

    host.before_apply = fail
    change = partial(settled.reconcile_peers, {KEYS[2]: spec(2)})
    with pytest.raises(BackendError):
        change() if single else settled.reconcile(wanting(2), look=False)
    assert settled.stale
    assert not settled.ready
    assert settled.known_peers == {}
    host.before_apply = lambda action: None
    settled.reconcile(wanting(0, 2))
    assert set(host.links["hz0"].peers) == {KEYS[0], KEYS[2]}


def test_what_somebody_else_did_is_put_right(host: FakeHost, settled: Reconciler) -> None:
    host.take_down("hz0")
    host.tables["hz0"] = ""
    host.apply(SetPeers("hz0", (PeerChange(KEYS[4], allowed_ips=frozenset()),)))
    settled.reconcile(wanting(0, 1))
    assert host.links["hz0"].up
    assert set(host.links["hz0"].peers) == {KEYS[0], KEYS[1]}
    del host.links["hz0"]
    settled.reconcile(wanting(0, 1))
    assert set(host.links["hz0"].peers) == {KEYS[0], KEYS[1]}


def test_a_taken_name_is_not_touched(host: FakeHost, reconciler: Reconciler) -> None:
    host.links["hz0"] = FakeLink(kind="bridge", addresses=[ip_interface("192.0.2.9/24")])
    with pytest.raises(NameTaken, match="'hz0' exists and is not ours"):
        reconciler.reconcile(wanting(0))
    assert host.applied == []


def test_it_looks_without_changing(host: FakeHost, reconciler: Reconciler) -> None:
    assert reconciler.observe() is None
    assert reconciler.observe_peers() == {}
    host.apply(CreateInterface("hz0"))
    state = reconciler.observe()
    assert state is not None
    assert state.name == "hz0"
    reconciler.close()
    assert host.closed == 1


def test_no_secret_is_logged(
    host: FakeHost, reconciler: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    reconciler.reconcile(wanting(0, 1))
    assert "wg set hz0 private-key (hidden) listen-port 51820" in caplog.text
    assert SPEC.private_key.reveal() not in caplog.text
