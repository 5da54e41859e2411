"""`ovctl monitor`: packets at the hooks of this node, as they pass, a line each.

Exit 0 at the end, also by Ctrl-C. It needs no agent.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from ctl.cli.live import Listener, add_end, add_selection, listening, selection
from ctl.cli.output import add_output_option, say
from ctl.settings.config import add_options


def register(subparsers: Any) -> None:
    """Add `ovctl monitor`."""
    parser = subparsers.add_parser(
        "monitor",
        help="packets at the hooks of this node, as they pass",
        description="Show each packet as it leaves a hook, with what the hook made of it and why, outer and"
        " inner headers; -o json is one object a line. What comes faster than it can be shown is skipped, and"
        " counted. Ctrl-C ends it.",
        epilog="example: ovctl monitor --drops --peer 192.0.2.7",
    )
    parser.add_argument("--drops", action="store_true", help="only what is dropped")
    add_selection(parser)
    add_end(parser)
    add_output_option(parser)
    parser.set_defaults(func=run)
    add_options(parser, ["state_dir", "bpffs"])


def run(args: argparse.Namespace) -> int:
    """Print packets until it is enough. Errors as `listening`."""
    from ctl.core.reasons import Verdict

    asked = selection(args)
    if args.drops:
        asked = replace(asked, verdicts=frozenset({Verdict.DROP, Verdict.ABORT}))
    with listening(args, asked) as packets:
        return show(packets, args.output)


def show(packets: Listener, fmt: str) -> int:
    """Print them, and a summary on stderr; returns the exit code."""
    import json

    from ctl.core.sighting import as_json, line

    for seen in packets:
        text = json.dumps(as_json(seen), sort_keys=True) if fmt == "json" else line(seen)
        if fmt == "wide":
            text += f" ({seen.why.caption})"
        sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    say(packets.summary())
    return 0
