"""How long to wait before asking again. *Core*: randomness is an argument."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Doubling delays with full jitter's lower half kept: never at once, never all together.

    The delay before try n is between half and all of `first * 2**n`, at most `most` seconds.
    """

    def __init__(
        self,
        first: float = 0.5,
        most: float = 30.0,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first = first
        self._most = most
        self._uniform = uniform
        self._tries = 0

    def next(self) -> float:
        """The next delay in seconds."""
        ceiling = min(self._most, self._first * 2.0 ** min(self._tries, 32))
        self._tries += 1
        return self._uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._tries = 0
