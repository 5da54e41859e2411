"""Runs the rings one after the other, cheapest first, and counts: `python -m tests.rings [RING...]`.

A ring is a directory of tests. All rings run even when one fails; the last line is the
sum, `N passed, N failed` (and `, N skipped` where some were), and the exit code is 1 if
anything failed. Arguments after `--` go to pytest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Ring:
    """A directory of tests that cost the same."""

    title: str
    needs_root: bool = True


RINGS = {
    "unit": Ring("pure functions, no root", needs_root=False),
    "bpf": Ring("the programs on single packets, in the kernel"),
    "netns": Ring("hosts in network namespaces"),
    "conformance": Ring("against independent peers"),
    "chaos": Ring("what goes wrong, under traffic, once each"),
    "fuzz": Ring("random input, a short run"),
    "bench": Ring("measurements, a short run"),
}


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


def count(junit: Path, exit_code: int) -> Count:
    """From pytest's JUnit file; a run that broke before it wrote one counts as a failure."""
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


def run(name: str, extra: list[str]) -> Count:
    """One ring through pytest, its output shown as it comes."""
    folder = TESTS / name
    heading = f" {name}: {RINGS[name].title} "
    print(f"\n{heading:=^100}", flush=True)
    if not any(folder.rglob("test_*.py")):
        print(f"ring {name} has no tests yet", flush=True)
        return Count()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ovnet-rings-") as scratch:
        junit = Path(scratch, "junit.xml")
        command = [sys.executable, "-m", "pytest", str(folder), f"--junitxml={junit}", *extra]
        code = subprocess.run(command, cwd=TESTS.parent, check=False).returncode
        total = count(junit, code)
    print(f"ring {name}: {total} in {time.monotonic() - started:.0f} s", flush=True)
    return total


def main(arguments: list[str]) -> int:
    """Exit code of the whole run: 0, 1 for a failure, 2 for a ring that does not exist."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    names, extra = arguments[:split] or list(RINGS), arguments[split + 1 :]
    if unknown := [name for name in names if name not in RINGS]:
        print(f"no such ring: {', '.join(unknown)} (there are {', '.join(RINGS)})", file=sys.stderr)
        return 2
    counts = [run(name, extra) for name in names]
    total = sum(counts, Count())
    if not total.passed + total.failed:
        print("no test was run", file=sys.stderr)
        return 1
    print(f"\n{total}", flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
