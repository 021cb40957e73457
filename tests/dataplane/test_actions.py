"""Actions speak without secrets."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from typing import get_args

import pytest

from controlplane.protocol.keys import PresharedKey, PrivateKey
from dataplane.actions import (
    Action,
    AddAddress,
    AddRoute,
    CreateInterface,
    PeerChange,
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
from dataplane.state import ServerFirewall

PRIVATE, PRESHARED = PrivateKey.generate(), PresharedKey.generate()
PEER = PeerChange(PRIVATE.public_key, preshared_key=PRESHARED)
ADDRESS, NETWORK = ip_interface("10.64.0.1/20"), ip_network("fd00::/64")

LINES: dict[Action, str] = {
    CreateInterface("hz0"): "create WireGuard interface hz0",
    RemoveInterface("hz0"): "ip link delete dev hz0",
    SetAlias("hz0"): "ip link set dev hz0 alias 'horizon: kept by the Horizon agent'",
    SetDevice("hz0", PRIVATE, 51820, 51820): (
        "wg set hz0 private-key (hidden) listen-port 51820 fwmark 0xca6c"
    ),
    SetPeers("hz0", (PEER,)): f"wg set hz0 peer {PEER.public_key}",
    SetPeers("hz0", (PeerChange(PEER.public_key, remove=True),)): (
        f"wg set hz0 peer {PEER.public_key} remove"
    ),
    SetPeers("hz0", (PeerChange(PEER.public_key, remove=True), PEER)): (
        "wg set hz0 (1 peers set, 1 removed)"
    ),
    AddAddress("hz0", ADDRESS): "ip address add 10.64.0.1/20 dev hz0",
    RemoveAddress("hz0", ADDRESS): "ip address delete 10.64.0.1/20 dev hz0",
    SetMtu("hz0", 1380): "ip link set mtu 1380 dev hz0",
    SetUp("hz0"): "ip link set up dev hz0",
    AddRoute("hz0", NETWORK): "ip route add fd00::/64 dev hz0",
    RemoveRoute("hz0", NETWORK): "ip route delete fd00::/64 dev hz0",
    SetSysctl("net/ipv4/ip_forward", "1"): "sysctl -w net/ipv4/ip_forward=1",
    ReplaceFirewall(ServerFirewall("hz0")): "nft -f - (the table of hz0)",
    RemoveFirewall("hz0"): "nft delete table (the table of hz0)",
}


def test_every_kind_of_action_is_listed_here() -> None:
    assert {type(action) for action in LINES} == set(get_args(Action))


@pytest.mark.parametrize("action", LINES, ids=lambda action: type(action).__name__)
def test_one_line_without_secrets(action: Action) -> None:
    assert str(action) == LINES[action]
    shown = str(action) + repr(action)
    for secret in (PRIVATE.reveal(), PRIVATE.hex, PRESHARED.reveal(), PRESHARED.hex):
        assert secret not in shown
