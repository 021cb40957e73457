"""wg-quick files: canonical, read back equal, and refused where WireGuard would bend them."""

from __future__ import annotations

import re
import shutil
import string
import subprocess
from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.protocol.errors import KeyFormatError, ProtocolError, SpecError
from controlplane.protocol.keys import PresharedKey, PrivateKey, PublicKey
from controlplane.protocol.wireguard import Endpoint, PeerSpec, check_interface_name
from controlplane.wgconf import Inbound, WgQuickConfig, interface_name, parse, render

PRIVATE = PrivateKey(bytes(range(32)))
ALICE, BOB = PublicKey(bytes([1] * 32)), PublicKey(bytes([2] * 32))
NET = ip_network("10.1.0.0/24")
CONFIG = WgQuickConfig(
    private_key=PRIVATE,
    addresses=(ip_interface("10.1.0.2/32"), ip_interface("fd00::2/128")),
    peers=(
        PeerSpec(ALICE, frozenset([NET, ip_network("fd00::/64")]), Endpoint("fra1.example", 51820), None, 25),
    ),
    names={ALICE: "fra1"},
    mtu=1380,
    inbound=Inbound((NET,), (ip_address("10.1.0.1"), ip_address("fd00::1"))),
)
TEXT = render(CONFIG)
PLAIN = render(replace(CONFIG, inbound=None))

# --- the file -----------------------------------------------------------------------------------


def test_the_plain_file_is_canonical() -> None:
    lines = (
        "[Interface]\n"
        f"PrivateKey = {PRIVATE.reveal()}\n"
        "Address = 10.1.0.2/32, fd00::2/128\n"
        "MTU = 1380\n"
        "\n"
        "# fra1\n"
        "[Peer]\n"
        f"PublicKey = {ALICE}\n"
        "AllowedIPs = 10.1.0.0/24, fd00::/64\n"
        "Endpoint = fra1.example:51820\n"
        "PersistentKeepalive = 25\n"
    )
    assert render(replace(CONFIG, inbound=None)) == lines


def test_the_hooks_refuse_the_server_before_they_accept_its_network() -> None:
    hook = next(line for line in TEXT.splitlines() if line.startswith("PostUp"))
    order = [
        "ct state established accept",
        "ct state related accept",
        "ip saddr 10.1.0.1 drop",
        "ip6 saddr fd00::1 drop",
    ]
    order += ["ip saddr 10.1.0.0/24 accept", " drop; };"]
    positions = [hook.index(part) for part in order]
    assert positions == sorted(positions)
    assert "PreDown" in TEXT


def test_the_private_key_is_masked_in_the_repr() -> None:
    assert PRIVATE.reveal() not in repr(CONFIG)


@pytest.mark.skipif(shutil.which("wg-quick") is None, reason="needs wg-quick")
def test_wg_quick_strips_to_what_wg_understands(tmp_path: Path) -> None:
    path = tmp_path / "fra1.conf"
    path.touch(mode=0o600)
    path.write_text(TEXT)
    done = subprocess.run(["wg-quick", "strip", str(path)], capture_output=True, text=True, check=True)
    settings = [line for line in done.stdout.splitlines() if "=" in line]
    assert [line.split(" = ")[0] for line in settings] == [
        "PrivateKey",
        "PublicKey",
        "AllowedIPs",
        "Endpoint",
        "PersistentKeepalive",
    ]


# --- round trips --------------------------------------------------------------------------------

keys = st.binary(min_size=32, max_size=32)
addresses = st.one_of(
    st.builds(IPv4Address, st.integers(0, 2**32 - 1)), st.builds(IPv6Address, st.integers(0, 2**128 - 1))
)


def _network(number: int, prefix: int) -> IPv4Network | IPv6Network:
    if prefix <= 32:
        return IPv4Network((number % 2**32, prefix), strict=False)
    return IPv6Network((number, prefix), strict=False)


networks = st.builds(_network, st.integers(0, 2**128 - 1), st.integers(0, 128))
interfaces = st.one_of(
    st.builds(lambda n, p: IPv4Interface((n, p)), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda n, p: IPv6Interface((n, p)), st.integers(0, 2**128 - 1), st.integers(0, 128)),
)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "), min_size=1, max_size=30
).filter(lambda name: name == name.strip() and name.isprintable())
ports = st.integers(1, 65535)
endpoints = st.builds(Endpoint, st.sampled_from(["a.example", "192.0.2.1", "2001:db8::1"]), ports)


