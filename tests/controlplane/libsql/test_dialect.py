"""SQLAlchemy and SQLModel on the dialect, as the broker uses them."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Engine,
    create_engine,
    delete,
    event,
    exc,
    func,
    inspect,
    pool,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session, registry
from sqlmodel import Field, SQLModel
from sqlmodel import Session as ModelSession

import controlplane.libsql
from controlplane.libsql import DriverUnavailable, dbapi
from controlplane.libsql.dialect import LibsqlDialect


class Table(SQLModel, registry=registry()):
    """Tables of these tests only."""


class Parent(Table, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    blob: bytes = b""
    big: int = Field(default=0, sa_type=BigInteger)
    seen: datetime | None = None
    uses: int = 0


class Child(Table, table=True):
    id: int | None = Field(default=None, primary_key=True)
    parent: int = Field(foreign_key="parent.id", ondelete="CASCADE", index=True)


P: Any = Parent
C: Any = Child


@pytest.fixture
def session(engine: Engine) -> Iterator[ModelSession]:
    Table.metadata.create_all(engine)
    with ModelSession(engine) as session:
        yield session


@pytest.fixture
def shared(file_engine: Engine) -> Engine:
    """A file with the tables and one parent."""
    Table.metadata.create_all(file_engine)
    with Session(file_engine) as session:
        session.add(Parent(id=1, name="one"))
        session.commit()
    return file_engine


def add(engine: Engine, name: str) -> None:
    with Session(engine) as session:
        session.add(Parent(name=name))
        session.commit()


def test_objects_come_back_as_they_went_in(session: ModelSession) -> None:
    seen = datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=UTC)
    session.add(Parent(name="é", blob=b"\0\xff", big=2**53 + 1, seen=seen))
    session.add(Parent(name="b", blob=b"b", big=-(2**63)))
    session.commit()
    session.expunge_all()
    a, b = session.scalars(select(P).order_by(P.id))
    assert (a.name, a.blob, a.big, a.seen) == ("é", b"\0\xff", 2**53 + 1, seen)
    assert (b.blob, b.big, b.seen) == (b"b", -(2**63), None)
    a.name = "changed"
    session.delete(b)
    session.commit()
    assert [parent.name for parent in session.scalars(select(P))] == ["changed"]


def test_a_broken_constraint_is_sqlalchemys_integrity_error(session: ModelSession) -> None:
    session.add(Parent(name="same"))
    session.commit()
    session.add(Parent(name="same"))
    with pytest.raises(exc.IntegrityError):
        session.commit()
    session.rollback()
    session.add(Child(parent=999))
    with pytest.raises(exc.IntegrityError):
        session.commit()


def test_a_failed_statement_is_sqlalchemys_operational_error(session: ModelSession) -> None:
    with pytest.raises(exc.OperationalError, match="no such table"):
        session.connection().execute(text("SELECT * FROM missing"))


def test_many_rows_return_their_keys(session: ModelSession) -> None:
    parents = [Parent(name=f"p{n}", big=2**40 + n) for n in range(250)]
    session.add_all(parents)
    session.flush()
    assert len({parent.id for parent in parents}) == 250
    result = session.connection().execute(
        update(P).where(P.big >= 2**40 + 240).values(uses=1).returning(P.big)
    )
    assert sorted(result.scalars()) == [2**40 + n for n in range(240, 250)]


def test_rollback_undoes_and_rowcount_counts(session: ModelSession) -> None:
    session.add_all([Parent(name=name) for name in "abc"])
    session.commit()
    result: Any = session.connection().execute(update(P).where(P.name < "c").values(uses=5))
    assert result.rowcount == 2
    session.rollback()
    assert session.connection().execute(select(func.sum(P.uses))).scalar() == 0


def test_a_savepoint_undoes_only_its_part(session: ModelSession) -> None:
    with session.begin_nested():
        session.add(Parent(name="kept"))
    with pytest.raises(exc.IntegrityError), session.begin_nested():
        session.add(Parent(name="kept"))
    session.commit()
    with session.begin_nested() as nested:
        session.add(Parent(name="undone"))
        session.flush()
        nested.rollback()
    session.commit()
    assert [parent.name for parent in session.scalars(select(P))] == ["kept"]


def test_deleting_a_parent_deletes_its_children(session: ModelSession) -> None:
    session.add(Parent(id=1, name="a"))
    session.flush()
    session.add_all([Child(parent=1), Child(parent=1)])
    session.commit()
    result: Any = session.connection().execute(delete(P).where(P.id == 1))
    session.commit()
    assert result.rowcount == 1
    assert session.connection().execute(select(func.count()).select_from(C)).scalar() == 0


def test_no_row_is_lost_between_chunks(session: ModelSession) -> None:
    session.add_all([Parent(name=f"p{n:02}") for n in range(23)])
    session.commit()
    names = [f"p{n:02}" for n in range(23)]
    query = select(P.name).order_by(P.name)
    chunked = session.connection().execute(query.execution_options(yield_per=5))
    assert list(chunked.scalars()) == names
    result = session.connection().execute(query)
    chunks = []
    while chunk := result.fetchmany(4):
        chunks += [row.name for row in chunk]
    assert chunks == names


def test_tables_are_reflected(engine: Engine, session: ModelSession) -> None:
    inspector = inspect(engine)
    assert {"parent", "child"} <= set(inspector.get_table_names())
    assert [column["name"] for column in inspector.get_columns("child")] == ["id", "parent"]
    assert inspector.get_indexes("child")[0]["column_names"] == ["parent"]
    (key,) = inspector.get_foreign_keys("child")
    assert (key["referred_table"], key["options"]) == ("parent", {"ondelete": "CASCADE"})
    assert inspector.get_unique_constraints("parent")[0]["column_names"] == ["name"]


def test_a_single_use_key_is_redeemed_once_by_many_threads(shared: Engine) -> None:
    threads = 50
    together = threading.Barrier(threads)

    def redeem() -> int:
        together.wait()
        with Session(shared) as session:
            result: Any = session.execute(update(P).where(P.id == 1, P.uses < 1).values(uses=P.uses + 1))
            session.commit()
            return int(result.rowcount)

    with ThreadPoolExecutor(threads) as workers:
        futures = [workers.submit(redeem) for _ in range(threads)]
        assert sorted(future.result() for future in futures) == [0] * 49 + [1]


def test_sessions_of_many_threads_write_without_an_error(shared: Engine) -> None:
    def work(thread: int) -> None:
        for number in range(25):
            add(shared, f"{thread}-{number}")

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(work, range(8)))
    with Session(shared) as session:
        assert session.scalar(select(func.count()).select_from(P)) == 201


def test_immediate_guards_a_read_modify_write(shared: Engine) -> None:
    immediate = shared.execution_options(isolation_level="IMMEDIATE")

    def work() -> None:
        for _ in range(10):
            with Session(immediate) as session:
                parent = session.get_one(Parent, 1)
                parent.uses += 1
                session.commit()

    with ThreadPoolExecutor(8) as workers:
        for future in [workers.submit(work) for _ in range(8)]:
            future.result()
    with Session(shared) as session:
        assert session.get_one(Parent, 1).uses == 80


def test_snapshot_reads_one_state(shared: Engine) -> None:
    with Session(shared.execution_options(isolation_level="SNAPSHOT")) as reader:
        count = select(func.count()).select_from(P)
        assert reader.scalar(count) == 1
        add(shared, "two")
        assert reader.scalar(count) == 1
        with pytest.raises(exc.ProgrammingError, match="read transaction"):
            reader.execute(delete(P))
        reader.rollback()
        assert reader.scalar(count) == 2


def test_autocommit_needs_no_commit(shared: Engine) -> None:
    with shared.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(delete(P))
    with shared.connect() as connection:
        assert connection.get_isolation_level() == "SERIALIZABLE"
        assert connection.scalar(select(func.count()).select_from(P)) == 0


def test_an_unknown_isolation_level_is_refused(shared: Engine) -> None:
    with pytest.raises(exc.ArgumentError, match="CHAOS"):
        shared.connect().execution_options(isolation_level="CHAOS")


def test_a_connection_given_back_lets_the_next_writer_in(shared: Engine) -> None:
    connection = shared.connect()
    connection.execute(delete(P))
    connection.close()
    add(shared, "next")


def test_a_closed_connection_is_replaced(shared: Engine) -> None:
    with shared.connect() as connection:
        raw: Any = connection.connection.driver_connection
        raw.close()
        with pytest.raises(exc.ProgrammingError, match="closed") as caught:
            connection.execute(select(P.id))
        assert caught.value.connection_invalidated
    add(shared, "next")


def test_functions_that_pysqlite_adds_are_built_in(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 'abc' REGEXP 'b+', floor(1.5)")).one() == (1, 1)


@pytest.mark.parametrize(
    ("url", "pool_class", "database", "options"),
    [
        ("sqlite+libsql://", pool.StaticPool, ":memory:", {}),
        ("sqlite+libsql:///:memory:?timeout=1.5", pool.StaticPool, ":memory:", {"timeout": 1.5}),
        ("sqlite+libsql:////srv/x.db", pool.QueuePool, "/srv/x.db", {}),
        ("sqlite+libsql:///x.db", pool.QueuePool, str(Path("x.db").absolute()), {}),
        ("sqlite+libsql://h:8080", pool.QueuePool, "http://h:8080", {"auth_token": ""}),
        (
            "sqlite+libsql://:tok@[::1]:1?secure=true",
            pool.QueuePool,
            "https://[::1]:1",
            {"auth_token": "tok"},
        ),
    ],
)
def test_urls(url: str, pool_class: type[pool.Pool], database: str, options: dict[str, object]) -> None:
    engine = create_engine(url)
    assert type(engine.pool) is pool_class
    assert engine.dialect.create_connect_args(engine.url) == ([database], options)
    assert "tok@" not in str(engine.url)


@pytest.mark.parametrize(
    ("url", "bad"),
    [
        ("sqlite+libsql:///x.db?mode=ro", "'mode'"),
        ("sqlite+libsql:///x.db?timeout=soon", "'soon'"),
        ("sqlite+libsql:///x.db?secure=true", "'secure'"),
        ("sqlite+libsql://h?secure=yes", "'yes'"),
        ("sqlite+libsql://me:x@h", "'me'"),
        ("sqlite+libsql://h/name", "'name'"),
    ],
)
def test_a_url_that_is_not_understood_is_refused(url: str, bad: str) -> None:
    with pytest.raises(exc.ArgumentError, match=bad):
        create_engine(url)


@pytest.mark.parametrize(
    ("message", "gone"),
    [
        ("Hrana: `http error: `error trying to connect: tcp connect error: Connection refused``", True),
        ("Hrana: `api error: `status=400 Bad Request, body=Received an invalid baton``", True),
        ("Cannot operate on a closed database.", True),
        ("database is locked", False),
        ("near 'selec': syntax error", False),
    ],
)
def test_which_errors_mean_that_the_connection_is_gone(message: str, gone: bool) -> None:
    assert LibsqlDialect().is_disconnect(dbapi.OperationalError(message), None, None) is gone


def test_an_unreachable_server_is_an_operational_error() -> None:
    engine = create_engine("sqlite+libsql://127.0.0.1:1")
    with engine.connect() as connection, pytest.raises(exc.OperationalError, match="refused") as caught:
        connection.execute(text("SELECT 1"))
    assert caught.value.connection_invalidated


def test_without_the_wheel_the_error_has_a_type_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libsql", None)
    monkeypatch.delitem(sys.modules, "controlplane.libsql.dbapi")
    monkeypatch.delattr(controlplane.libsql, "dbapi")
    with pytest.raises(DriverUnavailable, match="sqlite:///"):
        create_engine("sqlite+libsql://")


def test_listeners_see_each_connection_once(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite+libsql:///{tmp_path}/x.db")
    seen: list[object] = []
    event.listen(engine, "connect", lambda connection, record: seen.append(connection))
    with engine.connect(), engine.connect():
        pass
    engine.dispose()
    assert len(seen) == 2
