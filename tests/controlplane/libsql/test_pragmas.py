"""Pragmas of each connection, and migrations that rebuild a parent table."""

import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import Connection, Engine, exc, text

from controlplane.libsql import apply_pragmas, foreign_keys_off
from controlplane.libsql.errors import IntegrityError


def fill(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE parent(id INTEGER PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE child(p REFERENCES parent ON DELETE CASCADE)"))
        connection.execute(text("INSERT INTO parent VALUES (1), (2)"))
        connection.execute(text("INSERT INTO child VALUES (1), (2)"))


def rebuild(keep: str) -> list[str]:
    return [
        "CREATE TABLE parent_new(id INTEGER PRIMARY KEY, name TEXT)",
        f"INSERT INTO parent_new(id) SELECT id FROM parent WHERE {keep}",
        "DROP TABLE parent",
        "ALTER TABLE parent_new RENAME TO parent",
    ]


def children(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM child")).scalar_one())


def test_a_file_has_wal_normal_sync_and_foreign_keys(file_engine: Engine) -> None:
    with file_engine.connect() as connection:
        got = [
            connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert got == ["wal", 1, 1, 0]


def test_the_listener_serves_the_standard_library_too() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        apply_pragmas(connection, None)
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_a_rebuilt_parent_keeps_its_children(file_engine: Engine) -> None:
    fill(file_engine)
    with file_engine.connect() as connection:
        with foreign_keys_off(connection):
            for sql in rebuild("true"):
                connection.execute(text(sql))
            connection.commit()
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    assert children(file_engine) == 2


def test_a_rebuild_without_it_deletes_them(file_engine: Engine) -> None:
    """Why `foreign_keys_off` is there."""
    fill(file_engine)
    with file_engine.begin() as connection:
        for sql in rebuild("true"):
            connection.execute(text(sql))
    assert children(file_engine) == 0


def test_rows_left_without_a_parent_are_an_error(file_engine: Engine) -> None:
    def migrate(connection: Connection) -> None:
        with foreign_keys_off(connection):
            for sql in rebuild("id = 1"):
                connection.execute(text(sql))
            connection.commit()

    fill(file_engine)
    with (
        file_engine.connect() as connection,
        pytest.raises(IntegrityError, match=r"1 rows .* row 2 of 'child'.*'parent'"),
    ):
        migrate(connection)
    with file_engine.connect() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_an_open_transaction_is_refused_on_both_sides(file_engine: Engine) -> None:
    fill(file_engine)
    with file_engine.connect() as connection:
        connection.execute(text("DELETE FROM child"))
        with pytest.raises(exc.InvalidRequestError, match="before"), foreign_keys_off(connection):
            pass
        connection.rollback()
        with pytest.raises(exc.InvalidRequestError, match="inside"), foreign_keys_off(connection):
            connection.execute(text("DELETE FROM child"))
        connection.rollback()
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    assert children(file_engine) == 2
