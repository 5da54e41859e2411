"""`ovctl doctor`: what is wrong with this node and its way to the others, and what mends it.

Exit 0: nothing fails, 1: something does. It changes nothing, and needs no agent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ctl.cli.output import Column, add_output_option, emit, say
from ctl.cli.peers import MOST_PEERS, NoSuchPeer, named, progress
from ctl.core.errors import OvnetError, StoreError
from ctl.core.model import Bypass
from ctl.settings.config import STORE_SETTINGS, Settings, add_options

if TYPE_CHECKING:
    from ctl.backend.site import Site
    from ctl.cli.map import Looked
    from ctl.core.compare import Difference
    from ctl.core.diagnosis.finding import Finding
    from ctl.core.family import Family
    from ctl.core.model import A, Lease, N, Network, Snapshot
    from ctl.core.report import AgentReport
    from ctl.kernel.netlink.session import Netlink
    from ctl.node.examine import Examination

COLUMNS: Final = ("level", "check", Column("seen"), Column("means", wide=True), Column("remedy"))
MOST_INSIDE: Final = 256
"""How many containers are looked into unless all are: 2 ms of a processor each."""
T = TypeVar("T")


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
    from ctl.cli.map import stored
    from ctl.cli.status import gather
    from ctl.core.diagnosis import member, node
    from ctl.core.diagnosis.finding import failure, ok
    from ctl.core.report import full_maps, without_room

    status, now = gather(settings), time.time()
    report, fill = status.report, status.datapath.fill
    full, known = without_room(fill), full_maps(fill)
    begin = tuple(f"map {name} is full" for name in full)
    known += [line for line in (report.problems if report else ()) if line.startswith(begin)]
    if status.alive and report and report.program and status.maps_error:
        yield node.of_hidden_maps(str(settings.bpffs), status.maps_error)
        known.append(status.maps_error)
        settings = replace(settings, bypass=Bypass.OFF)  # the rest is looked at without maps
    yield from node.of_maps(fill, _approved(settings))
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
            checkup = _Checkup(settings, args, report, network, snapshot, now, known, full)
            yield from checkup.findings(status.alive)
    _, why = status.verdict(now)
    problems, warnings = (report.problems, report.warnings) if report else ((), ())
    if report or not status.alive:
        yield from member.of_agent(status.alive, why if status.alive else (), problems, warnings, known)


def _approved(settings: Settings) -> int:
    """How many flows may bypass, where the map of them is nearly full; else it does not matter."""
    from ctl.kernel.bpf.maps import open_maps

    try:
        with open_maps(str(settings.bpffs)) as maps:
            entries, size = maps.fill()["flows"]
            entry = maps.node()
            if entry is None or entries < 0.9 * size:
                return 0
            since = time.monotonic_ns() - entry.approval_ttl_ns
            return sum(each.approved_ns > since for each in maps.flows().values())
    except OvnetError:
        return 0  # told elsewhere


class _Checkup:
    """A node that an agent has reported of, and a store that answers.

    `known`: the agent's lines that need not be told again; it grows. `full`: maps that take no new entry.
    """

    def __init__(
        self,
        settings: Settings,
        args: argparse.Namespace,
        report: AgentReport,
        network: Network,
        snapshot: Snapshot,
        now: float,
        known: list[str],
        full: Collection[str],
    ) -> None:
        self._settings, self._args, self._report = settings, args, report
        self._network, self._snapshot, self._now, self._known = network, snapshot, now, known
        self._full = full
        self._differing: list[Difference] = []
        """Entries that are not as the leases ask, once they were looked at."""

    def findings(self, alive: bool) -> Iterator[Finding]:
        """About the lease, and about the kernel if there is one. What cannot be looked at is a failure."""
        from ctl.core.diagnosis import member
        from ctl.kernel.netlink.session import Netlink
        from ctl.node.compare import own_lease

        report, network, leases = self._report, self._network, self._snapshot.leases
        own = own_lease(leases, report)
        had = report.lease.subnet if report.lease else None
        holder = next((lease for lease in leases if lease.subnet == had), None)
        yield from member.of_lease(own, holder, report.host, self._now, self._settings.lease_ttl)
        if report.lease and report.lease.conflict:
            self._known.append(f"lease conflict: {report.lease.conflict}")
        if alive:
            yield from member.of_network(report, network.port, network.vni, network.backend)
        if own is not None:
            with Netlink() as netlink:
                yield from _look("node", lambda: self._node(netlink, alive))

    def _node(self, netlink: Netlink, alive: bool) -> Iterator[Finding]:
        from ctl.core.family import IPV4, IPV6
        from ctl.node.compare import stand
        from ctl.node.examine import Examination

        site = stand(self._settings, netlink, self._report, self._network, self._snapshot.leases)
        examination = Examination(self._settings, netlink, site, self._report)
        yield from _look("entries", lambda: self._entries(netlink, site, alive))
        for check in ("own", "bridge", "runtimes", "addresses", "rules", "others"):
            yield from _look(check, getattr(examination, check))
        ports = self._some(examination.ports(), MOST_INSIDE, "containers are looked into")
        yield from _look("containers", lambda: examination.containers(ports))
        self._known += examination.told
        peers = self._peers(site)
        yield from self._renewals(peers)
        if not self._args.no_probe:
            yield from _look("peers", lambda: self._ways(examination, IPV4, peers))
            if site.has_ipv6:
                yield from _look("peers", lambda: self._ways(examination, IPV6, peers))

    def _entries(self, netlink: Netlink, site: Site, alive: bool) -> Iterator[Finding]:
        from ctl.cli.map import device_name, settled, stored
        from ctl.core.diagnosis import member, node
        from ctl.node.compare import differences

        def look() -> Looked:
            leases = stored(self._settings)[1].leases
            return differences(self._settings, netlink, site, leases, device_name)

        differing, ignored = settled(look)
        self._differing = node.with_room(differing, self._full)
        yield from node.of_entries(self._differing, self._report.reconcile.interval, alive)
        yield from member.of_unused(ignored, self._snapshot.problems)
        self._known += (*ignored, *self._snapshot.problems)

    def _renewals(self, peers: Sequence[Lease]) -> Iterator[Finding]:
        from ctl.core.diagnosis import member

        margin = min(self._settings.renew_margin, self._settings.lease_ttl / 2)
        return member.of_renewals(peers, self._now, margin)

    def _peers(self, site: Site) -> Sequence[Lease]:
        """Those that are asked for. NoSuchPeer for one that there is not."""
        from ctl.node.reach import usable

        peers = usable(site, self._snapshot.leases)
        if self._args.peer:
            return named(peers, self._args.peer)
        return self._some(peers, MOST_PEERS, "peers are asked")

    def _some(self, each: Sequence[T], most: int, what: str) -> Sequence[T]:
        """The first of them, if there are more than `most`, which is said; all with --all."""
        if len(each) <= most or self._args.all:
            return each
        say(f"{most} of {len(each)} {what}: all of them with --all")
        return each[:most]

    def _ways(
        self, examination: Examination, family: Family[A, N], peers: Sequence[Lease]
    ) -> Iterator[Finding]:
        """A peer whose entries differ is not asked: why it does not answer is told."""
        from ctl.core.diagnosis.finding import ok
        from ctl.core.diagnosis.way import of_way

        told = {word for each in self._differing for word in each.key.split()}
        asked = [
            each
            for each in map(family.member, peers)
            if each and int(each.host)
            if not told & {str(word) for word in (each.subnet, each.overlay_hop, each.vtep_mac, each.host)}
        ]
        mtu = self._report.mtu
        with progress(4 * len(asked)) as step:  # small packets and large ones, each twice
            ways = examination.ways(family, asked, step)
        found = [finding for way in ways for finding in of_way(way, mtu, self._network.port)]
        yield from found
        if ways and not found:
            by = "" if family.version == 4 else f" by {family}"
            yield ok("peers", f"{len(ways)} of {len(ways)} answer{by}, packets of {mtu} bytes too")


def _look(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; that it cannot be taken is a finding too. NoSuchPeer."""
    from ctl.core.diagnosis.finding import failure

    try:
        yield from list(look())
    except NoSuchPeer:
        raise
    except OvnetError as error:
        yield failure(check, str(error), "that could not be looked at", "ovctl status -o wide")
