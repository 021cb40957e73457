"""Waiting for a condition with a deadline, in coroutines and in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

_PAUSE = 0.005


async def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return once `condition()` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        await asyncio.sleep(_PAUSE)


def block_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """`wait_for` without an event loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        threading.Event().wait(_PAUSE)
