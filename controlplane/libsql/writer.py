"""Who may write: one lock per database in this process, and waiting without the wheel. *Shell.*

The wheel keeps the GIL while it waits for a lock of SQLite, so a thread that waits there also stops
the thread that would commit. Hence the wheel never waits (its busy timeout is 0): threads of this
process queue on a Python lock, held from BEGIN to COMMIT or ROLLBACK, and the writers of other
processes are waited for by trying again after a random pause. Readers take no lock.
"""

import os
import random
import threading
import time
from collections.abc import Iterator
from weakref import WeakValueDictionary

from controlplane.libsql.errors import BusyError

FIRST_PAUSE = 0.0005
"""Seconds before the first new try."""
LONGEST_PAUSE = 0.05
"""Seconds; pauses double up to here."""


class WriterLock:
    """Held by the one connection of this process that writes to a database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, deadline: float) -> None:
        """Wait until the lock is free; BusyError at the monotonic ``deadline``."""
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise BusyError(
                "database is locked: another transaction of this process is writing; "
                "commit it or roll it back"
            )

    @property
    def held(self) -> bool:
        """Whether some connection writes now."""
        return self._lock.locked()

    def release(self) -> None:
        """Let the next writer in; any thread may do so (pools move connections about)."""
        self._lock.release()


_locks: WeakValueDictionary[str, WriterLock] = WeakValueDictionary()
_registry = threading.Lock()


def writer_lock(database: str, *, remote: bool) -> WriterLock:
    """The lock of a database: a path (symbolic links resolved), ``:memory:`` or a server's URL."""
    if database == ":memory:":
        return WriterLock()
    key = database if remote else os.path.realpath(database)
    with _registry:
        lock = _locks.get(key)
        if lock is None:
            lock = _locks[key] = WriterLock()
        return lock


def tries(deadline: float) -> Iterator[None]:
    """Yield at once, then after growing random pauses, until the monotonic ``deadline``."""
    pause = FIRST_PAUSE
    while True:
        yield
        left = deadline - time.monotonic()
        if left <= 0:
            return
        jittered = pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads tries, guards nothing
        threading.Event().wait(min(left, jittered))
        pause = min(pause * 2, LONGEST_PAUSE)
