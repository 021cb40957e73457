"""Where to look while the demo stays up: addresses, and commands ready to paste (shell)."""

from __future__ import annotations

import shlex

from lab.demo.stage import Stage
from lab.fleet import Node, horizon_argv

SHELL = "bash"


def tour(stage: Stage) -> str:
    """Text for another terminal of root's."""
    lines = ["", "It stays up. From another terminal, as root:", ""]
    rows = [("site", "seen at", "IPv6", "in the tunnel")]
    for name, host in stage.lab.hosts.items():
        if name in {"broker", *stage.inside}:
            site, inside = stage.site(name), stage.inside.get(name)
            rows.append((host.name, site.ipv4, site.ipv6, ", ".join(inside.both) if inside else "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  " + "   ".join(cells).rstrip())
    lines.append("  (bob's device was revoked above)")
    for title, node, command in _commands(stage):
        lines += ["", f"  # {title}", f"  {paste(node, command)}"]
    return "\n".join([*lines, ""])


def paste(node: Node, command: list[str]) -> str:
    """One line that runs `command` on the node's site; Horizon's finds its state by the environment."""
    variables = [f"{name}={value}" for name, value in node.environment.items()]
    needs = command[0] in {horizon_argv()[0], SHELL}
    return shlex.join(node.site.exec_argv(["env", *variables, *command] if needs else command))


def _commands(stage: Stage) -> list[tuple[str, Node, list[str]]]:
    horizon = horizon_argv()
    alice, server, broker = stage.nodes["alice"], stage.server, stage.fleet.broker
    inside = stage.inside[server.name]
    return [
        ("what alice's agent observes", alice, [*horizon, "client", "status"]),
        ("through the tunnel", alice, ["ping", "-c", "3", inside.ipv6]),
        ("the server's peers, as WireGuard sees them", server, ["wg", "show"]),
        ("who is connected, for the administrator", broker, [*horizon, "admin", "connection", "list"]),
        ("a shell on alice", alice, [SHELL]),
        ("a shell on the server", server, [SHELL]),
    ]
