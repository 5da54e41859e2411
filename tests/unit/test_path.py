"""`ovctl trace`: what it says of each hop, and what it reads of a node for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.core.abi import (
    Direction,
    EndpointEntry,
    FlowEntry,
    FlowKey,
    Hook,
    Ip,
    NodeEntry,
    PeerEntry,
    Translation,
)
from ctl.core.decision import Probe, View
from ctl.core.dissect import ICMP, ICMPV6, TCP, in_family
from ctl.core.errors import KernelError
from ctl.core.model import Bypass, IPv6Lease, Lease, MacAddress
from ctl.core.path import Fate, hops
from ctl.kernel.hooks.listing import Hooked
from ctl.node import path
from tests.samples import REPORT

HERE, THERE = IPv4Address("10.77.1.2"), IPv4Address("10.77.2.3")
HOST = IPv4Address("192.0.2.2")
SUBNET = IPv4Network("10.77.2.0/24")
MAC = MacAddress.parse("02:00:00:00:00:01")
NOW_NS = 10**12
NODE = NodeEntry(
    IPv4Address("192.0.2.1"), IPv4Network("10.77.0.0/16"), IPv4Network("10.77.1.0/24"),
    (IPv4Address("10.77.0.0"), IPv4Address("10.77.255.0")), 1, 2, 1450, MAC, 8472, (1, 2), Bypass.LEARNED,
    5 * 10**9, 7, tunnel_ifindex=9,
)  # fmt: skip
PEER = PeerEntry(HOST, MAC, 8472, 1, 2, HOST)
OUT, IN = Probe(HERE, THERE, TCP, 1000, 80), Probe(THERE, HERE, TCP, 80, 1000)
LEASE = Lease(SUBNET, HOST, MAC, 8472, expires_at=200.0, node="beta")


def approved(
    probe: Probe, direction: Direction, sport: int = 0, age_s: float = 1
) -> dict[FlowKey, FlowEntry]:
    key = FlowKey(probe.src, probe.dst, sport or probe.sport, probe.dport, 5, probe.proto, direction)
    return {key: FlowEntry(NOW_NS - int(age_s * 1e9), 0, 0, 0, 0, 0)}


LEAVING = View(
    NODE, source=EndpointEntry(5, MAC, MAC), peer=PEER, flows=approved(OUT, Direction.OUT), now_ns=NOW_NS,
    names={2: "eth0", 5: "veth1", 9: "ovnet.1"},
    programs=frozenset({("veth1", "ingress"), ("eth0", "ingress")}), route="ovnet.1", lease=LEASE, time_s=100,
)  # fmt: skip
ARRIVING = replace(
    LEAVING, source=None, target=EndpointEntry(5, MAC, MAC), origin=PEER, flows=approved(IN, Direction.IN)
)
LEFT_TO_KERNEL = replace(LEAVING, flows={})


def told(probe: Probe, view: View) -> list[tuple[str, str, str]]:
    """Hop, by what, and fate."""
    return [(hop.hop, hop.by, hop.fate.value) for hop in hops(probe, view)]


def test_an_approved_packet_skips_all_between_its_port_and_the_wire() -> None:
    assert told(OUT, LEAVING) == [
        ("container", "", "on"), ("program", "ebpf", "on"), ("wire", "", "on"), ("peer", "", "on"),
    ]  # fmt: skip


def test_one_that_is_not_approved_takes_each_step_of_the_kernels() -> None:
    assert told(OUT, LEFT_TO_KERNEL) == [
        ("container", "", "on"), ("program", "kernel", "on"), ("route", "kernel", "on"),
        ("netfilter", "kernel", "unknown"), ("tunnel", "ebpf", "on"), ("wire", "", "on"), ("peer", "", "on"),
    ]  # fmt: skip


def test_of_several_flows_that_it_may_be_of_the_newest_counts_and_is_named() -> None:
    flows = {**approved(OUT, Direction.OUT, 1001, 99), **approved(OUT, Direction.OUT, 1002, 2)}
    (program,) = (hop for hop in hops(replace(OUT, sport=0), replace(LEAVING, flows=flows)) if hop.by)
    assert program.reason == "encap" and program.seen.endswith(": ports 1002 > 80, approved 2.0 s ago")


@pytest.mark.parametrize(
    ("changes", "is_of"),
    [({}, True), ({"sport": 0, "dport": 0}, True), ({"dport": 81}, False), ({"dst": HERE}, False),
     ({"proto": ICMP}, False)],
)  # fmt: skip
def test_a_packet_is_of_a_flow_unless_something_says_otherwise(changes: dict[str, Any], is_of: bool) -> None:
    (key,) = approved(OUT, Direction.OUT)
    assert replace(OUT, **changes).is_of(key) is is_of


def test_of_an_echo_only_the_identifier_counts() -> None:
    key = FlowKey(HERE, THERE, 7, 8 << 8, 5, ICMP, Direction.OUT)
    assert Probe(HERE, THERE, ICMP).is_of(key) and Probe(HERE, THERE, ICMP, 7).is_of(key)
    assert not Probe(HERE, THERE, ICMP, 8).is_of(key)


OTHER_HOST = IPv4Address("192.0.2.9")
LOST = {
    "no peer": (OUT, replace(LEAVING, peer=None), "no peer has leased the subnet of 10.77.2.3"),
    "too large": (replace(OUT, size=1451, df=True), LEAVING, "1451 bytes with DF, the overlay carries 1450"),
    "no route": (OUT, replace(LEFT_TO_KERNEL, route=""), "the kernel has no route to 10.77.2.3"),
    "a stolen route": (
        OUT, replace(LEFT_TO_KERNEL, route="eth0"), "not to ovnet.1: another route is more specific",
    ),
    "a chain": (OUT, replace(LEFT_TO_KERNEL, refusals=("ip a b drops",)), "ip a b drops"),
    "no neighbour": (OUT, replace(LEAVING, unresolved=frozenset({HOST})), "192.0.2.2 does not answer"),
    "no lease": (OUT, replace(LEAVING, lease=None), "the store has no lease of that subnet"),
    "another's lease": (
        OUT, replace(LEAVING, lease=replace(LEASE, host=OTHER_HOST)), "192.0.2.9 holds 10.77.2.0/24",
    ),
    "a chain here": (IN, replace(ARRIVING, flows={}, refusals=("ip a b drops",)), "ip a b drops"),
    "a stranger": (IN, replace(ARRIVING, origin=None), "VXLAN from a host that is no peer"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_where_it_is_lost_is_the_last_line(name: str) -> None:
    probe, view, words = LOST[name]
    found = list(hops(probe, view))
    assert [hop.fate is Fate.LOST for hop in found] == [False] * (len(found) - 1) + [True]
    assert words in found[-1].seen


UNKNOWN = {
    "store away": (OUT, replace(LEAVING, store="it is away"), "the store was not asked: it is away"),
    "lease over": (OUT, replace(LEAVING, time_s=201), "its lease of 10.77.2.0/24 has ended"),
    "not the overlay's": (replace(OUT, dst=OTHER_HOST), replace(LEAVING, peer=None), "not for the overlay"),
    "nobody at home": (IN, replace(ARRIVING, target=None), "no container with this address is known"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_told_from_here_is_said_so(name: str) -> None:
    probe, view, words = UNKNOWN[name]
    last = list(hops(probe, view))[-1]
    assert last.fate is Fate.UNKNOWN and words in last.seen


def test_what_is_not_bypassed_is_led_by_the_kernel_and_the_programs_that_are_there() -> None:
    without = replace(LEAVING, programs=frozenset())
    assert [hop.seen for hop in hops(OUT, without) if hop.hop == "program"] == [
        "from_container is not on this port"
    ]
    (tunnel,) = (
        hop
        for hop in hops(OUT, replace(without, node=replace(NODE, tunnel_ifindex=0)))
        if hop.hop == "tunnel"
    )
    assert (tunnel.by, tunnel.at) == ("kernel", "ovnet.1")
    assert ("size", "kernel", "on") in told(replace(OUT, size=1451), LEAVING)


def test_what_arrives_is_let_in_by_the_program_that_is_on_the_uplink() -> None:
    assert told(IN, ARRIVING) == [("program", "ebpf", "on"), ("container", "", "on")]
    both = replace(ARRIVING, programs=ARRIVING.programs | {("eth0", "xdp")})
    assert [hop.at for hop in hops(IN, both)] == ["from_wire_xdp eth0", "veth1"]
    (first, *_) = hops(IN, replace(ARRIVING, programs=frozenset()))
    assert first.seen == "from_wire is not on the uplink"


def test_between_two_of_this_node_there_is_only_the_bridge() -> None:
    assert told(Probe(HERE, HERE + 1), ARRIVING) == [("bridge", "kernel", "on"), ("container", "", "on")]


HERE6, THERE6 = IPv6Address("fd77:0:0:1::2"), IPv6Address("fd77:0:0:2::3")
HOST6 = IPv6Address("2001:db8::2")
NODE6 = replace(
    NODE,
    host=IPv6Address("2001:db8::1"),
    network=IPv6Network("fd77::/48"),
    subnet=IPv6Network("fd77:0:0:1::/64"),
    pool=(IPv6Address("fd77::"), IPv6Address("fd77::ffff:0:0:0:0")),
    mtu=1430,
)
SUBNET6 = IPv6Network("fd77:0:0:2::/64")
OUT6 = Probe(HERE6, THERE6, TCP, 1000, 80)
LEAVING6 = replace(
    LEAVING, node=NODE6, peer=replace(PEER, host=HOST6, next_hop=HOST6),
    flows=approved(OUT6, Direction.OUT), lease=replace(LEASE, ipv6=IPv6Lease(SUBNET6, HOST6, MAC, 1)),
)  # fmt: skip


def test_of_ipv6_it_is_told_hop_by_hop_too() -> None:
    *_, wire, peer = hops(OUT6, LEAVING6)
    assert wire.seen == "to 2001:db8::2, UDP 8472, VNI 1"
    assert peer.seen == "beta holds fd77:0:0:2::/64: trace there goes on"
    assert told(OUT6, LEAVING6) == told(OUT, LEAVING)


LOST6 = {
    "too large, which no router cuts": (replace(OUT6, size=1431), LEAVING6, "1431 bytes, the overlay"),
    "no neighbour": (
        OUT6, replace(LEAVING6, unresolved=frozenset({HOST6})), "does not answer neighbour solicitations",
    ),
    "a lease of IPv4 only": (OUT6, replace(LEAVING6, lease=LEASE), "the store has no lease of that subnet"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST6)
def test_where_one_of_ipv6_is_lost_is_the_last_line(name: str) -> None:
    probe, view, words = LOST6[name]
    last = list(hops(probe, view))[-1]
    assert last.fate is Fate.LOST and words in last.seen


def test_of_ipv6_the_device_makes_the_tunnel_of_what_has_no_checksum() -> None:
    esp = replace(OUT6, proto=50)
    (tunnel,) = (hop for hop in hops(esp, LEAVING6) if hop.hop == "tunnel")
    assert (tunnel.by, tunnel.reason) == ("kernel", "outer_checksum")


@pytest.mark.parametrize(("proto", "carried"), [(ICMPV6, True), (ICMP, False)])
def test_each_family_has_an_icmp_of_its_own(proto: int, carried: bool) -> None:
    probe = replace(OUT6, proto=proto)
    assert (probe.is_carried, probe.is_echo) == (carried, carried)
    assert in_family(proto, 6) == ICMPV6 and in_family(proto, 4) == ICMP


# --- What is read of a node ----------------------------------------------------


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., View]:
    """`look` at a node of which everything is known; changes to the maps' and the kernel's answers."""

    def look(**changes: Any) -> View:
        answers: dict[str, Any] = {
            "configured": lambda: NODE,
            "lookup_endpoint": {HERE: EndpointEntry(5, MAC, MAC)}.get,
            "lookup_peer": {SUBNET.network_address: PEER}.get,
            "flows": lambda: approved(OUT, Direction.OUT) | approved(IN, Direction.IN),
            "links": lambda: {9: SimpleNamespace(ifindex=9, name="ovnet.1")},
            "unresolved": lambda family: frozenset({HOST}),
            "next_hop": lambda rtnl, target: (9, None),
            "run": lambda *argv: "",
            "report": REPORT,
            "probe": OUT,
            "leases": [LEASE],
            "running": frozenset(Hook),
        } | changes  # fmt: skip
        hooked = [Hooked("eth0", "ingress", "tcx", "from_wire", 1, ours) for ours in (True, False)]
        monkeypatch.setattr(path, "listing", lambda netlink, root: hooked)
        monkeypatch.setattr(path, "next_hop", answers["next_hop"])
        monkeypatch.setattr(path, "run", answers["run"])
        kernel: Any = SimpleNamespace(rtnl=None, **answers)
        settings: Any = SimpleNamespace(bpffs=Path("/"))
        told_of = (answers["probe"], answers["report"], answers["leases"])
        return path.look(settings, kernel, kernel, *told_of, "", answers["running"])

    return look


def test_what_has_to_do_with_the_packet_is_read_of_the_node(looked: Callable[..., View]) -> None:
    view = looked()
    assert (view.source, view.target, view.origin, view.peer) == (
        EndpointEntry(5, MAC, MAC),
        None,
        None,
        PEER,
    )
    assert view.flows == approved(OUT, Direction.OUT)
    assert (view.programs, view.route, view.lease) == (frozenset({("eth0", "ingress")}), "ovnet.1", LEASE)
    assert view.unresolved == {HOST}


def test_programs_that_the_family_has_not_are_not_there(looked: Callable[..., View]) -> None:
    view = looked(running=())
    assert (view.programs, view.node.tunnel_ifindex) == (frozenset(), 0)
    seen = [hop.seen for hop in hops(OUT6, replace(LEAVING6, programs=frozenset())) if hop.hop == "program"]
    assert seen == ["from_container for IPv6 is not on this port"]


def test_of_ipv6_neighbours_and_leases_are_those_of_its_family(looked: Callable[..., View]) -> None:
    lease, asked = replace(LEASE, ipv6=IPv6Lease(SUBNET6, HOST6, MAC, 1)), list[int]()

    def unresolved(family: Any) -> frozenset[Ip]:
        asked.append(family.version)
        return frozenset()

    peers = {SUBNET6.network_address: LEAVING6.peer}.get
    view = looked(
        configured=lambda: NODE6, lookup_peer=peers, probe=OUT6, leases=[lease], unresolved=unresolved
    )
    assert (asked, view.lease, view.peer) == ([6], lease, LEAVING6.peer)


VIP = IPv4Address("10.96.0.1")
CALL = replace(OUT, dst=VIP)
TO = Translation(THERE, 1000, 8080)
TRANSLATED = {key: replace(flow, to=TO) for key, flow in approved(CALL, Direction.OUT).items()}


def test_a_service_goes_to_the_peer_of_what_netfilter_has_made_of_it(looked: Callable[..., View]) -> None:
    ways = {THERE: (9, None), VIP: (2, None)}
    view = looked(probe=CALL, flows=lambda: TRANSLATED, next_hop=lambda rtnl, target: ways[target])
    assert (view.peer, view.route, view.lease) == (PEER, "ovnet.1", LEASE)
    assert looked(probe=CALL, flows=dict).peer is None


def test_a_service_that_is_approved_bypasses_and_its_translation_is_named() -> None:
    view = replace(LEAVING, flows=TRANSLATED)
    program = next(hop for hop in hops(CALL, view) if hop.hop == "program")
    assert (program.by, program.reason) == ("ebpf", "encap")
    assert "approved as 10.77.2.3, ports 1000 > 8080 1.0 s ago" in program.seen


@pytest.mark.parametrize(("to", "name"), [(None, "from_wire_xdp"), (TO, "from_wire")])
def test_what_has_to_be_translated_is_not_done_by_xdp(to: Translation | None, name: str) -> None:
    flows = {key: replace(flow, to=to) for key, flow in ARRIVING.flows.items()}
    programs = ARRIVING.programs | {("eth0", "xdp")}
    view = replace(ARRIVING, flows=flows, programs=programs)
    program = next(hop for hop in hops(IN, view) if hop.hop == "program")
    assert program.at == f"{name} eth0"


def test_what_chains_refuse_is_left_out_where_no_agent_has_told_of_its_bridge(
    looked: Callable[..., View],
) -> None:
    assert looked(report=None).refusals == ()


def test_no_route_is_no_failure(looked: Callable[..., View]) -> None:
    def refuse(rtnl: object, target: object) -> None:
        raise KernelError("no route")

    assert looked(next_hop=refuse).route == ""
