"""Two clients and a server with traffic between them: what changes for one does not touch the other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from controlplane.protocol.keys import PrivateKey
from controlplane.protocol.wireguard import Endpoint, InterfaceSpec, PeerSpec
from dataplane.state import ClientFirewall, Desired, FirewallSpec, ServerFirewall
from lab import Lab, Pinger, Site, ping, reaches, require_netns
from tests.netns.remote import NAME, RemoteKernel, interface, reconcile, settle

pytestmark = pytest.mark.netns

TUNNEL = (ip_network("10.64.0.0/20"), ip_network("fd00:64::/64"))


@dataclass(frozen=True)
class Node:
    """A host of the tunnel network."""

    site: Site
    kernel: RemoteKernel
    private_key: PrivateKey
    number: int

    @property
    def addresses(self) -> list[str]:
        return [str(network[self.number]) for network in TUNNEL]

    def spec(self, *peers: PeerSpec) -> InterfaceSpec:
        lengths = [network.prefixlen for network in TUNNEL]
        return InterfaceSpec(
            NAME,
            self.private_key,
            frozenset(ip_interface(f"{a}/{n}") for a, n in zip(self.addresses, lengths, strict=True)),
            51820 if self.number == 1 else 0,
            peers={peer.public_key: peer for peer in peers},
        )

    def as_peer(self) -> PeerSpec:
        """As the server knows it: no endpoint, it will call."""
        own = frozenset(ip_network(address) for address in self.addresses)
        return PeerSpec(self.private_key.public_key, own)

    def as_server(self, *more: str) -> PeerSpec:
        """As a client knows the server."""
        networks = frozenset({*TUNNEL, *map(ip_network, more)})
        return PeerSpec(self.private_key.public_key, networks, Endpoint(self.site.ipv4, 51820))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    require_netns()
    with Lab(f"hzbt-{os.getpid()}") as lab:
        yield lab


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> Iterator[list[Node]]:
    with ExitStack() as stack:
        made = []
        for number, name in enumerate(("server", "alice", "bob"), 1):
            site = lab.site(name)
            kernel = stack.enter_context(RemoteKernel(site))
            made.append(Node(site, kernel, PrivateKey.generate(), number))
        yield made


@pytest.fixture(autouse=True)
def down(nodes: list[Node]) -> Iterator[None]:
    yield
    for node in nodes:
        reconcile(node.kernel, Desired())


def client_firewall(server: Node, open_to_clients: bool = False) -> ClientFirewall:
    return ClientFirewall(
        NAME,
        frozenset(TUNNEL) if open_to_clients else frozenset(),
        frozenset(ip_network(ip_address(address)) for address in server.addresses),
    )


def connect(nodes: list[Node], server_firewall: FirewallSpec | None, client: FirewallSpec | None) -> None:
    """All joined, each client with a session."""
    server, *clients = nodes
    peers = [node.as_peer() for node in clients]
    settle(server.kernel, Desired(server.spec(*peers), server_firewall))
    for node in clients:
        settle(node.kernel, Desired(node.spec(server.as_server()), client))
        for address in server.addresses:
            assert reaches(node.site, address, 5), f"{node.site.name} does not reach {address}"


def test_adding_and_removing_a_peer_does_not_touch_the_others(nodes: list[Node]) -> None:
    server, alice, bob = nodes
    connect(nodes, None, None)
    before = interface(server.kernel).peers[alice.private_key.public_key]
    assert before.latest_handshake is not None
    assert before.received > 0
    with Pinger(alice.site, server.addresses[0]) as pinger:
        pinger.first_reply(10)
        settle(server.kernel, Desired(server.spec(alice.as_peer())))
        assert not reaches(bob.site, server.addresses[0])
        settle(server.kernel, Desired(server.spec(alice.as_peer(), bob.as_peer())))
        settle(
            server.kernel,
            Desired(server.spec(alice.as_peer(), replace(bob.as_peer(), persistent_keepalive=9))),
        )
    assert pinger.report.sent > 0
    assert pinger.report.lost == 0
    after = interface(server.kernel).peers[alice.private_key.public_key]
    assert after.latest_handshake == before.latest_handshake
    assert after.received > before.received
    assert after.sent > before.sent
    assert after.endpoint == before.endpoint


def test_a_fresh_session_keeps_the_endpoint_it_learnt(nodes: list[Node]) -> None:
    server, alice, bob = nodes
    connect(nodes, None, None)
    learnt = interface(server.kernel).peers[alice.private_key.public_key].endpoint
    assert learnt is not None
    assert learnt.host == alice.site.ipv4
    told = replace(alice.as_peer(), endpoint=Endpoint("192.0.2.250", 9))
    settle(server.kernel, Desired(server.spec(told, bob.as_peer())))
    assert interface(server.kernel).peers[alice.private_key.public_key].endpoint == learnt
    assert reaches(alice.site, server.addresses[0])


def test_the_tunnel_outlives_its_agents(nodes: list[Node], lab: Lab) -> None:
    server, alice, _ = nodes
    with RemoteKernel(alice.site) as agent:
        settle(agent, Desired(alice.spec(server.as_server()), client_firewall(server)))
    with RemoteKernel(server.site) as agent:
        settle(agent, Desired(server.spec(alice.as_peer()), ServerFirewall(NAME)))
    assert ping(alice.site, server.addresses[0], count=3, timeout=5).lost == 0
    state = interface(server.kernel).peers[alice.private_key.public_key]
    assert state.latest_handshake is not None
    assert abs(state.latest_handshake - time.time()) < 60
