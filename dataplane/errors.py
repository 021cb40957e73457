"""What can go wrong on the host, a class for each thing a caller would do differently. *Vocabulary.*

Messages quote the value and name the fix. Every error survives pickling, so that a helper process
can hand it on.
"""

from __future__ import annotations


class DataplaneError(Exception):
    """The host is not, and could not be made, as desired."""


class NameTaken(DataplaneError):
    """The interface name belongs to something that Horizon did not make; nothing was touched."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name, kind)
        self.name = name
        self.kind = kind
        """What the link of that name is: `bridge`, `wireguard`, ..."""

    def __str__(self) -> str:
        return (
            f"interface {self.name!r} exists and is not ours (kind {self.kind!r}): choose another "
            "name with '--interface OTHER'"
        )


class RouteTaken(DataplaneError):
    """A network that shall go into the tunnel is routed elsewhere already; that route stays."""

    def __init__(self, network: str, name: str) -> None:
        super().__init__(network, name)
        self.network = network
        self.name = name

    def __str__(self) -> str:
        return (
            f"{self.network} cannot be routed to {self.name!r}: the host has another route to it "
            f"(see 'ip route show {self.network}'); remove that, or take the network from the "
            "peer's allowed IPs"
        )


class NoBackend(DataplaneError):
    """There is no WireGuard of the kind asked for."""


class NotPermitted(DataplaneError):
    """The process lacks the right to change the network."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"not permitted to {self.what}: CAP_NET_ADMIN is missing; run as root, or give it to "
            "the service with 'AmbientCapabilities=CAP_NET_ADMIN'"
        )


class StoreError(DataplaneError):
    """What the agent keeps could not be written; it goes on with what it holds in memory."""


class AlreadyRunning(DataplaneError):
    """Another agent has this state directory or socket."""

    code = "already-running"


class BackendError(DataplaneError):
    """The kernel, WireGuard in user space or `nft` refused; `errno` is 0 where there is none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message, errno)
        self.message = message
        self.errno = errno

    def __str__(self) -> str:
        return self.message


class UnresolvedEndpoint(DataplaneError):
    """A peer's endpoint is a name where WireGuard takes only an address."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.endpoint = endpoint

    def __str__(self) -> str:
        return f"endpoint {self.endpoint!r} is a name: resolve it to an address before planning"
