"""`ovctl probe`: which of the other nodes answer on the overlay, how soon, and how large a packet.

Exit 0: all answer, 1: somebody does not, 2: bad input, 3: no such peer, 4: no agent has ever run here or the
store does not answer, 130: interrupted (what was found until then is shown). It needs no agent.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ctl.cli.arguments import number
from ctl.cli.output import Column, Row, add_output_option, emit
from ctl.cli.peers import chosen, progress
from ctl.core.errors import ConfigError
from ctl.settings.config import STORE_SETTINGS, Settings, add_options

if TYPE_CHECKING:
    from ctl.core.model import A
    from ctl.core.probing import Probed
    from ctl.core.report import AgentReport
    from ctl.node.reach import Lane

SMALLEST: Final = 48
"""Bytes of an IPv6 packet with an echo and nothing in it."""


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


COLUMNS: Final = (
    "node",
    Column("host"),
    Column("subnet", wide=True),
    Column("address"),
    "carrier",
    Column("sent", wide=True),
    Column("loss", show=_percent),
    Column("min", "MIN MS", show=_ms),
    Column("median", "MEDIAN MS", show=_ms),
    Column("max", "MAX MS", show=_ms),
    Column("mtu", "MTU", show=lambda size: str(size or "-")),
    Column("ebpf_out", "EBPF OUT", wide=True),
    Column("ebpf_back", "EBPF BACK", wide=True),
    "state",
)


def register(subparsers: Any) -> None:
    """Add `ovctl probe`."""
    parser = subparsers.add_parser(
        "probe",
        help="which of the other nodes answer on the overlay, how soon, and how large a packet",
        description="Send echoes to the overlay address of other nodes, with eBPF's tunnel header and with"
        " that of the kernel's vxlan device, and show round trip, loss and the largest packet that is"
        " answered. Exit code 1 if a node answers nothing. No agent is asked, and nothing is changed.",
        epilog="example: ovctl probe node7 192.0.2.7 --count 20; all nodes: ovctl probe --all",
    )
    parser.add_argument(
        "peer", nargs="*", metavar="PEER", help="host, node or subnet (default: the first ones)"
    )
    parser.add_argument("--all", action="store_true", help="all other nodes, a line each")
    parser.add_argument(
        "--count", type=number(1, 100_000), default=5, metavar="N", help="echoes for each (default: 5)"
    )
    parser.add_argument(
        "--size",
        type=number(SMALLEST, 65535),
        metavar="BYTES",
        help=f"of the echoes as IP packets, {SMALLEST} to the overlay's MTU (default: 84)",
    )
    parser.set_defaults(func=run)
    add_output_option(parser)
    add_options(parser, ["state_dir", "bpffs", *STORE_SETTINGS])


def run(args: argparse.Namespace) -> int:
    """Print what was found. See the module for the exit codes."""
    from ctl.cli.agent import require_capabilities
    from ctl.cli.settings import load
    from ctl.cli.status import last_report
    from ctl.core.probing import verdict

    if args.peer and args.all:
        raise ConfigError("PEER and --all: say one of them")
    settings = load(args)
    require_capabilities(echoes=True)
    report = last_report(settings.state_dir)
    if args.size and args.size > report.mtu:
        raise ConfigError(f"--size {args.size}: the overlay carries packets of {report.mtu} bytes")
    found: list[Row] = []
    with _interrupted() as interrupted:
        for lane, probed in _look(settings, report, args, interrupted):
            found += rows_of(lane, probed, report.mtu)
    _show(found, args)
    return 130 if interrupted() else verdict(row["state"] for row in found)


def _look(
    settings: Settings, report: AgentReport, args: argparse.Namespace, enough: Callable[[], bool]
) -> Iterator[tuple[Lane[Any], dict[Any, Probed]]]:
    from ctl.cli.map import stored
    from ctl.kernel.echo import SMALL
    from ctl.kernel.netlink.session import Netlink
    from ctl.node.compare import stand
    from ctl.node.reach import Probe, lanes, usable

    network, snapshot = stored(settings)
    with Netlink() as netlink:
        site = stand(settings, netlink, report, network, snapshot.leases)
        peers = chosen(usable(site, snapshot.leases), args.peer, everyone=args.all)
        roads = list(lanes(settings.bpffs, report.bypass, site, peers))
        with progress(args.count * sum(len(lane.members) for lane in roads)) as step:
            probe = Probe(settings.bpffs, netlink, report.mtu, args.count, args.size or SMALL, step, enough)
            for lane in roads:
                yield lane, probe.look(lane)


@contextmanager
def _interrupted() -> Iterator[Callable[[], bool]]:
    """Meanwhile SIGINT is no failure: whether there was one."""
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    before = signal.signal(signal.SIGINT, end)
    try:
        yield lambda: ended
    finally:
        signal.signal(signal.SIGINT, before)


# --- What is shown ---------------------------------------------------------------


def rows_of(lane: Lane[A], probed: Mapping[A, Probed], mtu: int) -> Iterator[Row]:
    """A row for each peer that was asked; `mtu`: the overlay's."""
    for address, each in probed.items():
        member, carried = lane.members[address], each.carried
        yield {
            "key": member.key,
            "node": member.node,
            "host": str(member.host),
            "subnet": str(member.subnet),
            "address": str(address),
            "carrier": lane.carrier.value,
            "sent": each.sent,
            "received": len(each.round_trips),
            "loss": each.loss,
            **dict(zip(("min", "median", "max"), each.times or (None, None, None), strict=True)),
            "mtu": each.largest or None,
            "ebpf_out": carried.out if carried else None,
            "ebpf_back": carried.back if carried else None,
            "state": each.state(lane.carrier, mtu),
        }


def matrix(rows: Iterable[Row]) -> tuple[list[str], list[Row]]:
    """The columns of carriers, and a row for each peer: what each of them has shown in a few words."""
    columns = set()
    peers: dict[Any, dict[str, Any]] = {}
    for row in rows:
        column = row["carrier"] + (" ipv6" if ":" in row["host"] else "")
        columns.add(column)
        peer = peers.setdefault(row["key"], {"node": row["node"], "host": row["host"]})
        peer[column] = _cell(row)
    return sorted(columns), list(peers.values())


def _cell(row: Row) -> str:
    words = [row["state"]] if row["state"] != "ok" else []
    if row["median"] is not None:
        words.append(f"{_ms(row['median'])} ms")
    if 0 < row["loss"] < 1:
        words.append(f"{_percent(row['loss'])} lost")
    if row["mtu"]:
        words.append(f"{row['mtu']} bytes")
    return ", ".join(words)


def _show(found: list[Row], args: argparse.Namespace) -> None:
    found.sort(key=lambda row: (row["key"], ":" in row["host"], row["carrier"]))
    if args.all and args.output == "table":
        carriers, peers = matrix(found)
        emit(peers, ("node", "host", *carriers), args.output)
    else:
        emit([{key: row[key] for key in row if key != "key"} for row in found], COLUMNS, args.output)
