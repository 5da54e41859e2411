"""`--hook xdp` on an underlay that is like a wire: checksums finished, no super-packets, GRO on."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ctl.core.abi import LAYOUT
from ctl.core.model import MacAddress
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.maps import open_maps
from tests import packets
from tests.hooks import detach, programs, put_foreign_filter
from tests.host import METRICS_PORT, Host
from tests.lab import Lab, wait_until
from tests.namespace import Namespace
from tests.netns.conftest import APPROVAL_TTL, Pair, build
from tests.netns.test_resilience import FAST, SOON, complaints_or_nothing, healthy, reaches, stopped
from tests.packets import checksum
from tests.stream import TRAFFIC, Tally, TcpSink, UdpStream, tcp_send
from tests.traffic import SEQUENCE

XDP_PASS = 2
MOV_R0, EXIT = 0xB7, 0x95
SO_NO_CHECK = 11
FIRST, TORN, WHOLE = 0, 1, 2
"""Numbers of datagrams."""
JUMBO = 9000
"""An MTU that veth refuses XDP for, unless the program takes frames in pieces."""


def like_a_wire(lab: Lab, *hosts: Host) -> None:
    """A veth carries unfinished checksums and super-packets; a wire does not."""
    for host in hosts:
        lab.wire.run("ethtool", "-K", host.name, "tx", "off")
        host.like_a_wire()


def wired(lab: Lab, *flags: str) -> Pair:
    pair = build(lab, *flags)
    like_a_wire(lab, pair.a, pair.b)
    return pair


@pytest.fixture(scope="module")
def xdp_nodes() -> Iterator[Pair]:
    with Lab() as lab:
        yield wired(lab, "--hook", "xdp")


@pytest.fixture
def pair(xdp_nodes: Pair) -> Iterator[Pair]:
    """Two nodes with XDP, shared; what the test has started in them ends with the test."""
    yield xdp_nodes
    for place in (xdp_nodes.on_a, xdp_nodes.on_b, xdp_nodes.outside):
        place.stop_processes()


def attached(host: Host, device: str = "eth0") -> int:
    """Id of the XDP program in the driver; 0: none."""
    shown = re.search(r"prog/xdp id (\d+)", host.ip("link", "show", "dev", device))
    return int(shown[1]) if shown else 0


def decapsulated(host: Host) -> tuple[int, int, int]:
    """Packets that XDP has decapsulated, that from_wire delivered for it, that it decapsulated itself."""
    found = host.counters()
    return (
        found.get(("from_wire_xdp", "decap"), 0),
        found.get(("from_wire", "delivered"), 0),
        found.get(("from_wire", "decap"), 0),
    )


def received(place: Namespace, counter: str) -> int:
    """A counter of the namespace's own stack."""
    return int(place.run("nstat", "-asz", counter).stdout.split()[-2])


@contextmanager
def streams(pair: Pair) -> Iterator[list[UdpStream]]:
    """Numbered datagrams both ways; none may be lost, doubled or late when the block ends."""
    both = [
        UdpStream(pair.on_a, pair.on_b, pair.on_b.address, port=9001),
        UdpStream(pair.on_b, pair.on_a, pair.on_a.address, port=9002),
    ]
    for stream in both:
        stream.advance(0.3)
    yield both
    for stream in both:
        stream.advance(0.3)
        sent, tally = stream.finish()
        assert (tally.received, tally.lost, tally.duplicates, tally.late) == (sent, 0, 0, 0)


def test_ping_and_tcp_pass_both_ways_through_xdp(pair: Pair) -> None:
    for host in (pair.a, pair.b):
        assert attached(host)
    reaches(pair.on_a, pair.on_b)
    reaches(pair.on_b, pair.on_a)
    for host in (pair.a, pair.b):
        by_xdp, delivered, by_tc = decapsulated(host)
        assert by_xdp == delivered > 500
        assert by_tc == 0
        assert received(host, "TcpInCsumErrors") == 0
    for container in (pair.on_a, pair.on_b):
        assert received(container, "TcpInCsumErrors") == 0


