"""What an agent is made of, from its state directory. *Shell.*"""

from __future__ import annotations

from collections.abc import Callable

from controlplane.client.broker import BrokerClient
from dataplane.host import Host
from dataplane.reconcile import HostLike
from dataplane.store import AgentState, Store


def agent_parts(store: Store) -> tuple[Store, AgentState, Callable[[], HostLike], BrokerClient]:
    """Store, enrolment, a maker of the host (in its own thread), and the broker's client."""
    state = store.load()
    store.lock(state.interface)

    def make_host() -> HostLike:
        return Host(state.backend)  # type: ignore[arg-type]

    return store, state, make_host, BrokerClient(state.broker, state.signer)
