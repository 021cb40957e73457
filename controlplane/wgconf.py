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
import io
import re
from base64 import b32encode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from typing import TypeVar

from wgconfig import WGConfig

from controlplane.protocol.errors import ProtocolError, SpecError
from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import (
    Endpoint,
    IPAddress,
    IPInterface,
    IPNetwork,
    PeerSpec,
    check_allowed_ips,
    check_unscoped,
)

T = TypeVar("T")

TABLE = "horizon_%i"
"""The hooks' nftables table (family inet); wg-quick writes the interface name for %i."""
_RESERVED = {"all", "default", "lo"}
"""Linux has these under /proc/sys/net/*/conf already."""


@dataclass(frozen=True, slots=True)
class Inbound:
    """Who may open connections from the tunnel inwards; everybody gets answers."""

    accept_from: tuple[IPNetwork, ...] = ()
    never_from: tuple[IPAddress, ...] = ()
    """The servers' own tunnel addresses, also where `accept_from` holds them."""

    def __post_init__(self) -> None:
        check_unscoped((*self.accept_from, *self.never_from))


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
        networks = (network for peer in self.peers for network in peer.allowed_ips)
        check_unscoped((*self.addresses, *self.dns, *networks))
        _number("ListenPort", self.listen_port, 0, 65535)
        if self.mtu is not None:
            _number("MTU", self.mtu, 576, 65535)
        for peer in self.peers:
            _number("PersistentKeepalive", peer.persistent_keepalive, 0, 65535)
        count = Counter(peer.public_key for peer in self.peers)
        for key, times in count.items():
            if times > 1:
                raise SpecError(f"there are {times} peers with the public key {key}: keep one")
        check_allowed_ips(self.peers)
        for key, name in self.names.items():
            if key not in count:
                raise SpecError(f"{name!r} names no peer of this file: there is none with the key {key}")
            if not (name.isprintable() and name == name.strip() and 0 < len(name) <= 100):
                raise SpecError(f"{name[:100]!r} cannot name a peer: use 1 to 100 printable characters")


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
            allowed_ips: list[IPNetwork] = sorted(peer.allowed_ips, key=_order)
            lines.append(f"AllowedIPs = {_join(allowed_ips)}")
        if peer.endpoint is not None:
            lines.append(f"Endpoint = {peer.endpoint}")
        if peer.persistent_keepalive:
            lines.append(f"PersistentKeepalive = {peer.persistent_keepalive}")
    return "\n".join(lines) + "\n"


def parse(text: str) -> WgQuickConfig:
    """Read a wg-quick file. Raises `SpecError` (for a key `KeyFormatError`), which quotes the value.

    Secret keys are not quoted. Settings and hooks that `render` does not write are refused.
    """
    interface, *others = _sections(text)
    peers = [_read_peer(section) for section in others]
    config = WgQuickConfig(
        private_key=interface.one("PrivateKey", PrivateKey.parse),
        addresses=interface.many("Address", ip_interface),
        listen_port=interface.optional("ListenPort", _integer) or 0,
        mtu=interface.optional("MTU", _integer),
        dns=interface.many("DNS", ip_address),
        inbound=_read_hooks(interface.take("PostUp"), interface.take("PreDown")),
        peers=tuple(peers),
        names={peer.public_key: s.comment for peer, s in zip(peers, others, strict=True) if s.comment},
    )
    interface.check_empty()
    return config


def _read_peer(section: _Section) -> PeerSpec:
    peer = PeerSpec(
        public_key=section.one("PublicKey", PublicKey.parse),
        preshared_key=section.optional("PresharedKey", PresharedKey.parse),
        allowed_ips=frozenset(section.many("AllowedIPs", ip_network)),
        endpoint=section.optional("Endpoint", Endpoint.parse),
        persistent_keepalive=section.optional("PersistentKeepalive", _integer) or 0,
    )
    section.check_empty()
    return peer


