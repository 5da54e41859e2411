"""What other threads tell the agent's loop: hints that something may have changed."""

from __future__ import annotations

from enum import Enum
from queue import Empty, SimpleQueue

from ctl.core.host import Change


class Signal(Enum):
    """What others post beside kernel changes."""

    STORE = "store"
    STOP = "stop"


class Mailbox:
    """Posts from any thread or signal handler, taken together by the loop."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[frozenset[Change] | Signal] = SimpleQueue()

    def post(self, what: frozenset[Change] | Signal) -> None:
        self._queue.put(what)

    def take(self, timeout: float) -> tuple[frozenset[Change], frozenset[Signal]]:
        """All that was posted; waits up to `timeout` seconds for a first post."""
        changes: frozenset[Change] = frozenset()
        signals: set[Signal] = set()
        try:
            item = self._queue.get(timeout=max(timeout, 0.001))
            while True:
                if isinstance(item, Signal):
                    signals.add(item)
                else:
                    changes |= item
                item = self._queue.get_nowait()
        except Empty:
            return changes, frozenset(signals)
