"""Problems: the wire form of RFC 9457, and what the messages of errors name."""

from __future__ import annotations

import inspect
import json

import pytest

from controlplane.protocol import errors
from controlplane.protocol.errors import (
    BrokerUnreachable,
    ClockSkewError,
    PinMismatch,
    Problem,
    ProblemError,
    ProtocolError,
    SignatureError,
)


def test_a_problem_has_the_members_of_rfc_9457() -> None:
    problem = Problem.of("clock-skew", 401, "set the clock", skew=90.5)
    assert json.loads(problem.model_dump_json()) == {
        "type": "urn:horizon:problem:clock-skew",
        "title": "Unauthorized",
        "status": 401,
        "detail": "set the clock",
        "code": "clock-skew",
        "skew": 90.5,
    }


def test_a_problem_reads_back_with_members_of_a_later_version() -> None:
    problem = Problem.of("used-key", 403, "used", hint={"a": 1})
    assert Problem.model_validate_json(problem.model_dump_json()) == problem


def test_a_problem_error_says_the_detail_and_knows_the_code() -> None:
    error = ProblemError(Problem.of("used-key", 403, "the key was used"))
    assert (str(error), error.code) == ("the key was used", "used-key")


def test_every_kind_has_a_code_of_its_own() -> None:
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, ProtocolError) and kind is not ProtocolError
    ]
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes) >= 8
    assert ProtocolError.code not in codes


@pytest.mark.parametrize(("skew", "says"), [(90.4, "90 s ahead of"), (-3600.0, "3600 s behind")])
def test_a_clock_skew_is_named_in_seconds_with_its_side(skew: float, says: str) -> None:
    error = ClockSkewError(skew, 60)
    assert error.skew == skew
    assert says in str(error)
    assert "at most 60 s" in str(error)
    assert "NTP" in str(error)
    assert isinstance(error, SignatureError)


def test_a_wrong_pin_is_handled_as_no_broker() -> None:
    """An agent keeps its last state in both cases."""
    assert issubclass(PinMismatch, BrokerUnreachable)
