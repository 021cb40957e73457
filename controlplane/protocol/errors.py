"""What can be wrong with a message, and how the broker says so (RFC 9457). *Vocabulary.*

`ProtocolError` and its kinds are raised where bad input is read: keys, invites, signatures, netmaps.
`Problem` is the body of every error response; `ProblemError` is what a client raises on one.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

PROBLEM_MEDIA_TYPE = "application/problem+json"


class ProtocolError(ValueError):
    """Something that was received does not hold; `code` names the kind for machines."""

    code: ClassVar[str] = "protocol-error"


class KeyFormatError(ProtocolError):
    """A text that should be a key is none."""

    code = "malformed-key"


class InviteError(ProtocolError):
    """A text that should be an invite is none, or is for something else."""

    code = "malformed-invite"


class SpecError(ProtocolError):
    """An interface or peer that WireGuard could not have (two peers with the same allowed IPs)."""

    code = "invalid-interface"


class SignatureError(ProtocolError):
    """A request's signature is missing, incomplete or wrong (RFC 9421)."""

    code = "bad-signature"


class ClockSkewError(SignatureError):
    """A signature's `created` is too far from our clock; `skew` is theirs minus ours, in seconds."""

    code = "clock-skew"

    def __init__(self, skew: float, window: float) -> None:
        self.skew = skew
        side = "ahead of" if skew > 0 else "behind"
        super().__init__(
            f"the signature was created {abs(skew):.0f} s {side} the broker's clock "
            f"(at most {window:.0f} s are accepted); set the clock, for example with NTP"
        )


class ReplayError(SignatureError):
    """A signature that was accepted before."""

    code = "replayed-signature"


class EnvelopeError(ProtocolError):
    """A signed document is not by the key we trust, or was changed."""

    code = "untrusted-document"


class NetMapError(ProtocolError):
    """A netmap update does not follow from the netmap we hold."""

    code = "netmap-gap"


class Problem(BaseModel):
    """A problem detail (RFC 9457). `code` is the last part of `type`, for machines."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    """`urn:horizon:problem:CODE`."""
    title: str
    status: int
    detail: str
    code: str

    @classmethod
    def of(cls, code: str, status: int, detail: str, **extra: Any) -> Problem:
        return cls(
            type=f"urn:horizon:problem:{code}",
            title=HTTPStatus(status).phrase,
            status=status,
            detail=detail,
            code=code,
            **extra,
        )


class ProblemError(Exception):
    """The broker refused: `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.detail)

    @property
    def code(self) -> str:
        return self.problem.code


class BrokerUnreachable(Exception):
    """No answer from the broker: keep the last state and try again (fail static)."""


class PinMismatch(BrokerUnreachable):
    """The TLS key of the broker is not the pinned one: nothing was sent."""
