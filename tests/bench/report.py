"""A benchmark's result for people, as a table, and for programs, as JSON. *Shell.*

Under each median stand the least and the greatest sample, under a ratio the 95 % interval of its median.
Where that holds the goal's limit, the machine was too busy for a verdict: measure again, or longer.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.bench.rows import Result, Row


def show(console: Console, title: str, result: Result) -> None:
    """Print the table, where our time goes, and the machine."""
    table = Table("", title=title, box=SIMPLE_HEAD, title_justify="left")
    for heading in ("ours", "bound", "ratio", "goal", ""):
        table.add_column(heading, no_wrap=True)
    for row in result.rows:
        table.add_row(*_cells(row))
    console.print(table)
    if result.steps:
        steps = Table("where our time goes", "since the start", box=SIMPLE_HEAD)
        for step in result.steps:
            steps.add_row(step.what, _figure(step.samples.median, step.samples.range, step.unit))
        console.print(steps)
    console.print(
        f"Medians of rounds (least to greatest; ratios: 95 % interval). {machine()}",
        style="dim",
        highlight=False,
    )


def write_json(path: Path, result: Result) -> None:
    """Write the rows, a list of objects."""
    path.write_text(json.dumps([row.as_json() for row in result.rows], indent=1) + "\n")


def machine() -> str:
    """Where this was measured."""
    kernel, python, load = platform.release(), platform.python_version(), os.getloadavg()[0]
    return f"Linux {kernel}, {os.cpu_count()} CPUs, load {load:.1f}, Python {python}."


def _cells(row: Row) -> list[str]:
    verdict = {True: "[green]met[/]", False: "[bold red]missed[/]", None: ""}[row.ok]
    return [
        f"{row.what}\n[dim]against {row.against}[/]",
        _figure(row.ours.median, row.ours.range, row.unit),
        _figure(row.bound.median, row.bound.range, row.unit),
        _figure(row.ratios.median, row.ratios.interval),
        "" if row.goal is None else str(row.goal),
        verdict,
    ]


def _figure(median: float, spread: tuple[float, float], unit: str = "") -> str:
    least, greatest = map(_number, spread)
    return f"{_number(median)} {unit}".rstrip() + f"\n[dim]({least} to {greatest})[/]"


def _number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
