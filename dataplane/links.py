"""Linux's part of an interface: link, alias, MTU, addresses, routes; by netlink. *Shell.*

A `Links` belongs to the thread that made it (pyroute2 keeps an event loop inside).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from controlplane.protocol.wireguard import IPInterface, IPNetwork
from dataplane.errors import BackendError, DataplaneError, NotPermitted, RouteTaken
from dataplane.state import ROUTE_PROTOCOL

PROC_SYS = Path("/proc/sys")
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_IFA_F_NODAD = 0x02
_IFF_UP = 1
_MAIN_TABLE = 254
_RTPROT_RA = 9
_SCOPE_LINK = 253


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of any kind."""

    index: int
    kind: str
    """As `ip -details link` names it; `device` for hardware."""
    alias: str
    mtu: int
    up: bool


@contextmanager
def netlink_errors(what: str) -> Iterator[None]:
    """Turn the kernel's refusal to do `what` into a `DataplaneError`."""
    try:
        yield
    except NetlinkError as error:
        raise refusal(what, error.code) from error
    except OSError as error:
        raise refusal(what, error.errno or 0) from error


def refusal(what: str, code: int) -> DataplaneError:
    """The error for a refusal by the kernel with this errno."""
    if code in {errno.EPERM, errno.EACCES}:
        return NotPermitted(what)
    hint = ": its listen port is in use by another program" if code == errno.EADDRINUSE else ""
    return BackendError(f"cannot {what}: {os.strerror(code)}{hint}", code)


class Links:
    """The links, addresses and routes of this network namespace."""

    def __init__(self) -> None:
        with netlink_errors("open a netlink socket"):
            self._ip: Any = IPRoute()

    def close(self) -> None:
        self._ip.close()

    def get(self, name: str) -> Link | None:
        """The link of that name."""
        try:
            with netlink_errors(f"look up interface {name!r}"):
                (link,) = self._ip.link("get", ifname=name)
        except BackendError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        info = link.get_attr("IFLA_LINKINFO")
        return Link(
            link["index"],
            (info and info.get_attr("IFLA_INFO_KIND")) or "device",
            link.get_attr("IFLA_IFALIAS") or "",
            link.get_attr("IFLA_MTU"),
            bool(link["flags"] & _IFF_UP),
        )

    def create(self, name: str, kind: str) -> None:
        """Make a link, down. Raises `BackendError` with the kernel's errno."""
        with netlink_errors(f"create {kind} interface {name!r}"):
            self._ip.link("add", ifname=name, kind=kind)

    def delete(self, name: str) -> None:
        """Delete the link, if it is there."""
        if link := self.get(name):
            with self._gone_is_fine(errno.ENODEV, f"delete interface {name!r}"):
                self._ip.link("del", index=link.index)

    def set_alias(self, name: str, alias: str) -> None:
        self._set(name, "mark", IFLA_IFALIAS=alias)

    def set_mtu(self, name: str, mtu: int) -> None:
        self._set(name, f"set MTU {mtu} of", mtu=mtu)

    def set_up(self, name: str) -> None:
        self._set(name, "bring up", state="up")

    def addresses(self, link: Link) -> frozenset[IPInterface]:
        """All addresses of the link."""
        with netlink_errors("list addresses"):
            return frozenset(
                ip_interface(
                    f"{found.get_attr('IFA_LOCAL') or found.get_attr('IFA_ADDRESS')}/{found['prefixlen']}"
                )
                for found in self._ip.get_addr(index=link.index)
            )

    def add_address(self, name: str, address: IPInterface) -> None:
        """Add an address, usable at once (a tunnel has no neighbours to ask)."""
        options = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
        with self._gone_is_fine(errno.EEXIST, f"add address {address} to {name!r}"):
            self._ip.addr("add", **self._address(name, address), **options)

    def remove_address(self, name: str, address: IPInterface) -> None:
        with self._gone_is_fine(errno.EADDRNOTAVAIL, f"remove address {address} of {name!r}"):
            self._ip.addr("del", **self._address(name, address))

    def routes(self, link: Link) -> set[IPNetwork]:
        """The networks that we routed to the link."""
        found: set[IPNetwork] = set()
        for version, family in _FAMILY.items():
            with netlink_errors("list routes"):
                for route in self._ip.get_routes(
                    family=family, oif=link.index, proto=ROUTE_PROTOCOL, table=_MAIN_TABLE
                ):
                    default = "0.0.0.0" if version == 4 else "::"  # noqa: S104 (no bind)
                    found.add(ip_network(f"{route.get_attr('RTA_DST') or default}/{route['dst_len']}"))
        return found

    def add_route(self, name: str, network: IPNetwork) -> None:
        """Route a network to the link. Raises `RouteTaken` if another has it; that one stays."""
        link = self._index(name)
        try:
            with netlink_errors(f"route {network} to {name!r}"):
                self._ip.route("add", **self._route(link, network))
        except BackendError as error:
            if error.errno != errno.EEXIST:
                raise
            found = self.get(name)
            if found is None or network not in self.routes(found):
                raise RouteTaken(str(network), name) from None

    def remove_route(self, name: str, network: IPNetwork) -> None:
        with self._gone_is_fine(errno.ESRCH, f"remove the route of {network} to {name!r}"):
            self._ip.route("del", **self._route(self._index(name), network))

    def router_advertised(self) -> set[str]:
        """The names of interfaces with routes learnt from router advertisements by the kernel."""
        with netlink_errors("list routes"):
            found = self._ip.get_routes(family=socket.AF_INET6, proto=_RTPROT_RA)
            indexes = {route.get_attr("RTA_OIF") for route in found}
        return {socket.if_indextoname(index) for index in indexes - {None}}

    def _set(self, name: str, what: str, **options: object) -> None:
        with netlink_errors(f"{what} interface {name!r}"):
            self._ip.link("set", index=self._index(name), **options)

    def _index(self, name: str) -> int:
        with netlink_errors(f"find interface {name!r}"):
            return socket.if_nametoindex(name)

    def _address(self, name: str, address: IPInterface) -> dict[str, object]:
        return {
            "index": self._index(name),
            "family": _FAMILY[address.version],
            "address": str(address.ip),
            "prefixlen": address.network.prefixlen,
        }

    def _route(self, index: int, network: IPNetwork) -> dict[str, object]:
        options = {"scope": _SCOPE_LINK} if network.version == 4 else {}
        return {
            "family": _FAMILY[network.version],
            "dst": str(network),
            "oif": index,
            "proto": ROUTE_PROTOCOL,
            "table": _MAIN_TABLE,
            **options,
        }

    @contextmanager
    def _gone_is_fine(self, fine: int, what: str) -> Iterator[None]:
        """Ignore the errno that says the thing is as wanted already."""
        try:
            with netlink_errors(what):
                yield
        except BackendError as error:
            if error.errno != fine:
                raise


def read_sysctl(key: str) -> str | None:
    """The value of a kernel parameter; None where this kernel has none of that name."""
    try:
        return (PROC_SYS / key).read_text().strip()
    except OSError:
        return None


def write_sysctl(key: str, value: str) -> None:
    """Set a kernel parameter."""
    with netlink_errors(f"set {key} to {value}"):
        (PROC_SYS / key).write_text(value)
