"""What a benchmark says: our figure, the bound measured beside it, and the goal. *Vocabulary.*

    row = Row("first reply", "ms", Samples((91, 88, 95)), "wg-quick up", Samples((120, 118, 125)), BELOW_ONE)
    row.ratio < 1.0 and row.ok

Figures are medians of interleaved rounds. The ratio is the median of the rounds' own ratios, each of two
figures measured one after the other: what slows a shared machine for seconds leaves it alone. All samples
are kept, so that the spread can be said.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Json = dict[str, str | float | bool | None]


@dataclass(frozen=True, slots=True)
class Samples:
    """One figure, measured several times."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("nothing was measured: a figure needs one sample at least")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest."""
        return min(self.values), max(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true median lies with 95 %, by order statistics; `range` of fewer than 6 samples.

        Nothing is assumed of how they are distributed: how many lie below the true median is binomial.
        """
        count, ordered = len(self.values), sorted(self.values)
        skipped, below = 0, 1
        while (below := below + math.comb(count, skipped + 1)) <= 0.025 * 2**count:
            skipped += 1
        return ordered[skipped], ordered[-1 - skipped]

    def scaled(self, factor: float) -> Samples:
        """In another unit."""
        return Samples(tuple(value * factor for value in self.values))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio shall be, ours to the bound."""

    relation: Literal["<", ">="]
    limit: float

    def met(self, ratio: float) -> bool:
        return ratio < self.limit if self.relation == "<" else ratio >= self.limit

    def __str__(self) -> str:
        return f"{self.relation} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a benchmark's table; ours and the bound were measured in the same rounds."""

    what: str
    unit: str
    ours: Samples
    against: str
    """What the bound is, in a few words."""
    bound: Samples
    goal: Goal | None = None
    """None: for information."""

    def __post_init__(self) -> None:
        if len(self.ours.values) != len(self.bound.values):
            raise ValueError(f"{self.what!r} has not as many rounds as its bound {self.against!r}")
        if min(self.bound.values) <= 0:
            raise ValueError(f"the bound {self.against!r} of {self.what!r} is 0: nothing to compare with")

    @property
    def name(self) -> str:
        return f"{self.what}, against {self.against}"

    @property
    def ratios(self) -> Samples:
        """Ours to the bound, round by round."""
        pairs = zip(self.ours.values, self.bound.values, strict=True)
        return Samples(tuple(ours / bound for ours, bound in pairs))

    @property
    def ratio(self) -> float:
        return self.ratios.median

    @property
    def ok(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.goal.met(self.ratio)

    def as_json(self) -> Json:
        return {
            "name": self.name,
            "value": self.ours.median,
            "unit": self.unit,
            "bound": self.bound.median,
            "ratio": self.ratio,
            "goal": None if self.goal is None else str(self.goal),
            "ok": self.ok,
        }


@dataclass(frozen=True, slots=True)
class Step:
    """When something is reached within our figure: a line below the table."""

    what: str
    unit: str
    samples: Samples


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found."""

    rows: tuple[Row, ...]
    steps: tuple[Step, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no goal is missed."""
        return all(row.ok is not False for row in self.rows)


def interleave(rounds: int, *measures: Callable[[], float]) -> list[Samples]:
    """Call each measure once a round, `rounds` times, every other round in the opposite order.

    What drifts on a shared machine, and what one measure leaves behind for the next, then falls on
    all alike.
    """
    found: list[list[float]] = [[] for _ in measures]
    order = list(range(len(measures)))
    for number in range(rounds):
        for index in order if number % 2 == 0 else reversed(order):
            found[index].append(measures[index]())
    return [Samples(tuple(values)) for values in found]
