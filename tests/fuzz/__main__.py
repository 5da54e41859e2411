"""A long run over the programs (root): `python -m tests.fuzz [--family 6] [PACKETS [SEED]]`; or one again.

Says every few seconds how far it is. A packet that breaks a rule is printed as a line that
`python -m tests.fuzz replay 'LINE'` runs again; kept in `regressions.txt`, it is run by every
test. The run goes on to the end, or to the twentieth such packet, and its exit code is 1 then.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.campaign import Broken, Campaign, replay
from tests.fuzz.trial import CASTS, Trial

DEFAULT = 1_000_000
STEP = 1000
REPORT_SECONDS = 10
ENOUGH = 20
"""Packets that break a rule, after which there is no need to look further."""


class Report:
    """What people see of a run."""

    def __init__(self, campaign: Campaign, total: int) -> None:
        self.broken = 0
        self._campaign, self._total = campaign, total
        self._started = self._said = time.monotonic()

    def failed(self, broken: Broken) -> None:
        self.broken += 1
        print("\n".join(["broken", *broken.__notes__, str(broken)]), flush=True)

    def progress(self) -> None:
        now = time.monotonic()
        if now - self._said >= REPORT_SECONDS:
            self._said = now
            self.say()

    def say(self) -> None:
        done, seconds = self._campaign.done, time.monotonic() - self._started
        print(
            f"{done:,} of {self._total:,} packets, {done / seconds:,.0f} a second, "
            f"{len(self._campaign.seen)} exits seen, {self.broken} broken",
            file=sys.stderr,
            flush=True,
        )


def run(total: int, seed: int, version: int) -> int:
    """The exit code: 1 if a packet has broken a rule."""
    print(f"IPv{version}, seed {seed}", file=sys.stderr, flush=True)
    with Campaign(seed, CASTS[version]) as campaign:
        report = Report(campaign, total)
        while campaign.done < total and report.broken < ENOUGH:
            campaign.run(min(STEP, total - campaign.done), report.failed)
            report.progress()
        report.say()
        for (program, reason), number in sorted(campaign.seen.items()):
            print(f"{program:16} {reason:18} {number}")
    return min(report.broken, 1)


def main(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["replay"]:
            print(replay(Trial.parse(" ".join(arguments[1:]))))
            return 0
        args = _arguments(arguments)
    except Broken as broken:
        print(broken)
        return 1
    except ValueError as error:
        print(f"{error} (see `make help`)", file=sys.stderr)
        return 2
    return run(args.packets, args.seed, args.family)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", type=int, choices=CASTS, default=4, help="version of IP; default: 4")
    parser.add_argument("packets", type=int, nargs="?", default=DEFAULT, help=f"default: {DEFAULT:,}")
    parser.add_argument(
        "seed", type=int, nargs="?", default=time.time_ns(), help="default: another each time"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
