"""What the instrument has measured: typed, added up, judged. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tests.chaos.tally import Loss

Windows: TypeAlias = Sequence[tuple[int, int]]
"""Times (ns) in which something was broken, from the event until it was mended."""
SLACK_S: Final = 0.25
"""A stream may go on so much later than the mending: somebody has to run to send."""
STARVED_S: Final = 0.1
"""A machine that does not run a program for so long makes TCP send again what was not lost."""
ROUND_S: Final = 0.5
"""A new flow that was begun so long before is still under way."""


@dataclass(frozen=True, slots=True)
class Way:
    """One stream of numbered datagrams in one direction."""

    name: str
    """`plain a>b`."""
    stream: str
    rate: float
    """Datagrams a second."""
    sent: int
    received: int
    starved: int
    """Arrived, but nobody ran to read them: the socket was full."""
    duplicates: int
    late: int
    longest_gap_ms: float
    losses: tuple[Loss, ...]
    """Lost or starved."""

    @property
    def lost(self) -> int:
        """By the network."""
        return max(0, self.sent - self.received - self.starved)

    def lost_outside(self, windows: Windows) -> int:
        """By the network, and sent in none of these times."""
        return max(0, sum(self.outside(loss, windows) for loss in self.losses) - self.starved)

    def outside(self, loss: Loss, windows: Windows) -> int:
        """How many of these; those that go on for longer than the window are outside, too."""
        return min([loss.count, *(self._beyond(loss, begin, end) for begin, end in windows)])

    def _beyond(self, loss: Loss, begin: int, end: int) -> int:
        if loss.before < begin or loss.after > end:
            return loss.count
        most = self.rate * ((end - max(loss.after, begin)) / 1e9 + SLACK_S)
        return max(0, loss.count - int(most))


@dataclass(frozen=True, slots=True)
class Side:
    """What one container began: the TCP stream and the new flows."""

    name: str
    stream_whole: bool
    stream_error: str
    stream_retransmitted: int
    retransmitted: int
    needless: int
    """Retransmissions of what had arrived (DSACK): the machine was slow, nothing was lost."""
    syn: int
    lag: float
    """Seconds for which it was not run, at the worst."""
    fresh: Mapping[str, int]
    failures: tuple[tuple[float, str], ...]
    """When begun (s), what became of it."""

    @property
    def opened(self) -> int:
        return sum(count for name, count in self.fresh.items() if not name.endswith("again"))

    @property
    def lost_segments(self) -> int:
        """Retransmissions that were needed."""
        return max(0, self.retransmitted - self.needless)

    def failed_outside(self, windows: Windows) -> list[str]:
        """New flows that failed or had to send again, and were under way in none of these times.

        Sending again is no sign of a loss where nobody ran to answer for longer than TCP waits.
        """
        return [why for at, why in self.failures
                if not under_way(at, windows)
                and ("again" not in why or self.lag < STARVED_S)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run of the instrument."""

    ways: tuple[Way, ...]
    sides: tuple[Side, ...]
    carried: int
    """Packets that eBPF carried, on both hosts."""
    passed: int
    """Packets that it left to the kernel path."""
    backlog: int
    """Packets that this machine threw away because its CPUs were too slow (softnet_stat)."""

    def lost(self, stream: str | None = None) -> int:
        """Datagrams that the network lost."""
        return sum(way.lost for way in self.of(stream))

    def lost_outside(self, windows: Windows, stream: str) -> int:
        """The same, of those that were sent in none of these times."""
        return sum(way.lost_outside(windows) for way in self.of(stream))

    def failed_outside(self, windows: Windows) -> list[str]:
        """New flows that failed and were under way in none of these times."""
        return [f"{side.name}: {why}" for side in self.sides for why in side.failed_outside(windows)]

    def of(self, stream: str | None) -> Iterable[Way]:
        """The ways of one stream; None: of all."""
        return [way for way in self.ways if stream in (None, way.stream)]

    @property
    def sent(self) -> int:
        return sum(way.sent for way in self.ways)

    @property
    def starved(self) -> int:
        return sum(way.starved for way in self.ways)

    @property
    def duplicates(self) -> int:
        return sum(way.duplicates for way in self.ways)

    @property
    def late(self) -> int:
        return sum(way.late for way in self.ways)

    @property
    def longest_gap_ms(self) -> float:
        return max(way.longest_gap_ms for way in self.ways)

    @property
    def retransmitted(self) -> int:
        """TCP segments that had to be sent again."""
        return sum(side.lost_segments for side in self.sides)

    @property
    def opened(self) -> int:
        return sum(side.opened for side in self.sides)

    @property
    def failed(self) -> int:
        """New flows that did not succeed, or only after their first packet was sent again."""
        return sum(
            count for side in self.sides for name, count in side.fresh.items() if not name.endswith("ok")
        )

    @property
    def whole(self) -> bool:
        """Whether both TCP streams arrived as they were sent."""
        return all(side.stream_whole for side in self.sides)


def under_way(at: float, windows: Windows) -> bool:
    """Whether a new flow that was begun at `at` (s) can have met one of these times."""
    return any(begin / 1e9 - ROUND_S <= at <= end / 1e9 for begin, end in windows)


def way(name: str, stream: str, rate: float, sent: int, facts: Mapping[str, Any], now: int) -> Way:
    """From what the receiver printed. `now` (ns) is after the last was sent."""
    losses = [Loss(**each) for each in facts["holes"]]
    missing = sent - facts["highest"] - 1
    if missing > 0:
        last = losses[-1].before if losses else 0
        losses.append(Loss(facts["highest"] + 1, missing, facts["last_sent"] or last, now))
    return Way(name, stream, rate, sent, facts["received"], facts["dropped"], facts["duplicates"],
               facts["late"], facts["longest_gap_ms"], tuple(losses))  # fmt: skip


def side(name: str, facts: Mapping[str, Any]) -> Side:
    """From what the client printed."""
    stream, counters = facts["stream"], facts["counters"]
    return Side(
        name, stream["whole"], stream["error"], stream["retransmitted"],
        counters["retransmitted"], counters["needless"], counters["syn"],
        facts["lag"], facts["fresh"], tuple((at, why) for at, why in facts["failures"]),
    )  # fmt: skip
