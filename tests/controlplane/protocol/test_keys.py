"""Keys: the published vectors, the text forms, and secrets that no formatting shows."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from rich.pretty import pretty_repr

from controlplane.protocol.errors import KeyFormatError
from controlplane.protocol.keys import (
    IdentityKey,
    IdentityPublicKey,
    PresharedKey,
    PrivateKey,
    PublicKey,
)

Public = PublicKey | IdentityPublicKey
Secret = PrivateKey | PresharedKey | IdentityKey
PUBLIC: list[type[Public]] = [PublicKey, IdentityPublicKey]
SECRET: list[type[Secret]] = [PrivateKey, PresharedKey, IdentityKey]
law = settings(deadline=None)
raw_keys = st.binary(min_size=32, max_size=32)

# --- against the standards ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("private", "public"),
    [
        (
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        ),
        (
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        ),
    ],
)
def test_public_keys_follow_rfc_7748(private: str, public: str) -> None:
    """Section 6.1."""
    assert PrivateKey(bytes.fromhex(private)).public_key.hex == public


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_signatures_follow_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    """Section 7.1."""
    key = IdentityKey(bytes.fromhex(seed))
    assert key.public_key.hex == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert key.public_key.verify(bytes.fromhex(message), bytes.fromhex(signature))


@pytest.mark.skipif(shutil.which("wg") is None, reason="needs wg; the vectors are tested without")
def test_public_keys_equal_wg_pubkey() -> None:
    for _ in range(5):
        key = PrivateKey.generate()
        done = subprocess.run(
            ["wg", "pubkey"], input=key.reveal(), capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(key.public_key)
    generated = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout.strip()
    assert PrivateKey.parse(generated).reveal() == generated


@law
@given(raw_keys)
def test_a_private_key_is_kept_clamped(raw: bytes) -> None:
    """RFC 7748 section 5; the kernel gives back the clamped form, which must compare equal."""
    kept = bytes(PrivateKey(raw))
    assert kept[0] & 7 == 0
    assert kept[31] & 0xC0 == 0x40
    assert kept[1:31] == raw[1:31]
    assert PrivateKey(kept) == PrivateKey(raw) == PrivateKey.parse(base64.b64encode(raw).decode())


def test_a_wrong_signature_does_not_verify() -> None:
    key = IdentityKey.generate()
    signature = key.sign(b"message")
    assert not key.public_key.verify(b"massage", signature)
    assert not key.public_key.verify(b"message", signature[:-1])
    assert not key.public_key.verify(b"message", b"")
    assert not key.public_key.verify(b"message", bytes(64))
    assert not IdentityKey.generate().public_key.verify(b"message", signature)


# --- text ---------------------------------------------------------------------------------------


@law
@given(raw_keys, st.sampled_from(PUBLIC))
def test_a_public_key_reads_back_equal(raw: bytes, kind: type[Public]) -> None:
    key = kind(raw)
    assert kind.parse(str(key)) == key
    adapter: TypeAdapter[Public] = TypeAdapter(kind)
    assert adapter.validate_json(adapter.dump_json(key)) == key
    assert adapter.validate_python(adapter.dump_python(key)) == key
    assert adapter.validate_python(key) is key


@law
@given(raw_keys, st.sampled_from(SECRET))
def test_a_secret_key_reads_back_equal(raw: bytes, kind: type[Secret]) -> None:
    key = kind(raw)
    assert kind.parse(key.reveal()) == key
    assert hash(kind.parse(key.reveal())) == hash(key)


GOOD = base64.b64encode(bytes(range(32))).decode()
MALFORMED = [
    "",
    "x",
    GOOD[:-1],
    GOOD + "=",
    GOOD + "\n",
    " " + GOOD,
    "ä" * 44,
    GOOD[:-2] + "9=",
    GOOD * 2,
    "A" * 44,
]


@pytest.mark.parametrize("text", MALFORMED)
@pytest.mark.parametrize("kind", PUBLIC)
def test_a_malformed_public_key_is_quoted(kind: type[Public], text: str) -> None:
    with pytest.raises(KeyFormatError, match="44 characters") as caught:
        kind.parse(text)
    assert repr(text[:16])[:-1] in str(caught.value)
    assert len(text) <= 20 or text[:20] not in str(caught.value)
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(text)


@pytest.mark.parametrize("text", [text for text in MALFORMED if text != GOOD[:-2] + "9="])
@pytest.mark.parametrize("kind", SECRET)
def test_a_malformed_secret_key_is_not_quoted(kind: type[Secret], text: str) -> None:
    with pytest.raises(KeyFormatError, match=rf"{len(text)} characters") as caught:
        kind.parse(text)
    assert len(text) < 2 or text[:8] not in str(caught.value)


@law
@given(st.text(), st.sampled_from([*PUBLIC, *SECRET]))
def test_any_text_is_a_key_or_a_key_format_error(text: str, kind: type[Public | Secret]) -> None:
    try:
        key = kind.parse(text)
    except KeyFormatError:
        return
    assert len(bytes(key)) == 32


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33)])
@pytest.mark.parametrize("kind", [*PUBLIC, *SECRET])
def test_other_lengths_are_refused(kind: type[Public | Secret], raw: bytes) -> None:
    with pytest.raises(KeyFormatError, match=f"32 bytes, not {len(raw)}"):
        kind(raw)


def test_kinds_are_never_equal_to_each_other() -> None:
    raw = bytes(PrivateKey.generate())
    keys = [kind(raw) for kind in (*PUBLIC, *SECRET)]
    assert [[a == b for b in keys] for a in keys] == [[a is b for b in keys] for a in keys]
    assert keys[0] != str(keys[0])


def test_public_keys_sort_by_their_bytes() -> None:
    keys = [PublicKey(bytes([number] * 32)) for number in (3, 1, 2)]
    assert [bytes(key)[0] for key in sorted(keys)] == [1, 2, 3]


def test_generated_keys_differ() -> None:
    for kind in SECRET:
        assert kind.generate() != kind.generate()


# --- secrecy ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    key: Secret


def _logged(key: Secret) -> str:
    stream = StringIO()
    logger = logging.Logger("keys")
    logger.addHandler(logging.StreamHandler(stream))
    logger.error("key %s %r", key, [key])
    return stream.getvalue()


FORMATTINGS: dict[str, Callable[[Secret], str]] = {
    "str": str,
    "repr": repr,
    "f-string": lambda key: f"{key} {key!r}",
    "percent": lambda key: "%s %r" % (key, key),  # noqa: UP031
    "format": lambda key: "{} {!r}".format(key, key),  # noqa: UP032
    "containers": lambda key: repr([key, {"key": key}, (key,)]),
    "dataclass": lambda key: repr(Holder(key)),
    "asdict": lambda key: repr(asdict(Holder(key))),
    "logging": _logged,
    "rich": lambda key: pretty_repr(Holder(key)),
    "exception": lambda key: repr(ValueError("bad key", key)),
    "json": lambda key: json.dumps({"key": key}, default=str),
}


@pytest.mark.parametrize("formatting", FORMATTINGS)
@pytest.mark.parametrize("kind", SECRET)
def test_no_formatting_shows_a_secret(kind: type[Secret], formatting: str) -> None:
    key = kind.generate()
    text = FORMATTINGS[formatting](key)
    assert f"{kind.__name__}('***')" in text
    for form in (key.reveal(), key.reveal()[:12], key.hex, key.hex[:12], repr(bytes(key))[2:-1]):
        assert form not in text


@pytest.mark.parametrize("kind", SECRET)
def test_a_secret_key_cannot_be_a_field_of_a_message(kind: type[Secret]) -> None:
    with pytest.raises(PydanticSchemaGenerationError):
        TypeAdapter(kind)


def test_a_private_key_given_for_a_public_one_is_not_quoted() -> None:
    key = PrivateKey.generate()
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(PublicKey).validate_python(key)
    assert key.reveal() not in str(caught.value)
    assert key.reveal() not in repr(caught.value.errors())
