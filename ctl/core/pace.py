"""Whose turn it is, where many are asked again and again. Pure.

    pace = Pace(60.0, own)
    pace.due(addresses, now)      whom to ask now
    pace.look_in(now)             in how many seconds to ask that again

Times are seconds of a clock that nobody sets.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address
from typing import Final

Address = IPv4Address | IPv6Address

AT_ONCE: Final = 200
"""So many are asked at once at the most."""
TICK_S: Final = 1.0
"""From one such group to the next, at the least."""
LOOK_S: Final = 10.0
"""How long who comes and who goes may not be heard of."""


class Pace:
    """Has each of many asked once in `interval` seconds, evenly spread. Remembers when whose turn is.

    More than AT_ONCE in TICK_S are not asked: then a round takes longer. `own`: our address, so that not
    all nodes ask one of them at the same moment.
    """

    def __init__(self, interval: float, own: Address) -> None:
        self._interval, self._own = interval, own
        self._next: dict[Address, float] = {}
        """When each is to be asked, by the caller's clock."""

    def due(self, addresses: Collection[Address], now: float) -> list[Address]:
        """Whose turn it is, the longest overdue first. Who is new has his within the interval."""
        known = self._next
        self._next = {
            each: known[each] if each in known else now + self._interval * _phase(self._own, each)
            for each in addresses
        }
        waiting = sorted((each for each in addresses if self._next[each] <= now), key=self._next.__getitem__)
        for each in waiting[:AT_ONCE]:
            self._next[each] += self._interval * ((now - self._next[each]) // self._interval + 1)
        return waiting[:AT_ONCE]

    def look_in(self, now: float) -> float:
        """Seconds until somebody's turn, from TICK_S to LOOK_S."""
        soonest = min(self._next.values(), default=now + LOOK_S)
        return min(max(soonest - now, TICK_S), LOOK_S)


def _phase(own: Address, other: Address) -> float:
    """Where in a round somebody has his turn, 0 to 1: scattered by Fibonacci hashing of both addresses."""
    return ((int(own) * 31 + int(other)) * 0x9E3779B1 & 0xFFFFFFFF) / (1 << 32)
