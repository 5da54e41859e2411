from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from ctl.backend.udp import stats
from ctl.core.abi import Counter, Hook, Ip, PeerStats
from ctl.core.errors import KernelError
from ctl.core.reasons import REASONS, Verdict
from ctl.core.report import Datapath
from metrics import names
from metrics.collector import NodeCollector, families, registry
from metrics.names import Kind
from metrics.snapshot import NodeSnapshot, take
from tests.samples import DATAPATH, EARLY, FORWARDER, REPORT, SNAPSHOT, report

NOWHERE = Path("/nonexistent")


def samples(metrics: list[Metric]) -> dict[tuple[str, ...], float]:
    """(name, label=value, ...) -> value."""
    return {
        (sample.name, *(f"{k}={v}" for k, v in sample.labels.items())): sample.value
        for family in metrics
        for sample in family.samples
    }


def test_the_table_keeps_prometheus_naming_rules() -> None:
    seen = set()
    for row in names.TABLE:
        assert re.fullmatch(r"ovnet_[a-z]+(_[a-z]+)*", row.name)
        assert row.name.endswith("_total") is (row.kind is Kind.COUNTER)
        assert not row.help.endswith(".")
        assert row.name not in seen
        seen.add(row.name)


def test_a_full_snapshot_fills_every_metric_of_the_table() -> None:
    found = samples(families(SNAPSHOT))
    assert {name for name, *_ in found} == {row.name for row in names.TABLE}


def test_values_reach_their_metrics() -> None:
    found = samples(families(SNAPSHOT, scrape_errors=2))
    assert found["ovnet_packets_total", "hook=from_wire", "verdict=bypass", "reason=decap"] == 22
    assert found["ovnet_bytes_total", "hook=from_wire", "verdict=bypass", "reason=decap"] == 2000
    assert found["ovnet_drop_packets_total", "reason=unknown_vtep", "hook=from_wire"] == 402
    assert found["ovnet_peer_transmit_bytes_total", "peer=192.168.50.3"] == 8
    assert found["ovnet_map_pressure_ratio", "map=peers"] == pytest.approx(3 / 16384)
    assert found["ovnet_peers", "state=kernel_path"] == 1
    assert found["ovnet_ports", "state=attached"] == 2
    assert found["ovnet_reconciles_total", "result=failed"] == 1
    assert found["ovnet_reconcile_operations_total", "table=routes"] == 9
    assert found["ovnet_bypass_info", "mode=learned", "hook=tc"] == 1
    assert found["ovnet_build_info", "version=1.2.3", "program=0f1e2d3c"] == 1
    assert found["ovnet_scrape_errors_total",] == 2
    assert found["ovnet_rule_drop_packets_total", "rule=VXLAN of no peer"] == 3
    assert found["ovnet_program_blind", "hook=from_wire"] == 0
    assert found["ovnet_udp_packets_total", "direction=transmit"] == FORWARDER["tx_packets"]
    assert found["ovnet_udp_bytes_total", "direction=receive"] == FORWARDER["rx_bytes"]
    assert found["ovnet_udp_icmp_errors_total", "result=limited"] == FORWARDER["icmp_limited"]
    drops = {key[1] for key in found if key[0] == "ovnet_udp_drop_packets_total"}
    assert drops == {f"reason={name[5:]}" for name in stats.NAMES if name.startswith("drop_")}
    assert found["ovnet_udp_drop_packets_total", "reason=spoofed"] == FORWARDER["drop_spoofed"]


def test_the_udp_forwarders_counters_are_read_from_what_it_leaves(tmp_path: Path) -> None:
    udp = report(backend="udp")
    assert take(udp, None, tmp_path) == NodeSnapshot(udp), "it has not been started yet"
    (tmp_path / "udp").mkdir()
    counters = stats.create(str(tmp_path / "udp" / "stats"))
    counters[stats.TX_PACKETS] = 7
    assert take(udp, None, tmp_path).forwarder["tx_packets"] == 7
    assert take(report(backend="host-gw"), None, tmp_path).forwarder == {}, "left by an earlier backend"
    (tmp_path / "udp" / "stats").write_bytes(b"short")
    snapshot = take(udp, None, tmp_path)
    assert "cannot read the udp forwarder's counters" in snapshot.error
    assert not [key for key in samples(families(snapshot)) if key[0].startswith("ovnet_udp")]


def test_drops_are_there_before_the_first_one() -> None:
    found = samples(families(NodeSnapshot(None, Datapath())))
    drops = {key for key in found if key[0] == "ovnet_drop_packets_total"}
    refused = [row for row in REASONS.values() if row.verdict in (Verdict.DROP, Verdict.ABORT)]
    assert drops == {("ovnet_drop_packets_total", f"reason={row.label}", "hook=from_wire") for row in refused}
    assert set(found.values()) == {0}


def test_drops_of_xdp_are_there_where_xdp_is() -> None:
    found = samples(families(NodeSnapshot(None, Datapath({(Hook.FROM_WIRE_XDP, 5): Counter(1, 60)}))))
    for hook in ("from_wire", "from_wire_xdp"):
        assert found["ovnet_drop_packets_total", "reason=unknown_vtep", f"hook={hook}"] == 0


