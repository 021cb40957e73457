"""Steps, and the rows they prove (vocabulary, and the one loop that plays them).

A step is a generator: it does something real and yields a row for each thing that this proved. A step
that raises has one more row, which did not hold and says why; the rows before stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from lab.errors import LabError

S = TypeVar("S")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """What was to be proven."""
    how: str
    """How it was."""
    value: float | str | None
    """What was measured."""
    unit: str
    ok: bool
    """Whether it held."""
    cause: str = ""
    """Why not, as far as it is known."""
    logs: str = ""
    """The ends of the logs of the processes involved; only where it did not hold."""


@dataclass(frozen=True)
class Step(Generic[S]):
    """Something to do on a stage of type S."""

    title: str
    play: Callable[[S], Iterator[Row]]
    vital: bool = False
    """Whether the steps after it make no sense where it failed."""
    involves: tuple[str, ...] = ()
    """The sites whose logs tell why, where it failed."""


class Display(Protocol):
    """Who watches."""

    def begin(self, title: str) -> None:
        """A step starts."""

    def end(self, title: str, rows: Sequence[Row], seconds: float) -> None:
        """It is over and proved `rows`, after `seconds`."""


def play(
    steps: Sequence[Step[S]],
    stage: S,
    display: Display,
    logs: Callable[[Sequence[str]], str],
    clock: Callable[[], float],
) -> list[Row]:
    """Play all steps and return their rows; after a vital one that failed, the rest is not tried.

    `logs(sites)` is asked for the ends of their logs at the moment a step fails.
    """
    proven: list[Row] = []
    failed = ""
    for step in steps:
        if failed:
            proven.append(Row(step.title, "-", None, "", False, f"not tried, after '{failed}' failed"))
            continue
        display.begin(step.title)
        started = clock()
        rows = _rows(step, stage)
        if bad := [row for row in rows if not row.ok]:
            # Once for the step: the processes are the same.
            at = rows.index(bad[-1])
            rows[at] = replace(rows[at], logs=masked(logs(step.involves)))
            failed = step.title if step.vital else ""
        display.end(step.title, rows, clock() - started)
        proven += rows
    return proven


def _rows(step: Step[S], stage: S) -> list[Row]:
    rows: list[Row] = []
    try:
        for row in step.play(stage):
            rows.append(row)  # noqa: PERF402 (those before an error stay)
    except (LabError, OSError, ValueError, LookupError) as error:
        text = masked(str(error) if isinstance(error, LabError) else repr(error))
        rows.append(Row(step.title, "-", None, "", False, text))
    return rows


def masked(text: str) -> str:
    """`text` without the keys of invites."""
    return re.sub(r"horizon://[^\s'\"]+", "horizon://(hidden)", text)
