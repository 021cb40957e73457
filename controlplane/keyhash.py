"""Hashes of enrolment keys' secrets. *Core*, but for the random salt.

A registration key's secret is 260 random bits used once: SHA-256 is enough. A personal key lives long
and its hash with it, so it gets Argon2id (specification, *Authentication System*). One verification
takes as long for an unknown key as for a wrong one.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

_AT_ONCE = threading.Semaphore(2)
"""Each hash takes 64 MiB: no more than two at a time."""


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def digest_matches(secret: str, expected: str) -> bool:
    return secrets.compare_digest(digest(secret), expected)


class PersonalKeyHasher:
    """Argon2id with RFC 9106's second recommended parameters (64 MiB, 3 passes)."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._dummy: str | None = None

    def hash(self, secret: str) -> tuple[str, str]:
        """(PHC string, salt in base64)."""
        salt = secrets.token_bytes(16)
        with _AT_ONCE:
            return self._hasher.hash(secret, salt=salt), base64.b64encode(salt).decode()

    def matches(self, secret: str, expected: str | None) -> bool:
        """Whether `secret` has the hash `expected`; None (no such key) costs the same."""
        if self._dummy is None:
            self._dummy, _ = self.hash("no such key")
        try:
            with _AT_ONCE:
                self._hasher.verify(expected or self._dummy, secret)
        except VerificationError:
            return False
        return expected is not None