@st.composite
def configs(draw: st.DrawFn) -> WgQuickConfig:
    public = [PublicKey(raw) for raw in draw(st.lists(keys, unique=True, max_size=3))]
    pool = draw(st.lists(networks, unique=True, max_size=6))
    peers = tuple(
        PeerSpec(
            key,
            frozenset(pool[number :: len(public)]),
            draw(st.none() | endpoints),
            draw(st.none() | st.builds(PresharedKey, keys)),
            draw(st.integers(0, 65535)),
        )
        for number, key in enumerate(public)
    )
    return WgQuickConfig(
        private_key=PrivateKey(draw(keys)),
        addresses=tuple(draw(st.lists(interfaces, min_size=1, max_size=3))),
        peers=peers,
        names={key: draw(names) for key in public if draw(st.booleans())},
        listen_port=draw(st.integers(0, 65535)),
        mtu=draw(st.none() | st.integers(576, 65535)),
        dns=tuple(draw(st.lists(addresses, max_size=2))),
        inbound=draw(
            st.none()
            | st.builds(
                Inbound, st.lists(networks, max_size=3).map(tuple), st.lists(addresses, max_size=3).map(tuple)
            )
        ),
    )


@given(configs())
def test_what_is_rendered_reads_back_equal(config: WgQuickConfig) -> None:
    assert parse(render(config)) == config


@given(
    st.text()
    | st.lists(
        st.sampled_from([*TEXT.splitlines(), *PLAIN.splitlines(), "#! [Peer]", "_rawdata = 1", "MTU = ½"])
    ).map("\n".join)
)
def test_any_text_is_a_configuration_or_a_protocol_error(text: str) -> None:
    try:
        config, message = parse(text), ""
    except ProtocolError as error:
        config, message = CONFIG, str(error)
    assert PRIVATE.reveal() not in message
    assert parse(render(config)) == config


def test_wg_quicks_own_freedoms_are_read() -> None:
    text = PLAIN.replace("PrivateKey", "privatekey").replace("[Peer]", "[PEER]").replace("\n", "\r\n")
    text = text.replace("AllowedIPs = 10.1.0.0/24, ", "AllowedIPs=10.1.0.0/24 # the LAN\nAllowedIPs = ")
    assert parse(text) == replace(CONFIG, inbound=None)


def test_a_commented_out_peer_is_no_peer() -> None:
    disabled = f"\n#! [Peer]\n#! PublicKey = {BOB}\n#! AllowedIPs = 0.0.0.0/0\n"
    assert [peer.public_key for peer in parse(PLAIN + disabled).peers] == [ALICE]


# --- refusals -----------------------------------------------------------------------------------


def changed(old: str, new: str, text: str = PLAIN) -> str:
    assert old in text
    return text.replace(old, new)


