"""The laws of planning, on the fake kernel; then single rules by example."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import Endpoint, InterfaceSpec, IPNetwork, PeerSpec
from dataplane.actions import (
    Action,
    AddAddress,
    AddRoute,
    CreateInterface,
    ReplaceFirewall,
    SetDevice,
    SetPeers,
    SetSysctl,
)
from dataplane.errors import DataplaneError, NameTaken, RouteTaken, UnresolvedEndpoint
from dataplane.firewall import digest
from dataplane.plan import plan, plan_peers, record
from dataplane.state import (
    ALIAS,
    ClientFirewall,
    Desired,
    HostState,
    PeerState,
    ServerFirewall,
)
from tests.fake_kernel import FakeKernel, FakeLink

NAME = "hz0"
NOW = 1_800_000_000.0
OWN = [PrivateKey(bytes([n]) * 32) for n in (1, 2)]
KEYS = [PrivateKey(bytes([n]) * 32).public_key for n in range(10, 16)]
NETWORKS = [
    ip_network(text)
    for text in (
        *("10.64.0.2/32", "10.64.0.3/32", "10.64.7.0/24", "192.168.5.0/24", "0.0.0.0/0"),
        *("fd00:64::2/128", "fd00:64::3/128", "2001:db8:5::/64", "::/0"),
    )
]
ADDRESSES = [
    ip_interface(text)
    for text in (
        *("10.64.0.1/20", "10.64.0.9/20", "10.64.0.1/24", "10.99.0.1/32"),
        *("fd00:64::1/64", "fd00:64::1/128", "fe80::1/64"),
    )
]
ENDPOINTS = [Endpoint("192.0.2.7", 51820), Endpoint("192.0.2.8", 51820), Endpoint("2001:db8::7", 9)]

law = settings(max_examples=60, deadline=None)


@st.composite
def peer_tables(draw: st.DrawFn) -> dict[PublicKey, PeerSpec]:
    """Peers that share no allowed IP."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True))
    owners = draw(st.lists(st.sampled_from([*keys, None]), min_size=9, max_size=9))
    peers = {}
    for key in keys:
        networks = [n for n, owner in zip(NETWORKS, owners, strict=True) if owner == key]
        peers[key] = PeerSpec(
            key,
            frozenset(networks),
            draw(st.sampled_from([None, *ENDPOINTS])),
            draw(st.sampled_from([None, PresharedKey(b"p" * 32), PresharedKey(b"q" * 32)])),
            draw(st.sampled_from([0, 25])),
        )
    return peers


interfaces = st.builds(
    InterfaceSpec,
    st.just(NAME),
    st.sampled_from(OWN),
    st.frozensets(st.sampled_from(ADDRESSES), max_size=4),
    st.sampled_from([0, 51820, 51821]),
    st.sampled_from([1200, 1380, 1420]),
    st.sampled_from([0, 0x51820]),
    peer_tables(),
)
firewalls = st.one_of(
    st.none(),
    st.builds(ServerFirewall, st.just(NAME), st.booleans()),
    st.builds(ClientFirewall, st.just(NAME), st.frozensets(st.sampled_from(NETWORKS), max_size=2)),
)
ups = st.builds(Desired, interfaces, firewalls)
desireds = st.one_of(ups, st.just(Desired()))


@st.composite
def hosts(draw: st.DrawFn) -> FakeKernel:
    """A host with things that are not ours, where some state of ours stands, and was meddled with."""
    kernel = FakeKernel(ipv6=draw(st.booleans()))
    kernel.links = {"eth0": FakeLink("device", up=True), "wg0": FakeLink(private_key=OWN[1])}
    kernel.tables = {"wg0": "theirs"}
    kernel.sysctls["net/ipv6/conf/eth0/accept_ra"] = draw(st.sampled_from(["0", "1", "2"]))
    reconcile(kernel, draw(desireds))
    if link := kernel.links.get(NAME):
        for key in draw(st.lists(st.sampled_from(KEYS), unique=True)):
            if key in link.peers:
                age = draw(st.sampled_from([1.0, 1000.0]))
                kernel.handshake(NAME, key, NOW - age, draw(st.sampled_from([None, *ENDPOINTS])))
        for meddle in draw(st.lists(st.sampled_from(["down", "flush", "mtu", "table"]), unique=True)):
            match meddle:
                case "down":
                    kernel.take_down(NAME)
                case "flush":
                    link.addresses.clear()
                    link.routes = {n for n in link.routes if n.version == 6}
                case "mtu":
                    link.mtu += 1
                case "table":
                    kernel.tables[NAME] = ""
    kernel.applied.clear()
    return kernel