def test_a_hook_that_the_driver_refused_is_a_number() -> None:
    refused = replace(REPORT, hook_refused="eth0: XDP: no")
    assert samples(families(NodeSnapshot(REPORT)))["ovnet_hook_refused",] == 0
    assert samples(families(NodeSnapshot(refused)))["ovnet_hook_refused",] == 1


def test_a_program_that_sees_nothing_is_a_number_where_there_are_programs() -> None:
    found = samples(families(NodeSnapshot(report(blind=("from_wire",)))))
    assert found["ovnet_program_blind", "hook=from_wire"] == 1
    assert found["ovnet_program_blind", "hook=to_overlay"] == 0
    off = samples(families(NodeSnapshot(report(program=""))))
    assert not [key for key in off if key[0] == "ovnet_program_blind"]


def test_only_what_counted_is_exposed_and_a_newer_reason_is_not_hidden() -> None:
    snapshot = NodeSnapshot(None, Datapath({(Hook.TO_OVERLAY, 63): Counter(5, 6)}))
    packets = {key: value for key, value in samples(families(snapshot)).items() if "packets_total" in key[0]}
    assert packets.pop(("ovnet_packets_total", "hook=to_overlay", "verdict=pass", "reason=reason_63")) == 5
    assert all(key[0] == "ovnet_drop_packets_total" for key in packets)


def test_the_number_of_series_is_bounded() -> None:
    extra = 4 * len(DATAPATH.peer_stats) + 3 * len(DATAPATH.fill)
    assert len(samples(families(SNAPSHOT))) < 2.5 * len(Hook) * len(REASONS) + extra + 50


def test_an_early_node_has_no_lease_metrics_and_no_subnet() -> None:
    found = samples(families(NodeSnapshot(EARLY)))
    assert not [key for key in found if "lease_expiry" in key[0] or "last_success" in key[0]]
    assert found["ovnet_ready",] == 0
    assert found["ovnet_store_up",] == 0


def test_a_reservation_has_no_expiry() -> None:
    assert REPORT.lease is not None
    reserved = report(lease=replace(REPORT.lease, expires_at=None, renew_at=None))
    found = samples(families(NodeSnapshot(reserved)))
    assert not [key for key in found if "expiry" in key[0]]


class BrokenMaps:
    def counters(self) -> dict[tuple[Hook, int], Counter]:
        raise KernelError("cannot read map counters: Operation not permitted")

    peer_stats = fill = counters


def test_unreadable_maps_leave_the_reports_metrics_and_are_counted() -> None:
    collector = NodeCollector(lambda: take(REPORT, BrokenMaps(), NOWHERE))  # type: ignore[arg-type]
    list(collector.collect())
    found = samples(list(collector.collect()))
    assert found["ovnet_scrape_errors_total",] == 2
    assert found["ovnet_ready",] == 1
    assert not [key for key in found if key[0] == "ovnet_packets_total"]


def test_a_source_that_fails_is_a_number() -> None:
    def broken() -> NodeSnapshot:
        raise KernelError("gone")

    assert samples(list(NodeCollector(broken).collect())) == {("ovnet_scrape_errors_total",): 1}


def test_registering_reads_nothing_and_a_scrape_reads_once() -> None:
    calls = 0

    def source() -> NodeSnapshot:
        nonlocal calls
        calls += 1
        return SNAPSHOT

    own = registry(source)
    assert calls == 0
    text = generate_latest(own).decode()
    assert calls == 1
    assert "ovnet_packets_total{" in text
    assert "process_resident_memory_bytes" in text
    assert "python_info" not in text


def test_no_maps_is_no_error() -> None:
    assert take(REPORT, None, NOWHERE) == NodeSnapshot(REPORT)


def test_a_peer_that_does_not_answer_has_no_round_trip_and_no_path() -> None:
    told = {row.name for row in (names.PEER_REACHABLE, names.PEER_ROUND_TRIP, names.PEER_PATH_MTU)}
    assert {key: value for key, value in samples(families(SNAPSHOT)).items() if key[0] in told} == {
        ("ovnet_peer_reachable", "peer=192.168.50.2"): 1,
        ("ovnet_peer_reachable", "peer=192.168.50.3"): 0,
        ("ovnet_peer_reachable", "peer=fd77::2"): 1,
        ("ovnet_peer_round_trip_seconds", "peer=192.168.50.2"): 0.0003,
        ("ovnet_peer_round_trip_seconds", "peer=fd77::2"): 0.0004,
        ("ovnet_peer_path_mtu_bytes", "peer=192.168.50.2"): 1450,
        ("ovnet_peer_path_mtu_bytes", "peer=fd77::2"): 1350,
    }


def test_peers_of_both_families_and_the_maps_of_both_have_series() -> None:
    one, other = PeerStats(tx_packets=1), PeerStats(tx_packets=2)
    hosts: dict[Ip, PeerStats] = {IPv6Address("2001:db8::2"): other, IPv4Address("192.0.2.2"): one}
    found = samples(families(NodeSnapshot(None, Datapath(peer_stats=hosts, fill={"ipv6_peers": (3, 4)}))))
    assert found["ovnet_peer_transmit_packets_total", "peer=192.0.2.2"] == 1
    assert found["ovnet_peer_transmit_packets_total", "peer=2001:db8::2"] == 2
    assert found["ovnet_map_entries", "map=ipv6_peers"] == 3
