"""The one way to write: whole or not at all, told after the commit, revisions in commit order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlmodel import SQLModel, select

from controlplane.db import Database, create_engine, next_revision, setting, touch
from controlplane.libsql import DriverUnavailable, dbapi
from controlplane.libsql.dialect import LibsqlDialect
from controlplane.libsql.errors import BusyError
from controlplane.models import SecurityEvent, Server, Setting


class Told:
    """Collects subjects, and what a reader saw when it was told."""

    def __init__(self) -> None:
        self.subjects: list[str] = []
        self.database: Database | None = None
        self.seen: list[list[str]] = []

    def __call__(self, subject: str) -> None:
        self.subjects.append(subject)
        assert self.database is not None
        with self.database.read() as session:
            self.seen.append(list(session.exec(select(Setting.name)).all()))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def database(tmp_path: Path, told: Told) -> Iterator[Database]:
    database = Database(create_engine(f"sqlite+libsql:///{tmp_path}/horizon.db"), told)
    told.database = database
    yield database
    database.close()


def test_changes_are_told_once_and_after_the_commit(database: Database, told: Told) -> None:
    with database.write() as session:
        session.add(Setting(name="pool", value="10.0.0.0/8"))
        touch(session, "fra1", "alice")
        touch(session, "fra1")
        session.flush()
        assert told.subjects == []
    assert sorted(told.subjects) == ["alice", "fra1"]
    assert told.seen == [["pool"], ["pool"]]


def test_an_error_leaves_nothing_and_tells_nobody(database: Database, told: Told) -> None:
    def fail() -> None:
        with database.write() as session:
            session.add(Setting(name="pool", value="10.0.0.0/8"))
            assert next_revision(session) == 1
            touch(session, "fra1")
            session.flush()
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert told.subjects == []
    with database.write() as session:
        assert session.get(Setting, "pool") is None
        assert next_revision(session) == 1


def test_parallel_writers_get_revisions_in_commit_order(database: Database) -> None:
    committed: list[int] = []
    lock = threading.Lock()

    def write(_: int) -> None:
        with database.write() as session:
            revision = next_revision(session)
            session.add(Setting(name=f"r{revision}", value=""))
        with lock:
            committed.append(revision)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(40)))
    assert sorted(committed) == list(range(1, 41))
    with database.read() as session:
        rows = session.execute(sqlalchemy.text("SELECT name FROM settings ORDER BY rowid")).scalars().all()
    assert rows == [f"r{number}" for number in range(1, 41)]


def test_a_writer_keeps_others_from_writing_before_it_reads(database: Database, tmp_path: Path) -> None:
    """Else what it read could change before it writes: an address would be given twice."""
    with closing(dbapi.connect(str(tmp_path / "horizon.db"), timeout=0)) as other:
        with database.write(), pytest.raises(BusyError):
            other.cursor().execute("BEGIN IMMEDIATE")
        other.cursor().execute("BEGIN IMMEDIATE")
        other.rollback()


def test_a_reader_sees_one_state(database: Database) -> None:
    with database.read() as reading:
        assert reading.exec(select(Setting)).all() == []
        with database.write() as writing:
            writing.add(Setting(name="pool", value="x"))
        assert reading.exec(select(Setting)).all() == []
    with database.read() as reading:
        assert len(reading.exec(select(Setting)).all()) == 1


def test_a_setting_keeps_its_first_value(database: Database) -> None:
    for default in ("first", "second"):
        with database.write() as session:
            assert setting(session, "pool", lambda: default) == "first"  # noqa: B023


def test_the_revision_goes_on_after_a_restart(tmp_path: Path) -> None:
    for expected in (1, 2):
        database = Database(create_engine(f"sqlite+libsql:///{tmp_path}/horizon.db"), lambda _: None)
        with database.write() as session:
            assert next_revision(session) == expected
        database.close()


def test_times_come_back_with_their_zone(database: Database) -> None:
    moment = datetime(2027, 1, 15, 8, 0, 0, 123456, UTC)
    with database.write() as session:
        session.add(
            SecurityEvent(timestamp=moment, event_type="t", severity="low", component="c", description="d")
        )
    with database.read() as session:
        assert session.exec(select(SecurityEvent)).one().timestamp == moment


def test_foreign_keys_are_kept(database: Database) -> None:
    row: dict[str, Any] = {
        "registration_date": datetime.now(UTC),
        **dict.fromkeys(("listen_port", "mtu", "subnet", "revision"), 1),
        **dict.fromkeys(("server_id", "hostname", "public_ip", "public_key", "identity"), "x"),
        **dict.fromkeys(("verification_secret", "version", "endpoint_host"), "x"),
        "registration_key_id": "nobody's",
    }

    def orphan() -> None:
        with database.write() as session:
            session.add(Server(**row))

    with pytest.raises(sqlalchemy.exc.IntegrityError, match="FOREIGN KEY"):
        orphan()


UNSEARCHED = {"registration_keys.admin_id", "connections.key_id", "admin_machines.key_id"}
"""Foreign keys by which nothing is looked up, of rows that are never deleted."""


def test_what_rows_are_searched_by_has_an_index() -> None:
    """SQLite makes no index for a foreign key, so each look-up by it would read the whole table."""
    unindexed = set()
    for table in SQLModel.metadata.tables.values():
        firsts = {next(iter(index.columns)).name for index in table.indexes}
        firsts |= {
            next(iter(constraint.columns)).name
            for constraint in table.constraints
            if isinstance(constraint, sqlalchemy.UniqueConstraint | sqlalchemy.PrimaryKeyConstraint)
        }
        unindexed |= {f"{table.name}.{column.name}" for column in table.columns if column.foreign_keys} - {
            f"{table.name}.{name}" for name in firsts
        }
    assert unindexed == UNSEARCHED


def test_without_the_wheel_the_same_file_is_opened_by_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite+libsql:///{tmp_path}/horizon.db"
    first = Database(create_engine(url), lambda _: None)
    with first.write() as session:
        setting(session, "pool", lambda: "kept")
    first.close()

    def unavailable() -> None:
        raise DriverUnavailable("no build of libsql for this platform")

    monkeypatch.setattr(LibsqlDialect, "import_dbapi", unavailable)
    second = Database(create_engine(url), lambda _: None)
    assert second.engine.dialect.driver == "pysqlite"
    with second.write() as session:
        assert setting(session, "pool", lambda: "lost") == "kept"
        assert next_revision(session) == 1
    second.close()
    assert "no build of libsql for this platform: using the standard library's SQLite" in caplog.text
