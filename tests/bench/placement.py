"""Where the hypervisor has put our CPUs: next to one another, or apart.

On cores that share a cache a line goes to the other CPU and back in some 60 ns; on others it
takes five times as long. What one CPU sends and the other receives takes many lines along: TCP
was at 21 Gb/s here, and at 11 as long as the CPUs were apart, which can last for minutes. So
nothing is measured then. On a machine whose CPUs stay where they are nothing is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final, TypeVar

from tests.bench.machine import awake, compiled, cpus
from tests.process import run

T = TypeVar("T")

APART: Final = 2.0
"""Times the shortest way that was ever seen."""
PATIENCE_S: Final = 5.0
"""Most of the time they are together after one."""
NUDGE_MS: Final = 50
TRIES: Final = 3
LOOKS: Final = 20
"""Until the shortest way has been seen, wherever they are at first."""


class Placement:
    """CPUs 0 and 1, as the measures use them."""

    def __init__(self, directory: Path) -> None:
        """`directory`: for a program that is compiled."""
        self._program = str(compiled("closeness", directory))
        self._shortest = float("inf")
        self.apart = 0
        """Values that had to be taken with the CPUs apart."""
        for _ in range(LOOKS if cpus() > 1 else 0):
            self.together()
            self._nudge()

    def together(self) -> bool:
        """Whether they are, now."""
        if cpus() < 2:
            return True
        distance = float(run([self._program, "0", "1"]).stdout)
        self._shortest = min(self._shortest, distance)
        return distance <= APART * self._shortest

    def settled(self, measure: Callable[[], T], polling: bool = True) -> T:
        """`measure()`, of a time through which they were together; of any if that is not to be had.

        `polling`: idle CPUs do meanwhile. Not before: they come together as they wake one another
        from a halt.
        """
        for _ in range(TRIES):
            together = self._bring_together()
            with awake() if polling else nullcontext():
                value = measure()
            if not together:
                break
            if self.together():
                return value
        self.apart += 1
        return value

    def _bring_together(self) -> bool:
        """Whether that went well."""
        deadline = time.monotonic() + PATIENCE_S
        while not (there := self.together()) and time.monotonic() < deadline:
            self._nudge()
        return there

    def _nudge(self) -> None:
        run([self._program, "0", "1", str(NUDGE_MS)])
