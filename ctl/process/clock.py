"""Clocks: one that nobody sets, and when somebody has set the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

JUMP_S: Final = 1.0
"""A clock that moves by more than this was set by somebody: NTP slews it by 0.5 ms a second."""


def uptime() -> float:
    """Seconds that no change of the wall clock moves, and that go on in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class JumpWatch:
    """Tells when the wall clock was set. `wall` and `steady` give seconds."""

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()
        """By how much the wall clock was ahead of the other at the last look, seconds."""

    def jumped(self) -> float:
        """By how many seconds it was set since the last look, negative for back; 0: it was not."""
        before, self._offset = self._offset, self._wall() - self._steady()
        jump = self._offset - before
        return jump if abs(jump) >= JUMP_S else 0.0
