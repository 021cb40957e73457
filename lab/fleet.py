"""Horizon itself in a lab: a broker, servers and clients as real processes on their own hosts.

>>> with Lab("hztest-1") as lab:
...     fleet = Fleet(lab)
...     fleet.start_broker()
...     server = fleet.add_server("fra1")
...     alice = fleet.add_client("alice")
...     alice.horizon("client", "connect", "fra1")

Everything goes through the command line, as a user would do it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.commands import wait_for
from lab.errors import LabError
from lab.hosts import Process
from lab.network import Lab, Site

PORT = 8443
START = float(os.environ.get("HORIZON_LAB_PATIENCE", "30"))
"""Seconds for a process to come up; a slow kernel needs more."""


def horizon_argv() -> list[str]:
    """The `horizon` command of this environment."""
    script = Path(sys.executable).parent / "horizon"
    return [str(script)] if script.exists() else [sys.executable, "-m", "horizon"]


@dataclass
class Node:
    """A site with a Horizon role on it."""

    site: Site
    role: str
    """broker, server or client."""
    user: str = ""
    process: Process | None = None

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def environment(self) -> dict[str, str]:
        state = str(self.site.state_dir)
        return {
            "HORIZON_STATE_DIR": state,
            "HORIZON_DATA_DIR": state,
            "HORIZON_ADMIN_LOGIN": f"{state}/admin.json",
        }

    def horizon(self, *arguments: str, timeout: float = 60.0) -> Any:
        """Run a `horizon` command with --json; what it printed, decoded."""
        argv = [*horizon_argv(), *arguments, "--json"]
        printed = self.site.run(argv, timeout=timeout, env=self.environment).stdout
        return json.loads(printed) if printed.strip() else None

    def start(self, *options: str) -> None:
        """Run the role, and wait until it answers."""
        argv = [*horizon_argv(), self.role, "run", *options]
        self.process = self.site.spawn(argv, env=self.environment)
        if self.role != "broker":
            wait_for(self._answers, START, f"the {self.role} agent on {self.name}", 0.02)

    def kill(self) -> None:
        """kill -9: no word to anybody, and no clean-up."""
        if self.process is not None:
            self.process.kill()

    def log_text(self) -> str:
        return self.process.log_text() if self.process else ""

    def status(self) -> Any:
        return self.horizon(self.role, "status")

    def _answers(self) -> bool:
        if self.process is None or not self.process.alive():
            raise LabError(f"the {self.role} on {self.name} ended: '{self.log_text()[-2000:]}'")
        # The socket file appears when the agent serves it; no process is spent on the question.
        pid = self.process.pid
        return Path(f"/proc/{pid}/root/run/horizon/{self.role}.sock").exists()


@dataclass
class Fleet:
    """See the module."""

    lab: Lab
    backend: str = field(default_factory=lambda: os.environ.get("HORIZON_BACKEND", "auto"))
    nodes: list[Node] = field(default_factory=list)
    _broker: Node | None = None

    @property
    def broker(self) -> Node:
        if self._broker is None:
            raise LabError("the fleet has no broker yet: call start_broker()")
        return self._broker

    def start_broker(self, *options: str) -> Node:
        """Start the broker (again), on its own site, and log its administrator in the first time."""
        first = self._broker is None
        if first:
            self._broker = Node(self.lab.site("broker"), "broker")
        broker = self.broker
        broker.start("--advertise", f"{broker.site.ipv4}:{PORT}", *options)
        wait_for(self._listens, START, "the broker listening", 0.02)
        if first:
            invite = broker.horizon("broker", "invite")["invite"]
            self.broker.horizon("admin", "login", invite)
        return broker

    def admin(self, *arguments: str) -> Any:
        """`horizon admin ...`, decoded."""
        return self.broker.horizon("admin", *arguments)

    def add_server(self, name: str, *options: str, site: Site | None = None) -> Node:
        """A server that has joined and runs."""
        node = Node(site or self.lab.site(name), "server")
        invite = self.admin("registration-key", "create")["invite"]
        endpoint = ["--endpoint", node.site.ipv4]
        node.horizon("server", "join", invite, "--name", name, "--backend", self.backend, *endpoint, *options)
        node.start()
        self.nodes.append(node)
        wait_for(lambda: self._online(name), START, f"server {name} online", 0.05)
        return node

    def add_client(self, user: str, *options: str, site: Site | None = None, nat: bool = False) -> Node:
        """A client of a new user that has joined and runs."""
        node = Node(site or self.lab.site(user, nat=nat), "client", user)
        invite = self.admin("personal-key", "create", user)["invite"]
        name = f"{user}-laptop"
        node.horizon("client", "join", invite, "--name", name, "--backend", self.backend, *options)
        node.start()
        self.nodes.append(node)
        return node

    def export(self, user: str, server: str, directory: Path, *options: str) -> Path:
        """A wg-quick configuration for a new user, written where `directory` says."""
        self.admin("personal-key", "create", user)
        path = directory / f"{server}.conf"
        arguments = ["export", "--user", user, "--server", server, "--output", str(path), *options]
        self.admin(*arguments)
        return path

    def _online(self, name: str) -> bool:
        return any(server["name"] == name and server["online"] for server in self.admin("server", "list"))

    def _listens(self) -> bool:
        broker = self.broker
        if broker.process is None or not broker.process.alive():
            raise LabError(f"the broker ended: '{broker.log_text()[-2000:]}'")
        return "listening on" in broker.log_text()
