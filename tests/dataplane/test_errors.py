"""Errors name the value and the fix, and can be handed from process to process."""

from __future__ import annotations

import pickle

import pytest

from dataplane.errors import (
    BackendError,
    DataplaneError,
    NameTaken,
    NoBackend,
    NotPermitted,
    RouteTaken,
    UnresolvedEndpoint,
)


@pytest.mark.parametrize(
    ("error", "value", "fix"),
    [
        (NameTaken("hz0", "bridge"), "'hz0'", "--interface OTHER"),
        (RouteTaken("10.0.0.0/8", "hz0"), "10.0.0.0/8", "ip route show 10.0.0.0/8"),
        (NoBackend("no WireGuard: install 'wireguard-go'"), "no WireGuard", "install"),
        (NotPermitted("create interface 'hz0'"), "'hz0'", "CAP_NET_ADMIN"),
        (BackendError("cannot bring up 'hz0'", 98), "'hz0'", ""),
        (UnresolvedEndpoint("vpn.example:1"), "'vpn.example:1'", "resolve"),
    ],
)
def test_the_message_survives_pickling(error: DataplaneError, value: str, fix: str) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert value in str(again)
    assert fix in str(again)
