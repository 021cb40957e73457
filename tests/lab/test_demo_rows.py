from collections.abc import Iterator, Sequence

import pytest

from lab.demo.rows import Row, Step, masked, play
from lab.errors import LabError

Stage = list[str]


class Watcher:
    """Notes what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, float]] = []
        self.current = ""

    def begin(self, title: str) -> None:
        self.current = title

    def end(self, title: str, rows: Sequence[Row], seconds: float) -> None:
        assert title == self.current
        self.seen.append((title, sum(row.ok for row in rows), seconds))


def good(stage: Stage) -> Iterator[Row]:
    stage.append("good")
    yield Row("works", "tried", 1.5, "s", True)


def half(stage: Stage) -> Iterator[Row]:
    stage.append("half")
    yield Row("begins", "tried", 1, "", True)
    raise LabError("'horizon://192.0.2.1/admin/secret' fell over")


def bad(stage: Stage) -> Iterator[Row]:
    stage.append("bad")
    yield Row("holds", "looked", 3, "lost", False)


def run(*steps: Step[Stage]) -> tuple[list[Row], Stage, Watcher, list[tuple[str, ...]]]:
    stage: Stage = []
    watcher, asked = Watcher(), list[tuple[str, ...]]()
    ticks = iter(range(100))

    def logs(sites: Sequence[str]) -> str:
        asked.append(tuple(sites))
        return "the last words, horizon://192.0.2.1/server/secret"

    rows = play(steps, stage, watcher, logs, lambda: next(ticks))
    return rows, stage, watcher, asked


def test_rows_that_hold_need_no_logs() -> None:
    rows, stage, watcher, asked = run(Step("one", good, True), Step("two", good))
    assert [row.ok for row in rows] == [True, True]
    assert (stage, asked) == (["good", "good"], [])
    assert watcher.seen == [("one", 1, 1), ("two", 1, 1)]


def test_a_step_that_raises_keeps_its_rows_and_says_why() -> None:
    rows, stage, watcher, asked = run(Step("one", half, involves=("alice", "fra1")), Step("two", good))
    assert [(row.name, row.ok) for row in rows] == [("begins", True), ("one", False), ("works", True)]
    assert rows[1].cause == "'horizon://(hidden)' fell over"
    assert rows[1].logs == "the last words, horizon://(hidden)"
    assert asked == [("alice", "fra1")]
    assert stage == ["half", "good"]
    assert watcher.seen[0][:2] == ("one", 1)


def test_a_row_that_does_not_hold_has_the_logs_too() -> None:
    rows, _, _, asked = run(Step("one", bad, involves=("bob",)))
    assert (rows[0].name, rows[0].value, rows[0].ok) == ("holds", 3, False)
    assert rows[0].logs.startswith("the last words")
    assert asked == [("bob",)]


def test_after_a_vital_step_failed_nothing_is_tried() -> None:
    rows, stage, watcher, _ = run(Step("one", bad, True), Step("two", good), Step("three", good))
    assert stage == ["bad"]
    assert [row.ok for row in rows] == [False, False, False]
    assert [row.cause for row in rows[1:]] == ["not tried, after 'one' failed"] * 2
    assert len(watcher.seen) == 1


def test_a_fault_of_the_demo_itself_is_not_hidden() -> None:
    def broken(stage: Stage) -> Iterator[Row]:
        raise TypeError("a mistake")
        yield

    with pytest.raises(TypeError, match="a mistake"):
        run(Step("one", broken))


def test_masked_leaves_the_rest() -> None:
    text = "run 'horizon client join horizon://a:1/device/key?pin=x --name y' on alice"
    assert masked(text) == "run 'horizon client join horizon://(hidden) --name y' on alice"
