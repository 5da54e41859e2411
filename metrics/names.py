"""The one table of metrics: name, type, labels, help.

docs/metrics.md holds the same table: `python -m tests.docs` renews it.
A name or label that is here stays: dashboards outlive releases.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """Prometheus' type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric; `labels` in the order of its values."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(f"ovnet_{name}_total", Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(f"ovnet_{name}", Kind.GAUGE, text, labels)


PACKETS: Final = _counter(
    "packets",
    "Packets seen by each program, by what became of them and why, of IPv4 and IPv6",
    "hook",
    "verdict",
    "reason",
)
BYTES: Final = _counter("bytes", "Bytes of the packets of ovnet_packets_total", "hook", "verdict", "reason")
DROPS: Final = _counter("drop_packets", "Packets dropped by the datapath", "reason", "hook")

RULE_DROPS: Final = _counter(
    "rule_drop_packets", "Packets that our nftables rules have dropped, by the rule's comment", "rule"
)
BLIND: Final = _gauge(
    "program_blind",
    "1 if packets pass where a program hangs and it does not see them: someone else's ends what runs there",
    "hook",
)

PEER_RX_BYTES: Final = _counter("peer_receive_bytes", "Bytes that eBPF received from a peer's host", "peer")
PEER_RX_PACKETS: Final = _counter(
    "peer_receive_packets", "Packets that eBPF received from a peer's host", "peer"
)
PEER_TX_BYTES: Final = _counter("peer_transmit_bytes", "Bytes that eBPF sent to a peer's host", "peer")
PEER_TX_PACKETS: Final = _counter("peer_transmit_packets", "Packets that eBPF sent to a peer's host", "peer")

PEER_REACHABLE: Final = _gauge(
    "peer_reachable",
    "1 if the peer at this host has answered the last echoes of --probe-interval on the overlay, else 0",
    "peer",
)
PEER_ROUND_TRIP: Final = _gauge(
    "peer_round_trip_seconds", "Round trip of the last such echo; absent if it was not answered", "peer"
)
PEER_PATH_MTU: Final = _gauge(
    "peer_path_mtu_bytes", "The largest packet that the peer has answered on the overlay", "peer"
)

UDP_PACKETS: Final = _counter(
    "udp_packets", "Packets that the udp backend's forwarder sent to peers or received from them", "direction"
)
UDP_BYTES: Final = _counter("udp_bytes", "Bytes of the packets of ovnet_udp_packets_total", "direction")
UDP_DROPS: Final = _counter("udp_drop_packets", "Packets that the udp forwarder dropped", "reason")
UDP_ICMP: Final = _counter(
    "udp_icmp_errors", "ICMP errors of the udp forwarder: sent, or limited (not sent, too many)", "result"
)
UDP_TABLE_ERRORS: Final = _counter(
    "udp_table_errors", "Tables of peers that the udp forwarder could not read"
)

MAP_ENTRIES: Final = _gauge("map_entries", "Entries in a map; those of IPv6 are ipv6_peers and so on", "map")
MAP_CAPACITY: Final = _gauge("map_capacity_entries", "Entries that a map can hold", "map")
MAP_PRESSURE: Final = _gauge(
    "map_pressure_ratio", "Entries of a map divided by its capacity; 1 is full", "map"
)

PEERS: Final = _gauge("peers", "Peers by the path to them: ebpf or kernel_path only", "state")
PORTS: Final = _gauge("ports", "Ports: attached (carry our programs) or kernel_path only", "state")
LEASES: Final = _gauge("leases", "Live leases in the store, this node's included")
LEASE_EXPIRY: Final = _gauge(
    "lease_expiry_timestamp_seconds", "When this node's lease ends; absent for a reservation"
)
LEASE_CONFLICT: Final = _gauge(
    "lease_conflict", "1 if this node has lost its subnet: it is fenced, and takes no new containers"
)

STORE_UP: Final = _gauge("store_up", "1 if the last call to the lease store succeeded")
STORE_SUCCESS: Final = _gauge("store_last_success_timestamp_seconds", "When the lease store last answered")

RECONCILES: Final = _counter("reconciles", "Reconciles by result: ok or failed", "result")
RECONCILE_DURATION: Final = _gauge("reconcile_last_duration_seconds", "How long the last reconcile took")
RECONCILE_SUCCESS: Final = _gauge(
    "reconcile_last_success_timestamp_seconds", "When a reconcile last succeeded"
)
RECONCILE_INTERVAL: Final = _gauge("reconcile_interval_seconds", "Time between two full reconciles")
RECONCILE_BACK_OFF: Final = _gauge(
    "reconcile_back_off_seconds", "Wait before the next try after a failed reconcile; 0 if none failed"
)
OPERATIONS: Final = _counter("reconcile_operations", "Entries put or removed, by table", "table")

READY: Final = _gauge("ready", "1 if this node can take containers")
LOSING: Final = _gauge(
    "losing_packets",
    "1 if all packets of containers are lost: out (none comes as far as the vxlan device), in (none of other "
    "nodes' as far as a container) or answers (nothing comes back from other nodes)",
    "way",
)
SILENT: Final = _gauge(
    "silent_peers", "Peers that packets go to and nothing comes back from, not even an echo"
)
PROBLEMS: Final = _gauge("problems", "Problems that `ovctl status` lists")
APPROVAL_TTL: Final = _gauge(
    "approval_ttl_seconds", "How long eBPF may carry a flow before the kernel path sees it again"
)
MTU: Final = _gauge("mtu_bytes", "Largest inner IP packet")
START_TIME: Final = _gauge("start_time_seconds", "When the agent started, seconds since the epoch")
BUILD_INFO: Final = _gauge(
    "build_info", "Always 1; the agent's version and the digest of its programs", "version", "program"
)
NODE_INFO: Final = _gauge(
    "node_info",
    "Always 1; who this node is",
    "node",
    "host",
    "subnet",
    "network",
    "backend",
    "bridge",
    "uplink",
)
HOOK_REFUSED: Final = _gauge(
    "hook_refused",
    "1 if XDP was asked for and the driver or the kernel refused it: packets are decapsulated at tc",
)
BYPASS_INFO: Final = _gauge("bypass_info", "Always 1; bypass mode and hook in use", "mode", "hook")
SCRAPE_ERRORS: Final = _counter("scrape_errors", "Scrapes that could not read the maps")

TABLE: Final[tuple[Family, ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Family)
)
"""All metrics of ours, in the order of this file."""
