"""Addresses: every number that can be given out, at both ends of every size of pool."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.errors import AddressesExhausted
from controlplane.ipam import (
    FIRST_DEVICE_HOST,
    SERVER_HOST,
    Pools,
    Subnet,
    next_host,
    random_ula,
)

TINY = Subnet(IPv4Network("10.9.0.8/29"), IPv6Network("fd00:9::/64"))


@st.composite
def pools(draw: st.DrawFn) -> Pools:
    ipv4_length = draw(st.integers(8, 29))
    ipv6_length = draw(st.integers(40, 64))
    ipv4 = IPv4Network((draw(st.integers(0, 2**32 - 1)), ipv4_length), strict=False)
    ipv6 = IPv6Network((draw(st.integers(0xFD << 120, (0xFE << 120) - 1)), ipv6_length), strict=False)
    return Pools(ipv4, draw(st.integers(ipv4_length, 29)), ipv6)


@given(pools(), st.data())
def test_subnets_lie_in_their_pools_and_apart(made: Pools, data: st.DataObject) -> None:
    numbers = st.integers(0, made.subnets - 1)
    one, other = data.draw(numbers), data.draw(numbers)
    first, second = made.subnet(one), made.subnet(other)
    assert first.ipv4.subnet_of(made.ipv4)
    assert first.ipv6.subnet_of(made.ipv6)
    assert (first.ipv4.prefixlen, first.ipv6.prefixlen) == (made.ipv4_prefix, 64)
    assert first.ipv4.overlaps(second.ipv4) == first.ipv6.overlaps(second.ipv6) == (one == other)


@given(pools())
def test_the_last_subnet_is_given_and_none_after_it(made: Pools) -> None:
    last = made.subnet(made.subnets - 1)
    ends = last.ipv4.broadcast_address == made.ipv4.broadcast_address
    assert ends or last.ipv6.broadcast_address == made.ipv6.broadcast_address
    for number in (made.subnets, -1):
        with pytest.raises(
            AddressesExhausted, match=rf"{made.ipv4} holds {made.subnets} servers.*larger pool"
        ):
            made.subnet(number)


@given(pools(), st.data())
def test_a_host_has_one_number_in_both_families(made: Pools, data: st.DataObject) -> None:
    subnet = made.subnet(data.draw(st.integers(0, made.subnets - 1)))
    host = data.draw(st.integers(SERVER_HOST, subnet.last_host))
    ipv4, ipv6 = subnet.addresses(host)
    assert ipv4 in set(subnet.ipv4.hosts()) if subnet.ipv4.prefixlen > 24 else ipv4 in subnet.ipv4
    assert int(ipv4) - int(subnet.ipv4.network_address) == host
    assert int(ipv6) - int(subnet.ipv6.network_address) == host
    interfaces = subnet.interfaces(host)
    assert [interface.ip for interface in interfaces] == [ipv4, ipv6]
    assert [interface.network for interface in interfaces] == [subnet.ipv4, subnet.ipv6]


@given(pools())
def test_network_and_broadcast_addresses_are_nobodys(made: Pools) -> None:
    subnet = made.subnet(0)
    assert subnet.addresses(subnet.last_host)[0] == subnet.ipv4.broadcast_address - 1
    for host in (0, subnet.last_host + 1, -1):
        with pytest.raises(ValueError, match=f"host {host} is not between 1 and {subnet.last_host}"):
            subnet.addresses(host)


@given(st.lists(st.sampled_from(["connect", "leave", "rest"]), max_size=40))
def test_no_address_is_given_twice_at_a_time(story: list[str]) -> None:
    """Against a model: devices come, leave, and their addresses rest before they are free."""
    used: set[int] = set()
    resting: list[int] = []
    free: list[int] = []
    highest: int | None = None
    for act in story:
        if act == "leave" and used:
            resting.append(used.pop())
        elif act == "rest":
            free, resting = free + resting, []
        elif act == "connect":
            fresh = [host for host in range(FIRST_DEVICE_HOST, 7) if host > (highest or 0)]
            try:
                host = next_host(TINY, highest, free[0] if free else None, "fra1")
            except AddressesExhausted:
                assert not fresh
                assert not free
                assert len(used) + len(resting) == 5
                continue
            assert host not in used
            assert host not in resting
            assert host == fresh[0] if fresh else host == free.pop(0)
            used.add(host)
            highest = max(host, highest or 0)


def test_the_first_device_is_host_two_and_the_last_is_below_broadcast() -> None:
    assert next_host(TINY, None, None, "fra1") == 2
    assert next_host(TINY, 5, None, "fra1") == 6
    with pytest.raises(AddressesExhausted, match=r"'fra1' has no free address left in 10.9.0.8/29 \(5 dev"):
        next_host(TINY, 6, None, "fra1")


def test_fresh_numbers_go_before_rested_ones() -> None:
    assert next_host(TINY, 3, 2, "fra1") == 4
    assert next_host(TINY, 6, 2, "fra1") == 2


def test_pools_that_hold_no_server_are_refused() -> None:
    ipv6 = IPv6Network("fd00::/48")
    for prefix in (30, 7):
        with pytest.raises(ValueError, match=f"/{prefix} must lie between the pool's /8 and /29"):
            Pools(IPv4Network("10.0.0.0/8"), prefix, ipv6)
    with pytest.raises(ValueError, match="fd00::/65 is smaller than one server's /64"):
        Pools(IPv4Network("10.0.0.0/8"), 20, IPv6Network("fd00::/65"))


def test_ulas_are_locally_assigned_and_differ() -> None:
    drawn = {random_ula() for _ in range(20)}
    assert len(drawn) == 20
    assert all(ula.prefixlen == 48 and ula.subnet_of(IPv6Network("fd00::/8")) for ula in drawn)
