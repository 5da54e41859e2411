"""`ovctl teardown`: remove the datapath that agents leave in place.

The lease stays until it ends, so that the node gets its subnet again
(`ovctl lease release` gives it up).
"""

from __future__ import annotations

import argparse

from ctl.cli.settings import load
from ctl.config import add_options

SETTINGS = ("state_dir", "bpffs", "bridge", "subnet_file")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("teardown", help="remove the node's datapath", description=__doc__)
    add_options(parser, SETTINGS)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Remove everything of ours; returns 0. AgentError while an agent runs."""
    from ctl.cli.agent import require_capabilities

    settings = load(args)
    require_capabilities()
    from ctl import statedir
    from ctl.kernel.netlink import Netlink
    from ctl.teardown import teardown

    with statedir.Lock(settings.state_dir), Netlink() as netlink:
        done = teardown(settings, netlink)
    for line in done or ["nothing to remove"]:
        print(line)
    return 0
