"""What becomes of a numbered stream: lost, twice, late, silent. Pure; times are ns of one clock."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loss:
    """Datagrams in a row that never came. They were sent after `after` and before `before`."""

    first: int
    count: int
    after: int
    before: int


class Tally:
    """Counts the datagrams of one stream, in the order in which they arrive."""

    def __init__(self) -> None:
        self.received = 0
        """Different ones."""
        self.duplicates = 0
        self.late = 0
        """That came after one with a higher number: reordered."""
        self.highest = -1
        self.longest_gap = 0
        """Longest time in which nothing came, less the time in which nothing was sent."""
        self._seen = bytearray()
        self.last_sent = self._arrived = 0
        self._holes: list[tuple[int, int, int]] = []
        """First number that was jumped over, when those around it were sent."""

    def add(self, numbers: Sequence[int], sent: Sequence[int], arrived: Sequence[int]) -> None:
        """Count a batch."""
        if not numbers:
            return
        if not self.received:
            self.last_sent, self._arrived = sent[0], arrived[0]
        first, count = numbers[0], len(numbers)
        if first == self.highest + 1 and numbers == list(range(first, first + count)):
            self._in_order(count, sent, arrived)
        else:
            for each in zip(numbers, sent, arrived, strict=True):
                self._one(*each)

    def _in_order(self, count: int, sent: Sequence[int], arrived: Sequence[int]) -> None:
        self._seen.extend(b"\1" * count)
        self.received += count
        self.highest += count
        steps = zip((self.last_sent, *sent), sent, (self._arrived, *arrived), arrived, strict=False)
        gaps = (now - then - (out - earlier) for earlier, out, then, now in steps)
        self.longest_gap = max(self.longest_gap, *gaps)
        self.last_sent, self._arrived = sent[-1], arrived[-1]

    def _one(self, number: int, sent: int, arrived: int) -> None:
        if number <= self.highest:
            self._behind(number)
            return
        jump = number - self.highest - 1
        if jump:
            self._holes.append((self.highest + 1, self.last_sent, sent))
            self._seen.extend(bytes(jump))
        paused = 0 if jump else sent - self.last_sent
        self.longest_gap = max(self.longest_gap, arrived - self._arrived - paused)
        self._seen.append(1)
        self.received += 1
        self.highest, self.last_sent, self._arrived = number, sent, arrived

    def _behind(self, number: int) -> None:
        if self._seen[number]:
            self.duplicates += 1
        else:
            self._seen[number] = 1
            self.received += 1
            self.late += 1

    def losses(self, sent: int, now: int) -> list[Loss]:
        """What is missing of the first `sent` numbers, in order; `now` is after the last was sent."""
        found = []
        firsts = [first for first, _, _ in self._holes]
        start = self._seen.find(0)
        while start >= 0:
            end = self._seen.find(1, start)
            _, after, before = self._holes[bisect_right(firsts, start) - 1]
            found.append(Loss(start, end - start, after, before))
            start = self._seen.find(0, end)
        if self.highest + 1 < sent:
            found.append(Loss(self.highest + 1, sent - self.highest - 1, self.last_sent, now))
        return found
