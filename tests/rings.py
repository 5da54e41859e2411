"""Runs the rings and counts: `python -m tests.rings [--quick | RING...] [-- ARGUMENTS OF PYTEST]`.

A ring is a directory of tests. Rings run beside one another, the longer ones with several workers. What
measures comes last and alone: whole rings, and of others the tests that are marked `alone`.

All rings run even when one fails. The output of each is shown whole and in the order of the
list, the first that is not over as it comes. The last line is the sum, `N passed, N failed`
(and `, N skipped` where some were), and the exit code is 1 if anything failed. Ctrl-C and
SIGTERM end everything, and what labs have made is removed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent
WORKERS: Final = (os.cpu_count() or 1) + 1
"""Of the longest ring: its tests wait more than they compute."""
PATIENCE: Final = 4
"""How many times longer a test waits for something before it fails, where it shares the machine."""
POLL_SECONDS: Final = 0.2
END_SECONDS: Final = 50
"""How long what runs may take to remove what it has made, when it is told to end."""


@dataclass(frozen=True, slots=True)
class Ring:
    """A directory of tests that cost the same."""

    title: str
    needs_root: bool = True
    workers: int = 1
    """Tests of it that run at once, of different files (`tests/workers.py`)."""
    alone: bool = False
    """Whether no other ring may run beside it, because it measures or counts losses."""


RINGS = {
    "unit": Ring("pure functions, no root", needs_root=False),
    "bpf": Ring("the programs on single packets, in the kernel"),
    "netns": Ring("hosts in network namespaces", workers=WORKERS),
    "conformance": Ring("against independent peers", workers=2),
    "chaos": Ring("what goes wrong, under traffic, once each", workers=3, alone=True),
    "fuzz": Ring("random input, a short run"),
    "bench": Ring("measurements, a short run", alone=True),
}
QUICK = {
    "unit": ("unit",),
    "bpf": ("bpf",),
    "netns": ("netns/test_smoke.py", "netns/test_lab.py", "netns/test_notify.py"),
}
"""What `--quick` runs of which ring."""


@dataclass(frozen=True, slots=True)
class Count:
    """Tests of a run by outcome; an error in set-up or teardown counts as failed."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        words = f"{self.passed} passed, {self.failed} failed"
        return f"{words}, {self.skipped} skipped" if self.skipped else words


def count(junit: Path, exit_code: int, *, some: bool = False) -> Count:
    """From pytest's JUnit file; a run that broke before it wrote one counts as a failure.

    So does one without tests, unless only `some` are asked for.
    """
    if some and exit_code == pytest.ExitCode.NO_TESTS_COLLECTED:
        return Count()
    if not junit.exists():
        return Count(failed=1)
    outcomes = [_outcome(case) for case in ET.parse(junit).getroot().iter("testcase")]
    failed, skipped = outcomes.count("failed"), outcomes.count("skipped")
    nothing_ran = exit_code == pytest.ExitCode.NO_TESTS_COLLECTED and skipped
    if exit_code != 0 and not failed and not nothing_ran:
        failed = 1
    return Count(outcomes.count("passed"), failed, skipped)


def _outcome(case: ET.Element) -> str:
    children = {child.tag: child for child in case}
    if children.keys() & {"failure", "error"}:
        return "failed"
    if "skipped" not in children:
        return "passed"
    # What is known not to work, and is held to it by xfail_strict, is as it should be.
    return "passed" if children["skipped"].get("type") == "pytest.xfail" else "skipped"


# --- What is run ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """Tests of one ring that run in one go."""

    ring: str
    paths: tuple[str, ...]
    """Below tests/."""
    alone: bool = False
    """Whether no other part runs beside it."""
    only: str = ""
    """Expression of markers that chooses among them."""

    @property
    def title(self) -> str:
        return f"{self.ring}: {RINGS[self.ring].title}{', alone' if self.only == 'alone' else ''}"

    def arguments(self) -> list[str]:
        """For pytest. A file's tests stay together: they share what the file has built."""
        workers = 1 if self.only == "alone" else RINGS[self.ring].workers
        return [
            *(str(TESTS / path) for path in self.paths),
            *(("-m", self.only) if self.only else ()),
            *(("-n", str(workers), "--dist", "loadfile") if workers > 1 else ()),
        ]

    def environment(self) -> dict[str, str]:
        """What shares the machine waits longer before it gives up; what runs alone need not."""
        patience = {} if self.alone else {"LAB_PATIENCE": str(PATIENCE)}
        return {**patience, **os.environ}


def parts(names: Sequence[str]) -> list[Part]:
    """Of these rings, in the order in which they are shown: what runs alone comes last."""
    beside, alone = [], []
    for name in names:
        marked = tuple(str(path.relative_to(TESTS)) for path in _with_marks(name))
        if RINGS[name].alone:
            alone.append(Part(name, (name,), alone=True))
        elif marked:
            beside.append(Part(name, (name,), only="not alone"))
            alone.append(Part(name, marked, alone=True, only="alone"))
        else:
            beside.append(Part(name, (name,)))
    return beside + alone


