"""The driver keeps PEP 249 where the wheel does not."""

import gc
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from controlplane.libsql import dbapi
from controlplane.libsql.dbapi import Connection


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO u VALUES (1, 'b')",
        "INSERT INTO u VALUES (2, 'a')",
        "INSERT INTO u VALUES (2, NULL)",
        "INSERT INTO u VALUES (2, 'z')",
        "INSERT INTO u VALUES ('x', 'b')",
        "INSERT INTO c VALUES (9)",
        "INSERT INTO s VALUES ('x')",
        "INSERT INTO u VALUES (1, 'b') RETURNING a",
    ],
)
def test_a_broken_constraint_is_an_integrity_error(memory: Connection, sql: str) -> None:
    cursor = memory.cursor()
    cursor.execute("CREATE TABLE u(a INTEGER PRIMARY KEY, b TEXT UNIQUE NOT NULL CHECK (b <> 'z'))")
    cursor.execute("CREATE TABLE c(a REFERENCES u)")
    cursor.execute("CREATE TABLE s(a INTEGER) STRICT")
    cursor.execute("INSERT INTO u VALUES (1, 'a')")
    with pytest.raises(dbapi.IntegrityError):
        cursor.execute(sql)


def test_other_failures_have_their_class(memory: Connection, tmp_path: Path) -> None:
    cursor = memory.cursor()
    for sql in ("SELEC 1", "SELECT * FROM missing", "SELECT abs(-9223372036854775808)"):
        with pytest.raises(dbapi.OperationalError):
            cursor.execute(sql)
    with pytest.raises(dbapi.DataError):
        cursor.execute("SELECT zeroblob(3000000000)")
    with pytest.raises(dbapi.OperationalError):
        dbapi.connect(f"{tmp_path}/missing/x.db")
    (tmp_path / "text.db").write_text("no database " * 400)
    with (
        closing(dbapi.connect(str(tmp_path / "text.db"))) as connection,
        pytest.raises(dbapi.DatabaseError) as caught,
    ):
        connection.cursor().execute("SELECT * FROM sqlite_schema")
    assert caught.type is dbapi.DatabaseError


def test_a_panic_of_the_wheel_is_an_internal_error_and_the_connection_lives(memory: Connection) -> None:
    cursor = memory.cursor()
    with pytest.raises(dbapi.InternalError, match="panicked"):
        cursor.execute("SELECT CAST(x'ff' AS TEXT)")
    assert cursor.execute("SELECT 1").fetchall() == [(1,)]


def test_use_after_close_is_a_programming_error(memory: Connection) -> None:
    cursor = memory.cursor()
    memory.close()
    memory.close()
    for use in (
        memory.cursor,
        memory.commit,
        memory.rollback,
        cursor.fetchone,
        cursor.fetchall,
        lambda: cursor.execute("SELECT 1"),
        lambda: memory.in_transaction,
    ):
        with pytest.raises(dbapi.ProgrammingError, match="closed database"):
            use()


def test_use_of_a_closed_cursor_is_a_programming_error(memory: Connection) -> None:
    cursor = memory.cursor()
    cursor.close()
    for use in (cursor.fetchone, cursor.fetchmany, lambda: cursor.execute("SELECT 1"), lambda: iter(cursor)):
        with pytest.raises(dbapi.ProgrammingError, match="closed cursor"):
            use()


def test_rows_end_and_do_not_restart(memory: Connection) -> None:
    cursor = memory.cursor()
    cursor.execute("SELECT value FROM json_each('[1,2,3,4,5]')")
    assert cursor.fetchone() == (1,)
    assert cursor.fetchmany() == [(2,)]
    assert cursor.fetchmany(2) == [(3,), (4,)]
    assert cursor.fetchmany(2) == [(5,)]
    assert (cursor.fetchone(), cursor.fetchmany(2), cursor.fetchall()) == (None, [], [])
    assert [n for (n,) in cursor.execute("SELECT 1 UNION SELECT 2 ORDER BY 1")] == [1, 2]


def test_description_rowcount_and_lastrowid(memory: Connection) -> None:
    cursor = memory.cursor()
    cursor.execute("INSERT INTO t VALUES (7, 'a'), (8, 'b'), (9, 'c')")
    assert (cursor.description, cursor.rowcount, cursor.lastrowid) == (None, 3, 9)
    assert cursor.fetchall() == []
    cursor.execute("UPDATE t SET x = 'd' WHERE i < 9")
    assert (cursor.rowcount, cursor.lastrowid) == (2, 9)
    cursor.execute("DELETE FROM t WHERE 0")
    assert cursor.rowcount == 0
    cursor.execute("UPDATE t SET x = 'e' RETURNING i, x AS y")
    assert cursor.rowcount == 3
    assert [column[0] for column in cursor.description or ()] == ["i", "y"]
    cursor.execute("SELECT i FROM t")
    assert (cursor.rowcount, [len(column) for column in cursor.description or ()]) == (-1, [7])
    cursor.execute("CREATE TABLE other(a)")
    assert (cursor.description, cursor.rowcount) == (None, -1)
    cursor.execute("WITH a(n) AS (SELECT 7) DELETE FROM t WHERE i IN (SELECT n FROM a)")
    assert cursor.rowcount == 1


