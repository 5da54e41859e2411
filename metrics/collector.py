"""From one snapshot to metric families, and the collector that takes the snapshot.

The only state is the count of failed scrapes. The registry is our own, so nothing of
prometheus_client's global one is exposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from ctl.core.abi import Hook, Ip
from ctl.core.errors import OvnetError
from ctl.core.losing import Way
from ctl.core.probing import Probed
from ctl.core.reasons import REASONS, Verdict, reason
from ctl.core.report import AgentReport, Datapath, LeaseReport, ReconcileReport, StoreReport
from metrics import names
from metrics.names import Family, Kind
from metrics.snapshot import NodeSnapshot

Source: TypeAlias = Callable[[], NodeSnapshot]
"""Takes a scrape's snapshot; called from the server's threads, one at a time."""

Sample: TypeAlias = tuple[Family, float, tuple[str, ...]]

WATCHED: Final = (Hook.FROM_WIRE, Hook.TO_OVERLAY)
"""Programs of which it is known whether they see what passes."""

_DROPPED: Final = (Verdict.DROP, Verdict.ABORT)


def families(snapshot: NodeSnapshot, scrape_errors: int = 0) -> list[Metric]:
    """The families of a snapshot that have a value, in the order of the table."""
    filled = {row: _empty(row) for row in names.TABLE}
    for row, value, labels in _samples(snapshot, scrape_errors):
        filled[row].add_metric(labels, value)
    return [family for family in filled.values() if family.samples]


def _empty(row: Family) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if row.kind is Kind.COUNTER else GaugeMetricFamily
    return kind(row.name, row.help, labels=row.labels)


def _samples(snapshot: NodeSnapshot, scrape_errors: int) -> Iterable[Sample]:
    yield names.SCRAPE_ERRORS, scrape_errors, ()
    if snapshot.datapath is not None:
        yield from _packets(snapshot.datapath)
        yield from _drops(snapshot.datapath)
        yield from _peer_traffic(snapshot.datapath)
        yield from _maps(snapshot.datapath)
    yield from _probed(snapshot.probed)
    yield from _forwarder(snapshot.forwarder)
    for rule, packets in snapshot.rules.items():
        yield names.RULE_DROPS, packets, (rule,)
    if snapshot.report is not None:
        yield from _node(snapshot.report)
        yield from _store(snapshot.report.store)
        yield from _reconcile(snapshot.report.reconcile)
        yield from _lease(snapshot.report.lease)


def _packets(datapath: Datapath) -> Iterable[Sample]:
    for (hook, number), counter in sorted(datapath.counters.items()):
        row = reason(number)
        labels = (hook.label, row.verdict.value, row.label)
        yield names.PACKETS, counter.packets, labels
        yield names.BYTES, counter.bytes, labels


def _drops(datapath: Datapath) -> Iterable[Sample]:
    """Known drops are there from the start, at 0: an alert must see the first one rise."""
    hooks = {Hook.FROM_WIRE} | {hook for hook, _ in datapath.counters if hook is Hook.FROM_WIRE_XDP}
    packets = {
        (hook, number): 0 for hook in hooks for number, row in REASONS.items() if row.verdict in _DROPPED
    }
    packets |= {
        (hook, number): counter.packets
        for (hook, number), counter in datapath.counters.items()
        if reason(number).verdict in _DROPPED
    }
    for (hook, number), count in sorted(packets.items()):
        yield names.DROPS, count, (reason(number).label, hook.label)


def _peer_traffic(datapath: Datapath) -> Iterable[Sample]:
    for host in sorted(datapath.peer_stats, key=_place):
        stats, peer = datapath.peer_stats[host], (str(host),)
        yield names.PEER_RX_BYTES, stats.rx_bytes, peer
        yield names.PEER_RX_PACKETS, stats.rx_packets, peer
        yield names.PEER_TX_BYTES, stats.tx_bytes, peer
        yield names.PEER_TX_PACKETS, stats.tx_packets, peer


def _place(host: Ip) -> tuple[int, int]:
    """Sorts addresses of both families."""
    return host.version, int(host)


def _probed(probed: Mapping[IPv4Address | IPv6Address, Probed]) -> Iterable[Sample]:
    for host in sorted(probed, key=_place):
        each, peer = probed[host], (str(host),)
        yield names.PEER_REACHABLE, each.reachable, peer
        if each.times:
            yield names.PEER_ROUND_TRIP, min(each.times), peer
        if each.largest:
            yield names.PEER_PATH_MTU, each.largest, peer


def _maps(datapath: Datapath) -> Iterable[Sample]:
    for name, (entries, capacity) in sorted(datapath.fill.items()):
        yield names.MAP_ENTRIES, entries, (name,)
        yield names.MAP_CAPACITY, capacity, (name,)
        if capacity:
            yield names.MAP_PRESSURE, entries / capacity, (name,)


def _forwarder(counters: Mapping[str, int]) -> Iterable[Sample]:
    if not counters:
        return
    for way, name in (("transmit", "tx"), ("receive", "rx")):
        yield names.UDP_PACKETS, counters[f"{name}_packets"], (way,)
        yield names.UDP_BYTES, counters[f"{name}_bytes"], (way,)
    for name, count in counters.items():
        if name.startswith("drop_"):
            yield names.UDP_DROPS, count, (name.removeprefix("drop_"),)
    for result in ("sent", "limited"):
        yield names.UDP_ICMP, counters[f"icmp_{result}"], (result,)
    yield names.UDP_TABLE_ERRORS, counters["table_errors"], ()


def _node(report: AgentReport) -> Iterable[Sample]:
    yield names.BUILD_INFO, 1, (report.version, report.program)
    yield names.BYPASS_INFO, 1, (report.bypass.value, report.hook)
    yield names.HOOK_REFUSED, bool(report.hook_refused), ()
    yield names.NODE_INFO, 1, _identity(report)
    yield names.START_TIME, report.started_at, ()
    if report.program:
        for hook in WATCHED:
            yield names.BLIND, hook.label in report.blind, (hook.label,)
    yield names.READY, report.ready, ()
    yield names.PROBLEMS, len(report.problems), ()
    if report.program:
        for way in Way:
            yield names.LOSING, way in report.losing, (way,)
        yield names.SILENT, report.peers_silent, ()
    yield names.APPROVAL_TTL, report.approval_ttl, ()
    yield names.MTU, report.mtu, ()
    yield names.LEASES, report.leases, ()
    yield names.PEERS, report.peers_ebpf, ("ebpf",)
    yield names.PEERS, report.peers_kernel_path, ("kernel_path",)
    yield names.PORTS, len(report.ports), ("attached",)
    yield names.PORTS, len(report.kernel_ports), ("kernel_path",)


def _identity(report: AgentReport) -> tuple[str, ...]:
    subnet = str(report.lease.subnet) if report.lease else ""
    network = str(report.network or "")
    return (report.node, str(report.host), subnet, network, report.backend, report.bridge, report.uplink)


def _store(store: StoreReport) -> Iterable[Sample]:
    yield names.STORE_UP, store.up, ()
    if store.last_success is not None:
        yield names.STORE_SUCCESS, store.last_success, ()


def _reconcile(reconcile: ReconcileReport) -> Iterable[Sample]:
    yield names.RECONCILES, reconcile.ok, ("ok",)
    yield names.RECONCILES, reconcile.failed, ("failed",)
    yield names.RECONCILE_DURATION, reconcile.last_duration, ()
    yield names.RECONCILE_INTERVAL, reconcile.interval, ()
    yield names.RECONCILE_BACK_OFF, reconcile.back_off, ()
    if reconcile.last_success is not None:
        yield names.RECONCILE_SUCCESS, reconcile.last_success, ()
    for table, count in sorted(reconcile.operations.items()):
        yield names.OPERATIONS, count, (table,)


def _lease(lease: LeaseReport | None) -> Iterable[Sample]:
    if lease is None:
        return
    yield names.LEASE_CONFLICT, bool(lease.conflict), ()
    if lease.expires_at is not None:
        yield names.LEASE_EXPIRY, lease.expires_at, ()


class NodeCollector(Collector):
    """Takes one snapshot per scrape. A source that fails is a number, never an exception."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._errors = 0

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not touch the maps."""
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            snapshot = self._source()
        except OvnetError as error:
            snapshot = NodeSnapshot(error=str(error))
        self._errors += bool(snapshot.error)
        return families(snapshot, self._errors)


def registry(source: Source) -> CollectorRegistry:
    """A registry of our own with the node's and the process's metrics."""
    own = CollectorRegistry()
    own.register(NodeCollector(source))
    ProcessCollector(registry=own)
    return own
