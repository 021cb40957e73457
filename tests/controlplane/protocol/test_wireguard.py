"""Specs: what WireGuard could not hold is refused when it is made."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.protocol.errors import SpecError
from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import (
    Endpoint,
    InterfaceSpec,
    PeerSpec,
    check_allowed_ips,
    check_host,
    check_interface_name,
    check_unscoped,
)

law = settings(deadline=None)
ALICE, BOB = PublicKey(bytes([1] * 32)), PublicKey(bytes([2] * 32))
PRIVATE = PrivateKey(bytes(range(32)))

# --- endpoints ----------------------------------------------------------------------------------

hosts = st.one_of(
    st.builds(IPv4Address, st.integers(0, 2**32 - 1)).map(str),
    st.builds(IPv6Address, st.integers(0, 2**128 - 1)).map(str),
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5}){0,3}", fullmatch=True),
)


@law
@given(hosts, st.integers(1, 65535))
def test_an_endpoint_reads_back_equal(host: str, port: int) -> None:
    endpoint = Endpoint(host, port)
    assert Endpoint.parse(str(endpoint)) == endpoint


@law
@given(st.text() | st.text("[]:.%a1 ", max_size=20))
def test_any_text_is_an_endpoint_or_a_spec_error(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except SpecError:
        return
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write HOST:PORT"),
        ("fd00::1:51820", "[IPV6]:PORT"),
        ("host", "write host:51820"),
        ("host:0", "between 1 and 65535"),
        ("host:65536", "between 1 and 65535"),
        ("two words:1", "'two words'"),
        ("host\n:1", "neither an address nor a host name"),
        ("a;b:1", "'a;b'"),
    ],
)
def test_a_malformed_endpoint_names_the_fix(text: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        Endpoint.parse(text)
    assert says in str(caught.value)


def test_an_endpoint_may_take_a_default_port_and_knows_its_address() -> None:
    assert Endpoint.parse("[2001:db8::1]", 51820) == Endpoint("2001:db8::1", 51820)
    assert Endpoint.parse("a.example:1", 51820).port == 1
    assert Endpoint("192.0.2.1", 1).address == ip_address("192.0.2.1")
    assert Endpoint("a.example", 1).address is None


# --- interfaces and peers -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wg0", "a" * 15, "hz_0=+.-"])
def test_an_interface_name_of_linux_is_taken(name: str) -> None:
    assert check_interface_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 16, "a b", "a/b", ".", "..", "ä", "wg0\n"])
def test_another_interface_name_is_quoted(name: str) -> None:
    with pytest.raises(SpecError, match="1 to 15 letters") as caught:
        InterfaceSpec(name, PRIVATE)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: InterfaceSpec("wg0", PRIVATE, listen_port=65536), "listen port 65536"),
        (lambda: InterfaceSpec("wg0", PRIVATE, listen_port=-1), "listen port -1"),
        (lambda: InterfaceSpec("wg0", PRIVATE, mtu=575), "MTU 575"),
        (lambda: InterfaceSpec("wg0", PRIVATE, mtu=65536), "MTU 65536"),
    ],
)
def test_numbers_out_of_range_are_quoted(make: Callable[[], InterfaceSpec], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make()


def peers(*specs: PeerSpec) -> dict[PublicKey, PeerSpec]:
    return {spec.public_key: spec for spec in specs}


@pytest.mark.parametrize("network", ["10.0.0.0/24", "fd00::/64", "0.0.0.0/0"])
def test_one_allowed_ip_for_two_peers_is_refused_with_both_keys(network: str) -> None:
    both = [PeerSpec(key, frozenset([ip_network(network)])) for key in (ALICE, BOB)]
    with pytest.raises(SpecError, match="is given to two peers") as caught:
        InterfaceSpec("wg0", PRIVATE, peers=peers(*both))
    for part in (network, str(ALICE), str(BOB), "remove it"):
        assert part in str(caught.value)


def test_overlapping_allowed_ips_are_wireguards_own_business() -> None:
    """The more specific one wins, and both stay where they are."""
    spec = InterfaceSpec(
        "wg0",
        PRIVATE,
        peers=peers(
            PeerSpec(ALICE, frozenset([ip_network("10.0.0.0/24")])),
            PeerSpec(BOB, frozenset([ip_network("10.0.0.1/32"), ip_network("fd00::/64")])),
        ),
    )
    assert spec.routes == {ip_network(n) for n in ("10.0.0.0/24", "10.0.0.1/32", "fd00::/64")}


@law
@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB]), st.integers(0, 5)), max_size=8))
def test_allowed_ips_are_refused_exactly_where_two_keys_share_one(given: list[tuple[PublicKey, int]]) -> None:
    specs = [PeerSpec(key, frozenset([ip_network(f"10.0.{number}.0/24")])) for key, number in given]
    owners: dict[int, set[PublicKey]] = {}
    for key, number in given:
        owners.setdefault(number, set()).add(key)
    if any(len(keys) > 1 for keys in owners.values()):
        with pytest.raises(SpecError):
            check_allowed_ips(specs)
    else:
        check_allowed_ips(specs)


def test_scope_ids_are_refused() -> None:
    """`ipaddress` takes any text after the %, and a firewall rule is text too."""
    check_unscoped([ip_address("fe80::1"), ip_network("fe80::/64"), ip_interface("10.0.0.1/24")])
    for item in (
        ip_address("fe80::1%';reboot;'"),
        ip_network("fe80::%x/128"),
        ip_interface("fe80::1%a\nb/64"),
    ):
        with pytest.raises(SpecError, match="scope id"):
            check_unscoped([item])


def test_no_repr_of_a_spec_shows_a_secret() -> None:
    preshared = PresharedKey.generate()
    spec = InterfaceSpec("wg0", PRIVATE, peers=peers(PeerSpec(ALICE, preshared_key=preshared)))
    for secret in (PRIVATE, preshared):
        assert secret.reveal() not in repr(spec)
        assert secret.hex not in repr(spec)


# --- hosts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "192.0.2.1",
        "2001:db8::1",
        "vpn.example.org",
        "fra1",
        "my_box.lan",
        "3com.example",
        "a" * 63 + ".example",
    ],
)
def test_addresses_and_dns_names_are_hosts(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "a..b",
        ".example",
        "vpn.example.org.",
        "a:b",
        "vpn.example.org:51820",
        "[2001:db8::1]",
        "fe80::1%eth0",
        "-a.example",
        "a-.example",
        "a" * 64 + ".example",
        ".".join(["a" * 50] * 6),
        "192.0.2",
        "192.0.2.256",
        "1234",
        "exämple.org",
        "vpn.example.org\n",
    ],
)
def test_what_no_resolver_takes_is_no_host(host: str) -> None:
    with pytest.raises(SpecError, match="neither an IP address nor a DNS name") as caught:
        check_host(host)
    assert str(caught.value).startswith(repr(host[:80]))
