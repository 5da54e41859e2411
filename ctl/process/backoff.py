"""When to try again what failed."""

from __future__ import annotations

import random
from typing import Final

BACK_OFF_MIN_S: Final = 0.5
BACK_OFF_MAX_S: Final = 30.0


class BackOff:
    """Twice as long after every failure in a row, with jitter: nodes must not march in step.

    From `least` to `most` seconds, each shorter or longer by up to `jitter` of itself.
    """

    def __init__(
        self, least: float = BACK_OFF_MIN_S, most: float = BACK_OFF_MAX_S, jitter: float = 0.25
    ) -> None:
        self._least, self._most, self._jitter = least, most, jitter
        self.wait = 0.0
        """How many seconds the next try waits, before jitter; 0 while nothing has failed."""
        self._at = 0.0
        """When, by the clock of `failed`, the pending try is due. Means nothing while none is pending."""

    def failed(self, now: float) -> float:
        """Seconds from `now` until the next try."""
        self.wait = min(max(self.wait * 2, self._least), self._most)
        wait = self.wait * random.uniform(1 - self._jitter, 1 + self._jitter)
        self._at = now + wait
        return wait

    def succeeded(self) -> None:
        self.wait = 0.0

    @property
    def pending(self) -> bool:
        """Whether a next try is waiting for its time."""
        return bool(self.wait)

    def left(self, now: float) -> float:
        """Seconds until the pending try; 0 or less: it is due."""
        return self._at - now
