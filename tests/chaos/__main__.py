"""Every scenario, with its figures: `python -m tests.chaos [--only TEXT] [--seconds S] [--output FILE]`.

Without --seconds each is done as often as it says; with it, all together take about that long, and each is
done again and again for its share. Exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.chaos.document import MEASURED, measured
from tests.chaos.run import run
from tests.chaos.scenario import Outcome, Scenario, broken, row, table
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.site import Build, Site
from tests.lab import Lab

OVERHEAD_S: Final = 6.0
"""Of a scenario, beside doing it: programs start, the last flows end."""


class Sites:
    """The site that the next scenario wants: the one that is there, if it is of that kind and well."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._built: tuple[Build, Site] | None = None

    @contextmanager
    def use(self, build: Build) -> Iterator[Site]:
        """A site; one in which something went wrong is not used again."""
        if self._built is None or self._built[0] is not build:
            self.close()
            self._built = (build, build(self._stack.enter_context(Lab())))
        try:
            yield self._built[1]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._built = None
        self._stack.close()


def chosen(text: str) -> list[Scenario]:
    """Those with the text in their group and name, in an order that builds few sites."""
    found = [each for each in SCENARIOS if text.lower() in f"{each.group}: {each.name}".lower()]
    builds = list(dict.fromkeys(each.build for each in found))
    return sorted(found, key=lambda each: builds.index(each.build))


def run_all(
    scenarios: Sequence[Scenario], seconds: float, say: Callable[[str], None]
) -> list[tuple[Scenario, Outcome | None, list[str]]]:
    """Each scenario, what came of it, and which promises were broken."""
    share = max(0.0, seconds / max(1, len(scenarios)) - OVERHEAD_S) if seconds else 0.0
    sites = Sites()
    found: list[tuple[Scenario, Outcome | None, list[str]]] = []
    try:
        for number, each in enumerate(scenarios, 1):
            say(f"[{number}/{len(scenarios)}] {each.group}: {each.name}")
            try:
                with sites.use(each.build) as site:
                    outcome = run(site, each, times=1 if seconds else each.times, seconds=share)
            except Exception as error:
                traceback.print_exc()
                found.append((each, None, [f"{type(error).__name__}: {error}"]))
            else:
                found.append((each, outcome, broken(each, outcome)))
                for line in found[-1][2]:
                    say(f"    broken: {line}")
    finally:
        sites.close()
    return found


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--only", default="", help="scenarios with this text in their group or name")
    parser.add_argument("--seconds", type=float, default=0, help="for about how long, all together")
    parser.add_argument("--output", type=Path, help=f"write what was measured, such as to {MEASURED}")
    args = parser.parse_args()
    scenarios = chosen(args.only)
    if not scenarios:
        parser.error(f"no scenario has {args.only!r} in its name")
    found = run_all(scenarios, args.seconds, lambda text: print(text, file=sys.stderr, flush=True))
    print("\n".join(table([row(each, outcome) for each, outcome, _ in found if outcome])))
    failed = [(each, lines) for each, _, lines in found if lines]
    for each, lines in failed:
        print(f"BROKEN {each.group}: {each.name}: {'; '.join(lines)}")
    print(f"\n{len(found) - len(failed)} of {len(found)} scenarios keep their promise")
    if args.output:
        before = json.loads(args.output.read_text()) if args.output.exists() else {}
        new = measured([(each, outcome) for each, outcome, _ in found if outcome])
        args.output.write_text(json.dumps({**before, **new}, indent=1, sort_keys=True) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
