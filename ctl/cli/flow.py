"""`ovctl flow`: the approvals that let flows bypass the kernel path."""

from __future__ import annotations

import argparse
from typing import Any

from ctl.cli.output import say
from ctl.settings.config import add_options


def register(subparsers: Any) -> None:
    """Add `ovctl flow flush`."""
    parser = subparsers.add_parser("flow", help="approved flows")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    flush = verbs.add_parser(
        "flush",
        help="take every approval back: the kernel path sees each flow again",
        description="Take every approval back: the next packet of each flow goes through the kernel"
        " path and its firewall. Nothing is lost.",
        epilog="example: ovctl flow flush",
    )
    flush.set_defaults(func=run_flush)
    add_options(flush, ["bpffs"])


def run_flush(args: argparse.Namespace) -> int:
    """Delete all flows and say how many there were."""
    from ctl.cli.settings import load
    from ctl.kernel.bpf.families import open_all

    with open_all(str(load(args).bpffs)) as maps:
        count = sum(each.flush_flows() for each in maps)
    say(f"flushed {count} flow{'' if count == 1 else 's'}")
    return 0
