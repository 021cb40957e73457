"""Packing and reading peers, with pyroute2's own classes as the second opinion."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

import pytest
from pyroute2.netlink.generic.wireguard import wgmsg

from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import Endpoint, IPNetwork
from dataplane.actions import PeerChange
from dataplane.errors import UnresolvedEndpoint
from dataplane.kernel import _Message
from dataplane.netlink import MAX_PEERS_BYTES, pack_peers, unpack_peers
from dataplane.state import PeerState

KEYS = [PublicKey(bytes([n]) * 32) for n in range(1, 5)]
SECRET = PresharedKey(b"s" * 32)
NETWORKS = frozenset(map(ip_network, ("10.64.0.2/32", "192.168.0.0/16", "fd00::2/128", "::/0")))


def read_by_pyroute2(part: bytes) -> list[Any]:
    message = _Message()
    message["attrs"] = [["WGDEVICE_A_PEERS", part]]
    message.encode()
    read = wgmsg(bytes(message.data))
    read.decode()
    return list(read.get_attr("WGDEVICE_A_PEERS"))


def networks(peer: Any) -> set[IPNetwork]:
    return {ip_network(entry["addr"]) for entry in peer.get_attr("WGPEER_A_ALLOWEDIPS")}


def test_a_whole_peer_reads_back() -> None:
    change = PeerChange(KEYS[0], False, False, NETWORKS, Endpoint("192.0.2.1", 51820), SECRET, 25)
    (peer,) = read_by_pyroute2(*pack_peers([change]))
    assert peer.get_attr("WGPEER_A_PUBLIC_KEY") == str(KEYS[0]).encode()
    assert peer.get_attr("WGPEER_A_PRESHARED_KEY") == SECRET.reveal().encode()
    assert peer.get_attr("WGPEER_A_FLAGS") == 0x2  # WGPEER_F_REPLACE_ALLOWEDIPS
    assert peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 25
    endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("192.0.2.1", 51820)
    assert networks(peer) == NETWORKS


def test_peers_stay_bytes_also_where_pyroute2s_own_message_was_used_before() -> None:
    own = wgmsg()
    own["attrs"] = []
    own.encode()

    class Fresh(_Message):  # as at the first use in a process
        _nlmsg_base__compiled_nla = _Message.__dict__.get("_nlmsg_base__compiled_nla", True)

    message = Fresh()
    message["attrs"] = [["WGDEVICE_A_PEERS", b"x" * 20]]
    message.encode()
    assert message.data.endswith(b"x" * 20)


def test_none_leaves_a_field_out() -> None:
    (peer,) = read_by_pyroute2(*pack_peers([PeerChange(KEYS[0], update_only=True)]))
    assert {name for name, _ in peer["attrs"]} == {"WGPEER_A_PUBLIC_KEY", "WGPEER_A_FLAGS"}
    assert peer.get_attr("WGPEER_A_FLAGS") == 0x4  # WGPEER_F_UPDATE_ONLY


def test_no_allowed_ips_at_all_clears_them() -> None:
    (peer,) = read_by_pyroute2(*pack_peers([PeerChange(KEYS[0], allowed_ips=frozenset())]))
    assert peer.get_attr("WGPEER_A_FLAGS") == 0x2


def test_removal_keeps_the_order() -> None:
    changes = [PeerChange(KEYS[0], remove=True), PeerChange(KEYS[1], persistent_keepalive=0)]
    gone, kept = read_by_pyroute2(*pack_peers(changes))
    assert gone.get_attr("WGPEER_A_FLAGS") == 0x1  # WGPEER_F_REMOVE_ME
    assert kept.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 0


def test_many_peers_go_into_parts_that_a_message_holds() -> None:
    keys = [PublicKey(n.to_bytes(32, "big")) for n in range(1, 1001)]
    parts = list(pack_peers(PeerChange(key, allowed_ips=NETWORKS) for key in keys))
    assert len(parts) > 1
    assert max(map(len, parts)) <= MAX_PEERS_BYTES
    read = [peer.get_attr("WGPEER_A_PUBLIC_KEY") for part in parts for peer in read_by_pyroute2(part)]
    assert read == [str(key).encode() for key in keys]


def test_a_peer_with_many_allowed_ips_goes_on_without_clearing_them() -> None:
    many = frozenset(ip_network(f"10.{n // 256}.{n % 256}.0/24") for n in range(1200))
    parts = list(pack_peers([PeerChange(KEYS[0], allowed_ips=many)]))
    peers = [peer for part in parts for peer in read_by_pyroute2(part)]
    assert max(map(len, parts)) <= MAX_PEERS_BYTES
    assert [peer.get_attr("WGPEER_A_FLAGS") for peer in peers] == [0x2, 0, 0]
    assert set().union(*map(networks, peers)) == many


def dumped(peers: Iterable[list[Any]]) -> bytes:
    """What the kernel sends, by pyroute2; the content of WGDEVICE_A_PEERS."""
    message = wgmsg()
    message["attrs"] = [["WGDEVICE_A_PEERS", [{"attrs": attributes} for attributes in peers]]]
    message.encode()
    read = _Message(bytes(message.data))
    read.decode()
    part: bytes = read.get_attr("WGDEVICE_A_PEERS")
    return part


def allowed(text: str) -> dict[str, Any]:
    network = ip_network(text)
    return {
        "attrs": [
            ["WGALLOWEDIP_A_FAMILY", 2 if network.version == 4 else 10],
            ["WGALLOWEDIP_A_IPADDR", network.network_address.packed],
            ["WGALLOWEDIP_A_CIDR_MASK", network.prefixlen],
        ]
    }


def test_a_dumped_peer_is_read() -> None:
    part = dumped(
        [
            [
                ["WGPEER_A_PUBLIC_KEY", str(KEYS[0])],
                ["WGPEER_A_PRESHARED_KEY", SECRET.reveal()],
                ["WGPEER_A_ENDPOINT", {"addr": "2001:db8::7", "port": 51820, "flowinfo": 0, "scope_id": 0}],
                ["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 25],
                ["WGPEER_A_LAST_HANDSHAKE_TIME", {"tv_sec": 1_800_000_000, "tv_nsec": 500_000_000}],
                ["WGPEER_A_RX_BYTES", 2**40],
                ["WGPEER_A_TX_BYTES", 7],
                ["WGPEER_A_ALLOWEDIPS", [allowed("10.64.0.2/32"), allowed("fd00::/64")]],
            ],
            [
                ["WGPEER_A_PUBLIC_KEY", str(KEYS[1])],
                ["WGPEER_A_PRESHARED_KEY", PresharedKey(bytes(32)).reveal()],
                ["WGPEER_A_LAST_HANDSHAKE_TIME", {"tv_sec": 0, "tv_nsec": 0}],
            ],
        ]
    )
    peers: dict[PublicKey, PeerState] = {}
    unpack_peers(part, peers)
    first = PeerState(
        KEYS[0],
        frozenset({ip_network("10.64.0.2/32"), ip_network("fd00::/64")}),
        Endpoint("2001:db8::7", 51820),
        SECRET,
        25,
        1_800_000_000.5,
        2**40,
        7,
    )
    assert peers == {KEYS[0]: first, KEYS[1]: PeerState(KEYS[1])}


def test_a_peer_that_goes_on_in_the_next_message_is_one() -> None:
    peers: dict[PublicKey, PeerState] = {}
    key = ["WGPEER_A_PUBLIC_KEY", str(KEYS[0])]
    start = [key, ["WGPEER_A_RX_BYTES", 9], ["WGPEER_A_ALLOWEDIPS", [allowed("10.0.0.1/32")]]]
    unpack_peers(dumped([start]), peers)
    unpack_peers(dumped([[key, ["WGPEER_A_ALLOWEDIPS", [allowed("10.0.0.2/32")]]]]), peers)
    both = frozenset({ip_network("10.0.0.1/32"), ip_network("10.0.0.2/32")})
    assert peers == {KEYS[0]: PeerState(KEYS[0], both, received=9)}


def test_ipv4_endpoints_and_networks_survive_packing_and_reading() -> None:
    change = PeerChange(KEYS[0], False, False, NETWORKS, Endpoint("192.0.2.1", 9), SECRET, 5)
    peers: dict[PublicKey, PeerState] = {}
    for part in pack_peers([change]):
        unpack_peers(part, peers)
    assert peers == {KEYS[0]: PeerState(KEYS[0], NETWORKS, Endpoint("192.0.2.1", 9), SECRET, 5)}


def test_a_name_cannot_be_an_endpoint() -> None:
    with pytest.raises(UnresolvedEndpoint, match="resolve it"):
        list(pack_peers([PeerChange(KEYS[0], endpoint=Endpoint("vpn.example", 9))]))


def test_an_interfaces_own_scope_is_kept() -> None:
    change = PeerChange(PrivateKey.generate().public_key, endpoint=Endpoint("fe80::1%lo", 9))
    peers: dict[PublicKey, PeerState] = {}
    for part in pack_peers([change]):
        unpack_peers(part, peers)
    assert peers[change.public_key].endpoint == Endpoint("fe80::1%lo", 9)
