"""`ovctl trace`: where a packet would go; with `--live`, what becomes of those of a flow.

Exit 0: it arrives, as far as can be told; 1: it is lost, and the last line says where; 4: the other node was
to be asked, too, and does not tell. It needs no agent. With `--live` 0 at the end, also by Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final

from ctl.cli.arguments import address, number, parsed
from ctl.cli.live import add_end, listening
from ctl.cli.output import Column, add_output_option, emit
from ctl.core.dissect import TCP, in_family
from ctl.core.elsewhere import as_there, live_question, other_host, parse_peer_command
from ctl.core.errors import ConfigError, NotFound, OvnetError
from ctl.core.sighting import Flow, parse_proto
from ctl.settings.config import STORE_SETTINGS, add_options

if TYPE_CHECKING:
    from ctl.core.decision import Probe, View
    from ctl.core.model import Lease
    from ctl.core.tracer import Selection
    from ctl.settings.config import Settings

COLUMNS: Final = ("hop", "at", "by", "fate", "reason", Column("seen"))
_SIZE: Final = 100
"""Bytes of a packet of which no size is said."""


def register(subparsers: Any) -> None:
    """Add `ovctl trace`."""
    parser = subparsers.add_parser(
        "trace",
        help="where a packet would go, hop by hop, by eBPF or not and why",
        description="Tell from maps, kernel and store where a packet of this node would go; nothing is sent"
        " or changed. With --live, show what becomes of the packets between the two, both ways, hook by hook."
        " Exit code 1 if it is lost.",
        epilog="example: ovctl trace 10.77.1.2 10.77.2.3 --proto tcp --dport 80",
    )
    parser.add_argument("src", type=address, metavar="SRC", help="address of a container")
    parser.add_argument("dst", type=address, metavar="DST")
    parser.add_argument(
        "--proto",
        type=parsed(parse_proto),
        help="tcp, udp, icmp, or a number (default: tcp; with --live any)",
    )
    parser.add_argument(
        "--sport", type=number(0, 65535), default=0, metavar="PORT", help="of an echo, its identifier"
    )
    parser.add_argument("--dport", type=number(0, 65535), default=0, metavar="PORT")
    parser.add_argument(
        "--size",
        type=number(20, 65535),
        default=_SIZE,
        metavar="BYTES",
        help=f"of the IP packet (default: {_SIZE})",
    )
    parser.add_argument("--df", action="store_true", help="it must not be fragmented")
    parser.add_argument("--live", action="store_true", help="what becomes of packets, as they pass")
    parser.add_argument(
        "--peer-command",
        type=parsed(parse_peer_command),
        metavar="CMD",
        help="ask the other node, too: CMD runs ovctl there, such as 'ssh root@{host}'; {node} is its name",
    )
    parser.add_argument(
        "--until-eof",
        action="store_true",
        help="with --live: end when stdin does, as --peer-command asks for",
    )
    add_end(parser)
    add_output_option(parser)
    parser.set_defaults(func=run)
    add_options(parser, ["state_dir", "bpffs", *STORE_SETTINGS])


def run(args: argparse.Namespace) -> int:
    """Print the hops, or with --live the packets. Errors as `listening`; ConfigError for flags that clash."""
    if args.src.version != args.dst.version:
        raise ConfigError(f"{args.src} and {args.dst} are of different families: no packet has both")
    if args.live:
        return _live(args)
    if args.count or args.seconds or args.until_eof:
        raise ConfigError("--count, --seconds, --until-eof are about packets as they pass: add --live")
    from ctl.core.path import Fate, hops

    probe, view, leases = _asked(args)
    if args.peer_command:
        from ctl.cli import both

        return both.of_packet(probe, view, leases, args.peer_command, args.output)
    found = list(hops(probe, view))
    emit(map(asdict, found), COLUMNS, args.output)
    return int(any(hop.fate is Fate.LOST for hop in found))


def _live(args: argparse.Namespace) -> int:
    from ctl.cli.monitor import show

    if args.size != _SIZE or args.df:
        raise ConfigError("--size and --df are about one packet: leave --live away")
    ends = (ip_network(args.src), ip_network(args.dst))
    try:
        flow = Flow(ends, (args.sport, args.dport), args.proto or 0)
    except ValueError as error:
        raise ConfigError(f"{error}: leave --sport and --dport away with --live") from None
    asked = flow.selected()
    if args.peer_command:
        return _live_of_both(args, flow, asked)
    with listening(args, asked) as packets:
        if args.until_eof:
            packets.end_with(0)
        return show(packets, args.output)


def _live_of_both(args: argparse.Namespace, flow: Flow, asked: Selection) -> int:
    """NotFound where no peer is at the other end; AgentUnreachable if it does not tell."""
    from ctl.cli import both
    from ctl.process.elsewhere import Elsewhere

    probe, view, leases = _asked(args)
    host = other_host(probe, view)
    if host is None:
        raise NotFound(f"no peer is known between {args.src} and {args.dst}: leave --peer-command away")
    way = both.way(args.peer_command, host, leases)
    here, other = str(view.node.host), str(host)
    with Elsewhere([*way, *live_question(as_there(probe, view), flow)], partial(both.relay, other)) as there:
        there.spoke.wait(both.PATIENCE_S)
        with listening(args, asked) as packets:
            return both.show(here, packets, other, there, args.count, args.output)


def _asked(args: argparse.Namespace) -> tuple[Probe, View, Sequence[Lease]]:
    """The packet, what was read of this node, and the leases."""
    from ctl.cli.agent import require_capabilities
    from ctl.cli.settings import load
    from ctl.cli.status import gather
    from ctl.core.decision import Probe
    from ctl.kernel.bpf.families import open_all
    from ctl.kernel.netlink.session import Netlink
    from ctl.node.path import look

    settings = load(args)
    require_capabilities()
    version = args.src.version
    proto = in_family(args.proto or TCP, version)
    probe = Probe(args.src, args.dst, proto, args.sport, args.dport, args.size, args.df)
    leases, error = _leases(settings)
    report = gather(settings).report
    with open_all(str(settings.bpffs)) as maps, Netlink() as netlink:
        own, running = maps.of(version), maps.running(version)
        return probe, look(settings, own, netlink, probe, report, leases, error, running), leases


def _leases(settings: Settings) -> tuple[tuple[Lease, ...], str]:
    """The store's, or why it does not tell: the rest can be told without."""
    from ctl.store import open_store

    try:
        with closing(open_store(settings)) as store:
            return store.snapshot(fresh=True).leases, ""
    except OvnetError as error:
        return (), str(error)
