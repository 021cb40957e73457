"""A WireGuard tunnel set up by hand, with `ip` and `wg`, no Horizon in it (shell).

The reference that benchmarks compare with, and a second opinion for tests. Which WireGuard it is,
the kernel's or wireguard-go, is found out once by trying.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from lab.commands import ip, run
from lab.errors import LabError
from lab.hosts import Host
from lab.network import Site

Backend = Literal["kernel", "userspace"]


@functools.cache
def backend() -> Backend:
    """The WireGuard this machine has; the kernel's where there are both. LabError for none."""
    # In a namespace without a name, which is gone when the command ends.
    tried = run(["unshare", "--net", "ip", "link", "add", "wg0", "type", "wireguard"], check=False)
    if tried.returncode == 0:
        return "kernel"
    try:
        run(["wireguard-go", "--version"])
    except FileNotFoundError:
        raise LabError(
            f"no WireGuard: the kernel says '{tried.stderr.strip()}', and there is no wireguard-go"
        ) from None
    return "userspace"


def add_interface(host: Host, interface: str, kind: Backend | None = None) -> None:
    """Make a WireGuard interface on a host, down and without configuration."""
    if (kind or backend()) == "kernel":
        ip([f"link add {interface} type wireguard"], host.namespace)
    else:
        # It returns when the interface is there, and goes on as a daemon.
        host.run(["wireguard-go", interface])


@dataclass(frozen=True)
class End:
    """One end of a tunnel."""

    host: Site
    ipv4: str
    """Its address inside the tunnel."""
    ipv6: str
    public_key: str
    private_key: str = field(repr=False)


@dataclass(frozen=True)
class Tunnel:
    """Two hosts joined by one interface name; `initiator` knows the endpoint of `responder`."""

    initiator: End
    responder: End
    interface: str


@contextmanager
def tunnel(
    initiator: Site,
    responder: Site,
    interface: str = "wg0",
    listen_port: int = 51820,
    mtu: int = 1420,
    kind: Backend | None = None,
) -> Iterator[Tunnel]:
    """Join two hosts for the length of a `with`, by 10.254.0.0/24 and fd00:254::/64.

    Only the initiator has an endpoint and speaks first, so that it may be behind NAT, and so that
    two ends in one kernel never cross their initiations. The handshake comes with the first packet.
    """
    made = Tunnel(_end(initiator, 1), _end(responder, 2), interface)
    added: list[Host] = []
    try:
        for end in (made.initiator, made.responder):
            add_interface(end.host, interface, kind)
            added.append(end.host)
            _configure(made, end, listen_port, mtu)
        yield made
    finally:
        for host in added:
            ip([f"link delete {interface}"], host.namespace)


def latest_handshake(host: Host, interface: str, public_key: str) -> int | None:
    """When the last handshake with a peer was, in Unix seconds; None for never, LabError for whom."""
    for line in host.run(["wg", "show", interface, "latest-handshakes"]).stdout.splitlines():
        peer, seconds = line.split("\t")
        if peer == public_key:
            return int(seconds) or None
    raise LabError(f"'{interface}' on {host.name} has no peer '{public_key}'")


def _end(host: Site, number: int) -> End:
    private = run(["wg", "genkey"]).stdout
    public = run(["wg", "pubkey"], input=private).stdout.strip()
    return End(host, f"10.254.0.{number}", f"fd00:254::{number}", public, private.strip())


def _configure(made: Tunnel, end: End, listen_port: int, mtu: int) -> None:
    peer = made.responder if end is made.initiator else made.initiator
    argv = ["wg", "set", made.interface, "private-key", "/dev/stdin"]
    if end is made.responder:
        argv += ["listen-port", str(listen_port)]
    argv += ["peer", peer.public_key, "allowed-ips", f"{peer.ipv4}/32,{peer.ipv6}/128"]
    if end is made.initiator:
        argv += ["endpoint", f"{peer.host.ipv4}:{listen_port}"]
    end.host.run(argv, input=end.private_key)
    ip(
        [
            f"address add {end.ipv4}/24 dev {made.interface}",
            f"address add {end.ipv6}/64 dev {made.interface} nodad",
            f"link set {made.interface} mtu {mtu} up",
        ],
        end.host.namespace,
    )
