import json
import sys

import pytest

from lab import Lab, LabError, Pinger, Site, ping, reaches
from lab.commands import run, wait_for

pytestmark = pytest.mark.netns

# Answers each datagram with the address it came from.
MIRROR = """
import socket, sys
mirror = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
mirror.bind((sys.argv[1], 7))
print('up', flush=True)
while True:
    _, peer = mirror.recvfrom(100)
    mirror.sendto(peer[0].encode(), peer)
"""
ASK = """
import socket, sys
ask = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
ask.settimeout(5)
ask.sendto(b'?', (sys.argv[1], 7))
print(ask.recvfrom(100)[0].decode())
"""


def seen_as(host: Site, server: Site, address: str) -> str:
    """The source address under which `server` hears `host`."""
    mirror = server.spawn([sys.executable, "-I", "-S", "-c", MIRROR, address])
    wait_for(mirror.log_text, 15, "the mirror")
    try:
        return host.run([sys.executable, "-I", "-S", "-c", ASK, address]).stdout.strip()
    finally:
        mirror.kill()


def test_sites_reach_each_other(server: Site, alice: Site) -> None:
    for here, there in ((server, alice), (alice, server)):
        for address in (there.ipv4, there.ipv6):
            result = ping(here, address)
            assert (result.sent, result.received, result.lost) == (3, 3, 0)
            assert result.rtt is not None
            assert 0 < result.rtt.min <= result.rtt.avg <= result.rtt.max


def test_a_new_host_is_reached_by_its_first_packet(lab: Lab, server: Site) -> None:
    carol = lab.site("carol")
    assert ping(carol, server.ipv6, count=1).lost == 0
    assert ping(server, carol.ipv4, count=1).lost == 0


def test_behind_nat_only_the_router_is_seen(bob: Site, server: Site) -> None:
    assert seen_as(bob, server, server.ipv4) == bob.ipv4 != bob.local_ipv4
    assert bob.local_ipv4.startswith("10.")
    assert seen_as(bob, server, server.ipv6) == bob.ipv6


def test_behind_nat_nobody_comes_in_unasked(bob: Site, server: Site, lab: Lab) -> None:
    assert reaches(bob, server.ipv4)
    # Even with a way to the private address, the router lets nothing new through.
    lab.internet.run(["ip", "route", "add", str(bob.network.subnet.ipv4), "via", bob.ipv4])
    for address in (bob.ipv4, bob.local_ipv4, bob.ipv6):
        assert not reaches(server, address, timeout=0.3)
    assert reaches(lab.join("guest", bob.network), bob.local_ipv4)


def test_roaming_changes_the_address_under_a_running_process(lab: Lab, server: Site) -> None:
    roamer = lab.site("roamer")
    process = roamer.spawn(["sleep", "60"])
    for network in (lab.network("cafe"), lab.network("train", nat=True), "roamer"):
        old = roamer.ipv4
        lab.move(roamer, network)
        assert roamer.ipv4 != old
        assert reaches(roamer, server.ipv4)
        assert reaches(roamer, server.ipv6)
        assert seen_as(roamer, server, server.ipv4) == roamer.ipv4
        assert not reaches(server, old, timeout=0.2)
    assert process.alive()
    with pytest.raises(LabError, match="no network 'moon'"):
        lab.move(roamer, "moon")


def test_an_address_passes_on_to_another_host_at_once(lab: Lab, server: Site) -> None:
    first, second = lab.site("first"), lab.site("second")
    address, home = first.ipv4, first.network
    # With a third host there the router keeps its link, and so what it knows of its neighbours.
    lab.join("third", home)
    assert reaches(server, address)
    lab.move(first, second.network)
    lab.move(second, home)
    assert second.ipv4 == address
    assert ping(server, address, count=2).lost == 0
    assert ping(server, second.ipv6, count=2).lost == 0


def test_a_pulled_cable_loses_pings_and_keeps_addresses(lab: Lab, server: Site, alice: Site) -> None:
    # With a second host on its network the router keeps its link, and so goes on sending.
    lab.join("companion", server.network)
    with Pinger(alice, server.ipv4) as pinger:
        pinger.first_reply(10)
        lab.unplug(server)
        for address in (server.ipv4, server.ipv6):
            assert not reaches(alice, address, timeout=0.2)
        lab.plug(server)
        wait_for(lambda: reaches(alice, server.ipv4), 10, "the way back")
        assert reaches(alice, server.ipv6)
    report = pinger.report
    assert report.received > 0
    assert report.lost >= 5
    assert report.longest_gap >= 0.2


def test_shaping_is_real_or_refused(lab: Lab, server: Site, alice: Site) -> None:
    kinds = lab.internet.run(["tc", "qdisc", "add", "dev", "lo", "root", "netem"], check=False)
    if kinds.returncode != 0:
        with pytest.raises(LabError, match="needs CONFIG_NET_SCH_NETEM"):
            lab.shape(alice, delay=0.02)
        return
    lab.shape(alice, delay=0.02)
    delayed = ping(alice, server.ipv4)
    lab.shape(alice, loss=1.0)
    assert not reaches(alice, server.ipv4, timeout=0.2)
    lab.shape(alice)
    assert delayed.rtt is not None
    assert 40 <= delayed.rtt.min < 80
    plain = ping(alice, server.ipv4).rtt
    assert plain is not None
    assert plain.min < 20


def test_no_link_of_the_lab_is_seen_outside(lab: Lab, server: Site) -> None:
    routers = json.loads(lab.internet.run(["ip", "-json", "link"]).stdout)
    ports = {link["address"] for link in routers if link["ifname"].startswith("port")}
    outside = json.loads(run(["ip", "-json", "link"]).stdout)
    assert ports
    assert not ports & {link["address"] for link in outside}
