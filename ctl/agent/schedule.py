"""When the agent does what: passes, tries after failures, and how long it may sleep.

Decides only: all times are seconds of a clock that nobody sets, and `now` is an argument.
"""

from __future__ import annotations

import math
from typing import Final

from ctl.agent.steps import Outcome
from ctl.core.host import EVERYTHING, Change
from ctl.core.report import ReconcileReport
from ctl.process.backoff import BackOff

MIN_GAP_S: Final = 0.1
"""The shortest time between a pass over the kernel's state and the next one."""
MAX_GAP_S: Final = 5.0
"""The longest that events wait, where passes fail or take long."""
TICK_S: Final = 5.0
"""The loop turns at least this often: to log dropped packets, and to see what has ended without a word."""


class Schedule:
    """Of one agent's loop.

    `interval`: of looks at everything; `watchdog`: the longest that systemd may wait for a sign of
    life, None: it does not wait for any.
    """

    def __init__(self, interval: float, watchdog: float | None = None) -> None:
        self.ready = False
        """Whether a pass over everything has succeeded since the start."""
        self._interval: Final = interval
        self._longest: Final = TICK_S if watchdog is None else min(TICK_S, watchdog)
        self._next_resync = -math.inf
        self._not_before = -math.inf
        """When the next pass may begin for what others have posted."""
        self._retry = BackOff()
        """When a pass that failed is tried again, which is then one over everything."""
        self._ask = BackOff()
        """When a store that did not answer is asked again; nothing else is done then."""

    @property
    def back_off(self) -> float:
        """Seconds, without jitter, between a failure and the next try; 0: nothing fails."""
        return max(self._retry.wait, self._ask.wait)

    def due(self, now: float, posted: frozenset[Change], look_in: float) -> frozenset[Change]:
        """What the pass that begins now is about; nothing: there is none to begin.

        `posted`: what others say may have changed. `look_in`: seconds until the store has to be
        looked at without a word from it. An agent that is not ready takes any word as a reason
        to try everything again.
        """
        if now >= self._next_resync or self._until_retry(now) <= 0 or (posted and not self.ready):
            return EVERYTHING
        if self._until_look(now, look_in) <= 0:
            return posted | {Change.LEASES}
        return posted

    def passed(
        self, now: float, changes: frozenset[Change], outcome: Outcome, reconciles: ReconcileReport
    ) -> None:
        """A pass over `changes` has just ended; `reconciles` counts it."""
        whole = changes >= EVERYTHING
        if whole:
            self._next_resync = now - reconciles.last_duration + self._interval
        if outcome.error:
            self._retry.failed(now)
        elif whole:
            self._retry.succeeded()
            self.ready = True
        self._not_before = now + self._gap(changes, reconciles)

    def asked(self, now: float, *, answered: bool) -> None:
        """The store was asked just now."""
        if answered:
            self._ask.succeeded()
        else:
            self._ask.failed(now)

    def _gap(self, changes: frozenset[Change], reconciles: ReconcileReport) -> float:
        """Seconds until the next pass may begin: a storm of events must not become one of passes.

        Following the store is cheap: it may take half of the time. What fails may be dear (the
        compiler), and events may be of its own making: it takes a fifth at the most.
        """
        took = reconciles.last_duration
        if reconciles.error:
            return min(max(self._retry.wait, 4 * took), MAX_GAP_S)
        if reconciles.ok == 1:
            # The first compiles, and containers that are there are not to wait as long again.
            return MIN_GAP_S
        if changes <= {Change.LEASES}:
            return min(took, MIN_GAP_S)
        return max(MIN_GAP_S, min(took, MAX_GAP_S))

    def gather(self, now: float) -> float:
        """Seconds for which what is posted is still gathered; 0 or less: the next pass may begin."""
        return self._not_before - now

    def pause(self, now: float, look_in: float) -> float:
        """Seconds until the loop has to turn again though nothing is posted."""
        due = self._next_resync - now, self._until_retry(now), self._until_look(now, look_in)
        return min(self._longest, *due)

    def _until_retry(self, now: float) -> float:
        return self._retry.left(now) if self._retry.pending else math.inf

    def _until_look(self, now: float, look_in: float) -> float:
        return self._ask.left(now) if self._ask.pending else look_in
