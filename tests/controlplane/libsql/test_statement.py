"""What an SQL text is, with ``sqlite3`` as the oracle for placeholders."""

import sqlite3

import pytest

from controlplane.libsql.errors import ProgrammingError
from controlplane.libsql.statement import Kind, analyse


@pytest.mark.parametrize(
    ("sql", "kind", "verb"),
    [
        ("SELECT 1", Kind.READ, "SELECT"),
        ("  -- INSERT\n /* ; */ insert into t values (1)", Kind.CHANGE, "INSERT"),
        ("replace into t values (1)", Kind.CHANGE, "REPLACE"),
        ("WITH a AS (DELETE) SELECT replace(x, 'a', 'b') FROM a", Kind.READ, "SELECT"),
        ("with a(x) as (select 1), b as (select 2) insert into t select * from a", Kind.CHANGE, "INSERT"),
        ("WITH a AS (SELECT ')') UPDATE t SET x = 1", Kind.CHANGE, "UPDATE"),
        ("EXPLAIN DELETE FROM t", Kind.READ, "EXPLAIN"),
        ("PRAGMA user_version", Kind.READ, "PRAGMA"),
        ("SAVEPOINT a", Kind.CHANGE, "SAVEPOINT"),
        ("CREATE TABLE t(a)", Kind.DEFINE, "CREATE"),
        ("BEGIN", Kind.BEGIN_WRITE, "BEGIN"),
        ("begin exclusive", Kind.BEGIN_WRITE, "BEGIN"),
        ("BEGIN DEFERRED", Kind.BEGIN_READ, "BEGIN"),
        ("ROLLBACK TO a;", Kind.END, "ROLLBACK"),
        ("-- nothing", Kind.EMPTY, ""),
    ],
)
def test_kind_and_verb(sql: str, kind: Kind, verb: str) -> None:
    statement = analyse(sql)
    assert (statement.kind, statement.verb) == (kind, verb)


@pytest.mark.parametrize(
    ("sql", "count"),
    [
        ("SELECT ?, ?", 2),
        ("SELECT '?', \"?\", '''?', ?", 1),
        ("SELECT `a?` FROM (SELECT 1 AS `a?`) WHERE [a?] = ?", 1),
        ("SELECT /* ? ' */ ? -- ? '\n, ?", 2),
        ("SELECT ':a', 'it''s ?', ?||?", 2),
        ("SELECT a$b FROM (SELECT ? AS a$b)", 1),
        ("SELECT x'00', 1e5, ? /* ? ", 1),
    ],
)
def test_placeholders_are_those_that_sqlite_sees(sql: str, count: int) -> None:
    assert len(analyse(sql).marks) == count
    oracle = sqlite3.connect(":memory:")
    sql = sql.replace('"?"', "1")  # an unknown quoted name
    oracle.execute(sql, (1,) * count)
    with pytest.raises(sqlite3.ProgrammingError):
        oracle.execute(sql, (1,) * (count + 1))
    oracle.close()


@pytest.mark.parametrize("sql", ["SELECT :a", "SELECT ?1", "SELECT @a", "SELECT $a"])
def test_named_placeholders_are_refused(sql: str) -> None:
    with pytest.raises(ProgrammingError, match="use '\\?'"):
        analyse(sql)


def test_two_statements_are_refused_with_the_second_quoted() -> None:
    with pytest.raises(ProgrammingError, match="'DROP TABLE t' follows"):
        analyse("SELECT 1; -- then\n DROP TABLE t")


def test_a_trigger_is_one_statement() -> None:
    sql = "CREATE TEMP TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END;"
    assert analyse(sql).kind is Kind.DEFINE
