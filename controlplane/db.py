"""The database: engine, tables, and one way to write. *Shell.*

`DATABASE_URL` decides where: by default an embedded libSQL file, and stdlib SQLite on the same file
where the `libsql` wheel has no build. Every write goes through `Database.write()`: one transaction,
begun as a writer, after whose commit those who watch a changed subject are told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy
from sqlalchemy import URL, Engine, event, exc, text
from sqlmodel import Session, SQLModel, select

from controlplane import models
from controlplane.errors import StartError
from controlplane.libsql import DriverUnavailable, apply_pragmas, begin_immediate, begin_snapshot

log = logging.getLogger(__name__)
_CHANGED = "changed_subjects"
_NEXT_REVISION = text("UPDATE revision SET value = value + 1 WHERE id = 1 RETURNING value")


def create_engine(url: str) -> Engine:
    """The engine for a database URL, with its tables made if they lack. Raises `StartError`."""
    try:
        parsed = sqlalchemy.make_url(url)
    except exc.ArgumentError:  # not quoted, as it may hold a password
        raise StartError(
            "the database URL cannot be read: write sqlite+libsql:///FILE or sqlite+libsql://:TOKEN@HOST:PORT"
        ) from None
    try:
        engine = _engine(parsed)
        SQLModel.metadata.create_all(engine)
    except (exc.SQLAlchemyError, ImportError) as error:
        reason = getattr(error, "orig", None) or error.args[0]
        raise StartError(f"cannot use the database {str(parsed)!r} (DATABASE_URL): {reason}") from None
    return engine


def _engine(url: URL) -> Engine:
    try:
        engine = sqlalchemy.create_engine(url)
    except DriverUnavailable as error:
        log.warning("%s: using the standard library's SQLite", error)
        engine = sqlalchemy.create_engine(url.set(drivername="sqlite"))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", apply_pragmas)
    return engine


class Database:
    """Sessions over one engine."""

    def __init__(self, engine: Engine, on_change: Callable[[str], None]) -> None:
        self.engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        self._on_change = on_change
        with self.write() as session:
            if session.get(models.Revision, 1) is None:
                session.add(models.Revision())

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One state of the database, whatever others write meanwhile."""
        with Session(self.engine) as session:
            if self._sqlite:
                begin_snapshot(session)
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One write transaction: committed at the end, rolled back whole on an error."""
        with Session(self.engine, expire_on_commit=False) as session:
            if self._sqlite:
                begin_immediate(session)
            yield session
            session.commit()
            changed = session.info.get(_CHANGED, ())
        for subject in changed:
            self._on_change(subject)

    def close(self) -> None:
        self.engine.dispose()


def next_revision(session: Session) -> int:
    """The next revision, unique and in commit order: the counter's row is held until commit."""
    return int(session.connection().execute(_NEXT_REVISION).scalar_one())


def touch(session: Session, *subjects: str) -> None:
    """Say that the netmaps of `subjects` change with this transaction."""
    session.info.setdefault(_CHANGED, set()).update(subjects)


def setting(session: Session, name: str, default: Callable[[], str]) -> str:
    """A shared setting, written with its default when it is first asked for."""
    row = session.exec(select(models.Setting).where(models.Setting.name == name)).first()
    if row is None:
        row = models.Setting(name=name, value=default())
        session.add(row)
        session.flush()
    return row.value
