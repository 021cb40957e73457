"""Invites: one string that reads back equal, refuses damage with the fix named, and keeps its secret."""

from __future__ import annotations

import hashlib
import json
import logging
import string
from io import StringIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.pretty import pretty_repr

from controlplane.protocol.enrolment import DEFAULT_PORT, EnrolmentKey, Invite, InviteKind, encode_pin
from controlplane.protocol.errors import InviteError, KeyFormatError

law = settings(deadline=None)
PIN = encode_pin(hashlib.sha256(b"spki").digest())
KEY = EnrolmentKey(InviteKind.server, "7w3kq2mfya", "s3cr2tq7" * 6 + "abcd")
INVITE = Invite("broker.example", 8443, PIN, KEY)
TEXT = INVITE.reveal()


def hides_the_secret(text: str) -> bool:
    """No part of the secret, except where it reads like a word."""
    return KEY.secret[:12] not in text and KEY.secret[-12:] not in text


# --- keys ---------------------------------------------------------------------------------------

keys = st.builds(
    EnrolmentKey,
    st.sampled_from(InviteKind),
    st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=10, max_size=10),
    st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=52, max_size=52),
)


@law
@given(keys)
def test_a_key_reads_back_equal(key: EnrolmentKey) -> None:
    assert EnrolmentKey.parse(key.reveal()) == key
    adapter = TypeAdapter(EnrolmentKey)
    assert adapter.validate_json(adapter.dump_json(key)) == key
    assert adapter.validate_python(key) is key


@law
@given(st.text())
def test_any_text_is_a_key_or_a_key_format_error(text: str) -> None:
    with pytest.raises(KeyFormatError, match=rf"\({len(text)} characters\)"):
        EnrolmentKey.parse(text)


@pytest.mark.parametrize("kind", InviteKind)
def test_a_generated_key_is_long_random_and_says_what_it_is_for(kind: InviteKind) -> None:
    key, other = EnrolmentKey.generate(kind), EnrolmentKey.generate(kind)
    assert key.reveal().split("_")[0] == {"server": "hzreg", "device": "hzper", "admin": "hzadm"}[kind]
    assert EnrolmentKey.parse(key.reveal()) == key
    assert (len(key.secret), len(set(key.secret)) > 10) == (52, True)
    assert (key.key_id, key.secret) != (other.key_id, other.secret)
    assert key.reveal().startswith(key.visible)
    assert key.secret not in key.visible


def test_the_example_is_a_key() -> None:
    assert EnrolmentKey.parse(EnrolmentKey.EXAMPLE).reveal() == EnrolmentKey.EXAMPLE


class Holder(BaseModel):
    key: EnrolmentKey


def test_no_formatting_shows_the_secret() -> None:
    stream = StringIO()
    logger = logging.Logger("invites")
    logger.addHandler(logging.StreamHandler(stream))
    logger.error("%s %r %s", KEY, INVITE, [KEY, INVITE])
    holder = Holder(key=KEY)
    texts = [
        *(str(KEY), repr(KEY), f"{KEY} {INVITE} {INVITE!r}", repr({"key": KEY})),
        *(str(holder), repr(holder), str(holder.model_dump()), pretty_repr(holder)),
        *(pretty_repr([KEY, INVITE]), stream.getvalue(), json.dumps([KEY], default=str)),
    ]
    for text in texts:
        assert hides_the_secret(text), text
        assert KEY.visible in text
    assert KEY.reveal() in holder.model_dump_json()


@pytest.mark.parametrize("value", [KEY.reveal()[:-1], KEY.reveal() + "x", KEY.reveal().upper(), 7, None, [1]])
def test_a_malformed_key_in_a_message_is_named_by_its_length_only(value: object) -> None:
    with pytest.raises(ValidationError, match="not an enrolment key") as caught:
        TypeAdapter(EnrolmentKey).validate_python(value)
    assert [error["type"] for error in caught.value.errors()] == ["value_error"]


# --- invites ------------------------------------------------------------------------------------

hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5}){0,3}", fullmatch=True),
    st.ip_addresses().map(str),
)


@law
@given(hosts, st.integers(1, 65535), st.binary(min_size=32, max_size=32), keys)
def test_an_invite_reads_back_equal(host: str, port: int, digest: bytes, key: EnrolmentKey) -> None:
    invite = Invite(host, port, encode_pin(digest), key)
    assert Invite.parse(invite.reveal()) == invite
    assert Invite.parse(f"  {invite.reveal()}\n", expect=key.kind) == invite


