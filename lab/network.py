"""The lab's internet: networks, the hosts on them, NAT routers, roaming, bad links (shell).

One router namespace, `internet`, forwards between all networks. A network is a bridge at its
router, with a port per host; a host has one uplink, `eth0`, with an IPv4 and an IPv6 address and
default routes. Both ends of each veth are made inside namespaces, so nothing of it is ever seen
among this machine's own links.
"""

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from lab import addresses, lifecycle
from lab.addresses import Subnet
from lab.commands import ip
from lab.errors import CommandFailed, LabError
from lab.hosts import Host

H = TypeVar("H", bound=Host)

UPLINK = "eth0"

# Said in full, as new namespaces take some values from this machine. Duplicate address detection
# is off: an address is usable at once. Reverse path filtering is loose, as systemd sets it.
_COMMON = {"net/ipv6/conf/all/accept_dad": "0", "net/ipv6/conf/default/accept_dad": "0"}
_HOST = _COMMON | {
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "2",
}
_ROUTER = _COMMON | {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}

# Translates IPv4, and for both families lets in only what answers what went out.
_NAT = f"""
table inet nat {{
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname != "{UPLINK}" accept
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        iifname "{UPLINK}" drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        oifname "{UPLINK}" meta nfproto ipv4 masquerade
    }}
}}
"""


@dataclass(eq=False)
class Network:
    """A subnet that hosts join: a bridge in the namespace of its router."""

    name: str
    router: Host
    bridge: str
    subnet: Subnet
    public_ipv4: str | None
    """The address that all its hosts are translated to; None where they keep their own."""
    taken: set[int] = field(default_factory=set)
    """Host numbers in use."""

    def take(self) -> int:
        for number in range(2, self.subnet.capacity + 1):
            if number not in self.taken:
                self.taken.add(number)
                return number
        raise LabError(f"network '{self.name}' is full: {self.subnet.ipv4} has no address left")


@dataclass(frozen=True)
class Uplink:
    """Where a host is attached."""

    network: Network
    number: int
    port: str
    """Name of the bridge port at the router."""


class Site(Host):
    """A host with an uplink; `Lab.move` gives it another."""

    def __init__(self, name: str, namespace: str, directory: Path) -> None:
        super().__init__(name, namespace, directory)
        self._uplink: Uplink | None = None

    @property
    def uplink(self) -> Uplink:
        if self._uplink is None:
            raise LabError(f"host '{self.name}' has no uplink")
        return self._uplink

    @property
    def network(self) -> Network:
        return self.uplink.network

    @property
    def local_ipv4(self) -> str:
        """The IPv4 address of its own interface."""
        return self.network.subnet.address4(self.uplink.number)

    @property
    def ipv4(self) -> str:
        """The IPv4 address others see it by: behind NAT, its router's."""
        return self.network.public_ipv4 or self.local_ipv4

    @property
    def ipv6(self) -> str:
        """Its IPv6 address, which is never translated."""
        return self.network.subnet.address6(self.uplink.number)


