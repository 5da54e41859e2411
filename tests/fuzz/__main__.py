"""A long run over the programs: `python -m tests.fuzz [PACKETS [SEED]]` (root).

Says every 100,000 packets how far it is. The first packet that breaks a rule ends it,
with what is needed to see it again.
"""

from __future__ import annotations

import sys
import time

from tests.fuzz.check import Campaign

REPORT_EVERY = 100_000


def main(arguments: list[str]) -> int:
    total = int(arguments[0]) if arguments else 1_000_000
    seed = int(arguments[1]) if len(arguments) > 1 else time.time_ns()
    print(f"seed {seed}", file=sys.stderr)
    with Campaign(seed) as campaign:
        while campaign.done < total:
            campaign.run(min(REPORT_EVERY, total - campaign.done))
            print(f"{campaign.done} packets", file=sys.stderr)
        for (program, reason), number in sorted(campaign.seen.items()):
            print(f"{program:16} {reason:18} {number}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
