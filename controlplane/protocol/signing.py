"""Requests signed by RFC 9421 with Ed25519. *Core*: time and keys are arguments.

    headers = sign_request("POST", url, body, key=identity, key_id="dev_1", created=now)
    signed = verify_request("POST", url, headers, body, resolve=find_key, now=now, guard=guard)

A signature covers the method, authority, path, query and, by Content-Digest (RFC 9530), the body;
its parameters are `created`, `nonce`, `keyid`, `alg` and the tag "horizon". It holds for `WINDOW`
seconds around the verifier's clock, and a `ReplayGuard` accepts each one once.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    InvalidSignature,
    algorithms,
)
from http_message_signatures.exceptions import HTTPMessageSignaturesException

from controlplane.protocol.errors import ClockSkewError, ReplayError, SignatureError
from controlplane.protocol.keys import IdentityKey, IdentityPublicKey

WINDOW = 60.0
"""Seconds a signature may be older or younger than the verifier's clock."""
TAG = "horizon"
COVERED = ("@method", "@authority", "@path", "@query")
MAX_NONCE = 64
_NOBODY = Ed25519PrivateKey.generate().public_key()
"""Stands for the key of an unknown key id, which then fails at the same place as a wrong signature."""


@dataclass(frozen=True, slots=True)
class SignedBy:
    """Who signed, and when by their clock (Unix seconds)."""

    key_id: str
    created: int


@dataclass(slots=True)
class _Message:
    """A request as the RFC 9421 library reads it."""

    method: str
    url: str
    headers: dict[str, str]


class _Resolver(HTTPSignatureKeyResolver):
    def __init__(self, key: Any) -> None:
        self._key = key

    def resolve_private_key(self, key_id: str) -> Any:
        return self._key

    def resolve_public_key(self, key_id: str) -> Any:
        return self._key(key_id)


class _Verifier(HTTPMessageVerifier):
    """The library's verifier without its clock: `verify_request` judges the time itself."""

    max_clock_skew = timedelta(days=365_000)

    def validate_created_and_expires(self, sig_input: Any, max_age: timedelta | None = None) -> None:
        if type(sig_input.params.get("created")) is not int:
            raise InvalidSignature('the signature has no "created" parameter')


def sign_request(
    method: str, url: str, body: bytes, *, key: IdentityKey, key_id: str, created: float
) -> dict[str, str]:
    """The headers `Content-Digest`, `Signature-Input` and `Signature` for a request."""
    message = _Message(method, url, {})
    signer = HTTPMessageSigner(
        signature_algorithm=algorithms.ED25519,
        key_resolver=_Resolver(Ed25519PrivateKey.from_private_bytes(bytes(key))),
    )
    signer.sign(
        message,
        key_id=key_id,
        created=datetime.fromtimestamp(int(created), UTC),
        nonce=secrets.token_urlsafe(16),
        label=TAG,
        tag=TAG,
        covered_component_ids=COVERED,
        body=body,
    )
    return message.headers


class ReplayGuard:
    """Accepts each (key id, nonce) once within the window, from any thread. A machine: time is an
    argument.

    Only signatures that verified are remembered, so nobody without a key can fill it. Signatures
    created before `started` are refused as replays, because what an earlier run of the verifier
    accepted is not remembered; a client whose request falls there signs again.

    A signer whose clock is ahead could be replayed across a restart nevertheless. So the newest
    `created` of each signer that lies ahead is given to `keep`, which must make it last before it
    returns, and comes back as `ahead`. To refuse such clocks instead would shut out machines without
    NTP, and one mark for all would shut out everybody whose clock is right: one for each signer costs
    a write for a wrong clock only, and refuses nothing but replays.
    """

    def __init__(
        self,
        started: float,
        ahead: Mapping[str, float] | None = None,
        keep: Callable[[str, float], None] | None = None,
    ) -> None:
        self._started = started
        self._ahead = ahead or {}
        self._keep = keep
        self._lock = threading.Lock()
        self._seen: set[tuple[str, str]] = set()
        self._order: deque[tuple[float, tuple[str, str]]] = deque()

    def accept(self, key_id: str, nonce: str, created: float, now: float) -> None:
        """Raises `ReplayError` on the second sight of a nonce."""
        if created < int(self._started) or created <= self._ahead.get(key_id, float("-inf")):
            raise ReplayError("the signature was created before the broker started: sign again")
        item = (key_id, nonce)
        with self._lock:
            while self._order and self._order[0][0] < now - 2 * WINDOW:
                self._seen.discard(self._order.popleft()[1])
            if item in self._seen:
                raise ReplayError(f"the signature with nonce {nonce!r} was used before: sign again")
            self._seen.add(item)
            self._order.append((now, item))
        if created > now and self._keep is not None:
            self._keep(key_id, created)

    def __len__(self) -> int:
        return len(self._seen)


def verify_request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    resolve: Callable[[str], IdentityPublicKey | None],
    now: float,
    guard: ReplayGuard,
) -> SignedBy:
    """Verify the signature of a request, in the order: form, key, signature, body, clock, replay.

    `resolve` gives the key of a key id, or None for an unknown one. Raises `SignatureError`,
    `ClockSkewError` or `ReplayError`. An unknown key id and a wrong signature look alike.
    """

    def public_key(key_id: str) -> Ed25519PublicKey:
        key = resolve(key_id)
        return _NOBODY if key is None else Ed25519PublicKey.from_public_bytes(bytes(key))

    message = _Message(method, url, {name.title(): value for name, value in headers.items()})
    if "Signature-Input" not in message.headers or "Signature" not in message.headers:
        raise SignatureError("the request is not signed: send Signature-Input and Signature (RFC 9421)")
    verifier = _Verifier(signature_algorithm=algorithms.ED25519, key_resolver=_Resolver(public_key))
    try:
        results = verifier.verify(
            message, max_age=None, expect_tag=TAG, require_components=COVERED, body=body
        )
    except (InvalidSignature, HTTPMessageSignaturesException, ValueError) as error:
        raise SignatureError(f"the request's signature does not hold: {_reason(error)}") from None
    if len(results) != 1:
        raise SignatureError(f"the request has {len(results)} signatures; send one")
    parameters = results[0].parameters
    key_id, created = str(parameters["keyid"]), int(parameters["created"])
    nonce = str(parameters.get("nonce", ""))
    if not 0 < len(nonce) <= MAX_NONCE:
        raise SignatureError(f"the signature needs a nonce of 1 to {MAX_NONCE} characters")
    if abs(created - now) > WINDOW:
        raise ClockSkewError(created - now, WINDOW)
    if now > int(parameters.get("expires", created + WINDOW)):
        raise SignatureError("the signature has expired: sign again")
    guard.accept(key_id, nonce, created, now)
    return SignedBy(key_id, created)


def _reason(error: Exception) -> str:
    """What the library says, without telling an unknown key id from a wrong signature."""
    text = str(error)
    return text if "digest" in text.lower() or "not covered" in text else "unknown key or wrong signature"
