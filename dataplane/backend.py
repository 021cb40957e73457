"""What Horizon asks of the host, and of a WireGuard in the kernel or in user space. *Vocabulary.*

`Kernel` is all that the agent sees (`host.Host` is the real one). A backend knows WireGuard's part only:
keys, ports, peers. Addresses, routes, MTU, and whether the interface is up are Linux's (`links`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controlplane.protocol.keys import PrivateKey
from dataplane.actions import Action, PeerChange
from dataplane.state import BackendKind, DeviceState, HostState


class Kernel(Protocol):
    """Where actions are carried out. Everything raises `DataplaneError`."""

    def observe(self, name: str) -> HostState:
        """Everything on the host that concerns this interface name."""

    def apply(self, action: Action) -> None:
        """Carry out one action; observe and plan again if it fails."""


class Backend(Protocol):
    """One way to have WireGuard interfaces. Everything raises `DataplaneError`."""

    @property
    def kind(self) -> BackendKind: ...

    def create(self, name: str) -> None:
        """Make an interface, down and blank. Raises `NoBackend` where there is no such WireGuard."""

    def remove(self, name: str) -> None:
        """Remove the interface and all that runs for it; gone already is no error."""

    def configure(
        self,
        name: str,
        private_key: PrivateKey | None,
        listen_port: int | None,
        fwmark: int | None,
    ) -> None:
        """Set what is not None."""

    def set_peers(self, name: str, changes: Sequence[PeerChange]) -> None:
        """Change peers in this order. Fails in the middle: what came before it stays."""

    def observe(self, name: str) -> DeviceState | None:
        """The state with all peers; None if there is no such interface of this kind."""
