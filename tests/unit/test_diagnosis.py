"""What the doctor makes of what was seen."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from ctl.core.compare import Difference, State
from ctl.core.diagnosis import member, node
from ctl.core.diagnosis.finding import Finding, Level, failure, ok, verdict, warning
from ctl.core.diagnosis.inside import Inside, of_inside
from ctl.core.diagnosis.way import Way, of_way
from ctl.core.errors import StoreAway, StoreDenied
from ctl.core.model import END_UNKNOWN, Lease
from tests.samples import REPORT
from tests.unit.strategies import NETWORK

LEASE = Lease(IPv4Network("172.17.9.0/24"), IPv4Address("192.0.2.9"), node="nine", expires_at=1000.0)
WAY = Way(LEASE, "ovnet.1", "", "ovnet.1")


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level.value for finding in findings]


@pytest.mark.parametrize(
    ("way", "words", "remedy"),
    [
        (
            replace(WAY, device="eth1", answered=False),
            "routed to eth1, not to ovnet.1",
            "ip route get 172.17.9.1",
        ),
        (replace(WAY, device="", answered=False), "routed to nothing", "ip rule"),
        (
            replace(WAY, neighbour="192.0.2.1 on eth0", answered=False, underlay=False),
            "192.0.2.1 on eth0",
            "ping 192.0.2.9",
        ),
        (replace(WAY, answered=False), "its host 192.0.2.9 does", "open UDP 8472"),
        (replace(WAY, answered=False, underlay=False), "nor does its host", "ping 192.0.2.9"),
        (replace(WAY, largest=1350), "up to 1350 bytes, not 1450", "--mtu 1400"),
        (replace(WAY, largest=1350, underlay_mtu=1400), "up to 1350 bytes, not 1450", "--mtu 1400"),
        (replace(WAY, answered=False, strict="eth0"), "come in by eth0", "conf.eth0.rp_filter=2"),
        (replace(WAY, answered=False, closed=True), "nothing listens on UDP 8472", "on 192.0.2.9"),
        (
            replace(WAY, spoilt=True, uplink="eth3"),
            "none whose checksums a device finishes",
            "ethtool -K eth3 tx off",
        ),
    ],
)
def test_a_peer_is_named_once_with_the_cause_that_comes_first(way: Way, words: str, remedy: str) -> None:
    (found,) = of_way(way, 1450, 8472)
    assert found.level is Level.FAILURE
    assert "nine (172.17.9.0/24)" in found.seen
    assert words in found.seen and remedy in found.remedy


@pytest.mark.parametrize(
    "way", [replace(WAY, underlay_mtu=1400), replace(WAY, underlay_mtu=1400, largest=1400)]
)
def test_large_echoes_that_are_filtered_are_no_failure(way: Way) -> None:
    """Also not where the peer's host filters them in the tunnel as on the underlay, by the same size."""
    (found,) = of_way(way, 1450, 8472)
    assert found.level is Level.WARNING and "filters large echoes" in found.means
    assert "up to 1400 bytes, not 1500" in found.seen and "--mtu 1400" in found.remedy


@pytest.mark.parametrize(
    "way", [WAY, replace(WAY, neighbour="192.0.2.9 on eth0"), replace(WAY, largest=1450)]
)
def test_a_peer_that_answers_is_not_named(way: Way) -> None:
    """An ARP entry that is being asked for anew says nothing of who answers."""
    assert list(of_way(way, 1450, 8472)) == []


def test_an_agents_complaints_are_failures_and_its_other_problems_warnings() -> None:
    found = list(member.of_agent(True, ["a"], ["a", "b"], ["c"]))
    assert [(each.level, each.seen) for each in found] == [
        (Level.FAILURE, "a"),
        (Level.WARNING, "b"),
        (Level.WARNING, "c"),
    ]
    assert levels(list(member.of_agent(True, [], [], []))) == ["ok"]
    (dead,) = member.of_agent(False, ["no agent"], ["b"], [])
    assert dead.seen == "no agent runs here"