def _with_marks(ring: str) -> list[Path]:
    """Files of a ring some tests of which are marked to run alone."""
    return [path for path in sorted((TESTS / ring).rglob("test_*.py")) if "mark.alone(" in path.read_text()]


class Run:
    """A part that is run, or will be, its output kept in a file."""

    def __init__(self, part: Part, extra: Sequence[str], scratch: Path) -> None:
        """`extra`: arguments of pytest; `scratch`: a directory of this run alone."""
        self.part = part
        self.over = threading.Event()
        self._output, self._junit = scratch / "output", scratch / "junit.xml"
        self._output.touch()
        colour = ["--color=yes"] if sys.stdout.isatty() else []
        self._argv = [sys.executable, "-m", "pytest", *part.arguments(), f"--junitxml={self._junit}",
                      *colour, *extra]  # fmt: skip
        self._some = bool(part.only or extra)
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._told = False
        self._code = 0
        self.seconds = 0.0

    def work(self) -> None:
        """Run to the end. Nothing if it was told to end before."""
        started = time.monotonic()
        try:
            self._start()
            if self._child:
                self._code = self._child.wait()
        finally:
            self.seconds = time.monotonic() - started
            self.over.set()

    def _start(self) -> None:
        with self._lock, self._output.open("ab") as output:
            if not self._told:
                self._child = subprocess.Popen(
                    self._argv, cwd=TESTS.parent, env=self.part.environment(),
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip

    def show(self) -> Count:
        """Print the output as it comes, and at the end what it was; returns that."""
        print(f"\n{f' {self.part.title} ':=^100}", flush=True)
        with self._output.open("rb") as output:
            over = False
            while not over:
                over = self.over.wait(POLL_SECONDS)
                sys.stdout.buffer.write(output.read())
                sys.stdout.flush()
        total = count(self._junit, self._code, some=self._some)
        print(f"ring {self.part.ring}: {total} in {self.seconds:.0f} s", flush=True)
        return total

    def tell(self, number: int) -> None:
        """Send a signal to all of it: pytest and its workers."""
        with self._lock:
            self._told = True
            if self._child and not self.over.is_set():
                with suppress(ProcessLookupError):
                    os.killpg(self._child.pid, number)


# --- The whole -----------------------------------------------------------------------------


def _work(runs: Sequence[Run]) -> None:
    threads = [threading.Thread(target=run.work) for run in runs if not run.part.alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in runs:
        if run.part.alone:
            run.work()


def _end(runs: Sequence[Run], thread: threading.Thread) -> None:
    """Tell all of it to end, wait for that, and remove what was not removed in time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print("\nrings: ending what runs", file=sys.stderr, flush=True)
    for run in runs:
        run.tell(signal.SIGTERM)
    thread.join(END_SECONDS)
    for run in runs:
        run.tell(signal.SIGKILL)
    if os.geteuid() == 0 and any(RINGS[run.part.ring].needs_root for run in runs):
        subprocess.run([sys.executable, "-m", "tests.lab", "clean"], cwd=TESTS.parent, check=False)


@contextmanager
def _at_work(runs: Sequence[Run]) -> Iterator[None]:
    """Runs in the background; when the block is left before they are over, they are ended."""
    thread = threading.Thread(target=_work, args=(runs,))
    thread.start()
    try:
        yield
    except BaseException:
        _end(runs, thread)
        raise
    finally:
        thread.join()


def run_all(chosen: Sequence[Part], extra: Sequence[str]) -> Count:
    """All of it, shown in this order; the sum."""
    with tempfile.TemporaryDirectory(prefix="ovnet-rings-") as scratch:
        places = [Path(scratch, str(number)) for number in range(len(chosen))]
        for place in places:
            place.mkdir()
        runs = [Run(part, extra, place) for part, place in zip(chosen, places, strict=True)]
        with _at_work(runs):
            return sum((run.show() for run in runs), Count())


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # make sends another one
    sys.exit(128 + number)


def main(arguments: list[str]) -> int:
    """Exit code of the whole run: 0, 1 for a failure, 2 for a ring that does not exist."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    names, extra = arguments[:split] or list(RINGS), arguments[split + 1 :]
    quick = names == ["--quick"]
    if unknown := [name for name in names if name not in RINGS and not quick]:
        print(f"no such ring: {', '.join(unknown)} (there are {', '.join(RINGS)})", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _exit_on_signal)
    started = time.monotonic()
    chosen = [Part(name, paths, only="not alone") for name, paths in QUICK.items()] if quick else parts(names)
    try:
        total = run_all(chosen, extra)
    except KeyboardInterrupt:
        return 130
    if not total.passed + total.failed:
        print("no test was run", file=sys.stderr)
        return 1
    print(f"\nall of it in {time.monotonic() - started:.0f} s", flush=True)
    print(total, flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