class _Section:
    """The settings of one section, taken out one after the other; names in any case, as in wg(8)."""

    def __init__(self, title: str, comment: str, lines: Iterable[str]) -> None:
        self.title = title
        self.comment = comment
        # One section at a time: the library would let a second peer with the same key replace the
        # first. Whole-line comments are gone by now, as it reads some of them as settings.
        library = WGConfig()
        library.read_from_fileobj(io.StringIO("\n".join([f"[{title}]", *lines])))
        try:
            read = (
                library.get_interface()
                if title == "Interface"
                else next(iter(library.get_peers(keys_only=False, include_disabled=True).values()))
            )
        except ValueError:  # it takes every numeric character for a digit
            raise SpecError(f"[{title}] has a number in other digits than 0 to 9") from None
        except TypeError:  # it finds a peer by its public key, and takes several for a list
            raise SpecError(f"[{title}] has several values for PublicKey: keep one") from None
        self._settings: dict[str, list[str]] = {}
        for name, values in read.items():
            texts = [str(value) for value in (values if isinstance(values, list) else [values])]
            self._settings.setdefault(name.lower(), []).extend(texts)

    def take(self, name: str) -> list[str]:
        return self._settings.pop(name.lower(), [])

    def many(self, name: str, read: Callable[[str], T]) -> tuple[T, ...]:
        return tuple(self._read(name, text, read) for text in self.take(name))

    def optional(self, name: str, read: Callable[[str], T]) -> T | None:
        texts = self.take(name)
        if len(texts) > 1:
            raise SpecError(f"[{self.title}] has {len(texts)} values for {name}: keep one")
        return self._read(name, texts[0], read) if texts else None

    def one(self, name: str, read: Callable[[str], T]) -> T:
        value = self.optional(name, read)
        if value is None:
            raise SpecError(f"[{self.title}] has no {name}: add it")
        return value

    def check_empty(self) -> None:
        if self._settings:
            raise SpecError(f"[{self.title}] has a setting {min(self._settings)!r}: remove it")

    def _read(self, name: str, text: str, read: Callable[[str], T]) -> T:
        try:
            return read(text)
        except ProtocolError:
            raise
        except ValueError as error:
            raise SpecError(f"{name} = {text!r} in [{self.title}]: {error}") from None


def _sections(text: str) -> list[_Section]:
    """The interface's section, then those of the peers."""
    found: list[tuple[str, str, list[str]]] = []
    comment = ""
    # wg and wg-quick know no other line end; str.splitlines knows ten.
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        setting = line.partition("#")[0].strip()
        if line.startswith("#"):
            comment = line[1:].strip()
        elif setting.startswith("["):
            title = {"[interface]": "Interface", "[peer]": "Peer"}.get(setting.lower())
            if title is None or (title == "Interface") != (not found):
                raise SpecError(
                    f"line {number} is {setting[:40]!r}: expected one [Interface], then [Peer] sections"
                )
            found.append((title, comment, []))
            comment = ""
        elif setting:
            name = re.match(r"([A-Za-z]+)\s*=\s*\S", setting)
            if name is None or not found:
                raise SpecError(
                    f"line {number} ({setting.split()[0][:20]!r}…) is not NAME = VALUE in a section"
                )
            found[-1][2].append(setting)
            comment = ""
    if not found:
        raise SpecError("the configuration is empty: it needs an [Interface] section")
    return [_Section(*section) for section in found]


# --- hooks --------------------------------------------------------------------------------------
# No comma and no '#' in them: wgconfig splits values at the one, wg-quick cuts lines at the other.

_PRE_DOWN = f"nft 'add table inet {TABLE}; delete table inet {TABLE}'"
_RULE = re.compile(r"ip6? saddr (\S+) (accept|drop);")


def _post_up(inbound: Inbound) -> str:
    """One nft transaction that replaces the table; only addresses are filled in, by their types."""
    rules = [
        "ct state established accept;",
        "ct state related accept;",
        *(f"{_family(address)} saddr {address} drop;" for address in inbound.never_from),
        *(f"{_family(network)} saddr {network} accept;" for network in inbound.accept_from),
        "drop;",
    ]
    return (
        f"nft 'add table inet {TABLE}; delete table inet {TABLE}; table inet {TABLE} {{ "
        f"chain from_tunnel {{ {' '.join(rules)} }}; "
        f'chain input {{ {_base("input")} iifname "%i" jump from_tunnel; }}; '
        f'chain forward {{ {_base("forward")} iifname "%i" drop; oifname "%i" drop; }}; }}\''
    )


def _read_hooks(post_up: list[str], pre_down: list[str]) -> Inbound | None:
    """What our own hooks say; None where there are none."""
    if not post_up and not pre_down:
        return None
    rules = [rule for hook in post_up for rule in _RULE.findall(hook)]
    try:
        inbound = Inbound(
            accept_from=tuple(ip_network(text) for text, verdict in rules if verdict == "accept"),
            never_from=tuple(ip_address(text) for text, verdict in rules if verdict == "drop"),
        )
    except ValueError:
        inbound = Inbound()
    if (post_up, pre_down) != ([_post_up(inbound)], [_PRE_DOWN]):
        raise SpecError("PostUp and PreDown are not the hooks that Horizon writes: remove them")
    return inbound


def _base(hook: str) -> str:
    return f"type filter hook {hook} priority filter; policy accept;"


def _family(item: IPAddress | IPNetwork) -> str:
    return "ip" if item.version == 4 else "ip6"


def _join(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _order(network: IPNetwork) -> tuple[int, bytes, int]:
    return network.version, network.network_address.packed, network.prefixlen


def _integer(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError("expected a number")
    return int(text)


def _number(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise SpecError(f"{name} = {value} is not between {least} and {most}")