@pytest.mark.parametrize(
    ("lease", "level"),
    [
        (LEASE, "ok"),
        (replace(LEASE, expires_at=None), "ok"),
        (replace(LEASE, expires_at=899), "failure"),
        (None, "failure"),
    ],
)
def test_a_lease_that_is_gone_or_over_is_a_failure(lease: Lease | None, level: str) -> None:
    assert levels(list(member.of_lease(lease, lease, LEASE.host, 900.0, 3600))) == [level]


def test_entries_that_differ_are_summed_up_by_table() -> None:
    many = [Difference("fdb", f"02:{n}", State.STALE, "", "x") for n in range(3)]
    found = list(node.of_entries([*many, Difference("routes", "r", State.MISSING, "y")], 60, True))
    assert [each.seen for each in found] == ["fdb: 02:0 and 2 more stale", "routes: r missing"]
    assert "within 60 s" in found[0].remedy
    (dead,) = node.of_entries(many, 60, False)
    assert "systemctl start" in dead.remedy
    assert levels(list(node.of_entries([], 60, True))) == ["ok"]


def test_entries_that_a_full_map_has_no_room_for_are_told_by_that() -> None:
    missing = [Difference(table, "k", State.MISSING, "x") for table in ("peers", "peer_stats", "routes")]
    stale = Difference("peers", "old", State.STALE, "", "x")
    assert node.with_room([*missing, stale], ["peers"]) == [missing[2], stale]
    assert node.with_room(missing, ["endpoints"]) == missing


def test_what_does_not_forward_is_named() -> None:
    on = {"net/ipv4/ip_forward": "1", "net/ipv4/conf/ovnet0/forwarding": "1"}
    assert levels(list(node.of_settings(on, ["ovnet0"]))) == ["ok"]
    off = on | {"net/ipv4/conf/ovnet0/forwarding": "0"}
    (found,) = node.of_settings(off, ["ovnet0"])
    assert found.remedy == "sysctl -w net.ipv4.conf.ovnet0.forwarding=1"
    (found,) = node.of_settings(off | {"net/ipv4/ip_forward": "0"}, ["ovnet0"])
    assert "net.ipv4.ip_forward=1" in found.remedy


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(None, None, []), (5, None, []), (5, 100, ["ok"]), (91, 100, ["warning"]), (100, 100, ["failure"])],
)
def test_a_table_of_conntrack_that_fills_up_is_told(
    count: int | None, limit: int | None, expected: list[str]
) -> None:
    assert levels(list(node.of_conntrack(count, limit))) == expected


def test_programs_that_are_not_where_they_have_to_be_are_named() -> None:
    wanted = [("eth0", "ingress"), ("veth1", "ingress")]
    assert levels(list(node.of_programs(wanted, wanted))) == ["ok"]
    (found,) = node.of_programs(wanted, wanted[1:])
    assert found.seen == "none of ours at ingress of eth0"


def test_sizes_that_do_not_fit_are_named() -> None:
    assert levels(list(node.of_mtu(1450, 1450, {"veth1": 1450, "veth2": 1400}))) == ["ok"]
    (found,) = node.of_mtu(1450, 1450, {"veth2": 1500, "veth1": 1500})
    assert found.seen == "port veth1 and 1 more: MTU 1500, the overlay carries 1450"
    (found,) = node.of_mtu(1450, 1300, {})
    assert "takes 1300 bytes" in found.seen


def test_a_configuration_that_runtimes_do_not_take_is_named() -> None:
    path = "/etc/cni/net.d/10-flannel.conflist"
    assert levels(list(node.of_runtimes(path, "", there=True))) == ["ok"]
    (missing,) = node.of_runtimes(path, "", there=False)
    assert missing.level is Level.FAILURE and path in missing.seen
    (other,) = node.of_runtimes(path, "/etc/cni/net.d/00-x.conf sorts before it: remove it", there=True)
    assert (other.seen, other.remedy) == ("/etc/cni/net.d/00-x.conf sorts before it", "remove it")


