"""A PEP 249 driver over the ``libsql`` wheel. *Shell.*

Rules that hold for every statement:
- The raw connection is in autocommit; the first INSERT, UPDATE, DELETE, REPLACE or SAVEPOINT runs
  ``BEGIN IMMEDIATE`` before it, so a transaction never has to be upgraded from reading to writing.
  SELECT begins nothing: guard a read-modify-write by one UPDATE with a WHERE and its ``rowcount``,
  or begin with ``BEGIN IMMEDIATE``. ``BEGIN DEFERRED`` opens a snapshot that refuses writes.
- The database's `WriterLock` is held exactly while a write transaction is open, whichever way it
  ends: commit, rollback, an error that rolls back, close, garbage collection.
- Each statement has a raw cursor of its own and its rows are fetched at once: raw cursors restart
  after the last row and add up row counts.
- Integers are exact over SQLite's 64 bits (`binding`); errors are PEP 249's (`errors`).
- A text that is not UTF-8 (another program's) is `InternalError`; one with a NUL is cut there.

The wheel holds the GIL while a statement runs, on a server's answer too: keep statements short.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from controlplane.libsql.binding import Value, adapt, inline_wide, is_wide
from controlplane.libsql.errors import (
    BusyError,
    DatabaseError,
    DataError,
    DriverUnavailable,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,
    translate,
)
from controlplane.libsql.statement import Kind, Statement, analyse
from controlplane.libsql.writer import tries, writer_lock

try:
    import libsql
except ImportError as failure:
    raise DriverUnavailable(
        f"the libsql wheel cannot be imported ({failure}): "
        "install libsql==0.1.8, or use DATABASE_URL=sqlite:///..., the standard library's SQLite"
    ) from failure

__all__ = [
    "Binary",
    "BusyError",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "sqlite_version",
    "sqlite_version_info",
    "threadsafety",
]

apilevel = "2.0"
threadsafety = 1
paramstyle = "qmark"
Binary = bytes
sqlite_version_info: tuple[int, int, int] = tuple(libsql.sqlite_version_info)
sqlite_version = ".".join(map(str, sqlite_version_info))

Row = tuple[Any, ...]
T = TypeVar("T")

_REMOTE = ("http://", "https://")


def connect(database: str, *, timeout: float = 5.0, auth_token: str = "") -> "Connection":
    """Open a file, ``:memory:``, or a libSQL server by its http or https URL.

    ``timeout`` is in seconds: how long a statement waits for other writers before `BusyError`.
    """
    if not 0 <= timeout <= threading.TIMEOUT_MAX:
        raise InterfaceError(f"timeout {timeout!r} is out of range: give seconds, 0 or more")
    raw = _guard(lambda: libsql.connect(database, timeout=0.0, isolation_level=None, auth_token=auth_token))
    return Connection(raw, database, timeout)


def _guard(run: Callable[[], T]) -> T:
    """Run a call into the wheel; its failures come out as PEP 249 errors."""
    try:
        return run()
    except BaseException as failure:
        error = translate(failure)
        if error is None:
            raise
        raise error from None


class Connection:
    """One connection; use it from one thread at a time."""

    isolation_level = "SERIALIZABLE"
    """``AUTOCOMMIT`` leaves out the implicit BEGIN; any other value is the caller's (dialect's)."""

    def __init__(self, raw: Any, database: str, timeout: float) -> None:
        self._raw = raw
        self._timeout = timeout
        self.remote = database.startswith(_REMOTE)
        """Whether a server answers, which takes few of SQLite's pragmas."""
        self._writer = writer_lock(database, remote=self.remote)
        self._writing = False

    def __del__(self) -> None:
        # A connection that is lost without close must not keep the writers out.
        if getattr(self, "_raw", None) is not None:
            with contextlib.suppress(Error):
                self.close()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self._open().in_transaction)

    def cursor(self) -> "Cursor":
        """A new cursor."""
        self._open()
        return Cursor(self)

    def commit(self) -> None:
        """Make the open transaction's changes durable; without one, do nothing."""
        if self.in_transaction:
            self.cursor().execute("COMMIT")

    def rollback(self) -> None:
        """Undo the open transaction's changes; without one, do nothing."""
        try:
            if self.in_transaction:
                self.cursor().execute("ROLLBACK")
        finally:
            self._release()

    def close(self) -> None:
        """Roll back and close; further use is ProgrammingError, closing again is allowed."""
        if self._raw is None:
            return
        # Closing discards the transaction anyway, and a lost server cannot be told.
        with contextlib.suppress(Error):
            self.rollback()
        raw, self._raw = self._raw, None
        _guard(raw.close)

    def _open(self) -> Any:
        if self._raw is None:
            raise ProgrammingError("Cannot operate on a closed database.")
        return self._raw

    def _run(self, statement: Statement, step: Callable[[Any], T]) -> T:
        """Run ``step`` on the raw connection in the state that the statement needs."""
        raw = self._open()
        deadline = time.monotonic() + self._timeout
        try:
            self._prepare(raw, statement, deadline)
            return self._attempt(lambda: step(raw), deadline)
        finally:
            # Also after an error: ON CONFLICT ROLLBACK and a full disk end the transaction.
            if self._writing and not raw.in_transaction:
                self._release()

    def _prepare(self, raw: Any, statement: Statement, deadline: float) -> None:
        if statement.kind not in (Kind.CHANGE, Kind.DEFINE, Kind.BEGIN_WRITE) or self._writing:
            return
        if raw.in_transaction:
            raise ProgrammingError(
                f"{statement.verb} in a read transaction: begin it by BEGIN IMMEDIATE to write"
            )
        self._writer.acquire(deadline)
        self._writing = True
        if statement.kind is Kind.CHANGE and self.isolation_level != "AUTOCOMMIT":
            self._attempt(lambda: raw.execute("BEGIN IMMEDIATE"), deadline)

    def _attempt(self, step: Callable[[], T], deadline: float) -> T:
        """Call ``step`` until another process's lock is gone; BusyError at the deadline."""
        busy = BusyError("database is locked")
        for _ in tries(deadline):
            try:
                return _guard(step)
            except BusyError as failure:
                busy = failure
        raise busy

    def _release(self) -> None:
        if self._writing:
            self._writing = False
            self._writer.release()


