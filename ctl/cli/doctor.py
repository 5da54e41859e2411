"""`ovctl doctor`: what is wrong with this node and its way to the others, and what mends it.

Exit 0: nothing fails, 1: something does. It changes nothing, and needs no agent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from ctl.cli.output import Column, add_output_option, emit
from ctl.cli.peers import MOST_PEERS
from ctl.core.errors import OvnetError, StoreError
from ctl.core.model import Bypass
from ctl.settings.config import STORE_SETTINGS, Settings, add_options

if TYPE_CHECKING:
    from ctl.core.diagnosis.finding import Finding

COLUMNS: Final = ("level", "check", Column("seen"), Column("means", wide=True), Column("remedy"))
MOST_INSIDE: Final = 256
"""How many containers are looked into unless all are: 2 ms of a processor each."""
LOOKS: Final = 5
LOOK_S: Final = 0.1
"""How often the flows are read where they may push each other out, and what passes in between, seconds."""


def register(subparsers: Any) -> None:
    """Add `ovctl doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is wrong with this node and its way to the others, and what mends it",
        description="Look at this node, the store and the way to the other nodes, a line for each thing."
        " Exit code 1 if anything fails. Nothing is changed; the others are sent a few echoes and"
        " empty datagrams (UDP 33434, as traceroute's; the tunnel's port of who is silent).",
        epilog="example: ovctl doctor --peer 192.0.2.7 -o wide",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="HOST",
        help="only this one, by host, node or subnet; repeatable",
    )
    which.add_argument(
        "--all",
        action="store_true",
        help=f"all peers and containers, if there are more than {MOST_PEERS} or {MOST_INSIDE}",
    )
    which.add_argument("--no-probe", action="store_true", help="send nothing to the other nodes")
    parser.set_defaults(func=run)
    add_output_option(parser)
    add_options(
        parser,
        [
            "state_dir",
            "bpffs",
            "bypass",
            "peers_max",
            "cni_conf",
            "cni_data_dir",
            "lease_ttl",
            "subnet_lease_renew_margin",
            *STORE_SETTINGS,
        ],
    )


def run(args: argparse.Namespace) -> int:
    """Print what was found, failures first. Exit code 0 or 1; NotFound for a peer that is none."""
    from ctl.cli.agent import require_capabilities
    from ctl.cli.settings import load
    from ctl.core.diagnosis.finding import Level, verdict

    settings = load(args)
    require_capabilities()
    findings = list(_examine(settings, args))
    order = list(reversed(Level))
    findings.sort(key=lambda finding: (order.index(finding.level), finding.check, finding.seen))
    emit(map(asdict, findings), COLUMNS, args.output)
    return verdict(findings)


def _examine(settings: Settings, args: argparse.Namespace) -> Iterator[Finding]:
    """All that is found. The agent's own lines come last: what is told by then is not told again."""
    from ctl.cli.checkup import Case, Checkup
    from ctl.cli.map import stored
    from ctl.cli.status import gather
    from ctl.core.diagnosis import member, node
    from ctl.core.diagnosis.finding import failure, ok
    from ctl.core.report import full_maps, without_room

    status, now = gather(settings), time.time()
    report, fill = status.report, status.datapath.fill
    full, known = without_room(fill), full_maps(fill)
    begin = tuple(map(_said_full, full))
    known += [line for line in (report.problems if report else ()) if line.startswith(begin)]
    if status.alive and report and report.program and status.maps_error:
        yield node.of_hidden_maps(str(settings.bpffs), status.maps_error)
        known.append(status.maps_error)
        settings = replace(settings, bypass=Bypass.OFF)  # the rest is looked at without maps
    yield from node.of_maps(fill, _learned_again(settings))
    try:
        network, snapshot = stored(settings)
    except StoreError as error:
        yield member.of_store(error)
        if report and not report.store.up:
            known.append(f"store {report.store.url} unreachable: {report.store.error}")
    else:
        yield ok("store", f"{settings.store} answers, {len(snapshot.leases)} leases")
        if report is None:
            yield failure(
                "agent", "none has ever reported here", "nothing is set up", "systemctl start ovnet"
            )
        else:
            case = Case(report, network, snapshot, now, status.alive, full)
            yield from Checkup(settings, args, case, known).findings()
    _, why = status.verdict(now)
    problems, warnings = (report.problems, report.warnings) if report else ((), ())
    if report or not status.alive:
        yield from member.of_agent(status.alive, why if status.alive else (), problems, warnings, known)


def _said_full(name: str) -> str:
    """How the agent's own line of a full map begins."""
    from ctl.core.report import plain_name

    plain = plain_name(name)
    return f"map {name} is full" if plain == name else f"IPv6: map {plain} is full"


def _learned_again(settings: Settings) -> dict[str, int]:
    """How many flows lose their entry and get it again while the doctor looks, by map without room."""
    from ctl.core.diagnosis import node
    from ctl.core.report import map_name
    from ctl.kernel.bpf.families import open_all
    from ctl.kernel.bpf.syscall import possible_cpus

    try:
        with open_all(str(settings.bpffs)) as maps:
            tight = [each for each in maps if node.may_push_out(*each.fill()["flows"], possible_cpus())]
            looks = []
            for _ in range(LOOKS if tight else 0):
                looks.append([each.flow_packets() for each in tight])
                time.sleep(LOOK_S)
            names = (map_name("flows", each.family.version) for each in tight)
            return dict(zip(names, map(node.learned_again, zip(*looks, strict=True)), strict=True))
    except OvnetError:
        return {}  # told elsewhere
