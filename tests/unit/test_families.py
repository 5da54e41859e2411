"""What IPv6 has of what is planned, told and heard as IPv4's is."""

from __future__ import annotations

import argparse
import json
import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import RTM_DELADDR, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWNEIGH, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ctl.backend.hostgw import HostGwBackend
from ctl.backend.vxlan.backend import VxlanBackend
from ctl.backend.vxlan.own_entry import OwnEntry
from ctl.core.abi import PEER_F_KERNEL_PATH, EndpointEntry, NodeEntry, PeerEntry
from ctl.core.family import IPV6, lacks_ipv6, without_ipv6
from ctl.core.findings import Concern, Findings
from ctl.core.host import Change, Devices, Hop, Link, Neighbours, Route, RouteKey, Sender
from ctl.core.lease import clash, rank, with_ipv6
from ctl.core.model import IPv6Lease, IPv6Range, Lease, MacAddress, Network
from ctl.core.peers import KernelTables, PeerMaps
from ctl.core.plan import Delta, plan_endpoints, plan_questions
from ctl.core.policy import Outer, Rule, plan_policy
from ctl.core.roster import Moves, Roster
from ctl.core.wire import parse_network
from ctl.kernel import sysctl
from ctl.kernel.firewall import Tunnel, ruleset
from ctl.kernel.netlink import addressing
from ctl.kernel.netlink.classify import Classifier, quiet_filter, rules
from ctl.kernel.netlink.message import HEADER, attribute, body, message
from ctl.kernel.netlink.tables import ROUTE_PROTOCOL, Routes, VtepNeighbours
from ctl.kernel.senders import changes
from ctl.node import forwarding
from ctl.settings.config import resolve
from tests.unit import strategies
from tests.unit.test_own_entry import OneNode
from tests.unit.test_peering import site
from tests.unit.test_roster import OTHER as IPV4_OTHER
from tests.unit.test_roster import OWN as IPV4_OWN
from tests.unit.test_roster import PEER as IPV4_PEER

RANGE = IPv6Range(
    IPv6Network("fd00:10::/48"), 64, IPv6Network("fd00:10:0:1::/64"), IPv6Network("fd00:10:0:ffff::/64")
)
NETWORK = replace(strategies.NETWORK, ipv6=RANGE)
VXLAN = 9


def part(number: int, host: str = "", mac: int = 0) -> IPv6Lease:
    return IPv6Lease(
        IPv6Network((int(RANGE.network.network_address) + (number << 64), 64)),
        IPv6Address(host or f"fd77::{number:x}"),
        MacAddress(bytes((2, 6, 0, 0, 0, mac or number))),
        1,
    )


OWN = replace(IPV4_OWN, ipv6=part(1))
PEER = replace(IPV4_PEER, ipv6=part(2), node="b")
HOST, ROUTER = IPv6Address("fd77::2"), IPv6Address("fe80::1")
HOP = IPv6Address("fe80::6:ff:fe00:2")
SUBNET = IPv6Network("fd00:10:0:2::/64")


def tables(
    found: list[Lease], hops: dict[IPv6Address, Hop[IPv6Address] | None], network: Network = NETWORK
) -> KernelTables[IPv6Address, IPv6Network]:
    roster = Roster(IPV6, OWN, network)
    made = KernelTables(IPV6, roster, network, VXLAN)
    made.move(roster.update(found), [], hops)
    return made


# --- Plans ---------------------------------------------------------------------------


def test_a_peer_with_ipv6_is_in_every_table_of_the_kernel() -> None:
    made = tables([PEER], {HOST: Hop(2, ROUTER)})
    assert PEER.ipv6 is not None
    assert made.neighbours.desired == {HOP: PEER.ipv6.vtep_mac}
    assert made.fdb.desired == {PEER.ipv6.vtep_mac: HOST}
    assert made.routes.desired == {RouteKey.of(SUBNET): Route(HOP, VXLAN)}
    assert made.senders.desired == {HOST: True}
    for entry in (HOP, PEER.ipv6.vtep_mac, RouteKey.of(SUBNET), Sender(HOST)):
        assert entry is not None and made.wants(entry)
    assert not made.wants(Sender(IPV4_PEER.host))


def maps_of(
    found: list[Lease], hops: dict[IPv6Address, Hop[IPv6Address] | None], network: Network = NETWORK
) -> PeerMaps[IPv6Address, IPv6Network]:
    roster = Roster(IPV6, OWN, network)
    made = PeerMaps(IPV6, roster, network)
    made.move(roster.update(found), [], hops)
    return made


