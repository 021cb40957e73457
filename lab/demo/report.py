"""What people and programs see: steps as they go, the table of what was proven, JSON (shell)."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.commands import run
from lab.demo.rows import Row

PLAIN_WIDTH = 200
"""Characters of a line that goes to a file or a pipe, where nothing tells."""


class Report:
    """A growing list of steps: with a spinner on a terminal, plain lines elsewhere."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self.console = Console(file=file, highlight=False)
        self.live = self.console.is_terminal
        if not self.live:
            self.console.width = PLAIN_WIDTH
        self._spinner: AbstractContextManager[object] | None = None

    def begin(self, title: str) -> None:
        if self.live:
            self._spinner = self.console.status(Text(title))
            self._spinner.__enter__()

    def end(self, title: str, rows: Sequence[Row], seconds: float) -> None:
        self.stop()
        held = all(row.ok for row in rows)
        line = Text.assemble(
            ("✓ " if held else "✗ ", "green" if held else "bold red"),
            f"{title:<44}",
            (f"{seconds:5.1f} s  ", "dim"),
            (", ".join(map(measured, rows)) if held else "FAILED", "" if held else "red"),
        )
        self.console.print(line, soft_wrap=not self.live, overflow="ellipsis", no_wrap=True)

    def stop(self) -> None:
        """Take the spinner away, whatever happened to its step."""
        if self._spinner is not None:
            self._spinner.__exit__(None, None, None)
            self._spinner = None

    def table(self, rows: Sequence[Row], seconds: float) -> None:
        """What was proven; below it, why a row did not hold."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title="What was proven", title_justify="left")
        for heading in ("what", "how", "measured"):
            table.add_column(heading, justify="right" if heading == "measured" else "left")
        table.add_column("held")
        for row in rows:
            verdict = Text("yes", "green") if row.ok else Text("NO", "bold red")
            table.add_row(Text(row.name), Text(row.how), Text(measured(row)), verdict)
        self.console.print()
        self.console.print(table)
        for row in rows:
            if not row.ok:
                self.console.print(Text(f"✗ {row.name}: {row.cause or row.how}", "red"), soft_wrap=True)
                if row.logs:
                    self.console.print(Text(row.logs, "dim"), soft_wrap=True)
        held = sum(row.ok for row in rows)
        self.console.print(f"{held} of {len(rows)} held, in {seconds:.0f} s")

    def say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


def measured(row: Row) -> str:
    return "-" if row.value is None else f"{row.value} {row.unit}".strip()


def write_json(path: Path, rows: Sequence[Row], backend: str, seconds: float) -> None:
    """Write the table, and what it was proven with."""
    document: dict[str, Any] = {
        "ok": all(row.ok for row in rows),
        "rows": [_entry(row) for row in rows],
        "seconds": round(seconds, 1),
        "backend": backend,
        "versions": versions(),
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Of what the proof rests on."""
    from controlplane.protocol.version import VERSION

    return {
        "horizon": VERSION,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "wireguard-tools": _first_line("wg", "--version"),
        "wireguard-go": _first_line("wireguard-go", "--version"),
    }


def _first_line(*argv: str) -> str:
    try:
        return run(argv, check=False).stdout.partition("\n")[0] or "unknown"
    except FileNotFoundError:
        return "none"


def _entry(row: Row) -> dict[str, Any]:
    entry = {"name": row.name, "how": row.how, "value": row.value, "unit": row.unit, "ok": row.ok}
    return entry if row.ok else {**entry, "cause": row.cause or row.how, "logs": row.logs}


def complain(text: str) -> None:
    """For people, beside the report."""
    print(f"demo: {text}", file=sys.stderr)
