"""The text of our nftables table, from what it shall do. *Core.*

One table `inet horizon_NAME` per interface, replaced in one transaction. It judges only what comes
from or goes to that interface, and a drop is counted. Networks stand in sets, so a packet costs the
same however many there are.

- Server: the interface forwards to itself (client to client) or not; nothing else goes through it
  but answers.
- Client: answers come in, and connections from `accept_from`; no server opens a connection to the
  client ("no reverse connections"), and the host forwards nothing for the tunnel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from controlplane.protocol.wireguard import IPNetwork, check_interface_name
from dataplane.state import ClientFirewall, FirewallSpec, ServerFirewall

ICMPV6_ESSENTIALS = (
    "destination-unreachable",
    "packet-too-big",
    "time-exceeded",
    "parameter-problem",
    "nd-neighbor-solicit",
    "nd-neighbor-advert",
)
"""RFC 4890 section 4.4.1; without packet-too-big a path's MTU is not found."""
FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
"""What client-to-client needs, by path below /proc/sys."""


def table_name(interface: str) -> str:
    """The table of an interface: a name of its own for each, in the letters that nft allows."""
    name = check_interface_name(interface)
    return "horizon_" + re.sub(r"[^A-Za-z0-9_.-]", lambda found: f"/{ord(found[0]):02x}", name)


def digest(spec: FirewallSpec) -> str:
    """What tells this table from another: 32 hexadecimal digits."""
    return text_digest(render(spec))


def text_digest(text: str) -> str:
    """A short SHA-256 of a text."""
    return sha256(text.encode()).hexdigest()[:32]


def needs_forwarding(spec: FirewallSpec | None) -> bool:
    """Whether the host must forward packets for this table to make sense."""
    return isinstance(spec, ServerFirewall) and spec.client_to_client


def render(spec: FirewallSpec, comment: str = "") -> str:
    """Input for `nft -f -` that replaces the interface's table. Raises `SpecError` for a bad name."""
    table = f"table inet {table_name(spec.interface)}"
    body = _server(spec) if isinstance(spec, ServerFirewall) else _client(spec)
    lines = [f'comment "{comment}"', *body] if comment else body
    # Created if missing, so that the delete never fails.
    return "\n".join([table, f"delete {table}", f"{table} {{", *lines, "}", ""])


def _server(spec: ServerFirewall) -> list[str]:
    tunnel = f'"{spec.interface}"'
    return [
        *_base("forward", f"iifname {tunnel} jump from_tunnel", f"oifname {tunnel} jump to_tunnel"),
        *_chain(
            "from_tunnel",
            f"oifname {tunnel} {'accept' if spec.client_to_client else 'counter drop'}",
            "ct state established,related accept",
            "counter drop",
        ),
        *_chain("to_tunnel", "ct state established,related accept", "counter drop"),
    ]


def _client(spec: ClientFirewall) -> list[str]:
    tunnel = f'"{spec.interface}"'
    return [
        *_sets("accept_from", spec.accept_from),
        *_sets("refuse_from", spec.refuse_from),
        *_base("input", f"iifname {tunnel} jump from_tunnel"),
        *_chain(
            "from_tunnel",
            "ct state established,related accept",
            f"icmpv6 type {{ {', '.join(ICMPV6_ESSENTIALS)} }} accept",
            "ip saddr @refuse_from4 counter drop",
            "ip6 saddr @refuse_from6 counter drop",
            "ct state new ip saddr @accept_from4 accept",
            "ct state new ip6 saddr @accept_from6 accept",
            "counter drop",
        ),
        *_base("forward", f"iifname {tunnel} counter drop", f"oifname {tunnel} counter drop"),
    ]


def _chain(name: str, *rules: str) -> list[str]:
    return [f"chain {name} {{", *rules, "}"]


def _base(hook: str, *rules: str) -> list[str]:
    return _chain(hook, f"type filter hook {hook} priority filter; policy accept;", *rules)


def _sets(name: str, networks: Iterable[IPNetwork]) -> list[str]:
    networks = list(networks)
    v4 = collapse_addresses(n for n in networks if isinstance(n, IPv4Network))
    v6 = collapse_addresses(n for n in networks if isinstance(n, IPv6Network))
    return [*_set(f"{name}4", "ipv4_addr", v4), *_set(f"{name}6", "ipv6_addr", v6)]


def _set(name: str, kind: str, networks: Iterable[IPNetwork]) -> list[str]:
    elements = ", ".join(map(str, networks))
    filled = [f"elements = {{ {elements} }}"] if elements else []
    return [f"set {name} {{", f"type {kind}; flags interval;", *filled, "}"]
