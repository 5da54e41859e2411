"""`ovctl capture`: packets at the hooks of this node into a pcapng file, with what became of them.

Exit 0 at the end, also by Ctrl-C. It needs no agent.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from ctl import __version__
from ctl.cli.arguments import number
from ctl.cli.live import add_end, add_selection, listening, selection
from ctl.cli.output import say
from ctl.core.errors import ConfigError
from ctl.core.tracer import TRACE_LONG
from ctl.settings.config import add_options

if TYPE_CHECKING:
    from ctl.core.sighting import Sighting


def register(subparsers: Any) -> None:
    """Add `ovctl capture`."""
    parser = subparsers.add_parser(
        "capture",
        help="packets at the hooks of this node into a pcapng file",
        description="Write packets as they leave the hooks: what eBPF carries, both ways, also what tcpdump"
        " does not see at a container's port, and what it drops. It has interface, direction and verdict.",
        epilog="example: ovctl capture --container 10.77.1.2 --seconds 10 -w /tmp/one.pcapng",
    )
    parser.add_argument("-w", "--write", required=True, metavar="FILE", help="- for stdout")
    parser.add_argument(
        "--all", action="store_true", help="also what is left to the kernel path, at each hook that sees it"
    )
    parser.add_argument(
        "--snaplen",
        type=number(14, TRACE_LONG),
        default=256,
        metavar="BYTES",
        help=f"of each packet, up to {TRACE_LONG} (default: 256)",
    )
    add_selection(parser)
    add_end(parser)
    parser.set_defaults(func=run)
    add_options(parser, ["state_dir", "bpffs"])


def run(args: argparse.Namespace) -> int:
    """Write packets until it is enough. ConfigError for a file that cannot be made; else as `listening`."""
    from ctl.core.reasons import Verdict
    from ctl.core.sighting import comes_again

    asked = replace(selection(args), snaplen=args.snaplen)
    if not args.all:
        asked = replace(asked, verdicts=frozenset(Verdict) - {Verdict.PASS})
    with listening(args, asked, comes_again) as packets, _opened(args.write) as file:
        write(file, packets, args.snaplen)
        say(packets.summary())
    return 0


def write(file: IO[bytes], packets: Iterable[Sighting], snaplen: int) -> None:
    """A whole file of these packets, an interface for each hook and device."""
    from ctl.core import pcapng
    from ctl.core.sighting import INBOUND

    file.write(pcapng.header(f"ovctl {__version__}"))
    numbers: dict[tuple[str, str, int], int] = {}
    for seen in packets:
        hook, data = seen.trace.hook, seen.trace.data
        link = pcapng.RAW if seen.packet.bare else pcapng.ETHERNET
        place = (seen.dev, hook.label, link)
        if place not in numbers:
            numbers[place] = len(numbers)
            file.write(pcapng.interface(seen.dev, f"hook {hook.label}", snaplen, link))
        file.write(
            pcapng.packet(
                numbers[place], seen.time_ns, data, seen.trace.packet_len,
                inbound=hook in INBOUND, comment=seen.comment,
            )
        )  # fmt: skip
        file.flush()


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdout.buffer
        return
    try:
        # Who may read the file sees what containers say to one another.
        file = open(name, "wb", opener=partial(os.open, mode=0o600))  # noqa: SIM115  the errors of opening alone
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    with file:
        yield file
