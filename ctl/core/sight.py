"""What counters say of a node's own work: programs that see nothing, counts that should stand still. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

LEAST: Final = 5
"""Packets that have to pass before it counts that a program has not seen them."""
LATELY_S: Final = 15.0
"""Seconds for which a count that has grown is said to grow."""


class Sight:
    """Whether the program in a place sees the packets that pass there.

    It counts a packet before the place does. So its count is read before the place's and after it:
    what was on its way at one look has been seen by then, and not passed yet.
    """

    def __init__(self) -> None:
        self.blind = False
        """Whether less than half of what passed was seen, of the last packets that were enough to tell."""
        self.told = False
        """Whether there were enough to tell since `forget`."""
        self._base: tuple[int, int] | None = None

    def forget(self) -> None:
        """It is another program, or another place."""
        self.blind, self.told, self._base = False, False, None

    def looked(self, before: int, passed: int, after: int) -> bool:
        """Packets so far: seen, passed, seen; returns `blind`. A count that went down has begun anew."""
        if self._base is None or passed < self._base[0] or after < self._base[1]:
            self._base = passed, before
            return self.blind
        passing, noticed = passed - self._base[0], after - self._base[1]
        if passing >= LEAST or (self.blind and (passing or noticed)):
            self.blind, self.told = 2 * noticed < passing, True
            self._base = passed, before
        return self.blind


class Growth:
    """Which counts have grown lately. What they were at the first look is nobody's concern."""

    def __init__(self) -> None:
        self._counts: Mapping[str, int] | None = None
        self._grew: dict[str, float] = {}

    def looked(self, counts: Mapping[str, int], now: float) -> Collection[str]:
        """Counts as they are now, by name; returns the names of those that grow, in their order.

        `now`: seconds that only go up. A count that went down has begun anew, at 0.
        """
        before = counts if self._counts is None else self._counts
        for name, count in counts.items():
            was = before.get(name, 0)
            if count > (was if was <= count else 0):
                self._grew[name] = now
        self._counts = dict(counts)
        return [name for name in counts if now - self._grew.get(name, -LATELY_S) < LATELY_S]
