"""One interface on one host: what `Host` makes, as `ip` and `wg` see it, and what it leaves alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest

from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import Endpoint, InterfaceSpec, PeerSpec
from dataplane.actions import CreateInterface, RemoveInterface, SetPeers
from dataplane.errors import BackendError, NameTaken, NoBackend, NotPermitted, RouteTaken
from dataplane.plan import plan, plan_peers, record
from dataplane.state import ALIAS, BackendKind, ClientFirewall, Desired, Obstacle, ServerFirewall
from lab import Lab, Site, require_netns
from lab.commands import wait_for
from lab.hosts import processes
from lab.wireguard import add_interface, backend
from tests.netns.remote import BACKEND, NAME, RemoteKernel, interface, reconcile, settle

pytestmark = pytest.mark.netns

OWN = PrivateKey.generate()
KEYS = [PrivateKey.generate().public_key for _ in range(3)]
SECRET = PresharedKey.generate()


def kind() -> BackendKind:
    """The backend that the ring runs on."""
    return backend() if BACKEND == "auto" else BACKEND


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require_netns()
    with Lab(f"hzbi-{os.getpid()}") as lab:
        yield lab.site("host")


@pytest.fixture(scope="module")
def agent(site: Site) -> Iterator[RemoteKernel]:
    with RemoteKernel(site) as kernel:
        yield kernel


@pytest.fixture
def kernel(agent: RemoteKernel) -> Iterator[RemoteKernel]:
    yield agent
    reconcile(agent, Desired())


def peer(number: int, *networks: str, **fields: object) -> PeerSpec:
    made = PeerSpec(KEYS[number], frozenset(map(ip_network, networks)))
    return replace(made, **fields)  # type: ignore[arg-type]


def spec(*peers: PeerSpec, **fields: object) -> InterfaceSpec:
    made = InterfaceSpec(
        NAME,
        OWN,
        frozenset({ip_interface("10.64.0.1/20"), ip_interface("fd00:64::1/64")}),
        51820,
        peers={each.public_key: each for each in peers},
    )
    return replace(made, **fields)  # type: ignore[arg-type]


OFFICE = peer(
    0,
    "10.64.0.2/32",
    "fd00:64::2/128",
    "192.168.5.0/24",
    "2001:db8:99::/64",
    endpoint=Endpoint("192.0.2.9", 51820),
    preshared_key=SECRET,
    persistent_keepalive=25,
)


def wg(site: Site, what: str) -> dict[str, str]:
    """`wg show hz0 WHAT`, by public key."""
    lines = site.run(["wg", "show", NAME, what]).stdout.splitlines()
    return dict(line.split("\t", 1) for line in lines)


def test_all_is_made_as_ip_and_wg_see_it(kernel: RemoteKernel, site: Site) -> None:
    state = settle(kernel, Desired(spec(OFFICE, fwmark=0x51820), ServerFirewall(NAME)))
    assert state.interface is not None
    assert state.interface.backend == kind()
    key = str(KEYS[0])
    assert set(wg(site, "allowed-ips")[key].split()) == set(map(str, OFFICE.allowed_ips))
    assert wg(site, "endpoints")[key] == "192.0.2.9:51820"
    assert wg(site, "preshared-keys")[key] == SECRET.reveal()
    assert wg(site, "persistent-keepalive")[key] == "25"
    assert site.run(["wg", "show", NAME, "public-key"]).stdout.strip() == str(OWN.public_key)
    assert site.run(["wg", "show", NAME, "listen-port"]).stdout.strip() == "51820"
    assert site.run(["wg", "show", NAME, "fwmark"]).stdout.strip() == "0x51820"
    link = site.run(["ip", "link", "show", "dev", NAME]).stdout
    assert "mtu 1380" in link
    assert ",UP" in link
    assert f"alias {ALIAS}" in link
    addresses = site.run(["ip", "-o", "address", "show", "dev", NAME]).stdout
    assert "inet 10.64.0.1/20" in addresses
    assert "inet6 fd00:64::1/64 scope global nodad" in addresses
    assert "tentative" not in addresses
    routes = site.run(["ip", "route", "show", "dev", NAME, "proto", "72"]).stdout
    assert routes.split()[0] == "192.168.5.0/24"
    assert len(routes.splitlines()) == 1
    routes = site.run(["ip", "-6", "route", "show", "dev", NAME, "proto", "72"]).stdout
    assert routes.split()[0] == "2001:db8:99::/64"
    assert len(routes.splitlines()) == 1


def test_what_is_no_longer_set_is_cleared(kernel: RemoteKernel) -> None:
    settle(kernel, Desired(spec(OFFICE, peer(1, "10.64.0.3/32")), ServerFirewall(NAME)))
    bare = spec(peer(0, "10.64.0.2/32"), listen_port=51821, mtu=1420)
    state = settle(kernel, Desired(bare))
    assert state.firewall is None
    assert state.interface is not None
    (left,) = state.interface.peers.values()
    assert (left.preshared_key, left.persistent_keepalive) == (None, 0)
    assert left.allowed_ips == {ip_network("10.64.0.2/32")}
    assert state.interface.routes == set()
    assert (state.interface.listen_port, state.interface.mtu) == (51821, 1420)


def test_allowed_ips_move_between_peers(kernel: RemoteKernel) -> None:
    one, two = "10.64.0.2/32", "10.64.0.3/32"
    settle(kernel, Desired(spec(peer(0, one), peer(1, two))))
    settle(kernel, Desired(spec(peer(0, two), peer(1, one))))
    settle(kernel, Desired(spec(peer(2, one, two))))
    assert interface(kernel).peers.keys() == {KEYS[2]}


def test_planning_some_peers_leaves_what_was_recorded(kernel: RemoteKernel) -> None:
    quiet = replace(OFFICE, persistent_keepalive=0)
    observed = settle(kernel, Desired(spec(quiet, peer(1, "10.64.0.3/32"))))
    moved = replace(quiet, public_key=KEYS[2])
    actions = plan_peers({KEYS[0]: None, KEYS[2]: moved}, observed, time.time())
    assert [type(action) for action in actions] == [SetPeers]
    for action in actions:
        kernel.apply(action)
    record(observed, actions)
    assert kernel.observe(NAME) == observed


def test_a_changed_primary_address_costs_neither_address_nor_route(kernel: RemoteKernel) -> None:
    both = frozenset({ip_interface("10.64.0.1/20"), ip_interface("10.64.0.9/20")})
    settle(kernel, Desired(spec(OFFICE, addresses=both)))
    settle(kernel, Desired(spec(OFFICE, addresses=frozenset({ip_interface("10.64.0.9/20")}))))
    settle(kernel, Desired(spec(OFFICE, addresses=frozenset({ip_interface("10.64.0.7/20")}))))


def test_ipv6_comes_and_goes_with_the_mtu(kernel: RemoteKernel) -> None:
    for mtu, versions in ((1200, {4}), (1380, {4, 6})):
        state = settle(kernel, Desired(spec(OFFICE, mtu=mtu)))
        assert state.interface is not None
        assert {a.version for a in state.interface.addresses} == versions
        assert {n.version for n in state.interface.routes} == versions


def test_a_host_without_ipv6_gets_the_rest(kernel: RemoteKernel, site: Site) -> None:
    switch = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
    site.run(["sh", "-c", f"echo 1 > {switch}"])
    try:
        state = settle(kernel, Desired(spec(OFFICE)))
    finally:
        site.run(["sh", "-c", f"echo 0 > {switch}"])
    assert state.interface is not None
    assert {a.version for a in state.interface.addresses} == {4}
    assert state.interface.routes == {ip_network("192.168.5.0/24")}


def test_what_others_did_to_it_is_mended(kernel: RemoteKernel, site: Site) -> None:
    desired = Desired(spec(OFFICE), ServerFirewall(NAME))
    settle(kernel, desired)
    site.run(["ip", "address", "flush", "dev", NAME])
    site.run(["ip", "link", "set", "down", "dev", NAME])
    site.run(["wg", "set", NAME, "peer", str(KEYS[0]), "remove"])
    site.run(["nft", "flush", "ruleset"])
    settle(kernel, desired)


def test_a_new_agent_goes_on_with_the_interface_of_the_old(kernel: RemoteKernel, site: Site) -> None:
    desired = Desired(spec(OFFICE), ServerFirewall(NAME))
    with RemoteKernel(site) as old:
        settle(old, desired)
    index = site.run(["cat", f"/sys/class/net/{NAME}/ifindex"]).stdout
    assert plan(desired, kernel.observe(NAME), time.time()) == ()
    settle(kernel, Desired(spec(OFFICE, peer(1, "10.64.0.3/32")), ServerFirewall(NAME)))
    assert site.run(["cat", f"/sys/class/net/{NAME}/ifindex"]).stdout == index


def test_a_blank_interface_left_by_a_crash_is_adopted(kernel: RemoteKernel) -> None:
    kernel.apply(CreateInterface(NAME))
    assert interface(kernel).blank
    actions = reconcile(kernel, Desired(spec(OFFICE)))
    assert CreateInterface(NAME) not in actions
    assert plan(Desired(spec(OFFICE)), kernel.observe(NAME), time.time()) == ()


@pytest.mark.parametrize(
    ("made_by", "found"),
    [
        (["ip", "link", "add", NAME, "type", "bridge"], "bridge"),
        (["ip", "tuntap", "add", NAME, "mode", "tun"], "tun"),
        (["ip", "link", "add", NAME, "type", "veth"], "veth"),
    ],
)
def test_a_link_of_another_kind_is_refused_and_left_alone(
    kernel: RemoteKernel, site: Site, made_by: list[str], found: str
) -> None:
    site.run(made_by)
    try:
        before = site.run(["ip", "-d", "link"]).stdout
        assert kernel.observe(NAME).obstacle == Obstacle(found)
        with pytest.raises(NameTaken, match=f"'{found}'.*--interface OTHER"):
            reconcile(kernel, Desired(spec(OFFICE), ServerFirewall(NAME)))
        reconcile(kernel, Desired())
        assert site.run(["ip", "-d", "link"]).stdout == before
        assert site.run(["nft", "list", "ruleset"]).stdout == ""
    finally:
        site.run(["ip", "link", "delete", NAME])


def test_another_ones_wireguard_is_refused_and_left_alone(kernel: RemoteKernel, site: Site) -> None:
    add_interface(site, NAME, kind())
    try:
        key = PrivateKey.generate()
        site.run(["wg", "set", NAME, "private-key", "/dev/stdin"], input=key.reveal())
        with pytest.raises(NameTaken, match="'wireguard'"):
            reconcile(kernel, Desired(spec(OFFICE)))
        assert reconcile(kernel, Desired()) == ()
        shown = site.run(["wg", "show", NAME, "public-key"]).stdout.strip()
        assert shown == str(key.public_key)
    finally:
        kernel.apply(RemoveInterface(NAME))


def test_a_route_of_another_stays(kernel: RemoteKernel, site: Site) -> None:
    site.run(["ip", "route", "add", "blackhole", "192.168.5.0/24"])
    try:
        with pytest.raises(RouteTaken, match=r"192\.168\.5\.0/24"):
            reconcile(kernel, Desired(spec(OFFICE)))
        assert "blackhole 192.168.5.0/24" in site.run(["ip", "route"]).stdout
        assert interface(kernel).up
    finally:
        site.run(["ip", "route", "del", "blackhole", "192.168.5.0/24"])
    settle(kernel, Desired(spec(OFFICE)))


def test_down_leaves_nothing(kernel: RemoteKernel, site: Site) -> None:
    def everything() -> str:
        looks = (
            *(["ip", "-d", "link"], ["ip", "address"], ["ip", "route"], ["ip", "-6", "route"]),
            *(["ip", "rule"], ["nft", "list", "ruleset"], ["ls", "/var/run/wireguard/"]),
        )
        seen = [site.run(look, check=False).stdout for look in looks]
        return "\n".join([*seen, *map(str, sorted(processes(site.namespace)))])

    before = everything()
    settle(kernel, Desired(spec(OFFICE), ClientFirewall(NAME)))
    assert NAME in everything()
    settle(kernel, Desired())
    # The daemon's socket is gone before its process has quite ended.
    wait_for(lambda: everything() == before, 10, "the host as it was before")


def test_a_listen_port_in_use_is_named(kernel: RemoteKernel, site: Site) -> None:
    script = "import socket; s = socket.socket(type=2); s.bind(('', 51820)); print(1, flush=True); input()"
    holder = site.popen(["python3", "-c", script], stdin=-1, stdout=-1)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"1\n"
    with pytest.raises(BackendError, match="listen port"):
        reconcile(kernel, Desired(spec()))
    holder.stdin.write(b"\n")
    holder.stdin.close()
    holder.wait(10)
    settle(kernel, Desired(spec()))


def test_thousands_of_peers_and_of_allowed_ips(kernel: RemoteKernel) -> None:
    keys = [PublicKey(n.to_bytes(32, "little")) for n in range(2, 2002)]
    peers = [
        PeerSpec(key, frozenset({ip_network(f"10.64.{n // 250}.{n % 250}/32")})) for n, key in enumerate(keys)
    ]
    many = frozenset(ip_network(f"fd00:64::{n:x}:0/112") for n in range(1, 1500))
    peers.append(PeerSpec(KEYS[0], many))
    wide = frozenset({ip_interface("10.64.0.1/16"), ip_interface("fd00:64::1/64")})
    state = settle(kernel, Desired(spec(*peers, addresses=wide)))
    assert state.interface is not None
    assert len(state.interface.peers) == 2001
    settle(kernel, Desired(spec(*peers[:10], addresses=wide)))


def test_without_the_right_the_error_names_it(kernel: RemoteKernel, site: Site) -> None:
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]
    with (
        RemoteKernel(site, prefix=drop) as powerless,
        pytest.raises(NotPermitted, match="CAP_NET_ADMIN"),
    ):
        reconcile(powerless, Desired(spec()))
    assert kernel.observe(NAME).interface is None


def test_a_daemon_that_died_is_replaced(kernel: RemoteKernel, site: Site) -> None:
    if kind() == "kernel":
        pytest.skip("the kernel has no daemon")
    before = set(processes(site.namespace))
    settle(kernel, Desired(spec(OFFICE)))
    (daemon,) = set(processes(site.namespace)) - before
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: kernel.observe(NAME).interface is None, 10, "the end of the interface")
    settle(kernel, Desired(spec(OFFICE)))


def test_userspace_is_never_taken_silently(kernel: RemoteKernel, site: Site) -> None:
    if backend() == "kernel":
        pytest.skip("the kernel has WireGuard")
    with RemoteKernel(site, "kernel") as strict, pytest.raises(NoBackend, match="module 'wireguard'"):
        strict.apply(CreateInterface(NAME))
    with RemoteKernel(site, "auto") as easy:
        easy.apply(CreateInterface(NAME))
        assert "WARNING" in easy.log
        assert "using WireGuard in user space" in easy.log
        assert interface(easy).backend == "userspace"
        easy.apply(RemoveInterface(NAME))
