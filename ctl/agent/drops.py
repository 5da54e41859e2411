"""Dropped packets in the log: a few of each kind in full, the others by their number.

The programs sample drops per CPU and reason, so a flood can bring hundreds of samples a
second. Which packets they were is of interest for the first ones; the counters tell the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ctl.core.abi import Event, Hook
from ctl.core.reasons import reason

WINDOW_S: Final = 60.0
"""How many seconds, from the first sample of a kind on, all of that kind are counted together."""
SHOWN: Final = 3
"""Samples of a kind that are shown in full within that time."""

Kind = tuple[Hook, int]
"""The program that dropped, and the number of its reason: a flood of one hides no other."""


@dataclass(slots=True)
class _Window:
    """The samples of one kind that are counted together."""

    begun: float
    """When the first of them came, seconds."""
    samples: int = 0
    """How many have come, those that were shown among them."""


class DropLog:
    """Chooses what is logged of the samples. Remembers a window for each kind seen lately."""

    def __init__(self) -> None:
        self._windows: dict[Kind, _Window] = {}
        """One for each kind of which a sample came within the last WINDOW_S."""

    def lines(self, events: Iterable[Event], now: float) -> list[str]:
        """Lines for the log. `now` in seconds, of a clock that nobody sets."""
        said = self._ended(now)
        for event in events:
            window = self._windows.setdefault((event.hook, event.reason), _Window(now))
            window.samples += 1
            if window.samples <= SHOWN:
                said.append(_in_full(event))
        return said

    def _ended(self, now: float) -> list[str]:
        """What was left out in windows that are over; they are forgotten."""
        over = {kind: each for kind, each in self._windows.items() if now >= each.begun + WINDOW_S}
        self._windows = {kind: each for kind, each in self._windows.items() if kind not in over}
        return [
            f"{_where(kind)}: {each.samples - SHOWN} more samples in {now - each.begun:.0f} s, not shown"
            for kind, each in over.items()
            if each.samples > SHOWN
        ]


def _where(kind: Kind) -> str:
    hook, number = kind
    return f"dropped at {hook.label}: {reason(number).caption}"


def _in_full(event: Event) -> str:
    why = reason(event.reason).caption
    where = f"{event.hook.label}, interface {event.ifindex}"
    return f"dropped at {where}: {why}; {event.packet_len} bytes: {event.data.hex()}"