SECOND = f"\n[Peer]\nPublicKey = {BOB}\nAllowedIPs = 10.1.0.0/24\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PLAIN + SECOND, "allowed IP 10.1.0.0/24 is given to two peers"),
        (PLAIN + f"[Peer]\nPublicKey = {ALICE}\n", f"2 peers with the public key {ALICE}"),
        (changed("[Interface]\n", ""), "is not NAME = VALUE in a section"),
        (changed("[Interface]", "[Interfaces]"), "'[Interfaces]'"),
        (PLAIN + PLAIN, "expected one [Interface]"),
        ("", "is empty"),
        (changed("Address = 10.1.0.2/32, fd00::2/128\n", ""), "no address"),
        (changed("10.1.0.2/32", "10.1.0.2/33"), "'10.1.0.2/33'"),
        (changed("10.1.0.0/24", "10.1.0.1/24"), "10.1.0.1/24 has host bits set"),
        (changed("10.1.0.0/24", ""), "AllowedIPs = ''"),
        (changed("fd00::2/128", "fe80::1%';reboot;'/128"), "scope id"),
        (changed("fra1.example:51820", "fra1.example"), "'fra1.example' has no port"),
        (changed("fra1.example:51820", "fra1.example:70000"), "70000"),
        (changed("fra1.example:51820", "a b:1"), "'a b'"),
        (changed("MTU = 1380", "MTU = 100"), "MTU = 100"),
        (changed("MTU = 1380", "MTU = 1_380"), "'1_380'"),
        (changed("MTU = 1380", "MTU = ²"), "digits"),
        (changed("MTU = 1380", "MTU = 1380\nMTU = 1400"), "2 values for MTU"),
        (changed("MTU = 1380", "MTU = 1380\nListenPort = 65536"), "ListenPort = 65536"),
        (changed("= 25", "= 65536"), "PersistentKeepalive = 65536"),
        (changed("MTU = 1380", "Table = off"), "'table'"),
        (changed("MTU = 1380", "_rawdata = 1"), "_rawdata"),
        (PLAIN + "Address = 10.0.0.1/32\n", "[Peer] has a setting 'address'"),
        (changed("MTU = 1380", "PostUp = curl evil.example"), "remove them"),
        (changed(f"PublicKey = {ALICE}\n", ""), "[Peer] has no PublicKey"),
        (
            changed(f"PublicKey = {ALICE}\n", f"PublicKey = {ALICE}\nPublicKey = {BOB}\n"),
            "several values for PublicKey",
        ),
        (changed("established accept", "new accept", TEXT), "not the hooks that Horizon writes"),
        (re.sub(r"PreDown.*\n", "", TEXT), "not the hooks that Horizon writes"),
        (changed("10.1.0.1 drop", "10.1.0.300 drop", TEXT), "not the hooks that Horizon writes"),
        (changed("fd00::1 drop", "fe80::1%';reboot;' drop", TEXT), ""),
    ],
)
def test_what_wireguard_would_bend_is_refused_with_the_value(text: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert PRIVATE.reveal() not in str(caught.value)


@pytest.mark.parametrize("name", ["PrivateKey", "PublicKey", "PresharedKey"])
@pytest.mark.parametrize("value", ["short=", "A" * 44, "A" * 88])
def test_a_damaged_key_is_a_key_error_and_secret_ones_are_not_quoted(name: str, value: str) -> None:
    text = re.sub(rf"{name} = .*", f"{name} = {value}", PLAIN)
    if name == "PresharedKey":
        text += f"PresharedKey = {value}\n"
    with pytest.raises(KeyFormatError) as caught:
        parse(text)
    assert (value[:6] in str(caught.value)) == (name == "PublicKey")


def test_a_line_without_equals_shows_no_key() -> None:
    with pytest.raises(SpecError, match="line 2") as caught:
        parse(changed("PrivateKey = ", "PrivateKey "))
    assert PRIVATE.reveal()[:20] not in str(caught.value)


@pytest.mark.parametrize("name", ["", " a", "a\n[Peer]", "a\x00", "x" * 101, "a\u2028b"])
def test_a_peer_name_cannot_leave_its_comment(name: str) -> None:
    with pytest.raises(SpecError, match="cannot name a peer"):
        replace(CONFIG, names={ALICE: name})


def test_a_name_needs_its_peer() -> None:
    with pytest.raises(SpecError, match="'x' names no peer"):
        replace(CONFIG, names={BOB: "x"})


EVIL = "fe80::1%';reboot;'\n"


def test_addresses_cannot_carry_text_into_the_file_or_a_hook() -> None:
    """`ipaddress` itself takes any text for a scope id."""
    with pytest.raises(SpecError, match="scope id"):
        Inbound(never_from=(ip_address(EVIL),))
    with pytest.raises(SpecError, match="scope id"):
        Inbound(accept_from=(ip_network(f"{EVIL}/128"),))
    with pytest.raises(SpecError, match="scope id"):
        replace(CONFIG, addresses=(ip_interface(f"{EVIL}/64"),))
    with pytest.raises(SpecError, match="scope id"):
        replace(CONFIG, dns=(ip_address(EVIL),))
    with pytest.raises(SpecError, match="scope id"):
        replace(CONFIG, peers=(PeerSpec(ALICE, frozenset([ip_network(f"{EVIL}/128")])),))


# --- interface names ----------------------------------------------------------------------------

LETTERS = string.ascii_letters + string.digits + "._-"


@pytest.mark.parametrize("name", ["fra1", "a", "a.b-c_d", "x" * 15])
def test_a_short_server_name_is_the_interface_name(name: str) -> None:
    assert interface_name(name) == name


@given(st.text() | st.text(LETTERS, min_size=14, max_size=63))
def test_every_name_gives_a_file_stem_for_wg_quick(name: str) -> None:
    stem = interface_name(name)
    assert check_interface_name(stem) == stem
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", stem)
    assert interface_name(name) == stem


@given(st.sets(st.text(LETTERS, max_size=30), min_size=2, max_size=20))
def test_two_servers_have_two_interface_names(servers: set[str]) -> None:
    stems = {interface_name(name) for name in servers}
    assert len(stems) == len(servers)


@pytest.mark.parametrize("name", ["a-server-in-frankfurt-1", "a-server-in-frankfurt-2", "büro", "all", "-x"])
def test_a_shortened_name_cannot_be_taken_by_a_short_one(name: str) -> None:
    stem = interface_name(name)
    assert stem != name
    assert interface_name(stem) != stem