def test_a_peer_with_ipv6_is_in_the_maps_by_the_addresses_that_it_has_there() -> None:
    made = maps_of([PEER, IPV4_OTHER], {HOST: Hop(2, ROUTER, ttl=255)})
    assert PEER.ipv6 is not None and PEER.ipv6.vtep_mac is not None
    assert made.vteps.desired == {HOST: True}
    entry = PeerEntry(HOST, PEER.ipv6.vtep_mac, NETWORK.port, NETWORK.vni, 2, ROUTER, ttl=255)
    assert made.peers.desired == {SUBNET.network_address: entry}
    assert PeerEntry.unpack(entry.pack()) == entry
    (slow,) = maps_of([PEER], {HOST: None}).peers.desired.values()
    assert slow.flags == PEER_F_KERNEL_PATH


def test_subnets_of_ipv6_that_share_a_block_are_the_kernel_paths_and_any_of_their_hosts_is_believed() -> None:
    longer = [
        replace(IPV4_PEER, ipv6=replace(part(2), subnet=IPv6Network("fd00:10:0:2::/65"))),
        replace(IPV4_OTHER, ipv6=replace(part(3), subnet=IPv6Network("fd00:10:0:2:8000::/65"))),
    ]
    hops = {each.ipv6.host: Hop(2, each.ipv6.host) for each in longer if each.ipv6 and each.ipv6.host}
    made = maps_of(longer, dict(hops))
    assert made.vteps.desired == dict.fromkeys(hops, True)
    (entry,) = made.peers.desired.values()
    assert (entry.host, entry.flags) == (IPv6Address(0), PEER_F_KERNEL_PATH)


def test_containers_are_known_by_the_ipv6_addresses_that_the_subnet_has() -> None:
    mac, other = MacAddress.parse("02:00:00:00:00:10"), MacAddress.parse("02:00:00:00:00:11")
    bridge = Link(3, "ovnet0", "bridge", MacAddress(b"\x02" * 6), 1430, True, 0, False, "", 0)
    ours, lost = IPv6Address("fd00:10:0:2::10"), IPv6Address("fd00:10:0:2::11")
    near = IPv6Address("fe80::10")
    seen = Neighbours({ours: mac, near: mac, lost: other}, {mac: 5}, frozenset({ours, near, lost}))
    found = plan_endpoints(seen, {5: replace(bridge, ifindex=5)}, bridge, SUBNET)
    assert found == {ours: EndpointEntry(5, mac, bridge.mac or other)}
    assert plan_questions(seen, SUBNET) == [lost]


def test_what_the_programs_for_ipv6_know_of_their_node_is_what_it_has_of_ipv6() -> None:
    opened, here = OneNode(), replace(site(NETWORK), lease=OWN)
    own = OwnEntry(resolve(argparse.Namespace(), {}, None), IPV6)
    maps: Any = opened
    own.write(maps, here, VXLAN, fits=True, filled=True, xdp=False, first=False, marks=0)
    entry = opened.entry
    assert entry is not None and OWN.ipv6 is not None
    assert (entry.host, entry.network, entry.subnet) == (OWN.ipv6.host, RANGE.network, OWN.ipv6.subnet)
    first, last = RANGE.subnet_min.network_address, RANGE.subnet_max.broadcast_address
    assert (entry.pool, entry.vtep_mac) == ((first, last), OWN.ipv6.vtep_mac)
    assert (entry.tunnel_ifindex, entry.overlay_ifindex) == (VXLAN, VXLAN)
    assert NodeEntry.unpack(entry.pack()) == entry


def test_each_family_has_lines_of_its_own_and_they_name_it() -> None:
    findings = Findings()
    findings.say(Concern.PEERS, 4, "map peers is full")
    findings.say(Concern.PEERS, 6, "map peers is full")
    assert findings.problems == {
        Concern.PEERS: ("map peers is full",), Concern.IPV6_PEERS: ("IPv6: map peers is full",),
    }  # fmt: skip
    findings.say(Concern.PEERS, 4, "")
    assert findings.problems[Concern.PEERS] == () and findings.problems[Concern.IPV6_PEERS]


