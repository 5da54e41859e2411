"""What `ovctl doctor` looks at where an agent has reported and the store answers: lease, kernel, peers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ctl.backend.site import Site
from ctl.cli.doctor import MOST_INSIDE
from ctl.cli.map import Looked, device_name, settled, stored
from ctl.cli.peers import NoSuchPeer, chosen, first, progress
from ctl.core.compare import Difference
from ctl.core.diagnosis import member, node
from ctl.core.diagnosis.finding import Finding, failure, ok
from ctl.core.diagnosis.way import of_way
from ctl.core.errors import OvnetError
from ctl.core.family import IPV4, IPV6, Family
from ctl.core.model import A, Lease, N, Network, Snapshot
from ctl.core.report import AgentReport
from ctl.kernel.netlink.session import Netlink
from ctl.node.compare import differences, own_lease, stand
from ctl.node.examine import Examination
from ctl.node.reach import usable
from ctl.settings.config import Settings


@dataclass(frozen=True, slots=True)
class Case:
    """What is known before anything is looked at."""

    report: AgentReport
    """The agent's last one."""
    network: Network
    snapshot: Snapshot
    """The store's leases."""
    now: float
    """Seconds since the epoch."""
    alive: bool
    """Whether the agent runs."""
    full: Collection[str]
    """Maps that take no new entry."""


class Checkup:
    """Looks at such a node. `known`: the agent's lines that need not be told again; it grows."""

    def __init__(self, settings: Settings, args: argparse.Namespace, case: Case, known: list[str]) -> None:
        self._settings, self._args, self._case, self._known = settings, args, case, known
        self._differing: list[Difference] = []
        """Entries that are not as the leases ask, once they were looked at."""

    def findings(self) -> Iterator[Finding]:
        """About the lease, and about the kernel if there is one. What cannot be looked at is a failure."""
        report, network, leases = self._case.report, self._case.network, self._case.snapshot.leases
        own = own_lease(leases, report)
        had = report.lease.subnet if report.lease else None
        holder = next((lease for lease in leases if lease.subnet == had), None)
        yield from member.of_lease(own, holder, report.host, self._case.now, self._settings.lease_ttl)
        if report.lease and report.lease.conflict:
            self._known.append(f"lease conflict: {report.lease.conflict}")
        if self._case.alive:
            yield from member.of_network(report, network.port, network.vni, network.backend)
        if own is not None:
            with Netlink() as netlink:
                yield from _look("node", lambda: self._node(netlink))

    def _node(self, netlink: Netlink) -> Iterator[Finding]:
        site = stand(
            self._settings, netlink, self._case.report, self._case.network, self._case.snapshot.leases
        )
        examination = Examination(self._settings, netlink, site, self._case.report)
        yield from _look("entries", lambda: self._entries(netlink, site))
        for check in ("own", "bridge", "runtimes", "addresses", "rules", "others"):
            yield from _look(check, getattr(examination, check))
        everyone, what = self._args.all, "containers are looked into"
        ports = first(examination.ports(), MOST_INSIDE, what, everyone=everyone)
        yield from _look("containers", lambda: examination.containers(ports))
        self._known += examination.told
        peers = chosen(usable(site, self._case.snapshot.leases), self._args.peer, everyone=everyone)
        yield from self._renewals(peers)
        if not self._args.no_probe:
            yield from _look("peers", lambda: self._ways(examination, IPV4, peers))
            if site.has_ipv6:
                yield from _look("peers", lambda: self._ways(examination, IPV6, peers))

    def _entries(self, netlink: Netlink, site: Site) -> Iterator[Finding]:
        def look() -> Looked:
            leases = stored(self._settings)[1].leases
            return differences(self._settings, netlink, site, leases, device_name)

        differing, ignored = settled(look)
        self._differing = node.with_room(differing, self._case.full)
        yield from node.of_entries(self._differing, self._case.report.reconcile.interval, self._case.alive)
        yield from member.of_unused(ignored, self._case.snapshot.problems)
        self._known += (*ignored, *self._case.snapshot.problems)

    def _renewals(self, peers: Sequence[Lease]) -> Iterator[Finding]:
        margin = min(self._settings.renew_margin, self._settings.lease_ttl / 2)
        return member.of_renewals(peers, self._case.now, margin)

    def _ways(
        self, examination: Examination, family: Family[A, N], peers: Sequence[Lease]
    ) -> Iterator[Finding]:
        """A peer whose entries differ is not asked: why it does not answer is told."""
        told = {word for each in self._differing for word in each.key.split()}
        asked = [
            each
            for each in map(family.member, peers)
            if each and int(each.host)
            if not told & {str(word) for word in (each.subnet, each.overlay_hop, each.vtep_mac, each.host)}
        ]
        mtu = self._case.report.mtu
        with progress(2 * len(asked)) as step:  # small packets and large ones
            ways = examination.ways(family, asked, step)
        found = [finding for way in ways for finding in of_way(way, mtu, self._case.network.port)]
        yield from found
        if ways and not found:
            by = "" if family.version == 4 else f" by {family}"
            yield ok("peers", f"{len(ways)} of {len(ways)} answer{by}, packets of {mtu} bytes too")


def _look(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; that it cannot be taken is a finding too. NoSuchPeer."""
    try:
        yield from list(look())
    except NoSuchPeer:
        raise
    except OvnetError as error:
        yield failure(check, str(error), "that could not be looked at", "ovctl status -o wide")
