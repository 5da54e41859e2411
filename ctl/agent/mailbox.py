"""What other threads tell the agent's loop: hints that something may have changed."""

from __future__ import annotations

from queue import Empty, SimpleQueue

from ctl.core.host import Change


class Mailbox:
    """Posts from any thread or signal handler, taken together by the loop."""

    def __init__(self) -> None:
        self.stopped = False
        """Whether the agent is to end."""
        # A SimpleQueue: a signal handler may put() while the thread that it interrupts is in get().
        self._queue: SimpleQueue[frozenset[Change]] = SimpleQueue()

    def post(self, changes: frozenset[Change]) -> None:
        self._queue.put(changes)

    def stop(self) -> None:
        """From now on it is `stopped`, and nobody waits."""
        self.stopped = True
        self._queue.put(frozenset())

    def take(self, timeout: float) -> frozenset[Change]:
        """All that was posted; waits up to `timeout` seconds for a first post."""
        try:
            first = self._queue.get(timeout=max(timeout, 0.001))
        except Empty:
            return frozenset()
        return first | self.arrived()

    def arrived(self) -> frozenset[Change]:
        """All that was posted; nothing if there is nothing yet."""
        changes: frozenset[Change] = frozenset()
        try:
            while True:
                changes |= self._queue.get_nowait()
        except Empty:
            return changes
