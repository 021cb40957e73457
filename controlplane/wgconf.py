"""wg-quick configurations, for devices that run plain WireGuard. *Core.*

    text = render(WgQuickConfig(private_key, addresses, {spec: "fra1"}, inbound=Inbound(...)))
    assert parse(text) == config

`render` writes the one canonical file that stock `wg-quick up` takes as it is. With `inbound` the file
also has hooks, which keep an nftables table of their own while the interface is up and enforce what
Horizon's client firewall does: nothing opens a connection from the tunnel inwards, but for the networks
named, and never the server itself. Without (the plain flavour) it suits phone and router apps.

`parse` reads such a file back and refuses what WireGuard would take and silently bend. It is for files
with Horizon's own hooks or none: a hook is a root shell command, so any other is refused.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b32encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from typing import TypeVar

from controlplane.protocol.errors import SpecError
from controlplane.protocol.keys import PrivateKey, PublicKey
from controlplane.protocol.wireguard import (
    IPAddress,
    IPInterface,
    IPNetwork,
    PeerSpec,
    check_allowed_ips,
)

T = TypeVar("T")

TABLE = "horizon_%i"
"""The hooks' nftables table (family inet); wg-quick writes the interface name for %i."""
_PEER_NAME = re.compile(r"[^\x00-\x1f\x7f!\s][^\x00-\x1f\x7f]{0,99}(?<!\s)")


@dataclass(frozen=True, slots=True)
class Inbound:
    """Who may open connections from the tunnel inwards; everybody gets answers."""

    accept_from: tuple[IPNetwork, ...] = ()
    never_from: tuple[IPAddress, ...] = ()
    """The servers' own tunnel addresses, also where `accept_from` holds them."""


@dataclass(frozen=True, slots=True)
class WgQuickConfig:
    """One wg-quick file. Raises `SpecError` for what WireGuard could not hold."""

    private_key: PrivateKey
    addresses: tuple[IPInterface, ...]
    peers: tuple[PeerSpec, ...]
    names: Mapping[PublicKey, str] = field(default_factory=dict)
    """Of peers, for the comments."""
    listen_port: int = 0
    """0: the kernel chooses."""
    mtu: int | None = None
    """None: wg-quick takes it from the route to the endpoint."""
    dns: tuple[IPAddress, ...] = ()
    inbound: Inbound | None = None
    """None: no hooks, the plain flavour."""

    def __post_init__(self) -> None:
        if not self.addresses:
            raise SpecError("the interface has no address: give it one")
        _number("ListenPort", self.listen_port, 0, 65535)
        if self.mtu is not None:
            _number("MTU", self.mtu, 576, 65535)
        for peer in self.peers:
            _number("PersistentKeepalive", peer.persistent_keepalive, 0, 65535)
        keys = [peer.public_key for peer in self.peers]
        for key in keys:
            if keys.count(key) > 1:
                raise SpecError(f"there are {keys.count(key)} peers with the public key {key}: keep one")
        check_allowed_ips(self.peers)
        for name in self.names.values():
            if not _PEER_NAME.fullmatch(name):
                raise SpecError(f"{name!r} cannot name a peer: use up to 100 printable characters")


def interface_name(server_name: str) -> str:
    """The file stem, and so the interface name, for a server: at most 15 characters.

    Short names stay; others keep their beginning and get a hash. No name comes out both ways, so two
    servers share one only if 35 bits of SHA-256 and the first 7 characters agree.
    """
    stays = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", server_name)
    looks_hashed = re.fullmatch(r".{7}-[a-z2-7]{7}", server_name)
    if stays and not looks_hashed and server_name not in _RESERVED:
        return server_name
    start = re.sub(r"[^A-Za-z0-9_.-]", "_", server_name).lstrip(".-")[:7].ljust(7, "_")
    digest = hashlib.sha256(server_name.encode(errors="surrogatepass")).digest()
    return f"{start}-{b32encode(digest).decode().lower()[:7]}"


_RESERVED = {"all", "default", "lo"}
"""Linux has these under /proc/sys/net/*/conf already."""


def render(config: WgQuickConfig) -> str:
    """The text of the file; it holds the private key, so it belongs in a file of mode 0600."""
    lines = ["[Interface]", f"PrivateKey = {config.private_key.reveal()}"]
    lines.append(f"Address = {_join(config.addresses)}")
    if config.listen_port:
        lines.append(f"ListenPort = {config.listen_port}")
    if config.mtu is not None:
        lines.append(f"MTU = {config.mtu}")
    if config.dns:
        lines.append(f"DNS = {_join(config.dns)}")
    if config.inbound is not None:
        lines += [f"PostUp = {_post_up(config.inbound)}", f"PreDown = {_PRE_DOWN}"]
    for peer in config.peers:
        name = config.names.get(peer.public_key)
        lines += ["", *([f"# {name}"] if name else []), "[Peer]", f"PublicKey = {peer.public_key}"]
        if peer.preshared_key is not None:
            lines.append(f"PresharedKey = {peer.preshared_key.reveal()}")
        if peer.allowed_ips:
            ordered = sorted(
                peer.allowed_ips, key=lambda net: (net.version, net.network_address.packed, net.prefixlen)
            )
            lines.append(f"AllowedIPs = {_join(ordered)}")
        if peer.endpoint is not None:
            lines.append(f"Endpoint = {peer.endpoint}")
        if peer.persistent_keepalive:
            lines.append(f"PersistentKeepalive = {peer.persistent_keepalive}")
    return "\n".join(lines) + "\n"


def parse(text: str) -> WgQuickConfig:
    """Read a wg-quick file. Raises `SpecError` (a bad key: `KeyFormatError`), which quotes the value."""
    interface, *peers = _sections(text)
    hooks = interface.texts("PostUp"), interface.texts("PreDown")
    config = WgQuickConfig(
        private_key=interface.one("PrivateKey", PrivateKey.parse),
        addresses=interface.many("Address", ip_interface),
        listen_port=interface.one("ListenPort", int, 0),
        mtu=interface.one("MTU", int, None),
        dns=interface.many("DNS", ip_address),
        inbound=_inbound(*hooks) if any(hooks) else None,
        peers=tuple(_peer(section) for section in peers),
        names={
            section.one("PublicKey", PublicKey.parse): section.comment for section in peers if section.comment
        },
    )
    for section in (interface, *peers):
        section.check_all_read()
    return config