def test_rules_of_ipv6_tell_packets_apart_as_those_of_ipv4_do() -> None:
    outer = Outer(HOST, NETWORK.port, (32768, 60999))
    near, far = IPv6Network("fd77::/64"), IPv6Network("fd78::/64")
    assert plan_policy([Rule(mask=1, source=near), Rule(mask=2, source=far)], outer).marks == 1


def test_the_next_hop_is_the_address_that_the_kernel_gives_a_device_with_that_mac() -> None:
    mac = MacAddress.parse("22:d3:b7:b1:25:5d")
    member = IPV6.member(replace(PEER, ipv6=replace(part(2), vtep_mac=mac)))
    assert member is not None
    assert str(member.overlay_hop) == "fe80::20d3:b7ff:feb1:255d"


def test_the_way_of_ipv6_has_70_bytes_around_a_packet() -> None:
    made = tables([PEER], {HOST: Hop(2, ROUTER, mtu=1400)})
    assert made.routes.desired == {RouteKey.of(SUBNET): Route(HOP, VXLAN, mtu=1330)}


def test_with_direct_routing_a_neighbour_is_routed_to_plainly() -> None:
    direct = replace(NETWORK, direct_routing=True)
    assert list(tables([PEER], {HOST: Hop(2, HOST)}, direct).routes.desired.values()) == [Route(HOST, 2)]
    (behind,) = tables([PEER], {HOST: Hop(2, ROUTER)}, direct).routes.desired.values()
    assert behind == Route(HOP, VXLAN)


def test_a_peer_without_ipv6_has_nothing_there_and_is_no_problem() -> None:
    roster = Roster(IPV6, OWN, NETWORK)
    assert roster.update([OWN, IPV4_PEER]) == Moves()
    assert roster.problems == ()


@pytest.mark.parametrize(
    ("ipv6", "why"),
    [
        (IPv6Lease(SUBNET), "it does not say the IPv6 address of its host"),
        (replace(part(2), vtep_mac=None), "it has no usable VTEP MAC"),
        (replace(part(2), host=IPv6Address("fd77::1")), "it carries our own host address fd77::1"),
        (replace(part(2), host=IPv6Address("fd00:10:0:2::5")), "its host fd00:10:0:2::5 is in it"),
        (replace(part(2), subnet=IPv6Network("fd00:11::/64")), "it is not in fd00:10::/48"),
        (replace(part(2), subnet=IPv6Network("fd00:10::/49")), "it is larger than 256 subnets of /64"),
        (replace(part(2), vni=7), "its VNI is 7, not 1"),
        (replace(part(2), subnet=IPv6Network("fd00:10:0:5::/64")), "it covers fd00:10:0:5::/64, the network"),
    ],
)
def test_an_ipv6_lease_that_is_wrong_is_named_and_its_ipv4_part_is_not(ipv6: IPv6Lease, why: str) -> None:
    underlay = (IPv4Network("10.0.0.0/24"), IPv6Network("fd00:10:0:5::/64"))
    roster = Roster(IPV6, OWN, NETWORK, underlay)
    assert roster.update([replace(PEER, ipv6=ipv6)]) == Moves()
    (line,) = roster.problems
    assert line.startswith(f"lease {ipv6.subnet} of b ignored: {why}")


# Few subnets, hosts and MACs, so that they clash; some nodes without IPv6.
crowded = st.lists(
    st.builds(
        lambda number, ipv6: replace(PEER, subnet=IPv4Network(f"172.17.{number}.0/24"), ipv6=ipv6),
        st.integers(2, 6),
        st.none()
        | st.builds(
            part, st.integers(1, 4), st.sampled_from(["fd77::1", "fd77::2", "fd77::3"]), st.integers(1, 3)
        ),
    ),
    max_size=5,
    unique_by=lambda lease: lease.subnet,
).map(lambda found: sorted(found, key=rank))


@given(st.lists(crowded, max_size=6), st.booleans())
def test_change_by_change_is_as_from_the_start(story: list[list[Lease]], direct: bool) -> None:
    network = replace(NETWORK, direct_routing=direct)
    hops: dict[IPv6Address, Hop[IPv6Address] | None] = {HOST: Hop(2, HOST), IPv6Address("fd77::3"): None}
    roster = Roster(IPV6, OWN, network)
    followed = KernelTables(IPV6, roster, network, VXLAN)
    for found in story:
        followed.move(roster.update(found), [], hops)
        fresh = Roster(IPV6, OWN, network)
        fresh.update(found)
        assert followed.routes.desired.keys() == {RouteKey.of(each.subnet) for each in fresh.usable.values()}
        assert (roster.usable, roster.problems) == (fresh.usable, fresh.problems)
        for name in ("neighbours", "fdb", "routes", "senders"):
            assert getattr(followed, name).desired == getattr(tables(found, hops, network), name).desired


