"""Parameters as the wheel can bind them without loss. *Core.*

The wheel binds an integer outside 32 bits as REAL: 2**40 in a TEXT or untyped column, or in an
untyped expression, becomes 1099511627776.0, and from 2**53 on digits are lost even in an INTEGER
column. Such integers are therefore written into the SQL text as literals, which SQLite reads
exactly. What holds: every integer of SQLite's range, -2**63 to 2**63 - 1, is stored with the type
and value that ``sqlite3`` would store, in every column type and expression; beyond it is `DataError`
(SQLite would turn it into a float).
"""

from collections.abc import Sequence

from controlplane.libsql.errors import DataError, ProgrammingError
from controlplane.libsql.statement import Statement

Value = None | int | float | str | bytes
"""What the wheel binds."""

_PASS = frozenset({type(None), float, bytes})


def adapt(parameters: Sequence[object], statement: Statement) -> tuple[Value, ...]:
    """The parameters as the wheel's types, in order; their number must match the placeholders.

    Errors: ProgrammingError for a wrong number or an unsupported type, DataError for a value that
    SQLite cannot hold.
    """
    if not isinstance(parameters, Sequence) or isinstance(parameters, (str, bytes)):
        raise ProgrammingError(
            f"parameters are {type(parameters).__name__!r}: give a tuple, one value for each '?'"
        )
    if len(parameters) != len(statement.marks):
        raise ProgrammingError(
            f"incorrect number of bindings: the statement uses {len(statement.marks)}, "
            f"and {len(parameters)} are supplied"
        )
    return tuple(
        value if type(value) in _PASS else _adapt_one(value, number)  # type: ignore[misc]
        for number, value in enumerate(parameters, 1)
    )


def _adapt_one(value: object, number: int) -> Value:
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise DataError(f"integer {value} does not fit SQLite's 64 bits: store it as text")
        return int(value)
    if isinstance(value, str):
        if "\0" in value:
            # The wheel hands texts on as C strings: the rest would be lost.
            raise DataError(f"parameter {number} is a text with a NUL character: store it as bytes")
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if value is None or isinstance(value, float):
        return value
    raise ProgrammingError(
        f"parameter {number} has the unsupported type {type(value).__name__!r}: "
        "convert it to int, float, str or bytes"
    )


def is_wide(value: Value) -> bool:
    """Whether the wheel would bind the value as REAL although it is an integer."""
    return type(value) is int and not -(2**31) <= value < 2**31


def inline_wide(sql: str, statement: Statement, values: tuple[Value, ...]) -> tuple[str, tuple[Value, ...]]:
    """The SQL with its wide integers as literals, and the values that are left to bind."""
    if not any(map(is_wide, values)):
        return sql, values
    pieces: list[str] = []
    kept: list[Value] = []
    start = 0
    for mark, value in zip(statement.marks, values, strict=True):
        if is_wide(value):
            # Parentheses: "a-?" with a negative number would otherwise begin a comment.
            pieces += (sql[start:mark], f" ({value!r}) ")
            start = mark + 1
        else:
            kept.append(value)
    return "".join((*pieces, sql[start:])), tuple(kept)
