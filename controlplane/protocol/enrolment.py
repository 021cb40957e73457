"""Enrolment keys and the invites that carry them. *Vocabulary.*

    horizon://broker.example:8443/server/hzreg_7w3kq2mfya_…?pin=2lWZ…

An invite is one string: where the broker is, the SHA-256 pin of its TLS public key (SPKI, as in
RFC 7469 section 2.4, base64url) and a key. A key has a public id, by which it is found, and a 256-bit
secret, shown once. What the key is for stands in its prefix.
"""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from controlplane.protocol.errors import InviteError, KeyFormatError

DEFAULT_PORT = 8443
SCHEME = "horizon"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


class InviteKind(StrEnum):
    """Whom an invite is for, and by which key it lets them in."""

    server = "server"
    """A server: a registration key."""
    device = "device"
    """A user's device: a personal key."""
    admin = "admin"
    """An administrator's machine: an admin key, used once."""


_PREFIX = {InviteKind.server: "hzreg", InviteKind.device: "hzper", InviteKind.admin: "hzadm"}
_KIND = {prefix: kind for kind, prefix in _PREFIX.items()}
_FORM = "horizon://HOST:PORT/…"
_HOST = re.compile(r"[\w.:%-]{1,253}")
_KEY = re.compile(r"(hzreg|hzper|hzadm)_([a-z2-7]{10})_([a-z2-7]{52})")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


@dataclass(frozen=True, slots=True, repr=False)
class EnrolmentKey:
    """A registration, personal or admin key: `PREFIX_ID_SECRET`. Text only by `reveal()`."""

    kind: InviteKind
    key_id: str
    secret: str
    """52 characters of base32 (RFC 4648, lower case): 260 random bits."""

    EXAMPLE: ClassVar[str] = "hzreg_" + "a" * 10 + "_" + "b" * 52

    @classmethod
    def generate(cls, kind: InviteKind) -> EnrolmentKey:
        return cls(kind, _random(10), _random(52))

    @classmethod
    def parse(cls, text: str) -> EnrolmentKey:
        """Read `PREFIX_ID_SECRET`. Raises `KeyFormatError` that quotes no secret."""
        match = _KEY.fullmatch(text)
        if match is None:
            raise KeyFormatError(
                f"the given text ({len(text)} characters) is not an enrolment key: expected "
                "hzreg_, hzper_ or hzadm_, then 10 and 52 characters; was it cut off when copied?"
            )
        prefix, key_id, secret = match.groups()
        return cls(_KIND[prefix], key_id, secret)

    def reveal(self) -> str:
        """The whole key: to be shown once, or sent to the broker."""
        return f"{_PREFIX[self.kind]}_{self.key_id}_{self.secret}"

    @property
    def visible(self) -> str:
        """The part that may be shown and stored: prefix and id."""
        return f"{_PREFIX[self.kind]}_{self.key_id}"

    def __repr__(self) -> str:
        return f"EnrolmentKey({self.visible}_***)"

    __str__ = __repr__

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(cls._serialize, info_arg=True),
        )

    @classmethod
    def _validate(cls, value: object) -> EnrolmentKey:
        return value if isinstance(value, cls) else cls.parse(value if isinstance(value, str) else "")

    def _serialize(self, info: core_schema.SerializationInfo) -> str:
        # Python mode is for looking at; without this pydantic would take the dataclass apart.
        return self.reveal() if info.mode == "json" else str(self)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": f"^{_KEY.pattern}$", "maxLength": 200}


@dataclass(frozen=True, slots=True, repr=False)
class Invite:
    """Broker address, TLS pin and key in one string: paste it, and nothing else is asked."""

    host: str
    port: int
    pin: str
    """SHA-256 of the broker's SubjectPublicKeyInfo, base64url without padding (43 characters)."""
    key: EnrolmentKey

    @property
    def kind(self) -> InviteKind:
        return self.key.kind

    @property
    def url(self) -> str:
        """The broker's base URL."""
        return f"https://{_bracket(self.host)}:{self.port}"

    @classmethod
    def parse(cls, text: str, expect: InviteKind | None = None) -> Invite:
        """Read an invite; with `expect`, refuse one that is for something else.

        Raises `InviteError`, which names what is wrong and quotes no secret.
        """
        text = text.strip()
        try:
            parts = urlsplit(text)
            port = parts.port or DEFAULT_PORT
            host = parts.hostname
        except ValueError:  # its text may quote the key
            raise InviteError(f"not an invite: it names no broker ({_FORM})") from None
        if parts.scheme != SCHEME:
            begins = f"it begins with {text[:10]!r}" if "://" in text[:12] else "it is only a part of one"
            raise InviteError(f"not an invite: {begins}, and an invite with 'horizon://': copy all of it")
        if not host or not _HOST.fullmatch(host) or parts.username is not None:
            raise InviteError(f"not an invite: it names no broker ({_FORM})")
        kind, _, key_text = parts.path.lstrip("/").partition("/")
        pins = parse_qs(parts.query).get("pin", [])
        if len(pins) != 1 or not _is_pin(pins[0]):
            raise InviteError(
                "the invite's TLS pin is missing or cut off (?pin= and 43 characters): copy the whole invite"
            )
        try:
            key = EnrolmentKey.parse(key_text)
        except KeyFormatError as error:
            raise InviteError(f"the invite's key is damaged: {error}") from None
        if key.kind != kind:
            raise InviteError(
                f"the invite says it is for {kind[:10]!r}, but its key is for a {key.kind.value}: "
                "copy the invite as it was made"
            )
        if expect is not None and key.kind is not expect:
            raise InviteError(
                f"this invite is for a {key.kind.value}, not for a {expect.value}: "
                f"{_COMMAND[key.kind]} takes it"
            )
        return cls(host, port, pins[0], key)

    def reveal(self) -> str:
        """The invite's text, with its secret: to be shown once."""
        path = f"{self.kind.value}/{self.key.reveal()}"
        return f"{SCHEME}://{_bracket(self.host)}:{self.port}/{path}?pin={self.pin}"

    def __repr__(self) -> str:
        return f"Invite({self.kind.value} at {_bracket(self.host)}:{self.port}, {self.key.visible}_***)"

    __str__ = __repr__


_COMMAND = {
    InviteKind.server: "`horizon server join`",
    InviteKind.device: "`horizon client join`",
    InviteKind.admin: "`horizon admin login`",
}


def encode_pin(digest: bytes) -> str:
    """The text form of a SHA-256 digest of a SubjectPublicKeyInfo."""
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _is_pin(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]{43}", text) is not None


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