def test_nodes_of_one_family_are_named_and_many_in_one_line() -> None:
    nodes = [replace(IPV4_PEER, subnet=IPv4Network(f"172.17.{n}.0/24"), node=f"n{n}") for n in range(2, 10)]
    assert without_ipv6([OWN, PEER], OWN) == ""
    assert without_ipv6([replace(OWN, ipv6=None), PEER], OWN) == "", "we know of ourselves"
    assert without_ipv6([OWN, PEER, nodes[1]], OWN).endswith("reached by IPv4 only: n3")
    assert without_ipv6(nodes, OWN).endswith("IPv4 only: n2, n3, n4, n5, n6 and 3 more")


@pytest.mark.parametrize(("ipv6", "overhead"), [(None, 50), (RANGE, 70)])
def test_containers_have_one_mtu_by_the_family_that_needs_more(ipv6: IPv6Range | None, overhead: int) -> None:
    network = replace(NETWORK, ipv6=ipv6)
    assert VxlanBackend.overhead(network) == overhead
    assert HostGwBackend.overhead(network) == 0


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_a_network_with_ipv6_is_refused_with_the_key_and_udp_in_any_version(backend: str) -> None:
    plain, dual = replace(NETWORK, backend=backend, ipv6=None), replace(NETWORK, backend=backend)
    assert lacks_ipv6(plain) == ""
    assert bool(lacks_ipv6(dual)) is (backend == "udp")


@given(st.lists(st.integers(0, 9), max_size=9, unique=True), st.integers(0, 12))
def test_a_lease_gets_an_ipv6_subnet_that_no_other_has_and_keeps_one_that_fits(
    numbers: list[int], own: int
) -> None:
    """`own`: the number of the one that it has; above those that the network hands out, it has none."""
    cut = parse_network(
        '{"Network":"172.17.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/60","Backend":{"Type":"vxlan"}}'
    )
    assert cut.ipv6 is not None
    ours = [IPv6Network((int(cut.ipv6.network.network_address) + (n << 64), 64)) for n in range(16)]
    others = [Lease(IPv4Network(f"172.17.{n + 1}.0/24"), PEER.host, ipv6=IPv6Lease(ours[n])) for n in numbers]
    mine = Lease(IPv4Network("172.17.99.0/24"), OWN.host, ipv6=IPv6Lease(ours[own]))
    found = with_ipv6(mine, cut, [*others, mine], lambda candidates: candidates[0])
    assert found.ipv6 is not None
    assert clash(found, others) is None
    assert cut.ipv6.subnet_min <= found.ipv6.subnet <= cut.ipv6.subnet_max
    if own and own not in numbers:
        assert found == mine
    assert with_ipv6(found, replace(cut, ipv6=None), others, lambda candidates: candidates[0]).ipv6 is None


# --- Rules ---------------------------------------------------------------------------


def test_rules_of_ipv6_are_those_of_ipv4_in_its_words() -> None:
    own = IPv6Network("fd00:10:0:1::/64")
    sender = IPv6Address("fd77::2")
    tunnel = Tunnel(8472, 1, "eth0", IPv6Address("fd77::1"), "ovnet-v6.1", [sender])
    text = ruleset(RANGE.network, own, masquerade=True, tunnel=tunnel, bridge="ovnet0")
    like = Tunnel(8472, 1, "eth0", IPv4Address("10.0.0.1"), "ovnet-v6.1", [IPv4Address("10.0.0.2")])
    ipv4 = ruleset(strategies.NETWORK.network, IPV4_OWN.subnet, masquerade=True, tunnel=like, bridge="ovnet0")
    words = {
        "table ip ": "table ip6 ",
        " ip saddr": " ip6 saddr",
        "\tip saddr": "\tip6 saddr",
        "ip daddr": "ip6 daddr",
        "ipv4_addr": "ipv6_addr",
        "224.0.0.0/4": "ff00::/8",
        str(strategies.NETWORK.network): str(RANGE.network),
        str(IPV4_OWN.subnet): str(own),
        "10.0.0.1": "fd77::1",
    }
    for old, new in words.items():
        ipv4 = ipv4.replace(old, new)
    assert text == ipv4