class Cursor:
    """The result of one statement at a time; its rows are in memory."""

    arraysize = 1
    """Rows that `fetchmany` gives when it is not told."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.description: tuple[Row, ...] | None = None
        """A 7-tuple for each column, only its name set; None for a statement without rows."""
        self.rowcount = -1
        """Rows that an INSERT, UPDATE, DELETE or REPLACE changed; -1 for anything else."""
        self.lastrowid: int | None = None
        """Row id of the last INSERT or REPLACE by `execute`."""
        self._rows: Iterator[Row] = iter(())
        self._closed = False

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> "Cursor":
        """Run one statement with a value for each ``?``."""
        statement = self._start(sql)
        text, values = inline_wide(sql, statement, adapt(parameters, statement))
        if statement.kind is Kind.EMPTY:
            return self
        if statement.kind is Kind.BEGIN_WRITE:
            # A plain BEGIN would take SQLite's lock only at the first write, where it may fail.
            text = "BEGIN IMMEDIATE"

        def step(raw: Any) -> tuple[Any, list[Row]]:
            cursor = raw.cursor()
            cursor.execute(text, values)
            return cursor, (cursor.fetchall() or []) if cursor.description else []

        cursor, rows = self.connection._run(statement, step)
        self.description = cursor.description or None
        self._rows = iter(rows)
        if statement.changes_rows:
            # With RETURNING the raw count is that of some earlier statement.
            self.rowcount = len(rows) if self.description else cursor.rowcount
            if statement.verb in ("INSERT", "REPLACE"):
                self.lastrowid = cursor.lastrowid
        return self

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> "Cursor":
        """Run an INSERT, UPDATE, DELETE or REPLACE for each row of values; rowcount is the sum."""
        statement = self._start(sql)
        if not statement.changes_rows:
            raise ProgrammingError(f"executemany cannot run {statement.verb!r}: use execute")
        if statement.returning:
            raise ProgrammingError("executemany gives no rows: leave out RETURNING, or use execute")
        batch = [adapt(row, statement) for row in rows]
        self.rowcount = 0
        for part in self._parts(batch):
            self.rowcount += self._run_many(sql, statement, part)
        return self

    def _parts(self, batch: list[tuple[Value, ...]]) -> list[list[tuple[Value, ...]]]:
        # Row by row where a wide integer makes the texts differ, and in autocommit, where trying
        # a whole batch again would repeat the rows before the one that found the file locked.
        single = self.connection.isolation_level == "AUTOCOMMIT" or any(
            is_wide(value) for values in batch for value in values
        )
        if single:
            return [[values] for values in batch]
        return [batch] if batch else []

    def _run_many(self, sql: str, statement: Statement, part: list[tuple[Value, ...]]) -> int:
        if len(part) == 1:
            text, values = inline_wide(sql, statement, part[0])
            part = [values]
        else:
            text = sql
        cursor = self.connection._run(statement, lambda raw: raw.executemany(text, part))
        return int(cursor.rowcount)

    def fetchone(self) -> Row | None:
        """The next row, or None after the last."""
        self._check()
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Row]:
        """Up to ``size`` (else `arraysize`) further rows."""
        self._check()
        count = self.arraysize if size is None else size
        return list(itertools.islice(self._rows, count))

    def fetchall(self) -> list[Row]:
        """All further rows."""
        self._check()
        return list(self._rows)

    def __iter__(self) -> Iterator[Row]:
        self._check()
        return self._rows

    def close(self) -> None:
        """Drop the rows; further use is ProgrammingError."""
        self._closed = True
        self._rows = iter(())

    def setinputsizes(self, sizes: object) -> None:
        """Required by PEP 249; does nothing."""

    def setoutputsize(self, size: object, column: object = None) -> None:
        """Required by PEP 249; does nothing."""

    def _start(self, sql: str) -> Statement:
        self._check()
        self.description, self.rowcount, self._rows = None, -1, iter(())
        return analyse(sql)

    def _check(self) -> None:
        self.connection._open()
        if self._closed:
            raise ProgrammingError("Cannot operate on a closed cursor.")