def test_executemany_counts_and_refuses_what_it_cannot_do(memory: Connection) -> None:
    cursor = memory.cursor()
    cursor.executemany("INSERT INTO t VALUES (?, ?)", ([n, "x"] for n in range(10)))
    assert cursor.rowcount == 10
    cursor.executemany("UPDATE t SET x = ? WHERE i = ?", [(2**40, 1), ("b", 2), ("c", 99)])
    assert cursor.rowcount == 2
    cursor.executemany("DELETE FROM t WHERE i = ?", [])
    assert cursor.rowcount == 0
    for sql in ("SELECT ?", "DELETE FROM t WHERE i = ? RETURNING i"):
        with pytest.raises(dbapi.ProgrammingError, match="use execute"):
            cursor.executemany(sql, [(1,)])


def test_only_one_statement_runs_and_none_is_lost_unnoticed(memory: Connection) -> None:
    with pytest.raises(dbapi.ProgrammingError, match="one statement"):
        memory.cursor().execute("DELETE FROM t; DELETE FROM t")
    assert memory.cursor().execute("  -- nothing to do").fetchall() == []


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (2, 'b')",
        "/* by hand */ -- now\n insert into t values (2, 'b')",
        "REPLACE INTO t VALUES (1, 'b')",
        "update t set x = 'b'",
        "DELETE FROM t",
        "WITH n(v) AS (SELECT 2) INSERT INTO t SELECT v, 'b' FROM n",
        "UPDATE t SET x = 'b' RETURNING i",
    ],
)
def test_every_write_begins_a_transaction_that_rollback_undoes(memory: Connection, sql: str) -> None:
    cursor = memory.cursor()
    cursor.execute("INSERT INTO t VALUES (1, 'a')")
    memory.commit()
    assert not memory.in_transaction
    cursor.execute(sql)
    assert memory.in_transaction
    memory.rollback()
    assert cursor.execute("SELECT * FROM t").fetchall() == [(1, "a")]


def test_executemany_is_one_transaction(memory: Connection) -> None:
    with pytest.raises(dbapi.IntegrityError):
        memory.cursor().executemany("INSERT INTO t VALUES (?, 'x')", [(1,), (2,), (1,)])
    memory.rollback()
    assert memory.cursor().execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_reads_begin_nothing(memory: Connection) -> None:
    for sql in ("SELECT * FROM t", "WITH a AS (SELECT 1) SELECT * FROM a", "PRAGMA user_version"):
        memory.cursor().execute(sql)
        assert not memory.in_transaction


def test_autocommit_keeps_each_statement(memory: Connection) -> None:
    memory.isolation_level = "AUTOCOMMIT"
    memory.cursor().executemany("INSERT INTO t VALUES (?, 'x')", [(1,), (2,)])
    assert not memory.in_transaction
    memory.rollback()
    assert memory.cursor().execute("SELECT count(*) FROM t").fetchone() == (2,)


class BusyOnce:
    """A raw connection on which another process holds the file when the second row comes."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def executemany(self, sql: str, rows: list[tuple[object, ...]]) -> Any:
        for row in rows:
            self._rows += 1
            if self._rows == 2:
                raise ValueError("database is locked")
            cursor = self._raw.executemany(sql, [row])
        return cursor


def test_autocommit_repeats_no_row_when_it_tries_again(memory: Connection) -> None:
    memory.isolation_level = "AUTOCOMMIT"
    memory._raw = BusyOnce(memory._raw)
    memory.cursor().executemany("INSERT INTO t(x) VALUES (?)", [("a",), ("b",), ("c",)])
    assert memory.cursor().execute("SELECT x FROM t").fetchall() == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), float("inf")])
def test_a_timeout_out_of_range_is_refused(timeout: float) -> None:
    with pytest.raises(dbapi.InterfaceError, match=f"timeout {timeout}"):
        dbapi.connect(":memory:", timeout=timeout)


def test_a_lost_connection_closes_itself(database: str) -> None:
    with closing(dbapi.connect(database, timeout=0.0)) as other:
        connection = dbapi.connect(database)
        connection.cursor().execute("INSERT INTO t VALUES (1, 'lost')")
        del connection
        gc.collect()
        other.cursor().execute("INSERT INTO t VALUES (1, 'kept')")
        assert other.cursor().execute("SELECT x FROM t").fetchall() == [("kept",)]
