"""`ovctl top`: peers, flows, containers or gears by what they carry now; no agent is asked.

Exit 0 at the end, also by Ctrl-C. On a terminal it is drawn anew every few seconds and takes keys.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ctl.cli.arguments import number, seconds
from ctl.cli.map import CLEAR, open_all
from ctl.cli.output import add_output_option, emit
from ctl.cli.views import VIEWS, Look, screen
from ctl.core.errors import ConfigError
from ctl.core.traffic import Counts, Place, Reading, Span
from ctl.settings.config import add_options

if TYPE_CHECKING:
    from ctl.kernel.bpf.families import AllMaps


def register(subparsers: Any) -> None:
    """Add `ovctl top`."""
    parser = subparsers.add_parser(
        "top",
        help="peers, flows and containers by what they carry now",
        description="Show rates, the highest first: packets (pps) and bits (bps) per second. Of peers it is"
        " what eBPF carries, of flows what bypasses, of containers all that they send and receive. On a"
        " terminal it goes on until q or Ctrl-C; p, f, c and g show peers, flows, containers and gears, s"
        " sorts by the next column.",
        epilog="example: ovctl top --by flows; in scripts: ovctl top --by containers --once -o json",
    )
    parser.add_argument("--by", choices=tuple(VIEWS), default="peers", help="default: peers")
    parser.add_argument("--sort", default="", metavar="COLUMN", help="default: what sends most comes first")
    parser.add_argument(
        "--interval", type=seconds, default=2.0, metavar="S", help="seconds that rates are of (default: 2)"
    )
    parser.add_argument(
        "--limit", type=number(1, 2**31 - 1), metavar="N", help="only the first N; default: all, or what fits"
    )
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--count", type=number(1, 2**31 - 1), metavar="N", help="end after N tables")
    end.add_argument("--once", action="store_const", const=1, dest="count", help="the same as --count 1")
    add_output_option(parser)
    parser.set_defaults(func=run)
    add_options(parser, ["bpffs"])


def run(args: argparse.Namespace) -> int:
    """Show rates until it is enough. ConfigError for a column that the view has not; as `open_all`."""
    from ctl.cli.agent import require_capabilities

    look = Look(args.by, args.sort)
    if look.column not in VIEWS[args.by].keys:
        raise ConfigError(
            f"top of {args.by} has no column {args.sort}: it has {', '.join(VIEWS[args.by].keys)}"
        )
    require_capabilities()
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with _until_interrupted():
        if at_terminal and args.count is None and args.output != "json":
            _draw_on(args, look)
        else:
            _print_on(args, look)
    return 0


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM are how it is ended."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


PARTS: Final[Mapping[str, Callable[[AllMaps], Mapping[Any, Any]]]] = {
    "counters": lambda maps: maps.counters(),
    "peers": lambda maps: {
        host: (each.tx_packets, each.tx_bytes, each.rx_packets, each.rx_bytes)
        for host, each in maps.peer_stats().items()
    },
    "flows": lambda maps: {key: (packets,) for each in maps for key, packets in each.flow_packets().items()},
    "containers": lambda maps: _counted(places(maps)),
}
"""How each part of a Reading is read."""


def read(args: argparse.Namespace, parts: frozenset[str]) -> Reading:
    """These parts, as they are now. As `open_all`; KernelError."""
    with open_all(args) as maps:
        return Reading(time.monotonic_ns(), **{part: PARTS[part](maps) for part in sorted(parts)})


def places(maps: AllMaps) -> list[Place]:
    """Where containers are: one with addresses of both families has one port, and is named by IPv4's."""
    found: list[Place] = []
    for each in maps:
        named = {place.ifindex for place in found}
        of_family = (Place(address, entry.ifindex) for address, entry in each.endpoints().items())
        found += [place for place in of_family if place.ifindex not in named]
    return found


def _counted(places: Sequence[Place]) -> dict[Place, Counts]:
    """What these containers have sent and received; those that are gone are left out. KernelError."""
    from ctl.kernel.netlink import link
    from ctl.kernel.netlink.session import Netlink

    with Netlink() as netlink:
        links = netlink.links()
        here = [place for place in places if place.ifindex in links]
        with netlink.doing("read what containers have sent"):
            found = {place: link.counted(netlink.rtnl, links[place.ifindex]) for place in here}
    return {place: counts for place, counts in found.items() if counts}


def _print_on(args: argparse.Namespace, look: Look) -> None:
    """A table after the other."""
    view, shown = VIEWS[look.by], 0
    before = read(args, view.reads)
    while shown != args.count:
        time.sleep(args.interval)
        after = read(args, view.reads)
        if shown and args.output != "json":
            sys.stdout.write("\n")
        emit(look.rows(Span(before, after))[: args.limit], view.columns, args.output)
        sys.stdout.flush()
        before, shown = after, shown + 1


def _draw_on(args: argparse.Namespace, look: Look) -> None:
    """The table in place, until q."""
    everything = frozenset(PARTS)
    before, span = read(args, everything), None
    sys.stdout.write(f"{CLEAR}measuring for {args.interval:g} s")
    sys.stdout.flush()
    due = time.monotonic() + args.interval
    with _keys() as pressed:
        while (key := pressed(due - time.monotonic())) != "q":
            if key:
                look = look.after(key)
            else:
                after = read(args, everything)
                before, span = after, Span(before, after)
                due = time.monotonic() + args.interval
            if span:
                size = shutil.get_terminal_size()
                sys.stdout.write(CLEAR + screen(look, span, size.columns, size.lines, args.limit))
                sys.stdout.flush()
    sys.stdout.write("\n")


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key; "": none was pressed. Keys are not shown meanwhile."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def pressed(wait: float) -> str:
        if not select.select([stdin], [], [], max(0.0, wait))[0]:
            return ""
        return os.read(stdin, 1).decode("latin-1") or "q"  # nobody is there any more

    tty.setcbreak(stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
