"""Hashes of keys' secrets: what is stored, and that an unknown key costs as much as a wrong one."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import argon2
import pytest
from argon2.profiles import CHEAPEST, RFC_9106_LOW_MEMORY

from controlplane.keyhash import PersonalKeyHasher, digest, digest_matches


class Counting(argon2.PasswordHasher):
    """Cheap, and remembers against which hashes it verified."""

    verified: list[str]

    def verify(self, hash: Any, password: Any) -> Any:
        self.verified.append(hash)
        return super().verify(hash, password)


@pytest.fixture
def counting() -> Counting:
    hasher = Counting.from_parameters(CHEAPEST)
    assert isinstance(hasher, Counting)
    hasher.verified = []
    return hasher


def test_the_digest_is_sha256() -> None:
    assert digest("secret") == hashlib.sha256(b"secret").hexdigest()
    assert digest_matches("secret", digest("secret"))
    assert not digest_matches("secreT", digest("secret"))
    assert not digest_matches("secret", "")


def test_personal_keys_get_rfc_9106s_argon2id_and_a_salt_of_their_own() -> None:
    hashed, salt = PersonalKeyHasher().hash("secret")
    parameters = argon2.extract_parameters(hashed)
    assert parameters == RFC_9106_LOW_MEMORY
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert hashed.split("$")[4] == salt.rstrip("=")
    assert len(base64.b64decode(salt)) == 16
    assert "secret" not in hashed
    assert PersonalKeyHasher().matches("secret", hashed)


def test_equal_secrets_have_different_hashes(counting: Counting) -> None:
    hasher = PersonalKeyHasher(counting)
    assert hasher.hash("secret") != hasher.hash("secret")


def test_wrong_and_unknown_keys_cost_one_verification_each(counting: Counting) -> None:
    hasher = PersonalKeyHasher(counting)
    known, _ = hasher.hash("secret")
    assert hasher.matches("secret", known)
    assert not hasher.matches("wrong", known)
    assert not hasher.matches("secret", None)
    assert not hasher.matches("no such key", None)
    assert [hash == known for hash in counting.verified] == [True, True, False, False]
    assert len({repr(argon2.extract_parameters(hash)) for hash in counting.verified}) == 1


def test_a_damaged_hash_matches_nothing(counting: Counting) -> None:
    assert not PersonalKeyHasher(counting).matches("secret", "$argon2id$damaged")
