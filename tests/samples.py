"""A node that has seen everything: one value of each field that status and metrics show."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from ctl.backend.udp import stats
from ctl.core.abi import Counter, Hook, PeerStats
from ctl.core.model import Bypass
from ctl.core.probing import Probed
from ctl.core.reasons import REASONS
from ctl.core.report import AgentReport, Datapath, KernelPort, LeaseReport, ReconcileReport, StoreReport
from metrics.snapshot import NodeSnapshot

NOW = 1_700_000_000.0

REPORT = AgentReport(
    version="1.2.3",
    pid=4711,
    node="alpha",
    started_at=NOW - 3600,
    host=IPv4Address("192.168.50.1"),
    store=StoreReport("sqlite:///var/lib/ovnet/store.db", up=True, last_success=NOW - 2),
    reconcile=ReconcileReport(
        interval=60.0,
        ok=12,
        failed=1,
        last_duration=0.021,
        last_success=NOW - 5,
        operations={"peers": 7, "routes": 9},
    ),
    network=IPv4Network("172.17.0.0/16"),
    lease=LeaseReport(IPv4Network("172.17.1.0/24"), NOW + 80_000, NOW + 76_400),
    vni=1,
    port=8472,
    mtu=1450,
    bridge="ovnet0",
    uplink="eth0",
    bypass=Bypass.LEARNED,
    approval_ttl=5.0,
    program="0f1e2d3c",
    ready=True,
    leases=3,
    peers_ebpf=2,
    peers_kernel_path=1,
    ports=("veth1", "veth2"),
    kernel_ports=(KernelPort("veth3", "someone else's tc filter at prio 1"),),
    problems=("veth3: someone else's tc filter at prio 1",),
)

EARLY = AgentReport(
    version="1.2.3",
    pid=4711,
    node="alpha",
    started_at=NOW,
    host=IPv4Address("192.168.50.1"),
    store=StoreReport("sqlite:///x", error="no such file"),
    reconcile=ReconcileReport(interval=60.0, failed=1, error="store unreachable"),
    not_ready=("the store has no network yet",),
)
"""An agent that has no network, no lease and no programs yet."""

DATAPATH = Datapath(
    counters={
        (hook, number): Counter(10 * number + hook, 1000 * number) for hook in Hook for number in REASONS
    },
    peer_stats={
        IPv4Address("192.168.50.2"): PeerStats(1, 2, 3, 4),
        IPv4Address("192.168.50.3"): PeerStats(5, 6, 7, 8),
    },
    fill={"peers": (3, 16384), "endpoints": (2, 4096), "flows": (100, 65536), "peer_stats": (2, 16384)},
)

FORWARDER = {name: 100 + number for number, name in enumerate(stats.NAMES)}
"""Of another backend than the report's: here to fill every metric."""

RULES = {"VXLAN of no peer": 3, "no relaying": 0}

PROBED: dict[IPv4Address | IPv6Address, Probed] = {
    IPv4Address("192.168.50.2"): Probed(1, (0.0003,), 1450),
    IPv4Address("192.168.50.3"): Probed(1, ()),
    IPv6Address("fd77::2"): Probed(1, (0.0004,), 1350),
}

SNAPSHOT = NodeSnapshot(REPORT, DATAPATH, FORWARDER, RULES, PROBED)


def report(**changes: object) -> AgentReport:
    """REPORT with some fields changed."""
    return replace(REPORT, **changes)  # type: ignore[arg-type]