PIECES = [TEXT, "horizon:", "//", "broker.example", ":8443", "/server/", KEY.reveal(), "?pin=", PIN]
PIECES += ["@", "[", "]", "%", "℀", " ", "\n", "#", ":", "/", KEY.secret]


@law
@given(
    st.text()
    | st.lists(st.sampled_from(PIECES) | st.text(string.printable, max_size=3), max_size=12).map("".join)
)
@example(f"horizon://broker:8443{KEY.reveal()}?pin={PIN}")
@example(f"horizon://broker{KEY.reveal()}\u2100/x")
@example(KEY.secret)
@example(KEY.reveal())
def test_any_text_is_an_invite_or_an_invite_error_without_the_secret(text: str) -> None:
    try:
        invite = Invite.parse(text)
    except InviteError as error:
        message = str(error)
    else:
        message = str(invite)
        assert Invite.parse(invite.reveal()) == invite
    assert hides_the_secret(message)


def test_an_invite_gives_the_url_of_the_api() -> None:
    assert INVITE.url == "https://broker.example:8443"
    assert Invite("2001:db8::1", 1, PIN, KEY).url == "https://[2001:db8::1]:1"
    assert Invite.parse(TEXT.replace(":8443", "")).port == DEFAULT_PORT


def test_an_invite_broken_over_lines_is_read() -> None:
    """As a mail program breaks it."""
    assert Invite.parse(f"{TEXT[:40]}\n{TEXT[40:80]}\r\n{TEXT[80:]}") == INVITE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an invite with 'horizon://'"),
        ("https://broker.example:8443/", "begins with 'https://br', and an invite with 'horizon://'"),
        (KEY.reveal(), "only a part of one"),
        (TEXT.removeprefix("horizon://"), "copy all of it"),
        (TEXT.replace("broker.example:8443", ""), "names no broker (horizon://HOST:PORT/…)"),
        (TEXT.replace("broker.example", "two words"), "names no broker"),
        (TEXT.replace("broker.example", "user@broker.example"), "names no broker"),
        (TEXT.replace("broker.example", "[::1"), "names no broker"),
        (TEXT.replace(":8443", ":84430"), "names no broker"),
        (TEXT.replace(":8443", ":port"), "names no broker"),
        (TEXT.partition("?")[0], "TLS pin is missing or cut off"),
        (TEXT[:-1], "copy the whole invite"),
        (TEXT + "A", "TLS pin is missing or cut off"),
        (TEXT + f"&pin={PIN}", "TLS pin is missing or cut off"),
        (TEXT[:-1] + "!", "TLS pin is missing or cut off"),
        (TEXT.replace(KEY.secret, KEY.secret[:-1]), "was it cut off when copied?"),
        (TEXT.replace("hzreg", "hzabc"), "expected hzreg_, hzper_ or hzadm_"),
        (TEXT.replace("/server/", "/"), "key is damaged"),
        (TEXT.replace("/server/", "/device/"), "says it is for 'device', but its key is for a server"),
        (TEXT.replace("hzreg", "hzper"), "says it is for 'server', but its key is for a device"),
    ],
)
def test_a_damaged_invite_names_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InviteError) as caught:
        Invite.parse(text)
    assert says in str(caught.value)
    assert hides_the_secret(str(caught.value))


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        (InviteKind.server, "horizon server join"),
        (InviteKind.device, "horizon client join"),
        (InviteKind.admin, "horizon admin login"),
    ],
)
def test_an_invite_for_something_else_names_the_command_that_takes_it(kind: InviteKind, command: str) -> None:
    invite = Invite("broker.example", 8443, PIN, EnrolmentKey.generate(kind))
    assert Invite.parse(invite.reveal(), expect=kind) == invite
    for other in set(InviteKind) - {kind}:
        with pytest.raises(InviteError, match=f"for a {kind}, not for a {other}") as caught:
            Invite.parse(invite.reveal(), expect=other)
        assert command in str(caught.value)


def test_a_pin_is_base64url_without_padding() -> None:
    assert encode_pin(b"\xfb\xff\xff" * 10 + b"\xfb\xff") == "-___" * 10 + "-_8"