def test_who_is_let_in_is_told_to_the_table_of_his_family() -> None:
    assert changes(6, Delta(((HOST, True),))) == f"add element ip6 ovnet senders {{ {HOST} }}\n"


# --- What is heard -------------------------------------------------------------------

WANTED = RouteKey(SUBNET, 102), HOP, MacAddress(b"\2peer."), Sender(HOST)


def classifier() -> Classifier:
    made = Classifier(lambda entry: entry in WANTED)
    made.devices = Devices(7, 3, 2, ipv6_tunnel=VXLAN)
    return made


def address(text: str, scope: int) -> bytes:
    return body(message(ifaddrmsg, [("IFA_ADDRESS", text)], family=10, prefixlen=64, scope=scope, index=5))


def route(to: str, length: int = 64, *, protocol: int = 2, metric: int = 102, table: int = 254) -> bytes:
    named = [("RTA_DST", to), ("RTA_PRIORITY", metric)] if length else [("RTA_PRIORITY", metric)]
    return body(message(rtmsg, named, family=10, dst_len=length, table=table, proto=protocol, type=1))


def neighbour(to: IPv6Address, ifindex: int = VXLAN) -> bytes:
    return body(message(ndmsg, [("NDA_DST", str(to))], family=10, ifindex=ifindex, state=128))


def container(address: str) -> bytes:
    """A neighbour on the bridge."""
    named = [("NDA_DST", address), ("NDA_LLADDR", "02:00:00:00:00:10")]
    return body(message(ndmsg, named, family=10, ifindex=3, state=2))


HOPS = {Change.HOPS}


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        (RTM_NEWADDR, address("fd77::1", 0), {Change.DEVICES, Change.HOPS}),
        (RTM_DELADDR, address("fd77::1", 0), {Change.DEVICES, Change.HOPS}),
        (RTM_NEWADDR, address("fe80::1", 253), set()),
        (RTM_NEWROUTE, route("", 0), HOPS),
        (RTM_DELROUTE, route("fd77::", 64), HOPS),
        (RTM_NEWROUTE, route("fe80::", 64), set()),
        (RTM_NEWROUTE, route("ff00::", 8, table=255), set()),
        (RTM_NEWROUTE, route("fd77::1", 128, table=255), set()),
        (RTM_NEWROUTE, route(str(SUBNET.network_address), protocol=ROUTE_PROTOCOL), set()),
        (RTM_DELROUTE, route(str(SUBNET.network_address), protocol=ROUTE_PROTOCOL), {Change.PEERS}),
        (RTM_DELROUTE, route("fd00:10:0:3::", protocol=ROUTE_PROTOCOL), set()),
        (29, neighbour(HOP), {Change.PEERS}),
        (29, neighbour(IPv6Address("ff02::2")), set()),
        (29, neighbour(HOP, ifindex=2), set()),
        (RTM_NEWNEIGH, neighbour(HOP), set()),
        (RTM_NEWNEIGH, container("fd00:10:0:1::10"), {Change.PORTS}),
        (RTM_NEWNEIGH, container("fe80::10"), set()),
    ],
)
def test_of_ipv6_only_what_others_take_away_or_lead_elsewhere_counts(
    kind: int, content: bytes, expected: set[Change]
) -> None:
    assert classifier().classify(kind, content) == expected


def test_a_sender_of_ipv6_that_was_taken_out_is_missed() -> None:
    element = attribute(1, attribute(1, attribute(1, HOST.packed)))
    names = attribute(1, b"ovnet\0") + attribute(2, b"senders\0")
    content = bytes((10, 0, 0, 0)) + names + attribute(3, element)
    event = HEADER.pack(HEADER.size + len(content), 0x0A00 | 14, 0, 0, 0) + content
    assert rules(lambda entry: entry == Sender(HOST)).heard(event) == {Change.PEERS}


def passes(program: bytes, kind: int, content: bytes) -> bool:
    """Whether a classic BPF program lets a message through."""
    packet, at, accumulator = HEADER.pack(HEADER.size + len(content), kind, 0, 0, 0) + content, 0, 0
    while True:
        code, then, otherwise, value = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x06:
            return bool(value)
        if code == 0x15:
            at += then if accumulator == value else otherwise
        else:
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            accumulator = int.from_bytes(packet[value : value + size], "big")


