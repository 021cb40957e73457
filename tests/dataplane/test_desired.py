"""From a netmap to what shall be on the host."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.protocol.keys import PrivateKey, PublicKey
from controlplane.protocol.netmap import NetMap, NetMapInterface, NetMapPeer, NetMapUpdate, apply_update
from controlplane.protocol.wireguard import Endpoint, PeerSpec
from dataplane.desired import (
    Own,
    changed_peers,
    client_desired,
    connected,
    may_stay,
    server_desired,
    server_peer_specs,
)
from dataplane.state import ClientFirewall, PeerState, ServerFirewall

NOW = 1_800_000_000.0
KEYS = [PrivateKey(bytes([n]) * 32).public_key for n in range(10, 16)]
PRIVATE = PrivateKey(bytes([1]) * 32)
SUBNETS = (ip_network("10.64.0.0/20"), ip_network("fd00:64::/64"))
SERVER_AT = Endpoint("192.0.2.1", 51820)


def until(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW + seconds, UTC)


def device(number: int = 0, lease: float = 60.0, key: PublicKey | None = None) -> NetMapPeer:
    addresses = ip_address(f"10.64.0.{number + 2}"), ip_address(f"fd00:64::{number + 2}")
    return NetMapPeer(
        peer_id=f"dev_{number}",
        name=f"laptop{number}",
        public_key=key or KEYS[number],
        addresses=addresses,
        allowed_ips=tuple(ip_network(address) for address in addresses),
        endpoint=Endpoint("198.51.100.9", 9),
        authorized_until=until(lease),
        connection_id=f"con_{number}",
    )


def server(lease: float = 60.0, endpoint: Endpoint = SERVER_AT) -> NetMapPeer:
    return NetMapPeer(
        peer_id="srv_1",
        name="fra1",
        public_key=KEYS[5],
        addresses=(ip_address("10.64.0.1"), ip_address("fd00:64::1")),
        allowed_ips=SUBNETS,
        endpoint=endpoint,
        persistent_keepalive=25,
        authorized_until=until(lease),
        accept_from=SUBNETS,
        connection_id="con_1",
    )


def netmap(*peers: NetMapPeer, **interface: object) -> NetMap:
    addresses = (ip_interface("10.64.0.1/20"), ip_interface("fd00:64::1/64"))
    own = NetMapInterface.model_validate({"addresses": addresses, "mtu": 1400, **interface})
    return NetMap("srv_1", 1, until(0), own, {peer.peer_id: peer for peer in peers})


def seen(key: PublicKey, age: float | None) -> dict[PublicKey, PeerState]:
    return {key: PeerState(key, latest_handshake=None if age is None else NOW - age)}


def never(endpoint: Endpoint) -> Endpoint | None:
    raise AssertionError(f"{endpoint} was resolved")


def test_a_server_has_its_devices_as_peers_and_learns_their_endpoints() -> None:
    desired = server_desired(
        Own("hz0", PRIVATE, 7000), netmap(device(0), device(1), client_to_client=True), {}, NOW
    )
    assert desired.firewall == ServerFirewall("hz0", client_to_client=True)
    spec = desired.interface
    assert spec is not None
    assert (spec.name, spec.private_key, spec.mtu, spec.listen_port) == ("hz0", PRIVATE, 1400, 7000)
    assert spec.addresses == {ip_interface("10.64.0.1/20"), ip_interface("fd00:64::1/64")}
    assert spec.peers == {
        KEYS[number]: PeerSpec(
            KEYS[number],
            frozenset({ip_network(f"10.64.0.{number + 2}"), ip_network(f"fd00:64::{number + 2}")}),
        )
        for number in (0, 1)
    }


@pytest.mark.parametrize(("own", "broker", "expected"), [(7000, 51820, 7000), (0, 51820, 51820), (0, 0, 0)])
def test_the_listen_port_is_our_own_or_the_brokers(own: int, broker: int, expected: int) -> None:
    spec = server_desired(Own("hz0", PRIVATE, own), netmap(listen_port=broker), {}, NOW).interface
    assert spec is not None
    assert spec.listen_port == expected


def test_a_client_routes_to_its_servers_and_accepts_what_is_behind_them() -> None:
    desired = client_desired(Own("hzc0", PRIVATE), netmap(server()), {}, NOW, lambda endpoint: endpoint)
    assert desired.firewall == ClientFirewall(
        "hzc0", frozenset(SUBNETS), frozenset({ip_network("10.64.0.1"), ip_network("fd00:64::1")})
    )
    spec = desired.interface
    assert spec is not None
    assert spec.peers == {KEYS[5]: PeerSpec(KEYS[5], frozenset(SUBNETS), SERVER_AT, None, 25)}
    assert (spec.name, spec.mtu, spec.listen_port) == ("hzc0", 1400, 0)


@pytest.mark.parametrize("found", [Endpoint("203.0.113.5", 51820), None])
def test_a_client_takes_the_resolved_endpoint_or_waits_without_one(found: Endpoint | None) -> None:
    named = server(endpoint=Endpoint("fra1.example", 51820))
    desired = client_desired(Own("hzc0", PRIVATE), netmap(named), {}, NOW, lambda endpoint: found)
    assert desired.interface is not None
    assert desired.interface.peers[KEYS[5]].endpoint == found


def test_an_ended_connection_is_left_out_and_the_interface_waits() -> None:
    own = Own("hzc0", PRIVATE)
    desired = client_desired(own, netmap(server()), seen(KEYS[5], 1), NOW, never, {"con_1"})
    assert desired.interface is not None
    assert desired.interface.peers == {}
    assert desired.interface.addresses
    assert desired.firewall == ClientFirewall("hzc0")
    other = client_desired(own, netmap(server()), {}, NOW, lambda endpoint: endpoint, {"con_2"})
    assert other.interface is not None
    assert KEYS[5] in other.interface.peers


@pytest.mark.parametrize(
    ("lease", "handshake", "stays"),
    [
        (1, None, True),
        (0, None, False),
        (-1, None, False),
        (-1, 0, True),
        (-1, 179, True),
        (-1, 180, False),
        (-86400, 179, True),
        (1, 5000, True),
    ],
)
def test_past_its_authorisation_only_a_peer_with_a_live_session_stays(
    lease: float, handshake: float | None, stays: bool
) -> None:
    peer, state = device(0, lease), seen(KEYS[0], handshake)
    assert may_stay(peer, state[KEYS[0]], NOW) == stays
    for desired in (
        server_desired(Own("hz0", PRIVATE), netmap(peer), state, NOW),
        client_desired(Own("hz0", PRIVATE), netmap(peer), state, NOW, lambda endpoint: endpoint),
    ):
        assert desired.interface is not None
        assert (KEYS[0] in desired.interface.peers) == stays
    assert (server_peer_specs({KEYS[0]: peer}, state, NOW)[KEYS[0]] is not None) == stays


def test_an_expired_server_leaves_the_clients_firewall_too() -> None:
    desired = client_desired(Own("hzc0", PRIVATE), netmap(server(-1)), {}, NOW, never)
    assert desired.firewall == ClientFirewall("hzc0")


def test_connected_means_a_handshake_younger_than_180_s() -> None:
    assert not connected(None, NOW)
    assert [connected(seen(KEYS[0], age)[KEYS[0]], NOW) for age in (None, 0, 179.9, 180)] == [
        *(False, True, True, False),
    ]


# --- changes ------------------------------------------------------------------------------------


def change(*peers: NetMapPeer, removed: tuple[str, ...] = ()) -> NetMapUpdate:
    return NetMapUpdate(
        subject="srv_1", since=1, revision=2, issued_at=until(0), peers=peers, removed=removed
    )


def test_a_removed_peer_goes_by_its_key() -> None:
    held = netmap(device(0), device(1))
    assert changed_peers(held, change(removed=("dev_0",))) == {KEYS[0]: None}


def test_a_new_peer_comes_and_one_that_was_never_held_needs_no_removal() -> None:
    new = device(1)
    assert changed_peers(netmap(device(0)), change(new, removed=("dev_4",))) == {KEYS[1]: new}


def test_a_replaced_key_goes_and_the_new_one_comes() -> None:
    new = device(0, key=KEYS[3])
    assert changed_peers(netmap(device(0)), change(new)) == {KEYS[0]: None, KEYS[3]: new}


def test_a_changed_peer_that_keeps_its_key_only_comes() -> None:
    new = device(0, lease=9000)
    assert changed_peers(netmap(device(0)), change(new)) == {KEYS[0]: new}


def test_a_key_that_another_peer_takes_over_stays() -> None:
    """Two devices that swap keys, and one made anew with the key of a removed one."""
    first, second = device(0, key=KEYS[1]), device(1, key=KEYS[0])
    assert changed_peers(netmap(device(0), device(1)), change(first, second)) == {
        KEYS[1]: first,
        KEYS[0]: second,
    }
    heir = device(1, key=KEYS[0])
    assert changed_peers(netmap(device(0)), change(heir, removed=("dev_0",))) == {KEYS[0]: heir}


peers = st.builds(device, st.integers(0, 3), st.sampled_from([-60.0, 60.0]), st.sampled_from(KEYS))


def distinct(found: list[NetMapPeer]) -> list[NetMapPeer]:
    """One peer for each id and each key, as a broker has them."""
    by_id = {peer.peer_id: peer for peer in found}
    return list({peer.public_key: peer for peer in by_id.values()}.values())


@given(st.lists(peers).map(distinct), st.lists(peers).map(distinct))
def test_single_changes_lead_where_the_whole_netmap_does(
    before: list[NetMapPeer], after: list[NetMapPeer]
) -> None:
    held = netmap(*before)
    gone = tuple({peer.peer_id for peer in before} - {peer.peer_id for peer in after})
    update = change(*(peer for peer in after if peer not in before), removed=gone)
    own = Own("hz0", PRIVATE)
    first = server_desired(own, held, {}, NOW).interface
    specs = server_peer_specs(changed_peers(held, update), {}, NOW)
    whole = server_desired(own, apply_update(held, update), {}, NOW).interface
    assert first is not None
    assert whole is not None
    step = {**first.peers, **specs}
    assert replace(first, peers={key: spec for key, spec in step.items() if spec}) == whole
