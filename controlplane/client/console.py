"""What all command lines share: output as text, table or JSON, and errors in one form. *Shell.*

A command is a function `handler(options) -> int`, set as the parser's default `handler`. What it cannot
do it says on stderr in one line and with exit status 1 (2 for wrong usage, as argparse does).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

STDIN_HINT = "(With - in place of the invite it is read from stdin, and shows in no process list.)"


class CommandError(Exception):
    """A command cannot go on; the message names the fix."""

    code = "failed"


def run_command(options: argparse.Namespace) -> int:
    """Run the chosen command; expected errors become one line (or JSON) on stderr."""
    try:
        return int(options.handler(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as raised:
        error = _leaf(raised)
        if error is None:
            raise
        code, detail = _describe(error)
        if getattr(options, "json", False):
            print(json.dumps({"error": code, "detail": detail}), file=sys.stderr)
        else:
            print(f"horizon: {detail}", file=sys.stderr)
        return 1


def _leaf(error: Exception) -> Exception | None:
    """The error to tell: itself, or the first of a group; None unless all that was raised is expected."""
    if not isinstance(error, ExceptionGroup):
        return error if _expected(error) else None
    leaves = [_leaf(one) for one in error.exceptions]
    return None if None in leaves else leaves[0]


def _describe(error: Exception) -> tuple[str, str]:
    """The code and the one line of an error; of values that no message takes: which, and why."""
    if isinstance(error, EOFError):
        return "failed", "stdin ended before anything was read: write the invite to it, on one line"
    if isinstance(error, OSError) and error.filename is not None:
        return "failed", f"{os.fsdecode(error.filename)}: {error.strerror}"
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(error, pydantic.ValidationError):
        return str(getattr(error, "code", "failed")), str(error) or type(error).__name__
    faults = error.errors(include_url=False)
    texts = [
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (given {fault['input']!r})" for fault in faults
    ]
    return "invalid-value", "; ".join(texts)


def _expected(error: Exception) -> bool:
    """Whether an error is for the user, by the base classes of each layer; found lazily, as a command
    that never loaded a layer cannot raise its errors."""
    if isinstance(error, CommandError | OSError | EOFError):
        return True
    bases = {
        "controlplane.protocol.errors": ("ProtocolError", "ProblemError", "BrokerUnreachable"),
        "controlplane.errors": ("StartError", "BrokerError"),
        "pydantic": ("ValidationError",),
        "controlplane.tls": ("CertificateError",),
        "dataplane.errors": ("DataplaneError",),
    }
    for module, names in bases.items():
        loaded = sys.modules.get(module)
        if loaded and isinstance(error, tuple(getattr(loaded, n) for n in names if hasattr(loaded, n))):
            return True
    return False


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def print_json(value: Any) -> None:
    """Print pydantic models, mappings, sequences and plain values as JSON."""
    print(json.dumps(value, default=_plain, indent=None if not sys.stdout.isatty() else 2))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def print_table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]], empty: str) -> None:
    """A table with `columns` (key to heading); `empty` is said where there are no rows.

    To a terminal with rules and colour, to a pipe as plain aligned columns.
    """
    lines = [[_cell(row.get(key)) for key in columns] for row in rows]
    if not lines:
        print(empty)
    elif sys.stdout.isatty():
        _rich_table(list(columns.values()), lines)
    else:
        _plain_table([list(columns.values()), *lines])


def _rich_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for line in lines:
        table.add_row(*map(escape, line))
    Console().print(table)


def _plain_table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value)) or "-"
    return str(value)
