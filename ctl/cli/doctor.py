"""`ovctl doctor`: what is wrong with this node and its way to the others, and what mends it.

Exit 0: nothing fails, 1: something does. It changes nothing, and needs no agent.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ctl.cli.output import Column, add_output_option, emit, say
from ctl.core.errors import NotFound, OvnetError, StoreError
from ctl.settings.config import STORE_SETTINGS, add_options

if TYPE_CHECKING:
    from ctl.cli.status import Status
    from ctl.core.diagnosis import Finding
    from ctl.core.family import Family
    from ctl.core.model import A, Lease, N, Network, Snapshot
    from ctl.node.examine import Examination
    from ctl.settings.config import Settings

COLUMNS: Final = ("level", "check", Column("seen"), Column("means", wide=True), Column("remedy"))
MOST: Final = 64
"""How many peers are asked unless all are asked for."""


def register(subparsers: Any) -> None:
    """Add `ovctl doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is wrong with this node and its way to the others, and what mends it",
        description="Look at this node, the store and the way to the other nodes, a line for each thing."
        " Exit code 1 if anything fails. Nothing is changed; the others are sent a few echoes.",
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
    which.add_argument("--all", action="store_true", help=f"all peers, if there are more than {MOST}")
    which.add_argument("--no-probe", action="store_true", help="send nothing to the others")
    parser.set_defaults(func=run)
    add_output_option(parser)
    add_options(parser, ["state_dir", "bpffs", "bypass", "peers_max", *STORE_SETTINGS])


def run(args: argparse.Namespace) -> int:
    """Print what was found, failures first. Exit code 0 or 1; NotFound for a peer that is none."""
    from ctl.cli.agent import require_capabilities
    from ctl.cli.settings import load
    from ctl.core.diagnosis import Level, verdict

    settings = load(args)
    require_capabilities()
    findings = list(_examine(settings, args))
    order = list(reversed(Level))
    findings.sort(key=lambda finding: (order.index(finding.level), finding.check, finding.seen))
    emit(map(asdict, findings), COLUMNS, args.output)
    return verdict(findings)


def _examine(settings: Settings, args: argparse.Namespace) -> Iterator[Finding]:
    from ctl.cli.status import gather
    from ctl.core import diagnosis

    status, now = gather(settings), time.time()
    report = status.report
    _, why = status.verdict(now)
    problems, warnings = (report.problems, report.warnings) if report else ((), ())
    yield from diagnosis.of_agent(status.alive, why if status.alive else (), problems, warnings)
    try:
        network, snapshot = _stored(settings)
    except StoreError as error:
        yield diagnosis.failure(
            "store",
            str(error),
            "this node hears of no change, and its lease ends",
            "is it up, and reachable from here?",
        )
        return
    yield diagnosis.ok("store", f"{settings.store} answers, {len(snapshot.leases)} leases")
    if report is None:
        yield diagnosis.failure(
            "agent", "none has ever reported here", "nothing is set up", "systemctl start ovnet"
        )
        return
    yield from diagnosis.of_lease(_own(status, snapshot), report.host, now)
    yield from _node(settings, args, status, network, snapshot)


def _stored(settings: Settings) -> tuple[Network, Snapshot]:
    from ctl.store import open_store

    with closing(open_store(settings)) as store:
        network, snapshot = store.read_network(), store.snapshot(fresh=True)
    if network is None:
        raise NotFound(f"no network in {settings.store}: run ovctl network init")
    return network, snapshot


def _own(status: Status, snapshot: Snapshot) -> Lease | None:
    assert status.report is not None
    host = status.report.host
    return next((lease for lease in snapshot.leases if lease.host == host), None)


def _node(
    settings: Settings, args: argparse.Namespace, status: Status, network: Network, snapshot: Snapshot
) -> Iterator[Finding]:
    """What has to do with the kernel. What cannot be looked at is a failure, and the rest is looked at."""
    from ctl.cli.map import SETTLING_S, device_name
    from ctl.core import diagnosis
    from ctl.core.compare import lasting
    from ctl.core.family import IPV4, IPV6
    from ctl.kernel.netlink.session import Netlink
    from ctl.node.compare import differences, stand
    from ctl.node.examine import Examination

    report = status.report
    assert report is not None
    with Netlink() as netlink:
        try:
            site = stand(settings, netlink, report, network, snapshot.leases)
        except NotFound as error:
            yield diagnosis.failure("node", str(error), "nothing can be compared", "ovctl status -o wide")
            return

        def entries() -> Iterator[Finding]:
            found, ignored = differences(settings, netlink, site, snapshot.leases, device_name)
            if found:
                time.sleep(SETTLING_S)
                found = lasting(
                    found, differences(settings, netlink, site, _stored(settings)[1].leases, device_name)[0]
                )
            yield from diagnosis.of_entries(found, report.reconcile.interval, status.alive)
            for line in (*snapshot.problems, *ignored):
                yield diagnosis.warning("leases", line, "that lease is not used", "ovctl lease list")

        examination = Examination(settings, netlink, site, report)
        yield from _look("entries", entries)
        yield from _look("node", examination.own)
        if not args.no_probe:
            peers = _peers(args, network, site.lease, snapshot)
            yield from _look("peers", lambda: _ways(examination, IPV4, peers, report.mtu, network.port))
            if site.has_ipv6:
                yield from _look("peers", lambda: _ways(examination, IPV6, peers, report.mtu, network.port))


def _look(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; that it cannot be taken is a finding too."""
    from ctl.core import diagnosis

    try:
        yield from list(look())
    except OvnetError as error:
        yield diagnosis.failure(check, str(error), "that could not be looked at", "ovctl status -o wide")


def _peers(args: argparse.Namespace, network: Network, own: Lease, snapshot: Snapshot) -> list[Lease]:
    """Those that are asked for. NotFound for one that there is not."""
    from ctl.core.family import IPV4
    from ctl.core.roster import Roster

    roster = Roster(IPV4, own, network)
    roster.update(snapshot.leases)
    peers = [lease for lease in snapshot.leases if lease.subnet in roster.usable]
    if args.peer:
        chosen = [
            lease for lease in peers if {str(lease.host), lease.node, str(lease.subnet)} & set(args.peer)
        ]
        for name in args.peer:
            if not any(name in (str(lease.host), lease.node, str(lease.subnet)) for lease in chosen):
                raise NotFound(f"no peer {name}: ovctl lease list shows them, by subnet, host and node")
        return chosen
    if len(peers) > MOST and not args.all:
        say(f"asking {MOST} of {len(peers)} peers: --all asks each")
        return peers[:MOST]
    return peers


def _ways(
    examination: Examination, family: Family[A, N], peers: Sequence[Lease], mtu: int, port: int
) -> Iterator[Finding]:
    from ctl.core import diagnosis

    members = [each for each in map(family.member, peers) if each and int(each.host)]
    ways = examination.ways(family, members, _progress(2 * len(members)))
    found = [finding for way in ways for finding in diagnosis.of_way(way, mtu, port)]
    yield from found
    if ways and not found:
        by = "" if family.version == 4 else f" by {family}"
        yield diagnosis.ok("peers", f"{len(ways)} of {len(ways)} answer{by}, packets of {mtu} bytes too")


def _progress(steps: int) -> Callable[[], None]:
    """A bar on a terminal, for what takes long; nothing elsewhere."""
    if not sys.stderr.isatty() or steps < 200:
        return lambda: None
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done % 50 == 0 or done >= steps:
            share = min(done / steps, 1)
            sys.stderr.write(f"\r[{'#' * int(30 * share):<30}] {share:4.0%}" + ("\n" if share >= 1 else ""))
            sys.stderr.flush()

    return step
