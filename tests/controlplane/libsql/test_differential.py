"""The same statements give the same results here and on ``sqlite3``."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.libsql import dbapi

SCHEMA = (
    "PRAGMA foreign_keys=ON",
    "CREATE TABLE p(id INTEGER PRIMARY KEY, n NUMERIC, x TEXT NOT NULL, u UNIQUE, r REAL)",
    "CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE)",
)
COLUMNS = "p(id, n, x, u, r)"

ids = st.integers(1, 4)
# Eighths, since SQLite 3.43 changed how other floats are written as text. RETURNING leaves out r,
# where older SQLite gives the integer 0 for a REAL 0.0.
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**20), 2**20).map(lambda n: n / 8),
    st.text("aé?';- 1", max_size=4),
    st.binary(max_size=3),
)


@dataclass(frozen=True)
class Step:
    """One statement; ``writes`` where this driver begins a transaction."""

    sql: str
    parameters: tuple[Any, ...] | list[tuple[Any, ...]] = ()
    writes: bool = False


def step(sql: str, *strategies: st.SearchStrategy[Any], writes: bool = True) -> st.SearchStrategy[Step]:
    return st.tuples(*strategies).map(lambda parameters: Step(sql, parameters, writes))


row = (ids, values, values, values, values)
steps = st.one_of(
    step(f"INSERT INTO {COLUMNS} VALUES (?, ?, ?, ?, ?)", *row),
    step(f"insert or ignore into {COLUMNS} values (?, ?, ?, ?, ?)", *row),
    step(f"REPLACE INTO {COLUMNS} VALUES (?, ?, ?, ?, ?) RETURNING id, n, x", *row),
    step(f"INSERT INTO {COLUMNS} VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET u = excluded.u", *row),
    step(f"WITH a AS (SELECT ? AS v) INSERT INTO {COLUMNS} SELECT v, 1, 'w', v, 2 FROM a", ids),
    st.lists(st.tuples(*row), max_size=4).map(
        lambda rows: Step(f"INSERT INTO {COLUMNS} VALUES (?, ?, ?, ?, ?)", rows, bool(rows))
    ),
    step("INSERT INTO c(p) VALUES (?)", ids),
    step("UPDATE p SET n = ?, x = ? WHERE id >= ? /* ? */", values, values, ids),
    step("UPDATE p SET u = ? WHERE n < ? RETURNING id, n, x, u", values, values),
    step("-- by id\nDELETE FROM p WHERE id = ?", ids),
    step(
        "SELECT * FROM p WHERE n = ? OR x > ? OR u IS NOT ? ORDER BY id", values, values, values, writes=False
    ),
    step("SELECT ?, typeof(?), hex(?), -?, 1-?, ? IS ?", *(values,) * 7, writes=False),
    step("SELECT count(*), sum(id) FROM c", writes=False),
    step("SELECT missing FROM p", writes=False),
    step("SELECT ?", values, values, writes=False),
    st.sampled_from(
        [
            Step("SAVEPOINT s", writes=True),
            Step("ROLLBACK TO s"),
            Step("RELEASE s"),
            Step("commit"),
            Step("rollback"),
        ]
    ),
)


def outcome(connection: Any, errors: Any, step: Step) -> tuple[Any, ...]:
    cursor = connection.cursor()
    before = cursor.execute("SELECT total_changes()").fetchone()
    try:
        if step.sql in ("commit", "rollback"):
            getattr(connection, step.sql)()
        elif isinstance(step.parameters, list):
            cursor.executemany(step.sql, step.parameters)
        else:
            cursor.execute(step.sql, step.parameters)
    except errors.Error as error:
        return (type(error).__name__, connection.in_transaction)
    names = [column[0] for column in cursor.description or ()]
    if any("?" in name for name in names):
        names = []  # an unnamed expression is called after its text
    rows = cursor.fetchall()
    count = cursor.rowcount
    if step.sql.startswith("WITH"):  # sqlite3 counts only texts that start with the verb
        count = cursor.execute("SELECT total_changes()").fetchone()[0] - before[0]
    single = step.sql.startswith("INSERT") and isinstance(step.parameters, tuple)
    inserted = cursor.lastrowid if single else None
    # repr tells 1 from 1.0 and True
    return (names, count, repr(rows), inserted, connection.in_transaction)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, min_size=1, max_size=12))
def test_any_statements_give_what_sqlite3_gives(program: list[Step]) -> None:
    with (
        closing(dbapi.connect(":memory:")) as ours,
        closing(sqlite3.connect(":memory:", isolation_level=None)) as theirs,
    ):
        for sql in SCHEMA:
            ours.cursor().execute(sql)
            theirs.execute(sql)
        for step in program:
            if step.writes and not theirs.in_transaction:
                theirs.execute("BEGIN")
            assert outcome(ours, dbapi, step) == outcome(theirs, sqlite3, step), step
        for table in ("p", "c"):
            sql = f"SELECT * FROM {table} ORDER BY id"
            assert repr(ours.cursor().execute(sql).fetchall()) == repr(theirs.execute(sql).fetchall())
