"""The one table from an error to its problem."""

from __future__ import annotations

from controlplane import errors
from controlplane.errors import BrokerError, problem_of
from controlplane.protocol.errors import ClockSkewError, InviteError, ReplayError, SignatureError


def test_each_refusal_has_a_code_of_its_own_and_a_status_that_says_whose_fault() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BrokerError)
    ]
    assert len({kind.code for kind in kinds}) == len(kinds) > 10
    for kind in kinds:
        problem = problem_of(kind("no server 'ams1'"))
        assert (problem.code, problem.status, problem.detail) == (kind.code, kind.status, "no server 'ams1'")
        assert 400 <= problem.status < 500 or kind is errors.Busy


def test_faults_of_the_protocol_are_problems_too() -> None:
    for error, status in [(SignatureError("x"), 401), (ReplayError("x"), 401), (InviteError("x"), 400)]:
        assert (problem_of(error).status, problem_of(error).code) == (status, error.code)


def test_only_a_skewed_clock_tells_its_skew() -> None:
    assert problem_of(ClockSkewError(-72.04, 60)).model_dump()["skew"] == -72.0
    assert "skew" not in problem_of(SignatureError("x")).model_dump()