def test_udp_is_learned_and_loses_nothing(pair: Pair) -> None:
    before = decapsulated(pair.b)[0]
    with streams(pair) as both:
        both[0].advance(2 * APPROVAL_TTL)
    assert decapsulated(pair.b)[0] - before > APPROVAL_TTL * both[0].rate
    reasons = {reason for (hook, reason) in pair.b.counters() if hook == "from_wire_xdp"}
    assert {"flow_unknown", "flow_expired", "decap"} <= reasons


def test_the_stack_merges_what_xdp_has_decapsulated(pair: Pair) -> None:
    sink = TcpSink(pair.on_b)
    before = received(pair.on_b, "IpInReceives"), decapsulated(pair.b)[1]
    tcp_send(pair.on_a, pair.on_b.address, 30_000_000)
    sink.stop()
    taken = received(pair.on_b, "IpInReceives") - before[0]
    on_the_wire = decapsulated(pair.b)[1] - before[1]
    assert on_the_wire > 30_000_000 / 1450
    assert taken < on_the_wire / 2


def test_status_metrics_and_map_say_so(pair: Pair) -> None:
    assert "hook        xdp\n" in pair.a.ovctl("status").stdout
    assert pair.a.json("map", "dump", "node")[0]["hook"] == "xdp"
    _, text = pair.a.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")
    assert 'ovnet_bypass_info{hook="xdp",mode="learned"} 1.0' in text
    assert "ovnet_hook_refused 0.0" in text


def test_strangers_are_dropped_before_the_stack(pair: Pair) -> None:
    frame = packets.ether(bytes(20), MacAddress(bytes(6)), MacAddress(bytes(6)))
    forged = packets.vxlan(frame, 1)
    before = pair.a.counters()

    def refused() -> bool:
        pair.outside.call(partial(send, forged, pair.a.address, 8472))
        return pair.a.counters().get(("from_wire_xdp", "unknown_vtep"), 0) > 0

    wait_until(refused, SOON, "a stranger's VXLAN is dropped and counted by XDP")
    key = ("from_wire", "unknown_vtep")
    assert pair.a.counters().get(key, 0) == before.get(key, 0), "from_wire has seen it, too"