class Lab:
    """A small internet for the length of a `with`; on entry it first removes a killed run's remains.

    `prefix` names it on this machine: one running lab per prefix (PrefixInUse), and nothing without
    the prefix is ever touched. Leaving the `with` ends every process on its hosts, also those that
    detached themselves, and removes namespaces and files.
    """

    cleanup = staticmethod(lifecycle.cleanup)
    sweep = staticmethod(lifecycle.sweep)

    def __init__(self, prefix: str) -> None:
        self.prefix = lifecycle.checked(prefix)
        self.directory = lifecycle.RUN / prefix
        """Everything the hosts keep; removed with the lab."""
        self.hosts: dict[str, Host] = {}
        self.networks: dict[str, Network] = {}
        self._ownership = lifecycle.Ownership(prefix)
        self._ports = count(1)

    def __enter__(self) -> "Lab":
        self._ownership.__enter__()
        try:
            lifecycle.remove(self.prefix)
            self.internet = self._start(Host, "internet", _ROUTER)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for host in self.hosts.values():
                host.stop()
            lifecycle.remove(self.prefix)
        finally:
            self._ownership.__exit__(kind, error, trace)

    def site(self, name: str, nat: bool = False) -> Site:
        """A new host on a new network, both called `name`; with `nat`, behind a router of its own."""
        return self.join(name, self.network(name, nat))

    def network(self, name: str, nat: bool = False) -> Network:
        """A new network; with `nat`, hosts reach out from it but are not reached unasked."""
        if name in self.networks:
            raise LabError(f"there is a network '{name}' already; choose another name")
        number = len(self.networks)
        network = self._bridge(self.internet, name, f"net{number}", addresses.public(number))
        self.networks[name] = network
        if nat:
            self.networks[name] = network = self._behind_nat(network, addresses.private(number))
        return network

    def join(self, name: str, network: Network) -> Site:
        """A new host `name` on a network."""
        site = self._start(Site, name, _HOST)
        self._attach(site, network)
        return site

    def move(self, site: Site, network: Network | str) -> None:
        """Roaming: the host's uplink now leads to another network, its processes go on.

        As with Wi-Fi the interface stays, and its addresses, routes and, for a moment, carrier go.
        `network` may be a name.
        """
        if isinstance(network, str):
            if network not in self.networks:
                raise LabError(f"there is no network '{network}'; make it with lab.network(...)")
            network = self.networks[network]
        old = site.uplink
        number = network.take()
        self._disconnect(site, old)
        ip([f"link set {old.port} netns {network.router.namespace}"], old.network.router.namespace)
        self._connect(site, Uplink(network, number, old.port))

    def unplug(self, site: Site) -> None:
        """Pull the cable: the host keeps its addresses and routes, and nothing comes through.

        If it is alone on its network the router sees its own link go, and queues packets while it
        looks for the host: after a short outage those come late, not never.
        """
        ip([f"link set {site.uplink.port} down"], site.network.router.namespace)

    def plug(self, site: Site) -> None:
        """Put the cable back in."""
        ip([f"link set {site.uplink.port} up"], site.network.router.namespace)

    def shape(self, site: Site, delay: float = 0.0, loss: float = 0.0) -> None:
        """Make the host's link bad in each direction: `delay` in seconds, `loss` from 0 to 1.

        Both 0: good again. LabError where the kernel has no netem.
        """
        router = site.network.router
        for host, device in ((site, UPLINK), (router, site.uplink.port)):
            if not delay and not loss:
                host.run(["tc", "qdisc", "del", "dev", device, "root"], check=False)
                continue
            netem = ["netem", "delay", f"{delay * 1e6:.0f}us", "loss", f"{loss:.4%}"]
            try:
                host.run(["tc", "qdisc", "replace", "dev", device, "root", *netem])
            except CommandFailed as error:
                if "qdisc kind is unknown" not in error.stderr:
                    raise
                raise LabError(
                    "this kernel cannot delay or lose packets: it needs CONFIG_NET_SCH_NETEM"
                ) from error

    def _start(self, kind: type[H], name: str, sysctls: dict[str, str]) -> H:
        if name in self.hosts:
            raise LabError(f"there is a host '{name}' already; choose another name")
        namespace = f"{self.prefix}.{lifecycle.checked(name)}"
        host = self.hosts[name] = kind(name, namespace, self.directory / name)
        host.start(sysctls)
        return host

    def _bridge(
        self, router: Host, name: str, bridge: str, subnet: Subnet, public_ipv4: str | None = None
    ) -> Network:
        # An address of its own: else it changes with the ports, and hosts lose their router.
        octets = subnet.ipv4[1].packed.hex(":")
        ip(
            [
                f"link add {bridge} address 02:00:{octets} type bridge",
                f"address add {subnet.address4(1)}/{subnet.ipv4.prefixlen} dev {bridge}",
                f"address add {subnet.address6(1)}/{subnet.ipv6.prefixlen} dev {bridge} nodad",
                f"link set {bridge} up",
            ],
            router.namespace,
        )
        return Network(name, router, bridge, subnet, public_ipv4)

    def _behind_nat(self, outside: Network, inside: Subnet) -> Network:
        router = self._start(Site, f"{outside.name}-nat", _ROUTER)
        self._attach(router, outside)
        router.run(["nft", "-f", "-"], input=_NAT)
        ip([f"route add {inside.ipv6} via {router.ipv6}"], self.internet.namespace)
        return self._bridge(router, outside.name, "lan", inside, router.ipv4)

    def _attach(self, site: Site, network: Network) -> None:
        port = f"port{next(self._ports)}"
        near, far = f"{UPLINK} netns {site.namespace}", f"{port} netns {network.router.namespace}"
        ip([f"link add {near} type veth peer name {far}"])
        self._connect(site, Uplink(network, network.take(), port))

    def _connect(self, site: Site, uplink: Uplink) -> None:
        network, subnet = uplink.network, uplink.network.subnet
        site._uplink = uplink
        ip([f"link set {uplink.port} master {network.bridge} up"], network.router.namespace)
        ip(
            [
                f"address add {site.local_ipv4}/{subnet.ipv4.prefixlen} dev {UPLINK}",
                f"address add {site.ipv6}/{subnet.ipv6.prefixlen} dev {UPLINK} nodad",
                f"link set {UPLINK} up",
                f"route add default via {subnet.address4(1)} dev {UPLINK}",
                f"route add default via {subnet.address6(1)} dev {UPLINK}",
            ],
            site.namespace,
        )

    def _disconnect(self, site: Site, uplink: Uplink) -> None:
        network, subnet = uplink.network, uplink.network.subnet
        ip([f"link set {uplink.port} nomaster down"], network.router.namespace)
        ip(
            [
                f"route delete default via {subnet.address4(1)} dev {UPLINK}",
                f"route delete default via {subnet.address6(1)} dev {UPLINK}",
                f"address flush dev {UPLINK} scope global",
            ],
            site.namespace,
        )
        # Whoever gets the addresses next has another link-layer address.
        gone = (site.local_ipv4, site.ipv6)
        ip([f"neigh flush to {address}" for address in gone], network.router.namespace)
        network.taken.discard(uplink.number)
