"""Our tables against real packets: who reaches whom through the tunnel.

alice, bob ──tunnel── server ── office (a neighbour of the server, outside the tunnel)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network

import pytest

from controlplane.protocol.keys import PrivateKey
from controlplane.protocol.wireguard import Endpoint, InterfaceSpec, PeerSpec
from dataplane.actions import RemoveFirewall, ReplaceFirewall
from dataplane.firewall import digest, table_name
from dataplane.state import ClientFirewall, Desired, FirewallSpec, ServerFirewall
from lab import Lab, Site, reaches, require_netns
from tests.netns.remote import NAME, RemoteKernel, reconcile, settle

pytestmark = pytest.mark.netns

TUNNEL = (ip_network("10.64.0.0/20"), ip_network("fd00:64::/64"))
SERVER, ALICE, BOB = 1, 2, 3


@dataclass(frozen=True)
class Node:
    """A host of the tunnel network: `spec` is its interface, its firewall changes from test to test."""

    site: Site
    kernel: RemoteKernel
    spec: InterfaceSpec

    def protect(self, firewall: FirewallSpec | None) -> None:
        settle(self.kernel, Desired(self.spec, firewall))

    def dropped(self, chain: str) -> int:
        """Packets counted by the drop rules of a chain."""
        argv = ["nft", "-j", "list", "chain", "inet", table_name(NAME), chain]
        listed = json.loads(self.site.run(argv).stdout)["nftables"]
        rules = [entry["rule"]["expr"] for entry in listed if "rule" in entry]
        return sum(e["counter"]["packets"] for rule in rules for e in rule if "counter" in e)


def inside(number: int) -> list[str]:
    """The tunnel addresses of a node, both families."""
    return [str(network[number]) for network in TUNNEL]


def reached(site: Site, addresses: list[str], timeout: float = 1.0) -> list[bool]:
    return [reaches(site, address, timeout) for address in addresses]


NONE, ALL = [False, False], [True, True]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    require_netns()
    with Lab(f"hzfw-{os.getpid()}") as lab:
        yield lab


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> Iterator[dict[int, Node]]:
    sites = {SERVER: lab.site("server"), ALICE: lab.site("alice"), BOB: lab.site("bob")}
    office = lab.join("office", sites[SERVER].network)
    for version, network, via in (
        ("-4", TUNNEL[0], sites[SERVER].local_ipv4),
        ("-6", TUNNEL[1], sites[SERVER].ipv6),
    ):
        office.run(["ip", version, "route", "add", str(network), "via", via])
    keys = {number: PrivateKey.generate() for number in sites}
    # The clients send what is for the office through the tunnel.
    beyond = {*TUNNEL, ip_network(office.local_ipv4), ip_network(office.ipv6)}
    peers = {
        SERVER: [
            PeerSpec(keys[number].public_key, frozenset(map(ip_network, inside(number))))
            for number in (ALICE, BOB)
        ]
    }
    for number in (ALICE, BOB):
        endpoint = Endpoint(sites[SERVER].ipv4, 51820)
        peers[number] = [PeerSpec(keys[SERVER].public_key, frozenset(beyond), endpoint)]
    with ExitStack() as stack:
        yield {
            number: Node(
                site,
                stack.enter_context(RemoteKernel(site)),
                InterfaceSpec(
                    NAME,
                    keys[number],
                    frozenset(
                        ip_interface(f"{a}/{n.prefixlen}")
                        for a, n in zip(inside(number), TUNNEL, strict=True)
                    ),
                    51820 if number == SERVER else 0,
                    peers={peer.public_key: peer for peer in peers[number]},
                ),
            )
            for number, site in sites.items()
        }


def client(open_to_clients: bool) -> ClientFirewall:
    """A client's table: the server's own addresses are refused though they are in the tunnel."""
    return ClientFirewall(
        NAME,
        frozenset(TUNNEL) if open_to_clients else frozenset(),
        frozenset(map(ip_network, inside(SERVER))),
    )


def join(nodes: dict[int, Node], client_to_client: bool, open_to_clients: bool) -> None:
    nodes[SERVER].protect(ServerFirewall(NAME, client_to_client))
    for number in (ALICE, BOB):
        nodes[number].protect(client(open_to_clients))
        assert reached(nodes[number].site, inside(SERVER), 5) == ALL


def test_clients_reach_each_other_where_both_sides_allow_it(nodes: dict[int, Node]) -> None:
    join(nodes, client_to_client=True, open_to_clients=True)
    assert reached(nodes[ALICE].site, inside(BOB), 5) == ALL
    assert reached(nodes[BOB].site, inside(ALICE), 5) == ALL


def test_a_server_that_does_not_allow_it_drops_and_counts(nodes: dict[int, Node]) -> None:
    # Forwarding is on already where another program needs it; the table has to hold by itself.
    for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        nodes[SERVER].site.run(["sh", "-c", f"echo 1 > /proc/sys/net/{family}"])
    join(nodes, client_to_client=False, open_to_clients=True)
    assert reached(nodes[ALICE].site, inside(BOB)) == NONE
    assert nodes[SERVER].dropped("from_tunnel") >= 2


def test_a_client_that_does_not_accept_it_drops_and_counts(nodes: dict[int, Node]) -> None:
    join(nodes, client_to_client=True, open_to_clients=False)
    assert reached(nodes[ALICE].site, inside(BOB)) == NONE
    assert nodes[BOB].dropped("from_tunnel") >= 2


def test_a_server_opens_no_connection_to_a_client(nodes: dict[int, Node]) -> None:
    join(nodes, client_to_client=True, open_to_clients=True)
    assert reached(nodes[SERVER].site, inside(ALICE)) == NONE
    assert nodes[ALICE].dropped("from_tunnel") >= 2
    assert reached(nodes[ALICE].site, inside(SERVER)) == ALL
    nodes[ALICE].protect(None)
    assert reached(nodes[SERVER].site, inside(ALICE)) == ALL


def test_the_tunnel_leads_nowhere_else(nodes: dict[int, Node], lab: Lab) -> None:
    join(nodes, client_to_client=True, open_to_clients=True)
    office = lab.hosts["office"]
    assert isinstance(office, Site)
    before = nodes[SERVER].dropped("from_tunnel"), nodes[SERVER].dropped("to_tunnel")
    assert reached(nodes[ALICE].site, [office.local_ipv4, office.ipv6]) == NONE
    assert reached(office, inside(ALICE)) == NONE
    assert nodes[SERVER].dropped("from_tunnel") >= before[0] + 2
    assert nodes[SERVER].dropped("to_tunnel") >= before[1] + 2
    nodes[SERVER].protect(None)
    nodes[ALICE].protect(None)
    assert reached(office, inside(ALICE)) == ALL


def test_the_table_stands_beside_others(nodes: dict[int, Node]) -> None:
    site = nodes[ALICE].site
    site.run(["nft", "add table inet theirs; add chain inet theirs c; add rule inet theirs c accept"])
    theirs = site.run(["nft", "list", "table", "inet", "theirs"]).stdout
    nodes[ALICE].protect(client(True))
    nodes[ALICE].protect(client(False))
    reconcile(nodes[ALICE].kernel, Desired())
    assert site.run(["nft", "list", "ruleset"]).stdout == theirs
    site.run(["nft", "delete", "table", "inet", "theirs"])


@pytest.mark.parametrize(
    "alteration",
    [
        f"delete table inet {table_name(NAME)}",
        f"flush table inet {table_name(NAME)}",
        f"flush chain inet {table_name(NAME)} from_tunnel",
        f"flush set inet {table_name(NAME)} refuse_from4",
        f"add element inet {table_name(NAME)} accept_from4 {{ 192.0.2.0/24 }}",
        f"insert rule inet {table_name(NAME)} from_tunnel accept",
    ],
)
def test_an_altered_table_is_seen_and_put_back(nodes: dict[int, Node], alteration: str) -> None:
    spec = client(True)
    spec = ClientFirewall(NAME, frozenset({ip_network("10.64.0.0/20")}), spec.refuse_from)
    nodes[ALICE].protect(spec)
    nodes[ALICE].site.run(["nft", alteration])
    assert nodes[ALICE].kernel.observe(NAME).firewall in {None, ""}
    assert reconcile(nodes[ALICE].kernel, Desired(nodes[ALICE].spec, spec)) == (ReplaceFirewall(spec),)
    assert nodes[ALICE].kernel.observe(NAME).firewall == digest(spec)


def test_traffic_does_not_make_it_look_altered(nodes: dict[int, Node]) -> None:
    join(nodes, client_to_client=True, open_to_clients=False)
    reached(nodes[SERVER].site, inside(ALICE))
    assert nodes[ALICE].dropped("from_tunnel") > 0
    assert nodes[ALICE].kernel.observe(NAME).firewall == digest(client(False))


@pytest.mark.parametrize("name", ["a=+.-_", "x.0", "0-9", "+", "horizon"])
def test_nft_takes_the_table_of_every_interface_name(nodes: dict[int, Node], name: str) -> None:
    kernel = nodes[ALICE].kernel
    networks = frozenset(map(ip_network, ("10.0.0.1/32", "10.0.0.2/32", "10.0.0.4/30", "fd00::/64")))
    spec = ClientFirewall(name, networks)
    kernel.apply(ReplaceFirewall(spec))
    assert kernel.observe(name).firewall == digest(spec)
    kernel.apply(RemoveFirewall(name))
    kernel.apply(RemoveFirewall(name))
    assert kernel.observe(name).firewall is None
