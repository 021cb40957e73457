"""How long to wait before asking again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.backoff import Backoff


@given(
    first=st.floats(0.001, 10),
    most=st.floats(0.001, 100),
    tries=st.integers(0, 2000),
    luck=st.floats(0, 1),
)
def test_a_delay_is_between_half_and_all_of_its_ceiling(
    first: float, most: float, tries: int, luck: float
) -> None:
    backoff = Backoff(first, most, lambda low, high: low + luck * (high - low))
    for _ in range(tries):
        backoff.next()
    ceiling = min(most, first * 2 ** min(tries, 32))
    assert ceiling / 2 <= backoff.next() <= ceiling * (1 + 1e-9)


@given(st.integers(1, 100))
def test_reset_begins_anew(tries: int) -> None:
    backoff = Backoff(0.5, 30.0, max)
    delays = [backoff.next() for _ in range(tries)]
    assert delays[:8] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0][:tries]
    backoff.reset()
    assert backoff.next() == 0.5


def test_delays_differ_from_agent_to_agent() -> None:
    assert len({Backoff().next() for _ in range(20)}) > 1
