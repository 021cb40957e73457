"""Which PEP 249 error a failure of the wheel is, on a file and behind a server."""

import pytest

from controlplane.libsql import errors


def hrana(message: str, code: str) -> str:
    return f'Hrana: `stream error: `Error {{ message: "{message}", code: "{code}" }}``'


@pytest.mark.parametrize(
    ("message", "cls"),
    [
        ("UNIQUE constraint failed: u.b", errors.IntegrityError),
        ("cannot store TEXT value in INTEGER column s.a", errors.IntegrityError),
        ("database is locked", errors.BusyError),
        ("database table is locked: t", errors.BusyError),
        ("string or blob too big", errors.DataError),
        ("file is not a database", errors.DatabaseError),
        ("database disk image is malformed", errors.DatabaseError),
        ("no such table: locked", errors.OperationalError),
        (hrana("SQLite error: UNIQUE constraint failed: u.b", "SQLITE_CONSTRAINT"), errors.IntegrityError),
        (hrana("SQLite error: no bad", "SQLITE_CONSTRAINT"), errors.IntegrityError),
        (hrana("SQLite error: try later", "SQLITE_BUSY"), errors.BusyError),
        (hrana("Transaction timed out", "TRANSACTION_TIMEOUT"), errors.OperationalError),
    ],
)
def test_the_message_tells_the_class(message: str, cls: type[errors.Error]) -> None:
    error = errors.translate(ValueError(message))
    assert type(error) is cls
    assert str(error) == message


def test_what_is_not_the_wheels_is_left_alone() -> None:
    assert errors.translate(KeyboardInterrupt()) is None
    assert errors.translate(MemoryError()) is None
