"""Parameters reach SQLite without loss, or are refused."""

from collections.abc import Sequence
from enum import IntEnum

import pytest

from controlplane.libsql import dbapi

INT64 = (2**63 - 1, -(2**63))
WIDE = (2**31, -(2**31) - 1, 2**40, -(2**40), 2**53 + 1, -(2**53) - 1, *INT64)


@pytest.mark.parametrize("number", [0, -1, 2**31 - 1, -(2**31), *WIDE])
def test_an_integer_is_exact_in_every_column_and_expression(number: int) -> None:
    cursor = dbapi.connect(":memory:").cursor()
    cursor.execute("CREATE TABLE k(i INTEGER, n NUMERIC, x TEXT, u, b BLOB)")
    cursor.execute("INSERT INTO k VALUES (?, ?, ?, ?, ?)", (number,) * 5)
    cursor.executemany("INSERT INTO k VALUES (?, ?, ?, ?, ?)", [(number,) * 5, (number,) * 5])
    rows = cursor.execute("SELECT *, typeof(u), typeof(n) FROM k").fetchall()
    assert rows == [(number, number, str(number), number, number, "integer", "integer")] * 3
    assert cursor.execute("SELECT ?, typeof(?)", (number, number)).fetchall() == [(number, "integer")]
    assert cursor.execute("SELECT count(*) FROM k WHERE u = ?", (number,)).fetchone() == (3,)


def test_a_negative_wide_integer_after_a_minus_is_no_comment() -> None:
    cursor = dbapi.connect(":memory:").cursor()
    assert cursor.execute("SELECT 1-?,?", (-(2**40), "a")).fetchone() == (2**40 + 1, "a")


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_an_integer_beyond_64_bits_is_refused_and_quoted(number: int) -> None:
    with pytest.raises(dbapi.DataError, match=str(number)):
        dbapi.connect(":memory:").cursor().execute("SELECT ?", (number,))


@pytest.mark.parametrize("blob", [b"", b"\0\xff", bytearray(b"a\0b"), memoryview(b"xyz")[::2]])
def test_every_bytes_like_value_is_a_blob(blob: bytes | bytearray | memoryview) -> None:
    cursor = dbapi.connect(":memory:").cursor()
    row = cursor.execute("SELECT ?, typeof(?)", (blob, dbapi.Binary(blob))).fetchone()
    assert row == (bytes(blob), "blob")


def test_subclasses_bind_as_their_base() -> None:
    class Colour(IntEnum):
        RED = 2**40

    row = dbapi.connect(":memory:").cursor().execute("SELECT ?, ?, ?", (Colour.RED, True, None)).fetchone()
    assert row == (2**40, 1, None)


@pytest.mark.parametrize("parameters", [(), (1, 2), {"a": 1}, "x", 7])
def test_the_number_of_parameters_must_match(parameters: Sequence[object]) -> None:
    with pytest.raises(dbapi.ProgrammingError, match=r"bindings|parameters are"):
        dbapi.connect(":memory:").cursor().execute("SELECT ?", parameters)


def test_a_text_that_would_be_cut_is_refused_without_quoting_it() -> None:
    with pytest.raises(dbapi.DataError, match=r"parameter 2 .* NUL") as caught:
        dbapi.connect(":memory:").cursor().execute("SELECT ?, ?", ("", "secret\0x"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [object(), 1j, [1], "\ud800"])
def test_an_unsupported_value_is_a_programming_error(value: object) -> None:
    with pytest.raises(dbapi.ProgrammingError, match=r"(?i)unsupported"):
        dbapi.connect(":memory:").cursor().execute("SELECT ?", (value,))
