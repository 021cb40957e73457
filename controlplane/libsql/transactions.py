"""Beginning a Session's transaction before its first write. *Shell.*

A Session's SELECT begins nothing in SQLite, so what it read may be changed by another writer before
it writes. Where one ``UPDATE ... WHERE`` and its ``rowcount`` do not do:

    with Session(engine) as session:
        begin_immediate(session)
        ...                      # nobody else writes until commit
        session.commit()

Both work on ``sqlite+libsql`` and on the standard library's SQLite.
"""

from typing import Any

from sqlalchemy import exc, text
from sqlalchemy.orm import Session


def begin_immediate(session: Session) -> None:
    """Become the writer now: all that is read from here on stays true until commit.

    What the session had read before is expired and read again on use. Waits for other writers as a
    write does. In an open write transaction it only expires. Errors: InvalidRequestError if
    the session has unflushed changes (they rest on what was read before) or the database is not
    SQLite.
    """
    if session.new or session.dirty or session.deleted:
        raise exc.InvalidRequestError(
            "the session has unflushed changes: call begin_immediate before changing objects"
        )
    _begin(session, "BEGIN IMMEDIATE")
    session.expire_all()


def begin_snapshot(session: Session) -> None:
    """Let all reads until commit or rollback see one state of the database; writes are refused.

    Errors as for `begin_immediate`. The standard library's SQLite does not refuse the writes.
    """
    if session.new or session.dirty or session.deleted:
        raise exc.InvalidRequestError("the session has unflushed changes: a snapshot only reads")
    _begin(session, "BEGIN DEFERRED")
    session.expire_all()


def _begin(session: Session, begin: str) -> None:
    connection = session.connection()
    if connection.dialect.name != "sqlite":
        raise exc.InvalidRequestError(
            f"{begin} is SQLite's: on {connection.dialect.name!r} set an isolation level instead"
        )
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction:
        connection.execute(text(begin))
