"""One interface name on this host: look at it, and carry out actions. *Shell.*

    host = Host("auto")
    for action in plan(desired, host.observe("hz0"), time.time()):
        host.apply(action)

Synchronous; a `Host` belongs to the thread that made it. Which WireGuard an interface has is seen from
the interface itself, so an agent that starts again goes on with the one that is there.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Literal, Self, assert_never

from controlplane.protocol.keys import PublicKey
from dataplane import nft
from dataplane.actions import (
    Action,
    AddAddress,
    AddRoute,
    CreateInterface,
    RemoveAddress,
    RemoveFirewall,
    RemoveInterface,
    RemoveRoute,
    ReplaceFirewall,
    SetAlias,
    SetDevice,
    SetMtu,
    SetPeers,
    SetSysctl,
    SetUp,
)
from dataplane.backend import Backend
from dataplane.errors import BackendError, NoBackend
from dataplane.firewall import FORWARDING
from dataplane.kernel import KernelBackend
from dataplane.links import Link, Links, read_sysctl, write_sysctl
from dataplane.state import (
    ALIAS_PREFIX,
    DeviceState,
    FirewallSpec,
    HostState,
    InterfaceState,
    Obstacle,
    PeerState,
)
from dataplane.userspace import UserspaceBackend

log = logging.getLogger(__name__)

BackendChoice = Literal["auto", "kernel", "userspace"]


class Host:
    """The network of this host (of this network namespace)."""

    def __init__(self, backend: BackendChoice = "auto") -> None:
        self._choice = backend
        self._links = Links()
        self._kernel = KernelBackend(self._links)
        self._userspace = UserspaceBackend(self._links)
        self._unsealed: FirewallSpec | None = None

    def close(self) -> None:
        """Close the sockets; interfaces, routes and tables stay."""
        self._kernel.close()
        self._links.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def observe(self, name: str) -> HostState:
        """Everything on the host that concerns this interface name."""
        if self._unsealed is not None:
            nft.seal(self._unsealed)
            self._unsealed = None
        link = self._links.get(name)
        backend, device = self._device(name, link)
        interface, obstacle = None, None
        if link and backend and device:
            interface = InterfaceState(
                name=name,
                backend=backend.kind,
                alias=link.alias,
                mtu=link.mtu,
                up=link.up,
                addresses=self._links.addresses(link),
                routes=self._links.routes(link),
                public_key=device.public_key,
                listen_port=device.listen_port,
                fwmark=device.fwmark,
                peers=device.peers,
            )
        elif link:
            obstacle = Obstacle(link.kind, link.alias.startswith(ALIAS_PREFIX))
        return HostState(
            name=name,
            interface=interface,
            obstacle=obstacle,
            firewall=nft.observe(name),
            sysctls=self._sysctls(),
            ipv6=_ipv6_disabled(name) == "0",
        )

    def peers(self, name: str) -> dict[PublicKey, PeerState]:
        """The peers only, which costs least: for waiting on a handshake. Empty without an interface."""
        _, device = self._device(name, self._links.get(name))
        return device.peers if device else {}

    def apply(self, action: Action) -> None:
        """Carry out one action. Raises `DataplaneError`; observe and plan again then."""
        match action:
            case CreateInterface(name):
                self._create(name)
            case RemoveInterface(name):
                self._remove(name)
            case SetAlias(name, alias):
                self._links.set_alias(name, alias)
            case SetDevice(name, private_key, listen_port, fwmark):
                self._backend(name).configure(name, private_key, listen_port, fwmark)
            case SetPeers(name, changes):
                self._backend(name).set_peers(name, changes)
            case AddAddress(name, address):
                self._links.add_address(name, address)
            case RemoveAddress(name, address):
                self._links.remove_address(name, address)
            case SetMtu(name, mtu):
                self._links.set_mtu(name, mtu)
            case SetUp(name):
                self._links.set_up(name)
            case AddRoute(name, network):
                self._links.add_route(name, network)
            case RemoveRoute(name, network):
                self._links.remove_route(name, network)
            case SetSysctl(key, value):
                write_sysctl(key, value)
            case ReplaceFirewall(spec):
                nft.replace(spec)
                self._unsealed = spec
            case RemoveFirewall(name):
                nft.remove(name)
            case _:
                assert_never(action)

    def _create(self, name: str) -> None:
        if self._choice != "userspace":
            try:
                self._kernel.create(name)
            except NoBackend as error:
                if self._choice == "kernel":
                    raise
                if not self._userspace.available():
                    raise NoBackend(
                        f"{error}; or install the package 'wireguard-go' for WireGuard in user space"
                    ) from None
                log.warning("%s; using WireGuard in user space (wireguard-go), which is slower", error)
            else:
                return
        self._userspace.create(name)

    def _remove(self, name: str) -> None:
        link = self._links.get(name)
        backend: Backend = self._userspace if link and link.kind == "tun" else self._kernel
        backend.remove(name)

    def _backend(self, name: str) -> Backend:
        link = self._links.get(name)
        if link is None:
            raise BackendError(f"interface {name!r} is gone: observe and plan again")
        return self._kernel if link.kind == "wireguard" else self._userspace

    def _device(self, name: str, link: Link | None) -> tuple[Backend | None, DeviceState | None]:
        if link is None or link.kind not in {"wireguard", "tun"}:
            return None, None
        backend = self._backend(name)
        return backend, backend.observe(name)

    def _sysctls(self) -> dict[str, str]:
        keys = list(FORWARDING)
        if read_sysctl(FORWARDING[1]) == "0":
            keys += [f"net/ipv6/conf/{n}/accept_ra" for n in sorted(self._links.router_advertised())]
        values = {key: read_sysctl(key) for key in keys}
        return {key: value for key, value in values.items() if value is not None}


def _ipv6_disabled(name: str) -> str | None:
    # An interface has no entry while it is not there, or its MTU is too small for IPv6.
    return read_sysctl(f"net/ipv6/conf/{name}/disable_ipv6") or read_sysctl(
        "net/ipv6/conf/default/disable_ipv6"
    )
