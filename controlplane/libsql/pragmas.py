"""What every connection is told, and how a migration lifts it. *Shell.*

libSQL enforces foreign keys by default where SQLite does not. A migration that rebuilds a table
(create, copy, drop, rename) would then delete the children of every row of the dropped one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, exc

from controlplane.libsql.errors import IntegrityError

FILE_PRAGMAS = ("journal_mode=wal", "synchronous=normal", "foreign_keys=on")
"""For a file: readers beside the writer, one sync a checkpoint, foreign keys."""
SERVER_PRAGMAS = ("foreign_keys=on",)
"""A libSQL server keeps its own journal and refuses the others."""


def apply_pragmas(dbapi_connection: Any, connection_record: object) -> None:
    """A listener for SQLAlchemy's ``connect`` event, for this driver and for ``sqlite3``."""
    pragmas = SERVER_PRAGMAS if getattr(dbapi_connection, "remote", False) else FILE_PRAGMAS
    cursor = dbapi_connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@contextmanager
def foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Within, dropping a parent table leaves its children alone; at the end, keys are checked.

    Enter it outside a transaction and commit inside. Errors: InvalidRequestError within a
    transaction (SQLite would ignore the pragma); IntegrityError if rows refer to nothing at the
    end, so that the migration fails loudly (it is committed by then: restore the backup).
    """
    driver: Any = connection.connection.driver_connection
    _refuse_transaction(driver, "before foreign_keys_off")
    cursor = driver.cursor()
    cursor.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
        _refuse_transaction(driver, "inside foreign_keys_off")
        broken = cursor.execute("PRAGMA foreign_key_check").fetchall()
        if broken:
            table, row, parent, _ = broken[0]
            raise IntegrityError(
                f"{len(broken)} rows refer to nothing, the first is row {row} of {table!r}, "
                f"which names a missing row of {parent!r}"
            )
    finally:
        if driver.in_transaction:
            driver.rollback()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()


def _refuse_transaction(driver: Any, where: str) -> None:
    if driver.in_transaction:
        raise exc.InvalidRequestError(f"a transaction is open: commit it or roll it back {where}")