def reconcile(kernel: FakeKernel, desired: Desired, steps: int | None = None) -> tuple[Action, ...]:
    """Plan and apply (the first `steps` actions only)."""
    actions = plan(desired, kernel.observe(NAME), NOW)
    for action in actions[:steps]:
        kernel.apply(action)
    return actions


def check_as_desired(kernel: FakeKernel, desired: Desired) -> None:
    """Compare the host with the spec directly, not by planning."""
    spec, state = desired.interface, kernel.observe(NAME)
    assert state.firewall == (desired.firewall and digest(desired.firewall))
    if spec is None:
        assert state.interface is None
        return
    assert state.interface is not None
    ipv6 = kernel.ipv6 and spec.mtu >= 1280
    assert state.interface.alias == ALIAS
    assert state.interface.up
    assert state.interface.mtu == spec.mtu
    assert state.interface.fwmark == spec.fwmark
    assert spec.listen_port in {0, state.interface.listen_port}
    assert state.interface.public_key == spec.private_key.public_key
    wanted = {a for a in spec.addresses if ipv6 or a.version == 4}
    assert {a for a in state.interface.addresses if a in wanted or not a.is_link_local} == wanted
    assert state.interface.peers.keys() == spec.peers.keys()
    for key, peer in spec.peers.items():
        found = state.interface.peers[key]
        assert found.allowed_ips == peer.allowed_ips
        assert found.preshared_key == peer.preshared_key
        assert found.persistent_keepalive == peer.persistent_keepalive
        fresh = found.latest_handshake is not None and NOW - found.latest_handshake < 180
        assert fresh or peer.endpoint in {None, found.endpoint}
    for network in spec.routes:
        connected = any(
            network.version == a.version and network.subnet_of(a.network)  # type: ignore[arg-type]
            for a in spec.addresses
        )
        routed = network.prefixlen > 0 and (ipv6 or network.version == 4) and not connected
        assert (network in state.interface.routes) == routed
    assert state.interface.routes <= spec.routes
    if isinstance(desired.firewall, ServerFirewall) and desired.firewall.client_to_client:
        assert kernel.sysctls["net/ipv4/ip_forward"] == "1"
        assert kernel.sysctls["net/ipv6/conf/all/forwarding"] == "1"
        assert kernel.sysctls["net/ipv6/conf/eth0/accept_ra"] != "1"


@law
@given(hosts(), desireds)
def test_applying_a_plan_makes_the_host_as_desired_and_plans_nothing_more(
    kernel: FakeKernel, desired: Desired
) -> None:
    reconcile(kernel, desired)
    assert plan(desired, kernel.observe(NAME), NOW) == ()
    check_as_desired(kernel, desired)


@law
@given(hosts(), desireds, st.integers(0, 12))
def test_a_plan_may_be_cut_short_anywhere_and_made_anew(
    kernel: FakeKernel, desired: Desired, steps: int
) -> None:
    reconcile(kernel, desired, steps)
    reconcile(kernel, desired)
    assert plan(desired, kernel.observe(NAME), NOW) == ()
    check_as_desired(kernel, desired)


@law
@given(hosts(), desireds)
def test_what_is_not_ours_stays_as_it_is(kernel: FakeKernel, desired: Desired) -> None:
    foreign = deepcopy((kernel.links["eth0"], kernel.links["wg0"], kernel.tables["wg0"]))
    actions = reconcile(kernel, desired)
    assert (kernel.links["eth0"], kernel.links["wg0"], kernel.tables["wg0"]) == foreign
    assert not [a for a in actions if "wg0" in str(a)]
    assert {a for a in actions if "eth0" in str(a)} <= {SetSysctl("net/ipv6/conf/eth0/accept_ra", "2")}


