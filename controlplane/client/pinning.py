"""TLS to a broker whose key is known beforehand. *Shell.*

    client = httpx2.AsyncClient(verify=pinned_context(invite.pin))

The pin is the whole trust: whoever holds the private key of the pinned public key is the broker. So
names, issuers and dates of the certificate are not looked at; an expired certificate with the right
key is accepted, because a clock or a forgotten renewal must not lock machines out of their own broker,
and a certificate that any authority made for another key is refused.

The check is part of the handshake, and nothing can be sent or read before it: `write` and `read`, for
which OpenSSL would finish a handshake on its own, refuse until `do_handshake` has seen the pinned key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import ssl
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from controlplane.protocol.enrolment import encode_pin
from controlplane.protocol.errors import KeyFormatError, PinMismatch


class PinError(ssl.SSLError):
    """The server showed another public key than the pinned one; nothing was sent to it."""


def pinned_context(pin: str) -> ssl.SSLContext:
    """A client context that accepts exactly the server whose SPKI has this pin, over TLS 1.3.

    `pin` is the SHA-256 of the SubjectPublicKeyInfo, base64url, as `encode_pin` writes it; anything
    else is a `KeyFormatError`. For blocking sockets (`wrap_socket`) as well as asyncio and anyio
    (`wrap_bio`). A handshake with another key raises `PinError`, from which libraries make errors of
    their own: `pin_mismatch` finds it again.
    """
    digest = _digest(pin)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslobject_class = type("PinnedObject", (_PinnedObject,), {"digest": digest})
    context.sslsocket_class = type("PinnedSocket", (_PinnedSocket,), {"digest": digest})
    return context


def pin_of(certificate: x509.Certificate) -> str:
    """The pin of a certificate's public key."""
    return encode_pin(_spki_digest(certificate))


def pin_mismatch(error: BaseException) -> PinMismatch | None:
    """What to raise for an error of an HTTP client or socket, if a wrong key is behind it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PinError):
            return PinMismatch(
                f"{seen.strerror}; nothing was sent. Something else answers at this address, or the "
                "broker was set up anew: ask its administrator for a new invite"
            )
        seen = seen.__cause__ or seen.__context__
    return None


def _check(connection: ssl.SSLObject | ssl.SSLSocket, digest: bytes) -> None:
    """Raise `PinError` unless the peer's certificate carries the pinned key."""
    certificate = connection.getpeercert(True)
    try:
        found = _spki_digest(x509.load_der_x509_certificate(certificate or b""))
    except (ValueError, UnsupportedAlgorithm):
        raise PinError(1, "the TLS certificate of the broker cannot be read") from None
    if not hmac.compare_digest(found, digest):
        raise PinError(1, f"the TLS key of the broker is {encode_pin(found)}, not {encode_pin(digest)}")


class _PinnedObject(ssl.SSLObject):
    digest: bytes
    _trusted = False

    def do_handshake(self) -> None:
        super().do_handshake()
        _check(self, self.digest)
        self._trusted = True

    def write(self, data: Any) -> int:
        _require(self._trusted)
        return super().write(data)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        _require(self._trusted)
        return super().read(len, buffer)


class _PinnedSocket(ssl.SSLSocket):
    digest: bytes
    _trusted = False

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _check(self, self.digest)
        self._trusted = True

    def send(self, data: Any, flags: int = 0) -> int:
        _require(self._trusted)
        return super().send(data, flags)

    def write(self, data: Any) -> int:
        _require(self._trusted)
        return super().write(data)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        _require(self._trusted)
        return super().read(len, buffer)


def _require(trusted: bool) -> None:
    if not trusted:
        raise PinError(1, "the TLS key of the broker has not been checked: call do_handshake first")


def _spki_digest(certificate: x509.Certificate) -> bytes:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


def _digest(pin: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}", pin):
        raise KeyFormatError(f"{pin[:60]!r} is not a TLS pin: expected 43 characters of base64url")
    return base64.urlsafe_b64decode(pin + "=")