@pytest.mark.parametrize(
    ("count", "leaked", "level", "remedy"),
    [
        (100, 0, "ok", ""),
        (230, 200, "warning", "ovctl ipam release"),
        (253, 1, "failure", "ovctl ipam release"),
        (253, 0, "failure", "maxPods"),
    ],
)
def test_a_subnet_that_runs_full_is_told_with_what_makes_room(
    count: int, leaked: int, level: str, remedy: str
) -> None:
    (found,) = node.of_addresses(count, 253, leaked)
    assert (found.level.value, remedy in found.remedy) == (level, True)


def test_only_a_failure_is_one() -> None:
    assert verdict([ok("a", "b"), warning("a", "b", "c", "d")]) == 0
    assert verdict([failure("a", "b", "c", "d")]) == 1


def test_what_the_doctor_has_told_the_agent_does_not_tell_again() -> None:
    found = list(member.of_agent(True, ["a", "b"], ["b", "c", "d"], [], known=["a", "c"]))
    assert [each.seen for each in found] == ["b", "d"]


def test_a_store_that_refuses_us_has_another_remedy_than_one_that_is_away() -> None:
    assert "password" in member.of_store(StoreDenied("no")).remedy
    assert "reachable" in member.of_store(StoreAway("no")).remedy


def test_a_subnet_that_another_host_holds_is_named_once_with_who_holds_it() -> None:
    other = replace(LEASE, host=IPv4Address("192.0.2.1"), node="one")
    (found,) = member.of_lease(None, other, LEASE.host, 900, 3600)
    assert "is held by 192.0.2.1 (one)" in found.seen and f"lease release {LEASE.subnet}" in found.remedy


def test_a_lease_that_ends_later_than_any_can_tells_of_a_clock() -> None:
    (found,) = member.of_lease(replace(LEASE, expires_at=5000), LEASE, LEASE.host, 900, 3600)
    assert found.check == "clock" and "timedatectl" in found.remedy


@pytest.mark.parametrize(
    ("end", "named"),
    [
        (None, []),
        (END_UNKNOWN, []),
        (1000 + 101, []),
        (1000 + 99, ["warning"]),
        (1000, ["failure"]),
    ],
)
def test_a_peer_that_has_not_renewed_its_lease_is_named(end: float | None, named: list[str]) -> None:
    """Its leases may be shorter than ours: until it has ended, it may be renewed in time."""
    found = list(member.of_renewals([replace(LEASE, expires_at=end)], 1000, margin=200))
    assert levels(found) == named


@pytest.mark.parametrize(("end", "named"), [(1051, []), (1049, ["warning"]), (1000, ["failure"])])
def test_a_peer_that_renews_later_than_we_do_is_not_late_before(end: float, named: list[str]) -> None:
    """Its leases are shorter than ours, or its margin is: it has said that it renews 100 s before the end."""
    found = list(member.of_renewals([replace(LEASE, expires_at=end, renew_at=end - 100)], 1000, margin=3600))
    assert levels(found) == named
    assert not any("unless" in each.means for each in found)


def test_an_agent_that_has_not_followed_a_change_of_the_network_is_a_warning() -> None:
    assert list(member.of_network(REPORT, REPORT.port, REPORT.vni, REPORT.backend)) == []
    (found,) = member.of_network(REPORT, 4789, REPORT.vni, REPORT.backend)
    assert found.level is Level.WARNING and "port 4789" in found.seen and "every node" in found.remedy


def test_maps_that_are_full_are_named_with_the_setting() -> None:
    (found,) = node.of_maps({"peers": (4, 4), "endpoints": (3, 4), "flows": (8, 8)}, {})
    assert "map peers is full" in found.seen and "--peers-max 8" in found.remedy
    (found,) = node.of_maps({"peer_stats": (4, 4)}, {})
    assert "map peer_stats is full" in found.seen and "--peers-max 8" in found.remedy


@pytest.mark.parametrize(("again", "named"), [(0, []), (600, []), (601, ["warning"])])
def test_flows_that_push_each_other_out_are_told_from_connections_that_close(
    again: int, named: list[str]
) -> None:
    found = list(node.of_maps({"flows": (60_000, 65_536)}, {"flows": again}))
    assert levels(found) == named
    assert all("--flows-max 131072" in each.remedy and f"{again} flows" in each.seen for each in found)