@law
@given(hosts(), ups)
def test_peers_that_are_as_desired_are_not_named(kernel: FakeKernel, desired: Desired) -> None:
    assert desired.interface is not None
    before = kernel.observe(NAME).interface
    kept = before.peers if before else {}
    actions = reconcile(kernel, desired)
    after = kernel.observe(NAME).interface
    assert after is not None
    named = {c.public_key for a in actions if isinstance(a, SetPeers) for c in a.changes}
    for key, peer in desired.interface.peers.items():
        if key in kept:
            assert _traffic(after.peers[key]) == _traffic(kept[key])
            if PeerSpec(key, *_settings(kept[key])) == peer:
                assert key not in named
                assert after.peers[key] == kept[key]


def _traffic(peer: PeerState) -> tuple[object, ...]:
    return peer.latest_handshake, peer.received, peer.sent


def _settings(
    peer: PeerState,
) -> tuple[frozenset[IPNetwork], Endpoint | None, PresharedKey | None, int]:
    return peer.allowed_ips, peer.endpoint, peer.preshared_key, peer.persistent_keepalive


@law
@given(hosts(), ups)
def test_the_interface_is_never_up_without_its_firewall(kernel: FakeKernel, desired: Desired) -> None:
    if desired.firewall is None:
        return
    reconcile(kernel, Desired())
    for action in plan(desired, kernel.observe(NAME), NOW):
        kernel.apply(action)
        state = kernel.observe(NAME)
        if state.interface and state.interface.up:
            assert state.firewall == digest(desired.firewall)
    for action in plan(Desired(), kernel.observe(NAME), NOW):
        kernel.apply(action)
        assert NAME in kernel.tables or NAME not in kernel.links


class Unwalkable(dict[PublicKey, PeerState]):
    """Peers that can be looked up, but not gone through: what costs O(peers) fails."""

    def __iter__(self) -> Iterator[PublicKey]:
        raise AssertionError("a change of some peers went through all peers")

    keys = items = values = __iter__  # type: ignore[assignment]


@law
@given(hosts(), ups, peer_tables())
def test_planning_some_peers_does_what_planning_all_does(
    kernel: FakeKernel, desired: Desired, table: dict[PublicKey, PeerSpec]
) -> None:
    reconcile(kernel, desired)
    before = desired.interface
    assert before is not None
    wanted = Desired(replace(before, peers=table), desired.firewall)
    observed = kernel.observe(NAME)
    assert observed.interface is not None
    changes: dict[PublicKey, PeerSpec | None] = {
        key: table.get(key) for key in {*before.peers, *table} if before.peers.get(key) != table.get(key)
    }
    observed.interface.peers = Unwalkable(observed.interface.peers)
    actions = plan_peers(changes, observed, NOW)
    for action in actions:
        kernel.apply(action)
    assert record(observed, actions)
    now = kernel.observe(NAME)
    assert now.interface is not None
    assert observed.interface is not None
    assert dict.__eq__(observed.interface.peers, now.interface.peers)
    assert observed.interface.routes == now.interface.routes
    assert plan(wanted, now, NOW) == ()
    check_as_desired(kernel, wanted)


