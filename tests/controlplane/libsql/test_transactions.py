"""A Session that writes what it has read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, exc
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from controlplane.libsql import apply_pragmas, begin_immediate, begin_snapshot


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


@pytest.fixture(params=["sqlite+libsql", "sqlite"])
def counted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A file with counter 1 at 0, on this driver and on the standard library's."""
    engine = create_engine(f"{request.param}:///{tmp_path}/test.db")
    event.listen(engine, "connect", apply_pragmas)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Counter(id=1, value=0))
        session.commit()
    yield engine
    engine.dispose()


def increment(engine: Engine) -> None:
    with Session(engine) as session:
        session.get_one(Counter, 1)  # read before, as another part of a request would
        begin_immediate(session)
        session.get_one(Counter, 1).value += 1
        session.commit()


def test_no_increment_is_lost(counted: Engine) -> None:
    with ThreadPoolExecutor(8) as workers:
        for future in [workers.submit(increment, counted) for _ in range(80)]:
            future.result()
    with Session(counted) as session:
        assert session.get_one(Counter, 1).value == 80


def test_what_was_read_before_is_read_again(counted: Engine) -> None:
    with Session(counted) as session:
        counter = session.get_one(Counter, 1)
        assert counter.value == 0
        session.connection().connection.rollback()
        increment(counted)
        assert counter.value == 0
        begin_immediate(session)
        assert counter.value == 1
        begin_immediate(session)
        assert counter.value == 1


def test_unflushed_changes_are_refused(counted: Engine) -> None:
    with Session(counted) as session:
        session.get_one(Counter, 1).value = 7
        for begin in (begin_immediate, begin_snapshot):
            with pytest.raises(exc.InvalidRequestError, match="unflushed"):
                begin(session)


def test_a_snapshot_holds_while_others_write(counted: Engine) -> None:
    with Session(counted) as session:
        begin_snapshot(session)
        counter = session.get_one(Counter, 1)
        increment(counted)
        session.refresh(counter)
        assert counter.value == 0
        session.rollback()
        assert counter.value == 1


def test_another_database_is_refused(monkeypatch: pytest.MonkeyPatch, counted: Engine) -> None:
    with Session(counted) as session:
        monkeypatch.setattr(session.connection().dialect, "name", postgresql.dialect.name)
        with pytest.raises(exc.InvalidRequestError, match="'postgresql'"):
            begin_immediate(session)