@pytest.mark.parametrize("tunnels", [(), (7,), (7, VXLAN)])
def test_of_neighbours_those_on_our_devices_wake_nobody(tunnels: tuple[int, ...]) -> None:
    program = quiet_filter(tunnels)
    for ifindex in (2, 7, VXLAN):
        assert passes(program, RTM_NEWNEIGH, neighbour(HOP, ifindex)) is (ifindex not in tunnels)
    assert not passes(program, RTM_NEWROUTE, route("fd77::", protocol=ROUTE_PROTOCOL))
    assert passes(program, RTM_NEWROUTE, route("fd77::"))
    assert passes(program, RTM_DELROUTE, route("fd77::", protocol=ROUTE_PROTOCOL))


@dataclass
class Listed:
    """An rtnetlink session of a kernel without IPv6: asked for that it lists what it has of IPv4."""

    content: bytes

    @property
    def bulk(self) -> Any:
        return SimpleNamespace(dump=lambda *_: [self.content])


def test_a_kernel_without_ipv6_has_nothing_of_it_whatever_it_lists() -> None:
    named = [("RTA_DST", "10.0.0.0"), ("RTA_PRIORITY", 1)]
    ipv4_route = body(message(rtmsg, named, family=2, dst_len=8, table=254, proto=ROUTE_PROTOCOL, type=1))
    assert Routes(Listed(ipv4_route), IPV6).read() == {}  # type: ignore[arg-type]
    known = [("NDA_DST", "10.0.0.1"), ("NDA_LLADDR", "02:00:00:00:00:01")]
    entry = body(message(ndmsg, known, family=2, ifindex=VXLAN, state=128))
    assert VtepNeighbours(Listed(entry), IPV6, VXLAN).read() == {}  # type: ignore[arg-type]
    local = [("IFA_ADDRESS", "10.0.0.1"), ("IFA_LOCAL", "10.0.0.1")]
    ipv4_address = body(message(ifaddrmsg, local, family=2, prefixlen=8, index=VXLAN))
    assert addressing.of(Listed(ipv4_address), VXLAN, 6) == []  # type: ignore[arg-type]


# --- Forwarding ----------------------------------------------------------------------


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /proc/sys of a host that does not forward IPv6, with two interfaces."""
    root = tmp_path / "proc"
    for device in ("all", "eth0", "eth1"):
        (root / "net/ipv6/conf" / device).mkdir(parents=True)
        (root / sysctl.accept_ra(device)).write_text("1\n")
    (forwards,) = sysctl.IPV6_FORWARDING
    (root / forwards).write_text("0\n")
    monkeypatch.setattr(sysctl, "_ROOT", root)
    monkeypatch.setattr(forwarding, "_by_advertisement", lambda _: set())
    return root


def heeds(device: str) -> str | None:
    return sysctl.read(sysctl.accept_ra(device))


NETLINK: Any = None


def test_an_uplink_goes_on_with_router_advertisements_and_other_interfaces_are_let_be(
    proc: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "sysctls.json"
    forwarding.ensure_ipv6(NETLINK, "eth0", saved)
    assert (heeds("eth0"), heeds("eth1")) == ("2", "1")
    assert json.loads(saved.read_text()) == {
        "net/ipv6/conf/all/forwarding": "0",
        "net/ipv6/conf/eth0/accept_ra": "1",
    }
    forwarding.ensure_ipv6(NETLINK, "eth1", saved)
    assert heeds("eth1") == "2", "it is the uplink now, and we have made this host a router"
    assert sysctl.restore(saved) is False, "what stays on needs the other"
    assert heeds("eth0") == "2"


def test_what_another_one_has_made_a_router_is_as_he_wants_it(proc: Path, tmp_path: Path) -> None:
    (forwards,) = sysctl.IPV6_FORWARDING
    (proc / forwards).write_text("1\n")
    forwarding.ensure_ipv6(NETLINK, "eth0", tmp_path / "sysctls.json")
    assert heeds("eth0") == "1"


def test_an_uplink_that_heeds_no_router_is_not_made_to(proc: Path, tmp_path: Path) -> None:
    (proc / sysctl.accept_ra("eth0")).write_text("0\n")
    forwarding.ensure_ipv6(NETLINK, "eth0", tmp_path / "sysctls.json")
    assert heeds("eth0") == "0"