def spec(*peers: PeerSpec, **fields: object) -> InterfaceSpec:
    made = InterfaceSpec(
        NAME,
        OWN[0],
        frozenset({ip_interface("10.64.0.1/20"), ip_interface("fd00:64::1/64")}),
        peers={peer.public_key: peer for peer in peers},
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def peer(number: int, *networks: str, endpoint: Endpoint | None = None) -> PeerSpec:
    return PeerSpec(KEYS[number], frozenset(map(ip_network, networks)), endpoint)


def test_from_nothing_in_the_order_of_the_rules() -> None:
    firewall = ServerFirewall(NAME)
    office = peer(0, "10.64.0.2/32", "192.168.5.0/24")
    actions = plan(Desired(spec(office), firewall), HostState(NAME), NOW)
    assert [str(action).replace(str(KEYS[0]), "KEY") for action in actions] == [
        "nft -f - (the table of hz0)",
        "create WireGuard interface hz0",
        "ip link set dev hz0 alias 'horizon: kept by the Horizon agent'",
        "ip link set mtu 1380 dev hz0",
        "wg set hz0 private-key (hidden)",
        "wg set hz0 peer KEY",
        "ip address add 10.64.0.1/20 dev hz0",
        "ip address add fd00:64::1/64 dev hz0",
        "ip link set up dev hz0",
        "ip route add 192.168.5.0/24 dev hz0",
    ]


def test_an_allowed_ip_that_moves_is_taken_away_before_it_is_given() -> None:
    kernel = FakeKernel()
    reconcile(kernel, Desired(spec(peer(0, "10.64.0.2/32"))))
    (action,) = reconcile(kernel, Desired(spec(peer(1, "10.64.0.2/32"))))
    assert isinstance(action, SetPeers)
    assert [change.remove for change in action.changes] == [True, False]


def test_a_fresh_endpoint_is_left_alone_and_a_stale_one_is_set_again() -> None:
    told, roamed = ENDPOINTS[:2]
    kernel = FakeKernel()
    desired = Desired(spec(peer(0, endpoint=told)))
    reconcile(kernel, desired)
    kernel.handshake(NAME, KEYS[0], NOW, roamed)
    assert plan(desired, kernel.observe(NAME), NOW + 179.9) == ()
    (action,) = plan(desired, kernel.observe(NAME), NOW + 180)
    assert isinstance(action, SetPeers)
    assert action.changes[0].endpoint == told


def test_an_endpoint_is_the_same_in_another_spelling() -> None:
    kernel = FakeKernel()
    reconcile(kernel, Desired(spec(peer(0, endpoint=Endpoint("2001:DB8::0:7", 9)))))
    same = Desired(spec(peer(0, endpoint=Endpoint("2001:db8::7", 9))))
    assert plan(same, kernel.observe(NAME), NOW) == ()


def test_an_endpoint_by_name_is_refused() -> None:
    desired = Desired(spec(peer(0, endpoint=Endpoint("vpn.example", 9))))
    with pytest.raises(UnresolvedEndpoint, match=r"'vpn\.example:9' is a name: resolve it"):
        plan(desired, HostState(NAME), NOW)


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        (FakeLink("bridge"), "bridge"),
        (FakeLink("tun"), "tun"),
        (FakeLink("device", up=True), "device"),
        (FakeLink(private_key=OWN[1]), "wireguard"),
        (FakeLink(up=True), "wireguard"),
        (FakeLink(alias="uplink of the office"), "wireguard"),
    ],
)
def test_a_taken_name_is_refused_and_left_alone(link: FakeLink, kind: str) -> None:
    kernel = FakeKernel({NAME: deepcopy(link)})
    with pytest.raises(NameTaken, match=rf"'hz0' exists.*'{kind}'.*--interface OTHER") as caught:
        reconcile(kernel, Desired(spec(), ServerFirewall(NAME)))
    assert caught.value.kind == kind
    reconcile(kernel, Desired())
    assert kernel.links == {NAME: link}
    assert kernel.applied == []


@pytest.mark.parametrize(
    "link",
    [
        FakeLink(),
        FakeLink(private_key=OWN[0], up=True),
        FakeLink(alias=ALIAS, private_key=OWN[1]),
    ],
)
def test_our_own_interface_is_adopted(link: FakeLink) -> None:
    kernel = FakeKernel({NAME: link})
    actions = reconcile(kernel, Desired(spec()))
    assert CreateInterface(NAME) not in actions
    check_as_desired(kernel, Desired(spec()))


def test_the_remains_of_our_interface_are_replaced() -> None:
    kernel = FakeKernel({NAME: FakeLink("tun", alias=ALIAS)})
    reconcile(kernel, Desired(spec()))
    check_as_desired(kernel, Desired(spec()))


def test_a_route_of_another_is_not_taken_over() -> None:
    kernel = FakeKernel(routed_elsewhere={ip_network("192.168.5.0/24")})
    with pytest.raises(RouteTaken, match=r"192\.168\.5\.0/24 cannot be routed to 'hz0'"):
        reconcile(kernel, Desired(spec(peer(0, "192.168.5.0/24"))))
    assert kernel.links[NAME].up


def test_the_link_local_address_that_linux_gives_a_tun_is_left_alone() -> None:
    kernel = FakeKernel()
    reconcile(kernel, Desired(spec()))
    kernel.links[NAME].addresses.append(ip_interface("fe80::17a8:e0e:914:8e6e/64"))
    assert plan(Desired(spec()), kernel.observe(NAME), NOW) == ()


