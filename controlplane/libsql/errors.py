"""The PEP 249 exceptions, and which of them a failure of the wheel is. *Vocabulary.*

The wheel raises ``ValueError`` with SQLite's message for everything, and a ``PanicException``
(a ``BaseException``) where its Rust code panics, so the message is all there is to go by. One
thing it cannot tell: a trigger's ``RAISE(ABORT, 'text')`` carries only its own text and is an
`OperationalError` here, an ``IntegrityError`` in ``sqlite3``.
"""

import re


class Warning(Exception):
    """Named by PEP 249; never raised."""


class Error(Exception):
    """Base of every error of this driver."""


class InterfaceError(Error):
    """The driver itself was used wrongly, not the database."""


class DatabaseError(Error):
    """The database refused, or its file is not a sound database."""


class DataError(DatabaseError):
    """A value that SQLite cannot hold, or that would not come back as it went in."""


class OperationalError(DatabaseError):
    """The statement failed: syntax, a missing table, a full disk, an unreachable server."""


class BusyError(OperationalError):
    """Somebody else held the database's write lock until the timeout; trying again may work."""


class IntegrityError(DatabaseError):
    """A constraint (unique, not null, check, foreign key, strict type) would be broken."""


class InternalError(DatabaseError):
    """The wheel panicked; the statement had no usable result."""


class ProgrammingError(DatabaseError):
    """A mistake in the calling code: closed connection, wrong parameters, two statements."""


class NotSupportedError(DatabaseError):
    """Named by PEP 249; never raised."""


class DriverUnavailable(ImportError):
    """The ``libsql`` wheel cannot be imported on this platform."""


# First match wins. The texts are SQLite's own (sqlite3ErrStr and the constraint messages of its
# VDBE); a libSQL server wraps the same texts and adds the code's name. Its TRANSACTION_TIMEOUT is
# not a BusyError: the transaction is gone, and its last statement must not be tried again alone.
_CLASSES: tuple[tuple[re.Pattern[str], type[Error]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), cls)
    for pattern, cls in (
        (r"constraint failed|SQLITE_CONSTRAINT", IntegrityError),
        (r"datatype mismatch|cannot store \w+ value in \w+ column", IntegrityError),
        (r"database (?:table |schema )?is locked|SQLITE_BUSY|SQLITE_LOCKED", BusyError),
        (r"string or blob too big|SQLITE_TOOBIG", DataError),
        (r"file is not a database|disk image is malformed", DatabaseError),
        (r"unsupported parameter type|expected a list or tuple", ProgrammingError),
    )
)


def translate(failure: BaseException) -> Error | None:
    """The PEP 249 error that a failure of the wheel means, or None if it is not the wheel's."""
    message = str(failure)
    if type(failure).__name__ == "PanicException":
        return InternalError(f"the libsql wheel panicked: {message}")
    if isinstance(failure, TypeError):
        return ProgrammingError(message)
    if not isinstance(failure, ValueError):
        return None
    for pattern, cls in _CLASSES:
        if pattern.search(message):
            return cls(message)
    return OperationalError(message)
