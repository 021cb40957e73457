import time

import pytest

from lab import Lab, LabError, Site, ping, reaches, require_netns, throughput
from lab.commands import run
from lab.wireguard import Backend, add_interface, backend, latest_handshake, tunnel

pytestmark = pytest.mark.netns


@pytest.fixture(params=["kernel", "userspace"])
def kind(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    if chosen == "kernel":
        require_netns()
        if backend() != "kernel":
            pytest.skip("this kernel has no WireGuard")
    else:
        require_netns("wireguard-go")
    return chosen


def test_two_hosts_use_the_same_interface_name(server: Site, alice: Site, kind: Backend) -> None:
    for host in (server, alice):
        add_interface(host, "hz0", kind)
    key = run(["wg", "genkey"]).stdout
    server.run(["wg", "set", "hz0", "private-key", "/dev/stdin"], input=key)
    assert server.run(["wg", "show", "hz0", "private-key"]).stdout == key
    assert alice.run(["wg", "show", "hz0", "private-key"]).stdout == "(none)\n"
    assert server.run(["wg", "show", "interfaces"]).stdout.split() == ["hz0"]
    for host in (server, alice):
        host.run(["ip", "link", "delete", "hz0"])


def test_a_tunnel_by_hand(bob: Site, server: Site, kind: Backend) -> None:
    with tunnel(bob, server, kind=kind) as made:
        key = made.initiator.public_key
        assert latest_handshake(server, "wg0", key) is None
        # From behind NAT, and back through it.
        assert ping(bob, made.responder.ipv4).lost == 0
        assert ping(server, made.initiator.ipv6).lost == 0
        assert throughput(bob, server, made.responder.ipv6, seconds=1) > 1e6
        handshake = latest_handshake(server, "wg0", key)
        assert handshake is not None
        assert abs(time.time() - handshake) < 30
        assert made.initiator.private_key not in repr(made)
        with pytest.raises(LabError, match="no peer 'nobody'"):
            latest_handshake(server, "wg0", "nobody")
    assert not reaches(bob, made.responder.ipv4, timeout=0.2)
    for host in (bob, server):
        assert "wg0" not in host.run(["ip", "-br", "link"]).stdout


def test_a_tunnel_half_made_is_undone(lab: Lab, server: Site, alice: Site) -> None:
    alice.run(["ip", "link", "add", "taken", "type", "bridge"])
    with pytest.raises(LabError, match="taken"), tunnel(server, alice, "taken"):
        pass
    assert "taken" not in server.run(["ip", "-br", "link"]).stdout
    assert "taken" in alice.run(["ip", "-br", "link"]).stdout


def test_a_tunnel_roams(lab: Lab, server: Site) -> None:
    dora = lab.site("dora")
    with tunnel(dora, server) as made:
        assert ping(dora, made.responder.ipv4).lost == 0
        lab.move(dora, lab.network("hotel", nat=True))
        # wireguard-go clings to its old source address where the kernel refuses that by
        # ENETUNREACH (it expects EINVAL); to be given the endpoint again frees it.
        again = ["endpoint", f"{server.ipv4}:51820"]
        dora.run(["wg", "set", "wg0", "peer", made.responder.public_key, *again])
        assert ping(dora, made.responder.ipv4).received > 0
        endpoints = server.run(["wg", "show", "wg0", "endpoints"]).stdout
        assert f"\t{dora.ipv4}:" in endpoints