def test_the_kernels_own_listen_port_is_kept() -> None:
    kernel = FakeKernel()
    reconcile(kernel, Desired(spec()))
    kernel.links[NAME].listen_port = 40000
    assert plan(Desired(spec()), kernel.observe(NAME), NOW) == ()
    (action,) = plan(Desired(spec(listen_port=51820)), kernel.observe(NAME), NOW)
    assert action == SetDevice(NAME, None, 51820, None)


def test_ipv6_is_left_out_where_the_host_has_none() -> None:
    kernel = FakeKernel(ipv6=False)
    actions = reconcile(kernel, Desired(spec(peer(0, "2001:db8:5::/64", "192.168.5.0/24"))))
    versions = {a.address.version for a in actions if isinstance(a, AddAddress)}
    versions |= {a.network.version for a in actions if isinstance(a, AddRoute)}
    assert versions == {4}


def test_router_advertisements_are_kept_before_forwarding_goes_on() -> None:
    kernel = FakeKernel()
    kernel.sysctls |= {"net/ipv6/conf/eth0/accept_ra": "1", "net/ipv6/conf/eth1/accept_ra": "0"}
    actions = reconcile(kernel, Desired(spec(), ServerFirewall(NAME, client_to_client=True)))
    assert [a for a in actions if isinstance(a, SetSysctl)] == [
        SetSysctl("net/ipv6/conf/eth0/accept_ra", "2"),
        SetSysctl("net/ipv4/ip_forward", "1"),
        SetSysctl("net/ipv6/conf/all/forwarding", "1"),
    ]


def test_forwarding_is_not_touched_without_client_to_client() -> None:
    kernel = FakeKernel()
    reconcile(kernel, Desired(spec(), ServerFirewall(NAME)))
    assert set(kernel.sysctls.values()) == {"0"}


def test_an_altered_table_is_replaced() -> None:
    kernel = FakeKernel()
    desired = Desired(spec(), ServerFirewall(NAME))
    reconcile(kernel, desired)
    kernel.tables[NAME] = ""
    assert reconcile(kernel, desired) == (ReplaceFirewall(ServerFirewall(NAME)),)


def test_planning_peers_needs_an_interface() -> None:
    with pytest.raises(ValueError, match="plan everything"):
        plan_peers({}, HostState(NAME), NOW)
    assert not record(HostState(NAME), ())


def test_what_cannot_be_told_from_actions_is_not_recorded() -> None:
    kernel = FakeKernel()
    reconcile(kernel, Desired(spec()))
    assert not record(kernel.observe(NAME), [CreateInterface(NAME)])


def test_a_client_that_connects_knows_its_host_without_looking_again() -> None:
    kernel = FakeKernel()
    reconcile(kernel, Desired(replace(spec(), addresses=frozenset()), ClientFirewall(NAME)))
    observed = kernel.observe(NAME)
    subnet = ip_network("10.64.0.0/20")
    connected = Desired(spec(peer(0, "10.64.0.0/20")), ClientFirewall(NAME, frozenset({subnet})))
    actions = plan(connected, observed, NOW)
    assert isinstance(actions[-1], ReplaceFirewall)
    for action in actions:
        kernel.apply(action)
    assert record(observed, actions)
    assert observed == kernel.observe(NAME)
    assert plan(connected, observed, NOW) == ()


def test_the_first_firewall_stands_before_the_interface_is_made() -> None:
    actions = plan(Desired(spec(), ClientFirewall(NAME)), HostState(NAME), NOW)
    assert isinstance(actions[0], ReplaceFirewall)


def test_a_failing_action_leaves_a_state_from_which_planning_goes_on() -> None:
    kernel = FakeKernel()
    desired = Desired(spec(peer(0, "10.64.0.2/32")), ServerFirewall(NAME))

    def refuse(action: Action) -> None:
        if isinstance(action, SetPeers):
            raise DataplaneError("no")

    kernel.before_apply = refuse
    with pytest.raises(DataplaneError, match="no"):
        reconcile(kernel, desired)
    kernel.before_apply = lambda action: None
    reconcile(kernel, desired)
    check_as_desired(kernel, desired)