def test_a_flow_is_learned_again_if_it_had_an_entry_and_lost_it() -> None:
    in_use, ended, new = b"a", b"b", b"c"
    assert node.learned_again([{in_use, ended}, {ended}, {in_use, new}, {in_use, new}]) == 1
    assert node.learned_again([{in_use, ended}, {in_use}, {in_use, new}]) == 0


@pytest.mark.parametrize(
    ("entries", "capacity", "cpus", "may"),
    [
        (65_279, 65_536, 2, False),
        (65_280, 65_536, 2, True),
        (31, 64, 2, False),
        (32, 64, 2, True),
        (0, 1, 2, False),
    ],
)
def test_a_map_may_push_out_as_soon_as_what_is_free_may_be_some_cpus_own(
    entries: int, capacity: int, cpus: int, may: bool
) -> None:
    assert node.may_push_out(entries, capacity, cpus) is may


def test_maps_of_ipv6_that_are_full_are_named_with_the_same_settings() -> None:
    full = {"ipv6_peer_stats": (4, 4), "flows": (8, 8), "ipv6_flows": (8, 8)}
    peers, flows = node.of_maps(full, {"flows": 0, "ipv6_flows": 8})
    assert "map ipv6_peer_stats is full" in peers.seen and "--peers-max 8" in peers.remedy
    assert "map ipv6_flows thrashes" in flows.seen and "--flows-max 16" in flows.remedy


@pytest.mark.parametrize(("key", "full"), [("10.1.2.0", "peers"), ("fd10:0:0:2::", "ipv6_peers")])
def test_what_is_missing_for_want_of_room_is_told_of_the_map_of_its_family(key: str, full: str) -> None:
    missing = Difference("peer_stats", key, State.MISSING)
    assert node.with_room([missing], [full]) == []
    other = {"peers": "ipv6_peers", "ipv6_peers": "peers"}[full]
    assert node.with_room([missing], [other]) == [missing]


@pytest.mark.parametrize("manager", ["NetworkManager", "systemd-networkd"])
def test_who_manages_a_device_of_ours_is_told_to_leave_it(manager: str) -> None:
    (found,) = node.of_others({}, 8472, {"ovnet0": manager})
    assert manager in found.seen and "ovnet0" in found.remedy


WELL = Inside("veth1", "eth0", 1450, (IPv4Interface("172.17.9.2/24"),), "eth0", LEASE.gateway)


@pytest.mark.parametrize(
    ("inside", "words", "remedy"),
    [
        (replace(WELL, out="", hop=None), "has no route", "default via 172.17.9.1"),
        (replace(WELL, hop=IPv4Address("172.17.9.254")), "by 172.17.9.254, not by", "default via 172.17.9.1"),
        (
            replace(WELL, addresses=(IPv4Interface("10.0.0.2/24"),)),
            "10.0.0.2/24",
            "an address of 172.17.9.0/24",
        ),
        (replace(WELL, mtu=1500), "MTU 1500", "with MTU 1450"),
    ],
)
def test_what_is_wrong_inside_of_a_container_is_named(inside: Inside, words: str, remedy: str) -> None:
    (found,) = of_inside([inside], LEASE, NETWORK, 1450)
    assert words in found.seen and remedy in found.remedy and found.level is Level.FAILURE


def test_an_address_that_two_containers_have_is_named_at_both() -> None:
    found = list(of_inside([WELL, replace(WELL, port="veth2")], LEASE, NETWORK, 1450))
    assert [each.seen.split()[4] for each in found] == ["veth1", "veth2"]
    assert all("have 172.17.9.2" in each.seen for each in found)


def test_a_container_that_is_well_or_still_made_is_not_named() -> None:
    made = replace(WELL, port="veth2", addresses=(), out="", hop=None)
    assert levels(list(of_inside([WELL, made], LEASE, NETWORK, 1450))) == ["ok"]
