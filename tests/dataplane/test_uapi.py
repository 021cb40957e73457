"""The text protocol of WireGuard in user space."""

from __future__ import annotations

import errno
from ipaddress import ip_network

import pytest

from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import Endpoint
from dataplane import uapi
from dataplane.actions import NO_PRESHARED_KEY, PeerChange
from dataplane.errors import BackendError, UnresolvedEndpoint
from dataplane.state import DeviceState, PeerState

PRIVATE = PrivateKey(b"\x42" * 32)
KEYS = [PublicKey(bytes([n]) * 32) for n in range(1, 4)]
SECRET = PresharedKey(b"s" * 32)

ANSWER = f"""\
private_key={PRIVATE.hex}
listen_port=51820
fwmark=51820
public_key={KEYS[0].hex}
preshared_key={SECRET.hex}
protocol_version=1
endpoint=[2001:db8::7]:51820
last_handshake_time_sec=1800000000
last_handshake_time_nsec=500000000
tx_bytes=7
rx_bytes=1099511627776
persistent_keepalive_interval=25
allowed_ip=10.64.0.2/32
allowed_ip=fd00::/64
public_key={KEYS[1].hex}
preshared_key={"0" * 64}
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
errno=0

""".encode()


def test_an_answer_is_read() -> None:
    first = PeerState(
        KEYS[0],
        frozenset({ip_network("10.64.0.2/32"), ip_network("fd00::/64")}),
        Endpoint("2001:db8::7", 51820),
        SECRET,
        25,
        1_800_000_000.5,
        2**40,
        7,
    )
    peers = {KEYS[0]: first, KEYS[1]: PeerState(KEYS[1])}
    assert uapi.read_device(ANSWER) == DeviceState(PRIVATE.public_key, 51820, 51820, peers)


def test_no_secret_of_an_answer_shows() -> None:
    shown = repr(uapi.read_device(ANSWER))
    for secret in (PRIVATE.hex, PRIVATE.reveal(), SECRET.hex, SECRET.reveal()):
        assert secret not in shown


@pytest.mark.parametrize("first", ["", f"private_key={'0' * 64}\n"])
def test_a_blank_device_has_no_public_key(first: str) -> None:
    answer = f"{first}listen_port=0\nerrno=0\n\n".encode()
    assert uapi.read_device(answer) == DeviceState()


def test_settings_of_the_device() -> None:
    assert uapi.set_device(PRIVATE, 51820, 0) == (
        f"set=1\nprivate_key={PRIVATE.hex}\nlisten_port=51820\nfwmark=0\n\n".encode()
    )
    assert uapi.set_device(None, None, None) == b"set=1\n\n"


def test_changes_of_peers_in_their_order() -> None:
    request = uapi.set_peers(
        [
            PeerChange(KEYS[0], remove=True),
            PeerChange(
                KEYS[1],
                allowed_ips=frozenset({ip_network("10.64.0.2/32")}),
                endpoint=Endpoint("2001:db8::7", 9),
                preshared_key=SECRET,
                persistent_keepalive=25,
            ),
            PeerChange(KEYS[2], update_only=True, preshared_key=NO_PRESHARED_KEY),
        ]
    )
    assert b"".join(request).decode().splitlines() == [
        "set=1",
        f"public_key={KEYS[0].hex}",
        "remove=true",
        f"public_key={KEYS[1].hex}",
        f"preshared_key={SECRET.hex}",
        "endpoint=[2001:db8::7]:9",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true",
        "allowed_ip=10.64.0.2/32",
        f"public_key={KEYS[2].hex}",
        "update_only=true",
        f"preshared_key={'0' * 64}",
        "",
    ]


def test_many_peers_are_one_request_in_parts() -> None:
    changes = [PeerChange(PublicKey(n.to_bytes(32, "big")), remove=True) for n in range(1, 1001)]
    parts = list(uapi.set_peers(changes))
    assert len(parts) > 1
    whole = b"".join(parts)
    assert whole.startswith(b"set=1\npublic_key=")
    assert whole.endswith(b"remove=true\n\n")
    assert whole.count(b"\n\n") == whole.count(b"set=1") == 1
    assert whole.count(b"public_key=") == 1000


def test_a_name_cannot_be_an_endpoint() -> None:
    with pytest.raises(UnresolvedEndpoint, match="resolve it"):
        list(uapi.set_peers([PeerChange(KEYS[0], endpoint=Endpoint("vpn.example", 9))]))


def test_success_is_silent() -> None:
    uapi.check(b"errno=0\n\n")


@pytest.mark.parametrize("code", [errno.EADDRINUSE, -errno.EADDRINUSE])
def test_a_refusal_is_told_in_the_systems_words(code: int) -> None:
    with pytest.raises(BackendError, match="Address already in use") as caught:
        uapi.check(f"errno={code}\n\n".encode())
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("answer", [b"", b"errno=", f"private_key={PRIVATE.hex}\n".encode()])
def test_half_an_answer_is_an_error_that_quotes_nothing(answer: bytes) -> None:
    with pytest.raises(BackendError, match="in the middle of an answer") as caught:
        uapi.check(answer)
    assert PRIVATE.hex not in str(caught.value)
