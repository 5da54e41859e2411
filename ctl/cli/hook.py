"""`ovctl hook`: what runs on interfaces, read from the kernel; no agent is asked."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any, Final

from ctl.cli.output import Column, add_output_option, emit
from ctl.settings.config import add_options

COLUMNS: Final = (
    Column("dev"),
    Column("hook"),
    Column("at"),
    Column("name"),
    Column("id", show=lambda ident: str(ident) if ident else "-"),
    Column("ours"),
)


def register(subparsers: Any) -> None:
    """Add `ovctl hook list`."""
    parser = subparsers.add_parser("hook", help="what runs on the hooks of interfaces")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser(
        "list",
        help="list the programs at XDP, tcx and clsact, ours and others'",
        description="List what runs at XDP, tcx and clsact of this network namespace's interfaces,"
        " ours and others', in the order in which it runs.",
        epilog="example: ovctl hook list -o wide",
    )
    add_output_option(listing)
    listing.set_defaults(func=run_list)
    add_options(listing, ["bpffs"])


def run_list(args: argparse.Namespace) -> int:
    """Print a line for each program or filter. AgentError without the capabilities to ask for them."""
    from ctl.cli.agent import require_capabilities
    from ctl.cli.settings import load
    from ctl.kernel.hooks.listing import listing
    from ctl.kernel.netlink.session import Netlink

    settings = load(args)
    require_capabilities()
    with Netlink() as netlink:
        found = listing(netlink, settings.bpffs)
    emit(map(asdict, found), COLUMNS, args.output)
    return 0
