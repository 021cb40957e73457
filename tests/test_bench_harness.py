import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lab import LabError
from tests.bench import __main__ as bench
from tests.bench.report import show, write_json
from tests.bench.rows import Goal, Result, Row, Samples, Step, interleave

BELOW_ONE = Goal("<", 1.0)


def row(ours: tuple[float, ...], bound: tuple[float, ...], goal: Goal | None = BELOW_ONE) -> Row:
    return Row("reply", "ms", Samples(ours), "by hand", Samples(bound), goal)


@pytest.mark.parametrize(
    ("goal", "ratio", "met"),
    [
        (BELOW_ONE, 0.999, True),
        (BELOW_ONE, 1.0, False),
        (Goal(">=", 0.97), 0.97, True),
        (Goal(">=", 0.97), 0.969, False),
    ],
)
def test_a_goal_is_a_limit_of_the_ratio(goal: Goal, ratio: float, met: bool) -> None:
    assert goal.met(ratio) is met


def test_figures_are_medians_with_their_range() -> None:
    samples = Samples((5.0, 1.0, 90.0))
    assert samples.median == 5
    assert samples.range == (1, 90)
    assert samples.scaled(1000).values == (5000, 1000, 90000)
    with pytest.raises(ValueError, match="one sample at least"):
        Samples(())


@pytest.mark.parametrize(
    ("count", "interval"),
    [(1, (1, 1)), (5, (1, 5)), (9, (2, 8)), (11, (2, 10)), (25, (8, 18)), (100, (40, 61))],
)
def test_the_interval_of_a_median_narrows_with_the_rounds(count: int, interval: tuple[float, float]) -> None:
    # As tables of the sign test give them.
    assert Samples(tuple(range(count, 0, -1))).interval == interval


def test_the_ratio_is_of_the_rounds_and_not_of_the_medians() -> None:
    # The machine was ten times slower in two of the rounds: each ratio is 0.5 for all that.
    found = row((1.0, 10.0, 10.0), (2.0, 20.0, 20.0))
    assert found.ratio == 0.5
    # Median by median it would be 10 / 2.
    assert row((10.0, 10.0, 1.0), (20.0, 2.0, 2.0)).ratio == 0.5


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="'reply' has not as many rounds as its bound 'by hand'"):
        row((1.0,), (1.0, 2.0))
    with pytest.raises(ValueError, match="the bound 'by hand' of 'reply' is 0"):
        row((1.0, 1.0), (1.0, 0.0))


def test_rows_as_json(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    write_json(file, Result((row((3.0,), (2.0,)), row((3.0,), (2.0,), None))))
    first, second = json.loads(file.read_text())
    assert first == {
        "name": "reply, against by hand",
        "value": 3,
        "unit": "ms",
        "bound": 2,
        "ratio": 1.5,
        "goal": "< 1",
        "ok": False,
    }
    assert (second["goal"], second["ok"]) == (None, None)


def test_a_row_without_a_goal_misses_none() -> None:
    assert Result((row((3.0,), (2.0,), None), row((1.0,), (2.0,)))).ok
    assert not Result((row((1.0,), (2.0,)), row((3.0,), (2.0,)))).ok


def test_interleaving_turns_the_order_every_other_round() -> None:
    called: list[str] = []

    def measure(name: str, value: float) -> float:
        called.append(name)
        return value + len(called)

    found = interleave(3, lambda: measure("a", 100), lambda: measure("b", 200))
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert [samples.values for samples in found] == [(101, 104, 105), (202, 203, 206)]


def test_the_table_says_figures_spread_goal_and_steps() -> None:
    console = Console(width=140, file=io.StringIO())
    steps = (Step("asked", "ms", Samples((41.25, 40.0, 43.0))),)
    show(console, "connect", Result((row((1500.0, 1400.0, 1600.0), (30.0, 30.0, 30.0)),), steps))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for words in ("1,500 ms", "(1,400 to 1,600)", "30.0 ms", "50.0", "< 1", "missed", "41.2 ms", " CPUs"):
        assert words in text


def test_every_benchmark_is_listed_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(bench.BENCHMARKS)
    assert all(len(line.split()) > 5 for line in lines)


def test_an_unknown_name_is_quoted_and_the_known_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(["nonsense"])
    said = capsys.readouterr().err
    assert "'nonsense'" in said
    assert all(name in said for name in bench.BENCHMARKS)


class TestRunning:
    """`main` with a benchmark that only says what it is told to."""

    @pytest.fixture(autouse=True)
    def _measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcome: Result | LabError = Result((row((3.0,), (2.0,)),))
        self.lacking: list[str] = []

        def run(options: object) -> Result:
            if isinstance(self.outcome, LabError):
                raise self.outcome
            return self.outcome

        monkeypatch.setattr(bench, "missing", lambda *commands: self.lacking)
        monkeypatch.setattr(bench.load("connect"), "run", run)

    @pytest.mark.parametrize(("options", "status"), [([], 0), (["--check"], 1)])
    def test_a_missed_goal_is_a_failure_only_if_asked(self, options: list[str], status: int) -> None:
        assert bench.main(["connect", *options]) == status

    def test_a_met_goal_is_none(self) -> None:
        self.outcome = Result((row((1.0,), (2.0,)),))
        assert bench.main(["connect", "--check"]) == 0

    def test_rows_are_written_also_where_a_goal_is_missed(self, tmp_path: Path) -> None:
        bench.main(["connect", "--json", str(tmp_path / "rows.json"), "--check"])
        assert [r["ok"] for r in json.loads((tmp_path / "rows.json").read_text())] == [False]

    def test_a_file_that_cannot_be_written_is_refused_before_measuring(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.outcome = LabError("measured")
        with pytest.raises(SystemExit, match="2"):
            bench.main(["connect", "--json", str(tmp_path / "none" / "rows.json")])
        assert "/none' is not a directory" in capsys.readouterr().err

    def test_what_the_machine_lacks_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.lacking = ["root", "command 'wg-quick'"]
        assert bench.main(["connect"]) == 2
        assert capsys.readouterr().err == "bench connect: needs root, command 'wg-quick'\n"

    def test_a_lab_that_fails_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.outcome = LabError("server fra1 online: not within 30 s")
        assert bench.main(["connect"]) == 2
        assert capsys.readouterr().err == "bench connect: server fra1 online: not within 30 s\n"
