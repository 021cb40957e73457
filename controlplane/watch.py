"""Who waits for what: netmap watchers and connects awaiting a server's acknowledgement. *Shell.*

Changes are told from worker threads, waits happen on the event loop. A wait registers before it reads
the state, so no change falls between. What a server has applied is known from its next watch: asking
for what comes after revision N says that N is in place.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Notifier:
    """Wakes those who wait for a subject. `bind` it to the running loop first."""

    def __init__(self) -> None:
        self.closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def notify(self, subject: str) -> None:
        """From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, subject)

    def close(self) -> None:
        """The broker stops: everybody who waits is woken, from any thread, and `closed` says why."""
        self.closed = True
        for subject in list(self._waiting):
            self.notify(subject)

    def _wake(self, subject: str) -> None:
        for waiting in self._waiting.get(subject, ()):
            waiting.set()

    @contextmanager
    def subscribe(self, subject: str) -> Iterator[asyncio.Event]:
        """An event that is set by every change of `subject` from here on."""
        changed = asyncio.Event()
        self._waiting[subject].add(changed)
        try:
            yield changed
        finally:
            self._waiting[subject].discard(changed)
            if not self._waiting[subject]:
                del self._waiting[subject]

    @property
    def watchers(self) -> int:
        return sum(map(len, self._waiting.values()))


class Applied:
    """The revision each server has in place."""

    def __init__(self) -> None:
        self._revisions: dict[str, int] = {}
        self._changed = Notifier()

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._changed.bind(loop)

    def close(self) -> None:
        """The broker stops: nobody waits any longer."""
        self._changed.close()

    def acknowledge(self, server_id: str, revision: int) -> None:
        self._revisions[server_id] = revision
        self._changed.notify(server_id)

    async def wait(self, server_id: str, revision: int, timeout: float) -> bool:  # noqa: ASYNC109
        """Whether `server_id` has `revision` in place within `timeout` seconds."""
        with self._changed.subscribe(server_id) as changed:
            try:
                async with asyncio.timeout(timeout):
                    while self._revisions.get(server_id, -1) < revision:
                        if self._changed.closed:
                            return False
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                return False
        return True
