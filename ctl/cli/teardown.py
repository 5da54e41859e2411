"""`ovctl teardown`: remove the datapath that agents leave in place.

The lease stays until it ends, so that the node gets its subnet again
(`ovctl lease release` gives it up).

`--to-flannel` gives the host back to flanneld: tunnel device and routes stay, in the form
that flanneld adopts, and carry packets until it runs. Start it, then run teardown once more
without the flag for the rest.
"""

from __future__ import annotations

import argparse

from ctl.cli.settings import load
from ctl.settings.config import add_options

SETTINGS = ("state_dir", "bpffs", "bridge", "subnet_file", "cni_conf")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "teardown",
        help="remove the node's datapath",
        description=__doc__,
        epilog="example: ovctl teardown --to-flannel",
    )
    add_options(parser, SETTINGS)
    parser.add_argument(
        "--to-flannel", action="store_true", help="leave tunnel and routes for flanneld to adopt"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Remove everything of ours; returns 0. AgentError while an agent runs."""
    from ctl.cli.agent import require_capabilities

    settings = load(args)
    require_capabilities()
    from ctl.kernel.netlink.session import Netlink
    from ctl.node.teardown import give_to_flannel, teardown
    from ctl.process import statedir

    with statedir.Lock(settings.state_dir) as lock, Netlink() as netlink:
        if args.to_flannel:
            lock.keep()  # rules and settings of the kernel are noted there
        done = give_to_flannel(settings, netlink) if args.to_flannel else teardown(settings, netlink)
    for line in done or ["nothing to remove"]:
        print(line)
    return 0
