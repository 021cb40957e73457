"""Who is on stage: the fleet, its sites by name, and what steps ask of them (shell)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lab.commands import wait_for
from lab.errors import CommandFailed, LabError
from lab.fleet import START, Fleet, Node, horizon_argv
from lab.network import Lab, Site
from lab.traffic import ping, reaches

SERVER = "fra1"
CLIENTS = ("alice", "bob")
BEHIND_NAT = {"bob"}
PLAIN = "carol"
"""Who has stock WireGuard, and no Horizon."""

DEADLINE = START
"""Seconds for anything that should come about; HORIZON_LAB_PATIENCE sets it for a slow machine."""
SILENCE = 0.5
"""Seconds without an answer that count as none, where none is expected."""
LOG_LINES = 15


@dataclass(frozen=True)
class Addresses:
    """Where a site is inside the tunnel."""

    ipv4: str
    ipv6: str

    @classmethod
    def of(cls, addresses: Sequence[str]) -> Addresses:
        """From a listing such as `["10.64.0.2/20", "fd02::2/64"]`."""
        plain = [address.partition("/")[0] for address in addresses if not address.startswith("fe80:")]
        (ipv4,) = [address for address in plain if ":" not in address]
        (ipv6,) = [address for address in plain if ":" in address]
        return cls(ipv4, ipv6)

    @property
    def both(self) -> tuple[str, str]:
        return self.ipv4, self.ipv6


@dataclass
class Stage:
    """See the module."""

    lab: Lab
    fleet: Fleet
    nodes: dict[str, Node] = field(default_factory=dict)
    """The server and the clients, by name."""
    inside: dict[str, Addresses] = field(default_factory=dict)
    """Everybody's addresses in the tunnel."""
    _interfaces: dict[str, str] = field(default_factory=dict)

    def site(self, name: str) -> Site:
        site = self.lab.hosts[name]
        assert isinstance(site, Site)
        return site

    @property
    def server(self) -> Node:
        return self.nodes[SERVER]

    # --- asking -----------------------------------------------------------------------------

    def broker_answers(self, name: str) -> bool:
        """Whether the agent there says that it reaches the broker; LabError where no agent answers."""
        return bool(self.nodes[name].status()["broker"]["reachable"])

    def agent_answers(self, name: str) -> bool:
        try:
            self.nodes[name].status()
        except CommandFailed as error:
            if _code(error) == "agent-not-running":
                return False
            raise
        return True

    def peers_on_server(self) -> set[str]:
        """The public keys of the peers of the server's interface, as `wg show` lists them."""
        listed = self.server.site.run(["wg", "show", self.interface(SERVER), "peers"]).stdout
        return set(listed.split())

    def interface(self, name: str) -> str:
        """The interface of the agent there."""
        if name not in self._interfaces:
            self._interfaces[name] = str(self.nodes[name].status()["interface"])
        return self._interfaces[name]

    def public_key(self, name: str) -> str:
        return str(self.nodes[name].status()["public_key"])

    def lost(self, source: str, target: str, count: int = 5) -> tuple[int, int, float]:
        """Ping `target` inside the tunnel by both families: sent, lost, average round trip in ms."""
        results = [ping(self.site(source), address, count) for address in self.inside[target].both]
        trips = [result.rtt.avg for result in results if result.rtt]
        sent, lost = sum(r.sent for r in results), sum(r.lost for r in results)
        return sent, lost, sum(trips) / len(trips) if trips else 0.0

    def reaches(self, source: str, target: str) -> bool:
        """Whether `target` answers inside the tunnel by both families."""
        return all(reaches(self.site(source), address) for address in self.inside[target].both)

    def silent(self, source: str, target: str) -> bool:
        """Whether `target` answers by neither."""
        site = self.site(source)
        with ThreadPoolExecutor() as pool:
            return not any(pool.map(lambda to: reaches(site, to, timeout=SILENCE), self.inside[target].both))

    def first_unanswered(self, source: str, target: str) -> float:
        """Ping until one has no answer: when that one was sent, by `time.monotonic()`."""
        sent = 0.0

        def unanswered() -> bool:
            nonlocal sent
            sent = time.monotonic()
            return not reaches(self.site(source), self.inside[target].ipv4, timeout=SILENCE)

        wait_for(unanswered, DEADLINE, f"pings from {source} to {target} without an answer")
        return sent

    def refusal(self, node: Node, *arguments: str) -> str:
        """The code with which a `horizon` command is refused; LabError where it is not."""
        try:
            node.horizon(*arguments)
        except CommandFailed as error:
            return _code(error)
        raise LabError(f"'horizon {' '.join(arguments)}' on {node.name} was not refused")

    def says(self, name: str, *arguments: str) -> str:
        """What a `horizon` command prints for people."""
        node = self.nodes[name]
        return node.site.run([*horizon_argv(), *arguments], env=node.environment).stdout

    # --- doing ------------------------------------------------------------------------------

    def restart(self, *names: str) -> None:
        """Start agents that were killed, together, and wait until they answer."""

        def start(name: str) -> None:
            self.nodes[name].start()
            # A socket that a killed agent left is there before its successor answers on it.
            wait_for(lambda: self.agent_answers(name), DEADLINE, f"the agent on {name} answering", 0.02)

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(start, names):
                pass

    def power_off(self, name: str) -> None:
        """End the agent, and take away all that a reboot takes: interfaces, rules, settings, /run."""
        node, interface = self.nodes[name], self.interface(name)
        node.kill()
        script = (
            f"ip link delete {interface}; nft flush ruleset; "
            "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding; "
            "find /run/horizon /run/wireguard -type s -delete; "
            f"! ip link show {interface} 2>/dev/null"
        )
        node.site.run(["sh", "-c", script])

    def logs(self, names: Sequence[str]) -> str:
        """The ends of what Horizon's processes on these sites wrote."""
        parts = []
        for name in names:
            if name in self.lab.hosts:
                kept = f"*-{Path(horizon_argv()[0]).name}.log"
                files = sorted((self.lab.hosts[name].directory / "logs").glob(kept))
                lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
                parts += [f"--- {name}", *lines[-LOG_LINES:]]
        return "\n".join(parts)


def seconds_until(condition: Callable[[], object], what: str, interval: float = 0.01) -> float:
    """How long it took until `condition()` was true; LabError after the deadline."""
    started = time.monotonic()
    wait_for(condition, DEADLINE, what, interval)
    return time.monotonic() - started


def _code(error: CommandFailed) -> str:
    try:
        return str(json.loads(error.stderr)["error"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
