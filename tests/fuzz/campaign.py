"""Random trials from one seed, one after the other, through programs on one set of maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, Self

from ctl.core.abi import Hook
from tests.datapath import INET, STAGES, Cast, Datapath, Result, underlay
from tests.fuzz.check import check
from tests.fuzz.mutator import Mutator, draw_world
from tests.fuzz.trial import Trial, World
from tests.lab import Lab

REGRESSIONS: Final = Path(__file__).with_name("regressions.txt")
WORLD_EVERY: Final = 1000
"""Packets after which the node is told something else, and approvals that RST and FIN have withdrawn
are given again."""


class Broken(AssertionError):
    """A packet that breaks a rule."""


def rows() -> list[Trial]:
    """What has failed once."""
    lines = (line.strip() for line in REGRESSIONS.read_text().splitlines())
    return [Trial.parse(line) for line in lines if line and not line.startswith("#")]


def replay(trial: Trial) -> str:
    """The reason for which a trial leaves its program, alone on fresh maps. Broken if it breaks a rule."""
    with Lab() as lab, Datapath(cast=trial.world.cast) as datapath:
        trial.world.furnish(datapath)
        return underlay(lab).call(lambda: judged(datapath, trial)).reason


def judged(datapath: Datapath, trial: Trial) -> Result:
    try:
        result = trial.run(datapath)
        check(datapath, trial, result)
    except (AssertionError, ValueError, OSError) as error:
        raise Broken(f"{type(error).__name__}: {error}\n{trial}") from error
    return result


class Campaign:
    """Use it in a `with` block."""

    def __init__(self, seed: int, cast: Cast = INET) -> None:
        """`cast`: the programs are those of its family."""
        self.seed, self.done = seed, 0
        self.seen: Counter[tuple[str, str]] = Counter()
        self._rng = Random(seed)
        self._mutator = Mutator(self._rng)
        self._world = World(version=cast.version)
        self._stack = ExitStack()
        self._datapath = self._stack.enter_context(Datapath(cast=cast))
        self._place = underlay(self._stack.enter_context(Lab()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, number: int, failed: Callable[[Broken], None] | None = None) -> None:
        """That many more. What breaks a rule is told to `failed`, or raised."""
        self._place.call(partial(self._run, number, failed))

    def _run(self, number: int, failed: Callable[[Broken], None] | None) -> None:
        for _ in range(number):
            if self.done % WORLD_EVERY == 0:
                self._world = draw_world(self._rng, self._world.cast)
                self._world.furnish(self._datapath)
            trial = self._mutator.draw(self._world)
            self.done += 1
            try:
                result = judged(self._datapath, trial)
            except Broken as broken:
                broken.add_note(f"seed {self.seed}, packet {self.done}")
                if not failed:
                    raise
                failed(broken)
                continue
            self.seen[trial.program, result.reason] += 1
            if result.gear:
                self.seen[STAGES[Hook[trial.program.upper()]].label, result.gear] += 1
            self._mutator.learn(trial, f"{result.reason} {result.gear}".strip())
