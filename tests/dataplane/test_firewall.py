"""The text of the nftables table; what it does to packets is in the namespace ring."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.protocol.errors import SpecError
from controlplane.protocol.wireguard import IPNetwork
from dataplane.firewall import digest, needs_forwarding, render, table_name
from dataplane.state import ClientFirewall, FirewallSpec, ServerFirewall


def networks(*texts: str) -> frozenset[IPNetwork]:
    return frozenset(map(ip_network, texts))


def test_the_table_is_replaced_in_one_transaction() -> None:
    lines = render(ServerFirewall("hz0"), "note").splitlines()
    assert lines[:4] == [
        "table inet horizon_hz0",
        "delete table inet horizon_hz0",
        "table inet horizon_hz0 {",
        'comment "note"',
    ]


@pytest.mark.parametrize(("allowed", "verdict"), [(True, "accept"), (False, "counter drop")])
def test_client_to_client_is_one_rule(allowed: bool, verdict: str) -> None:
    text = render(ServerFirewall("hz0", client_to_client=allowed))
    assert f'oifname "hz0" {verdict}\n' in text
    assert needs_forwarding(ServerFirewall("hz0", allowed)) is allowed


def test_a_client_forwards_nothing() -> None:
    assert not needs_forwarding(ClientFirewall("hz0"))
    assert not needs_forwarding(None)


def test_networks_stand_in_sets_by_family_merged() -> None:
    spec = ClientFirewall(
        "hz0", networks("10.64.0.0/21", "10.64.8.0/21", "10.64.1.0/24", "fd00::/64"), networks()
    )
    text = render(spec)
    assert "set accept_from4 {\ntype ipv4_addr; flags interval;\nelements = { 10.64.0.0/20 }\n}" in text
    assert "set accept_from6 {\ntype ipv6_addr; flags interval;\nelements = { fd00::/64 }\n}" in text
    assert "set refuse_from4 {\ntype ipv4_addr; flags interval;\n}" in text


def test_the_rules_are_as_many_for_one_network_as_for_a_thousand() -> None:
    many = frozenset(ip_network(f"10.{n // 256}.{n % 256}.1/32") for n in range(1000))
    one = render(ClientFirewall("hz0", networks("10.0.0.1/32")))
    assert render(ClientFirewall("hz0", many)).count("\n") == one.count("\n")


def test_the_digest_tells_tables_apart() -> None:
    specs: list[FirewallSpec] = [
        ServerFirewall("hz0"),
        ServerFirewall("hz0", client_to_client=True),
        ServerFirewall("hz1"),
        ClientFirewall("hz0"),
        ClientFirewall("hz0", networks("10.0.0.0/8")),
        ClientFirewall("hz0", refuse_from=networks("10.0.0.0/8")),
    ]
    assert len({digest(spec) for spec in specs}) == len(specs)
    assert digest(ClientFirewall("hz0", networks("10.0.0.0/8"))) == digest(specs[4])


@pytest.mark.parametrize("name", ['a"; flush', "a b", "a\nb", "", "x" * 16, "a/b", "a{", "..", "a;b"])
def test_a_name_that_is_none_never_gets_into_the_text(name: str) -> None:
    for spec in (ServerFirewall(name), ClientFirewall(name)):
        with pytest.raises(SpecError, match="is not an interface name"):
            render(spec)


names = st.from_regex(r"[a-zA-Z0-9_=+.-]{1,15}", fullmatch=True).filter(lambda n: n not in {".", ".."})


@given(names, names)
def test_every_interface_has_a_table_of_its_own_in_letters_nft_takes(one: str, other: str) -> None:
    assert (table_name(one) == table_name(other)) == (one == other)
    assert set(table_name(one)).isdisjoint("=+ \"'")
