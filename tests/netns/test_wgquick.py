"""Rendered configurations under stock `wg-quick`, against a peer made by hand.

server (wg0: 10.9.0.1, fd09::1, and 10.9.0.77 as if another device)  ---  client (fra1: 10.9.0.2)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from controlplane.protocol.keys import PrivateKey
from controlplane.protocol.wireguard import Endpoint, PeerSpec
from controlplane.wgconf import Inbound, WgQuickConfig, interface_name, parse, render
from lab import Host, Lab, Process, Site, ping, require_netns
from lab.commands import ip, wait_for
from lab.snapshot import COMMANDS
from lab.wireguard import add_interface, latest_handshake

pytestmark = pytest.mark.netns

SERVER4, SERVER6, DEVICE4, CLIENT4, CLIENT6 = "10.9.0.1", "fd09::1", "10.9.0.77", "10.9.0.2", "fd09::2"
NETWORKS = frozenset({ip_network("10.9.0.0/24"), ip_network("fd09::/64")})
INBOUND = Inbound(tuple(sorted(NETWORKS, key=str)), (ip_address(SERVER4), ip_address(SERVER6)))
NAME = interface_name("fra1")
PORT = 7000
LISTEN = f"""
import socket
listener = socket.create_server(("", {PORT}))
print("ready", flush=True)
while True:
    listener.accept()
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[2], int(sys.argv[3])), 1, (sys.argv[1], 0))"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    require_netns("wg-quick")
    with Lab(f"hzwq-{os.getpid()}") as lab:
        yield lab


@pytest.fixture(scope="module")
def server_key() -> PrivateKey:
    return PrivateKey.generate()


@pytest.fixture(scope="module")
def client_key() -> PrivateKey:
    return PrivateKey.generate()


@pytest.fixture(scope="module")
def server(lab: Lab, server_key: PrivateKey, client_key: PrivateKey) -> Site:
    site = lab.site("server")
    add_interface(site, "wg0")
    argv = ["wg", "set", "wg0", "listen-port", "51820", "private-key", "/dev/stdin"]
    argv += ["peer", str(client_key.public_key), "allowed-ips", f"{CLIENT4}/32,{CLIENT6}/128"]
    site.run(argv, input=server_key.reveal())
    addresses = (f"{SERVER4}/24", f"{DEVICE4}/24", f"{SERVER6}/64")
    ip([*(f"address add {a} dev wg0" for a in addresses), "link set wg0 mtu 1380 up"], site.namespace)
    return site


@pytest.fixture(scope="module")
def client(lab: Lab) -> Site:
    return lab.site("client")


@pytest.fixture(scope="module")
def listener(server: Site, client: Site) -> None:
    """A TCP listener on each host."""
    started = [host.spawn([sys.executable, "-I", "-S", "-c", LISTEN]) for host in (server, client)]

    def ready(process: Process) -> bool:
        assert process.alive(), process.log_text()
        return "ready" in process.log_text()

    for process in started:
        wait_for(lambda process=process: ready(process), 10, "a listener")  # type: ignore[misc]


def write(
    client: Site, client_key: PrivateKey, server: Site, server_key: PrivateKey, inbound: Inbound | None
) -> Path:
    peer = PeerSpec(server_key.public_key, NETWORKS, Endpoint(server.ipv4, 51820), None, 25)
    config = WgQuickConfig(
        private_key=client_key,
        addresses=(ip_interface(f"{CLIENT4}/32"), ip_interface(f"{CLIENT6}/128")),
        peers=(peer,),
        names={peer.public_key: "fra1"},
        mtu=1380,
        inbound=inbound,
    )
    text = render(config)
    assert parse(text) == config
    path = client.state_dir / f"{NAME}.conf"
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def connects(host: Host, source: str, target: str, port: int = PORT) -> bool:
    argv = [sys.executable, "-I", "-S", "-c", CONNECT, source, target, str(port)]
    return host.run(argv, check=False).returncode == 0


def state(host: Host) -> dict[str, str]:
    return {name: host.run(argv).stdout for name, argv in COMMANDS.items()}


def tables(host: Host) -> list[str]:
    return host.run(["nft", "list", "tables"]).stdout.split("\n")[:-1]


def wait_for_state(host: Host, before: dict[str, str]) -> None:
    """WireGuard in user space needs a moment to end after its interface went."""
    wait_for(lambda: state(host) == before, 10, "the state from before wg-quick up")


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("hooks", [False, True], ids=["plain", "hooks"])
def test_stock_wg_quick_takes_the_file(
    server: Site, client: Site, server_key: PrivateKey, client_key: PrivateKey, hooks: bool
) -> None:
    path = write(client, client_key, server, server_key, INBOUND if hooks else None)
    before = state(client)
    up = client.run(["wg-quick", "up", str(path)])
    try:
        assert "world accessible" not in up.stderr
        assert client_key.reveal() not in up.stderr
        assert ping(client, SERVER4).lost == 0
        assert ping(client, SERVER6).lost == 0
        assert latest_handshake(server, "wg0", str(client_key.public_key)) is not None
        assert tables(client) == (["table inet horizon_fra1"] if hooks else [])

        # Answers come in either flavour; what the server begins, with hooks, does not.
        assert connects(client, CLIENT4, SERVER4)
        assert connects(server, SERVER4, CLIENT4) == (not hooks)
        assert (ping(server, CLIENT6).lost == 0) == (not hooks)
        # Another device of an accepted network does.
        assert connects(server, DEVICE4, CLIENT4)
    finally:
        client.run(["wg-quick", "down", str(path)])
    wait_for_state(client, before)


def test_hooks_without_accepted_networks_let_nothing_in(
    server: Site, client: Site, server_key: PrivateKey, client_key: PrivateKey, listener: None
) -> None:
    path = write(client, client_key, server, server_key, Inbound())
    client.run(["wg-quick", "up", str(path)])
    try:
        assert connects(client, CLIENT4, SERVER4)
        assert not connects(server, DEVICE4, CLIENT4)
    finally:
        client.run(["wg-quick", "down", str(path)])


def test_hooks_survive_a_table_left_behind_and_one_taken_away(
    server: Site, client: Site, server_key: PrivateKey, client_key: PrivateKey
) -> None:
    """As after a crash, and after somebody's `nft flush ruleset`."""
    path = write(client, client_key, server, server_key, INBOUND)
    before = state(client)
    client.run(["nft", "add table inet horizon_fra1; add chain inet horizon_fra1 old"])
    client.run(["wg-quick", "up", str(path)])
    assert "chain old" not in client.run(["nft", "list", "ruleset"]).stdout
    client.run(["nft", "flush", "ruleset"])
    client.run(["wg-quick", "down", str(path)])
    wait_for_state(client, before)