def send(data: bytes, to: str, port: int, source_port: int = 0) -> None:
    """A datagram without a checksum, as VTEPs send them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        sender.bind(("", source_port))
        sender.sendto(data, (to, port))


def datagram(src: str, dst: str, *, good: bool) -> bytes:
    """UDP 7001 to 7002 with a checksum, right or wrong."""
    body = SEQUENCE.pack(WHOLE if good else TORN, 1)
    pseudo = IPv4Address(src).packed + IPv4Address(dst).packed + struct.pack("!BBH", 0, 17, 8 + len(body))
    head = struct.pack("!HHHH", 7001, 7002, 8 + len(body), 0)
    check = checksum(pseudo + head + body) ^ (0 if good else 0x5555)
    return head[:6] + struct.pack("!H", check) + body


def test_a_damaged_inner_packet_is_still_found_out(pair: Pair) -> None:
    """XDP touches the headers of what nobody has verified yet."""
    a, b, lease = pair.a, pair.b, pair.a.json("lease", "list")
    macs = {row["host"]: MacAddress.parse(row["vtep_mac"]) for row in lease}
    sink = pair.on_a.serve(*TRAFFIC, "udp-sink", "7002", port=7002, protocol="udp")
    wait_until(sink.out, 60, "the sink's first line")

    def forge(good: bool) -> None:
        inner = packets.ipv4(
            datagram(pair.on_b.address, pair.on_a.address, good=good),
            IPv4Address(pair.on_b.address), IPv4Address(pair.on_a.address), packets.UDP, ttl=63,
        )  # fmt: skip
        frame = packets.ether(inner, macs[b.address], macs[a.address])
        b.call(partial(send, packets.vxlan(frame, 1), a.address, 8472, 55555))

    before = decapsulated(a)[1]

    def torn_by_xdp() -> bool:
        # The kernel path approves the flow by the first.
        pair.on_b.call(partial(send, SEQUENCE.pack(FIRST, 1), pair.on_a.address, 7002, 7001))
        forge(good=False)
        return decapsulated(a)[1] > before

    wait_until(torn_by_xdp, SOON, "a torn one comes through XDP")
    forge(good=True)
    wait_until(lambda: Tally.parse(sink.out()).highest == WHOLE, SOON, "a whole one is taken")
    tally = Tally.parse(sink.out())
    assert (tally.received, tally.lost) == (2, 1), "without the torn one"
    assert received(pair.on_a, "UdpInCsumErrors") > 0


def test_xdp_removed_by_hand_comes_back(pair: Pair) -> None:
    before = attached(pair.a)
    with streams(pair):
        pair.a.ip("link", "set", "dev", "eth0", "xdpdrv", "off")
        wait_until(lambda: attached(pair.a) == before, SOON, "XDP is back")
    wait_until(partial(healthy, pair.a), SOON, lambda: complaints_or_nothing(pair.a))


def test_without_from_wire_the_kernel_path_takes_what_xdp_has_decapsulated(pair: Pair) -> None:
    stream = UdpStream(pair.on_b, pair.on_a, pair.on_a.address)
    stream.advance(0.3)
    with stopped(pair.agents["a"]):
        before = decapsulated(pair.a)
        stream.advance(0.1)  # or the approval may be over, on a busy machine
        detach(pair.a, "eth0")
        stream.advance(APPROVAL_TTL / 2)
        by_xdp, delivered, _ = (now - then for now, then in zip(decapsulated(pair.a), before, strict=True))
        assert by_xdp > delivered
    wait_until(lambda: programs(pair.a, "eth0"), SOON, "from_wire is back")
    stream.advance(0.3)
    stream.finish()
    assert attached(pair.a)


def test_a_restart_adopts_it(pair: Pair) -> None:
    before = attached(pair.a)
    with streams(pair):
        pair.agents["a"].stop()
        pair.agents["a"] = pair.a.agent(*FAST, "--hook", "xdp")
        assert attached(pair.a) == before
    assert "XDP" not in pair.agents["a"].log()


def test_the_hook_changes_under_traffic(pair: Pair) -> None:
    for hook in ("tc", "xdp", "tc", "xdp"):
        with streams(pair):
            pair.agents["a"].stop()
            pair.agents["a"] = pair.a.agent(*FAST, "--hook", hook)
            assert bool(attached(pair.a)) == (hook == "xdp")
        assert pair.a.status()["hook"] == hook


def test_maps_of_another_size_come_with_another_program(pair: Pair) -> None:
    """The old one goes on with the old maps, and the same secret, until it is replaced."""
    before, seed = attached(pair.a), flow_seed(pair.a)
    for size in ("4096", "65536"):
        pair.agents["a"].stop()
        with streams(pair):
            pair.agents["a"] = pair.a.agent(*FAST, "--hook", "xdp", "--flows-max", size)
        assert attached(pair.a) not in (0, before)
        before = attached(pair.a)
        assert flow_seed(pair.a) == seed, "what is on its way would lose its signature"


def flow_seed(host: Host) -> int:
    with open_maps(host.bpffs) as maps:
        node = maps.node()
        assert node is not None
        return node.flow_seed


@pytest.mark.parametrize("pins", ["of another build", "lost"])
def test_the_program_of_an_earlier_build_is_replaced_in_place(pair: Pair, pins: str) -> None:
    before = attached(pair.a)
    pair.agents["a"].stop()
    layout = pair.a.bpffs / f"v{LAYOUT}"
    (home,) = layout.glob("progs-*")
    if pins == "lost":
        for pin in home.iterdir():
            pin.unlink()
        home.rmdir()
    else:
        home.rename(layout / "progs-0123456789abcdef")
    with streams(pair):
        pair.agents["a"] = pair.a.agent(*FAST, "--hook", "xdp")
    assert attached(pair.a) not in (0, before)
    assert [path.name for path in layout.glob("progs-*")] == [home.name]


def foreign(host: Host) -> Path:
    """A pinned XDP program of someone else that passes everything."""
    pin = host.bpffs / "foreign"
    fd = syscall.prog_load(
        struct.pack("=BBhi BBhi", MOV_R0, 0, 0, XDP_PASS, EXIT, 0, 0, 0), "foreign", syscall.PROG_TYPE_XDP
    )
    syscall.obj_pin(fd, str(pin))
    os.close(fd)
    return pin


def test_a_program_put_in_place_of_ours_is_named_and_left(pair: Pair) -> None:
    a, ours = pair.a, attached(pair.a)
    pin = foreign(a)
    with streams(pair):
        a.run("ip", "-force", "link", "set", "dev", "eth0", "xdpdrv", "pinned", str(pin))
        wait_until(lambda: "not ours" in str(a.status()["problems"]), SOON, lambda: str(a.status()))
    assert a.status()["hook"] == "tc"
    theirs = attached(a)
    assert theirs not in (0, ours)
    reaches(pair.on_b, pair.on_a)
    assert attached(a) == theirs
    pin.unlink()
    a.ip("link", "set", "dev", "eth0", "xdpdrv", "off")
    wait_until(lambda: attached(a) == ours, SOON, "ours is back")
    wait_until(lambda: not a.status()["problems"], SOON, lambda: str(a.status()))


def test_where_from_wire_cannot_be_there_is_no_xdp(pair: Pair) -> None:
    """Its place is taken: what XDP would decapsulate, nobody would deliver."""
    a, ours = pair.a, attached(pair.a)
    with stopped(pair.agents["a"]):
        a.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
        put_foreign_filter(a, "eth0", "ingress", 49000)
    wait_until(lambda: not attached(a), SOON, "XDP is taken off")
    reaches(pair.on_b, pair.on_a)
    assert "49000" in complaints_or_nothing(a)
    a.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
    wait_until(lambda: attached(a) == ours, SOON, "XDP is back")
    wait_until(partial(healthy, a), SOON, lambda: complaints_or_nothing(a))


def test_teardown_takes_it_off(pair: Pair) -> None:
    pair.agents["b"].stop()
    assert "programs on eth0" in pair.b.teardown().stdout
    assert not attached(pair.b)
    assert not pair.b.bpffs.exists()


@pytest.mark.parametrize("flags", [("--bypass", "off"), ("--hook", "xdp")])
def test_without_programs_it_is_taken_off(pair: Pair, flags: tuple[str, str]) -> None:
    """Also by a backend that has none."""
    a, lab = pair.a, pair.lab
    pair.agents["a"].stop()
    if flags[0] == "--hook":
        lab.init_network("172.17.0.0/16", 24, "--backend", "host-gw", "--force")
    agent = a.agent(*flags)
    assert not attached(a)
    agent.stop()
    if flags[0] == "--hook":
        lab.init_network("172.17.0.0/16", 24, "--force")
    pair.agents["a"] = a.agent(*FAST, "--hook", "xdp")
    assert attached(a)


def test_a_driver_that_refuses_leaves_it_to_tc_until_it_does_not(lab: Lab) -> None:
    host = lab.host("a")
    lab.wire.ip("link", "del", "dev", "a")
    lab.wire.ip("link", "add", "name", "a", "numtxqueues", "2", "type", "veth",
                "peer", "name", "eth0", "numrxqueues", "2", "netns", host.netns)  # fmt: skip
    lab.wire.run("ethtool", "-L", "a", "tx", "2")
    lab.wire.ip("link", "set", "dev", "a", "master", "lab0", "up")
    host.up("eth0")
    lab.init_network()
    agent = host.agent("--hook", "xdp", "--resync-interval", "1")
    words = "veth: XDP expects number of rx queues not less than peer tx queues"
    refusal = f"eth0: XDP: {words} (MTU 1500): from_wire stays at tc"
    assert refusal in agent.log()
    assert f"hook        tc: {refusal}\n" in host.ovctl("status").stdout
    assert programs(host, "eth0")
    _, text = host.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")
    assert "ovnet_hook_refused 1.0" in text

    def passes() -> int:
        return int(host.status()["reconcile"]["ok"])

    more = passes() + 2
    wait_until(lambda: passes() >= more, SOON, "the agent reconciles again")
    assert agent.log().count(refusal) == 1, "said once, not on each try"
    lab.wire.run("ethtool", "-L", "a", "tx", "1")  # which nothing reports
    wait_until(lambda: attached(host), SOON, lambda: f"it is tried again: {agent.log()}")
    wait_until(lambda: host.status()["hook_refused"] == "", SOON, lambda: str(host.status()))


def test_jumbo_frames_pass_through_xdp(lab: Lab) -> None:
    lab.wire.ip("link", "set", "dev", "lab0", "mtu", str(JUMBO))
    a, b = lab.host("a", mtu=JUMBO), lab.host("b", mtu=JUMBO)
    lab.init_network()
    for host in (a, b):
        host.agent(*FAST, "--hook", "xdp")
        assert attached(host)
    like_a_wire(lab, a, b)
    one, two = a.container("one"), b.container("two")
    for host in (a, b):
        wait_until(host.knows_a_peer, SOON, "it knows its peer")
    size = str(JUMBO - 50 - 28)
    two.run("ping", "-c1", "-W5", one.address)

    def both_by_xdp() -> bool:
        two.run("ping", "-c5", "-i0.02", "-W5", "-M", "do", "-s", size, one.address)
        return all(decapsulated(host)[0] >= 5 for host in (a, b))

    wait_until(both_by_xdp, SOON, "full frames go through XDP both ways")
    big = decapsulated(b)[0]
    server = TcpSink(two)
    assert tcp_send(one, two.address, 3_000_000)["seen_as"] == one.address
    server.stop()
    by_xdp, delivered, by_tc = decapsulated(b)
    assert (by_tc, by_xdp > big + 100) == (0, True)
    assert delivered == by_xdp
    assert received(two, "TcpInCsumErrors") == 0
    assert {reason for hook, reason in b.counters() if hook == "from_wire_xdp"} & {
        "truncated",
        "oversize",
    } == set()


def test_auto_leaves_a_veth_to_tc_and_takes_a_driver_with_xdp(lab: Lab) -> None:
    host = lab.host("a")
    lab.init_network()
    agent = host.agent("--hook", "auto")
    assert not attached(host)
    assert host.status()["hook"] == "tc"
    agent.stop()
    host.ip("tuntap", "add", "dev", "nic0", "mode", "tap")
    host.ip("addr", "add", "192.168.99.1/24", "dev", "nic0")
    host.ip("link", "set", "dev", "nic0", "up")
    agent = host.agent("--hook", "auto", "--iface", "nic0")
    assert attached(host, "nic0")
    agent.stop()
    # Another uplink: nothing stays behind on the one before.
    agent = host.agent("--hook", "xdp")
    assert attached(host)
    assert not attached(host, "nic0")
    agent.stop()


def test_auto_where_the_driver_has_no_xdp_is_no_fault(lab: Lab) -> None:
    host = lab.host("a")
    lab.init_network()
    host.ip("link", "add", "br7", "type", "bridge")
    host.ip("addr", "add", "192.168.99.1/24", "dev", "br7")
    host.ip("link", "set", "dev", "br7", "up")
    agent = host.agent("--hook", "auto", "--iface", "br7")
    assert not attached(host, "br7")
    assert "WARNING" not in agent.log()
    assert host.status()["hook_refused"] != ""
    assert healthy(host)
