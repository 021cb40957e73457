"""The one reconcile loop's step: observe, plan, apply. *Shell* around `plan`.

Runs in the agent's worker thread. Between full observations it keeps what it knows of the interface, so
that a change of one peer costs one peer however many there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from controlplane.protocol.keys import PublicKey
from controlplane.protocol.wireguard import PeerSpec
from dataplane.actions import Action
from dataplane.plan import plan, plan_peers, record
from dataplane.state import Desired, HostState, InterfaceState, PeerState

log = logging.getLogger(__name__)


class HostLike(Protocol):
    """What the loop needs of a host: the real one, or a fake in tests."""

    def observe(self, name: str) -> HostState: ...

    def apply(self, action: Action) -> None: ...

    def peers(self, name: str) -> Mapping[PublicKey, PeerState]: ...

    def close(self) -> None: ...


class Reconciler:
    """Brings one interface of a host to what is desired."""

    def __init__(self, host: HostLike, name: str, clock: Callable[[], float]) -> None:
        self._host = host
        self._name = name
        self._clock = clock
        self._observed: HostState | None = None

    def reconcile(
        self, desire: Callable[[Mapping[PublicKey, PeerState], float], Desired], *, look: bool = True
    ) -> int:
        """Bring everything to what `desire(peers observed, now)` says; the number of actions.

        Without `look` what was last known of the host is trusted: for a change that somebody waits
        for. Look soon after.
        """
        observed = self._observed
        if observed is None or look:
            observed = self._host.observe(self._name)
        now = self._clock()
        peers = observed.interface.peers if observed.interface else {}
        actions = plan(desire(peers, now), observed, now)
        self._carry_out(actions, observed)
        return len(actions)

    def reconcile_peers(self, changes: Mapping[PublicKey, PeerSpec | None]) -> int:
        """Bring only these peers to their specs (None: away); everything else stays as it is."""
        if self._observed is None or self._observed.interface is None:
            raise ValueError("reconcile everything first")
        actions = plan_peers(changes, self._observed, self._clock())
        self._carry_out(actions, self._observed)
        return len(actions)

    def observe(self) -> InterfaceState | None:
        """Look without changing anything."""
        self._observed = self._host.observe(self._name)
        return self._observed.interface

    def observe_peers(self) -> Mapping[PublicKey, PeerState]:
        """Look at the peers only, which costs least."""
        return self._host.peers(self._name)

    def close(self) -> None:
        self._host.close()

    @property
    def known_peers(self) -> Mapping[PublicKey, PeerState]:
        """The peers as last observed or set."""
        interface = self._observed.interface if self._observed else None
        return interface.peers if interface else {}

    @property
    def ready(self) -> bool:
        """Whether the interface is known as it is, so that single peers can be changed."""
        return self._observed is not None and self._observed.interface is not None

    @property
    def stale(self) -> bool:
        """Whether a change left the host unknown: look again."""
        return self._observed is None

    def _carry_out(self, actions: tuple[Action, ...], observed: HostState) -> None:
        self._observed = None
        for action in actions:
            log.info("[#] %s", action)
            self._host.apply(action)
        if record(observed, actions):
            self._observed = observed
