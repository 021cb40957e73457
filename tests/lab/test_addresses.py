import pytest

from lab.addresses import CAPACITY, DOCUMENTATION, private, public
from lab.errors import LabError


def test_networks_never_overlap() -> None:
    subnets = [public(n) for n in range(CAPACITY)] + [private(n) for n in range(CAPACITY)]
    ipv4, ipv6 = [s.ipv4 for s in subnets], [s.ipv6 for s in subnets]
    for i in range(len(subnets)):
        assert not any(ipv4[i].overlaps(other) for other in ipv4[:i])
        assert not any(ipv6[i].overlaps(other) for other in ipv6[:i])


def test_public_networks_are_documentation_prefixes() -> None:
    for number in range(CAPACITY):
        assert any(public(number).ipv4.subnet_of(block) for block in DOCUMENTATION)
    assert public(0).address4(1) == "192.0.2.1"
    assert public(4).address4(2) == "198.51.100.18"
    assert public(4).address6(2) == "2001:db8:5::2"


def test_host_numbers_stay_below_broadcast() -> None:
    subnet = public(0)
    assert subnet.ipv4[subnet.capacity] < subnet.ipv4.broadcast_address
    assert subnet.ipv4[subnet.capacity + 1] == subnet.ipv4.broadcast_address


@pytest.mark.parametrize("number", [-1, CAPACITY])
def test_a_lab_has_an_end(number: int) -> None:
    with pytest.raises(LabError, match=f"number {number}: a lab has at most {CAPACITY}"):
        public(number)
