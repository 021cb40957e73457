"""What the broker refuses, and the HTTP status of each refusal. *Vocabulary.*

One class per thing a caller would do differently. `problem_of` is the one table from an error to its
RFC 9457 body.
"""

from __future__ import annotations

from typing import Any, ClassVar

from controlplane.protocol.errors import (
    ClockSkewError,
    Problem,
    ProtocolError,
    SignatureError,
)


class BrokerError(Exception):
    """A request was understood and refused; the message is for the person who asked."""

    code: ClassVar[str] = "refused"
    status: ClassVar[int] = 400


class KeyRefused(BrokerError):
    """No such enrolment key, or a wrong secret: the two are told apart to nobody."""

    code = "unknown-key"
    status = 401


class KeyExpired(BrokerError):
    code = "expired-key"
    status = 403


class KeyUsed(BrokerError):
    """All uses of a registration or admin key are gone."""

    code = "used-key"
    status = 403


class KeyRevoked(BrokerError):
    code = "revoked-key"
    status = 403


class WrongKind(BrokerError):
    """A key for something else."""

    code = "wrong-key-kind"
    status = 400


class Revoked(BrokerError):
    """The server, device or administrator that signed was revoked."""

    code = "revoked"
    status = 403


class Forbidden(BrokerError):
    """Signed by somebody who may not do this."""

    code = "forbidden"
    status = 403


class NotFound(BrokerError):
    code = "not-found"
    status = 404


class NameTaken(BrokerError):
    code = "name-taken"
    status = 409


class KeyInUse(BrokerError):
    """A WireGuard or identity key that belongs to somebody else already."""

    code = "key-in-use"
    status = 409


class ServerRevoked(BrokerError):
    """The server that a device asked for is no longer one."""

    code = "server-revoked"
    status = 409


class Busy(BrokerError):
    """More at once than the broker takes on."""

    code = "busy"
    status = 503


class ServerOffline(BrokerError):
    code = "server-offline"
    status = 409


class AddressesExhausted(BrokerError):
    """No free address, or no free subnet."""

    code = "addresses-exhausted"
    status = 409


class BodyTooLarge(BrokerError):
    code = "body-too-large"
    status = 413


class StartError(Exception):
    """The broker cannot start; the message names the fix."""


_PROTOCOL_STATUS = {SignatureError.code: 401, ClockSkewError.code: 401, "replayed-signature": 401}


def problem_of(error: BrokerError | ProtocolError) -> Problem:
    """The problem detail of a refusal."""
    if isinstance(error, BrokerError):
        return Problem.of(error.code, error.status, str(error))
    extra: dict[str, Any] = {"skew": round(error.skew, 1)} if isinstance(error, ClockSkewError) else {}
    return Problem.of(error.code, _PROTOCOL_STATUS.get(error.code, 400), str(error), **extra)
