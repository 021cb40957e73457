"""Key types: WireGuard's X25519 keys and the Ed25519 identities. *Vocabulary.*

    >>> private = PrivateKey.generate()
    >>> PublicKey.parse(str(private.public_key)) == private.public_key
    True

Every key is 32 bytes, written in base64 as `wg` does. Secret kinds mask their `repr` and `str`; the
text is asked for by name (`reveal()`), so no secret reaches a log by formatting. Only public kinds
can be fields of a message.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Any, ClassVar, Self

from nacl.bindings import crypto_scalarmult_base
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from controlplane.protocol.errors import KeyFormatError

KEY_LENGTH = 32


class _Key:
    """32 bytes with a base64 text form; equal and hashable by value within one kind."""

    kind: ClassVar[str]
    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_LENGTH:
            raise KeyFormatError(f"a {self.kind} is {KEY_LENGTH} bytes, not {len(raw)}")
        self._raw = bytes(raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the base64 form. Raises `KeyFormatError`; a secret kind is not quoted in it."""
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != KEY_LENGTH or base64.b64encode(raw).decode() != text:
            raise KeyFormatError(
                f"{cls._quote(text)} is not a {cls.kind}: expected {KEY_LENGTH} bytes in base64 "
                "(44 characters ending in '=')"
            )
        return cls(raw)

    @classmethod
    def _quote(cls, text: str) -> str:
        # What was meant for another field may be a secret: no more than an enrolment key's public part.
        return repr(text if len(text) <= 16 else text[:16] + "…")

    def __bytes__(self) -> bytes:
        return self._raw

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and secrets.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self._raw)

    @property
    def hex(self) -> str:
        """Lower-case hexadecimal, as WireGuard's cross-platform UAPI wants it."""
        return self._raw.hex()


class _Public(_Key):
    """A key that may be shown, compared fast and sent."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._raw == other._raw

    __hash__ = _Key.__hash__

    def __str__(self) -> str:
        return base64.b64encode(self._raw).decode()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __lt__(self, other: Self) -> bool:
        return self._raw < other._raw

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="always"),
        )

    @classmethod
    def _validate(cls, value: object) -> Self:
        return value if isinstance(value, cls) else cls.parse(str(value))

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "type": "string",
            "minLength": 44,
            "maxLength": 44,
            "description": f"{cls.kind}, base64",
        }


class _Secret(_Key):
    """A key that is written out only when asked for by name."""

    __slots__ = ()

    @classmethod
    def _quote(cls, text: str) -> str:
        return f"the given text ({len(text)} characters)"

    def reveal(self) -> str:
        """The base64 text: for a file of mode 0600 or the kernel, never for a log."""
        return base64.b64encode(self._raw).decode()

    def __repr__(self) -> str:
        return f"{type(self).__name__}('***')"

    __str__ = __repr__


class PublicKey(_Public):
    """A WireGuard public key (X25519)."""

    kind = "WireGuard public key"
    __slots__ = ()


class PrivateKey(_Secret):
    """A WireGuard private key, clamped as the kernel stores it (RFC 7748 section 5)."""

    kind = "WireGuard private key"
    __slots__ = ()

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        clamped = bytearray(self._raw)
        clamped[0] &= 248
        clamped[31] = clamped[31] & 127 | 64
        self._raw = bytes(clamped)

    @classmethod
    def parse(cls, text: str) -> Self:
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != KEY_LENGTH:
            raise KeyFormatError(
                f"{cls._quote(text)} is not a {cls.kind}: expected {KEY_LENGTH} bytes in base64"
            )
        return cls(raw)

    @classmethod
    def generate(cls) -> Self:
        return cls(secrets.token_bytes(KEY_LENGTH))

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(crypto_scalarmult_base(self._raw))


class PresharedKey(_Secret):
    """A WireGuard preshared key: a secret of one pair of peers."""

    kind = "WireGuard preshared key"
    __slots__ = ()

    @classmethod
    def generate(cls) -> Self:
        return cls(secrets.token_bytes(KEY_LENGTH))


class IdentityPublicKey(_Public):
    """An Ed25519 public key (RFC 8032): who signed."""

    kind = "Ed25519 public key"
    __slots__ = ()

    def verify(self, message: bytes, signature: bytes) -> bool:
        try:
            VerifyKey(self._raw).verify(message, signature)
        except (BadSignatureError, ValueError):
            return False
        return True


class IdentityKey(_Secret):
    """An Ed25519 private key (the 32-byte seed of RFC 8032)."""

    kind = "Ed25519 private key"
    __slots__ = ()

    @classmethod
    def generate(cls) -> Self:
        return cls(secrets.token_bytes(KEY_LENGTH))

    @property
    def public_key(self) -> IdentityPublicKey:
        return IdentityPublicKey(bytes(SigningKey(self._raw).verify_key))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of `message`."""
        return SigningKey(self._raw).sign(message).signature
