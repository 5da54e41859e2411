"""The programs for IPv6 between two nodes whose agents know nothing of them: `--bypass=off`, and the test
loads, furnishes and attaches them. What the agent will do for both families alike is not tested here, but
what real packets are to the programs: unfinished checksums, super-packets, GRO.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Any

import pytest

from ctl.core.abi import EndpointEntry, Hook
from ctl.core.model import IPv6Lease, MacAddress
from ctl.core.reasons import labelled
from ctl.kernel.bpf import syscall
from tests import packets
from tests.capture import Capture
from tests.datapath import INET6, Cast, Datapath
from tests.dual import Guest, guest, init_network, leases, reaches, with_ipv6
from tests.host import Host
from tests.lab import Lab
from tests.process import wait_until
from tests.stream import TcpSink, tcp_send

VXLAN = "ovnet-v6.1"
PROTO_AT = packets.ETH_LEN + 6
"""Where a frame says what is behind its IPv6 header."""
INNER_PROTO_AT = packets.ETH_LEN + packets.IPV6_LEN + 8 + 8 + PROTO_AT
"""The same of the frame that is in the tunnel."""
MEGABYTE = 1_000_000


@dataclass
class Node:
    """A node, its container and the programs for IPv6 on its interfaces."""

    host: Host
    lease: IPv6Lease
    guest: Guest
    datapath: Datapath

    def count(self, hook: Hook, label: str) -> int:
        """Packets that left there for that reason."""
        found = self.datapath.maps.counters().get((hook, labelled(label).number))
        return found.packets if found else 0

    def errors(self) -> int:
        """Datagrams whose checksum the host's kernel has found wrong."""
        text = self.host.run("cat", "/proc/net/snmp6").stdout
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Udp6InCsumErrors")))


def mac(host: Host, device: str) -> MacAddress:
    (link,) = json.loads(host.run("ip", "-j", "link", "show", device).stdout)
    return MacAddress.parse(link["address"])


def cast_of(host: Host, own: IPv6Lease, other: IPv6Lease, other_mac: MacAddress) -> Cast:
    """What the maps of this node have to say."""
    uplink, device = host.ifindex("eth0"), host.ifindex(VXLAN)
    node = replace(
        INET6.node,
        host=address_of(own),
        network=own.subnet.supernet(new_prefix=48),
        subnet=own.subnet,
        pool=(own.subnet.supernet(new_prefix=48)[1 << 64], own.subnet.supernet(new_prefix=48)[-1]),
        vni=1,
        uplink_ifindex=uplink,
        mtu=int(host.subnet_env()["FLANNEL_MTU"]),
        vtep_mac=mac(host, VXLAN),
        uplink_mac=mac(host, "eth0"),
        tunnel_ifindex=device,
        overlay_ifindex=device,
    )
    peer = replace(
        INET6.peer,
        host=address_of(other),
        vtep_mac=other_mac,
        vni=1,
        ifindex=uplink,
        next_hop=address_of(other),
    )
    return replace(INET6, node=node, peer=peer, peer_subnet=other.subnet)


def address_of(lease: IPv6Lease) -> IPv6Address:
    assert lease.host is not None
    return lease.host


def furnish(node: Node) -> None:
    """The maps: this node, its peer, its container."""
    datapath, place = node.datapath.clear(), node.guest.place
    datapath.node()
    datapath.peer(datapath.cast.peer_subnet, datapath.cast.peer)
    entry = EndpointEntry(
        node.host.ifindex(place.port), MacAddress.parse(place.mac), mac(node.host, node.host.bridge)
    )
    datapath.endpoint(IPv6Address(node.guest.address), entry)


def attach(node: Node) -> list[int]:
    """The programs where the agent would have them; descriptors of the links that hold them there."""
    host, port = node.host, node.host.ifindex(node.guest.place.port)
    places = [
        ("to_overlay", host.ifindex(VXLAN), syscall.TCX_EGRESS),
        ("from_container", port, syscall.TCX_INGRESS),
        ("to_container", port, syscall.TCX_EGRESS),
        ("from_wire", host.ifindex("eth0"), syscall.TCX_INGRESS),
    ]
    return host.call(
        lambda: [syscall.link_create(node.datapath.fd(name), device, kind) for name, device, kind in places]
    )


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two of them, on a wire that carries what a wire can: finished checksums, no super-packets."""
    with ExitStack() as undone:
        lab = undone.enter_context(Lab())
        hosts = [with_ipv6(lab.host(name)) for name in "ab"]
        init_network(hosts[0])
        for host in hosts:
            host.agent("--bypass=off")
            host.like_a_wire()
        held = leases(hosts[0])
        parts = {name: lease.ipv6 for name, lease in held.items()}
        made = []
        for host, other in (hosts, hosts[::-1]):
            own, theirs = parts[host.name], parts[other.name]
            assert own is not None and theirs is not None
            cast = cast_of(host, own, theirs, mac(other, VXLAN))
            datapath = undone.enter_context(Datapath(cast=cast))
            made.append(Node(host, own, guest(host, held[host.name]), datapath))
        reaches(made[0].guest.place, made[1].guest.address)
        yield made[0], made[1]


@pytest.fixture
def attached(nodes: tuple[Node, Node]) -> Iterator[tuple[Node, Node]]:
    """With the programs on, and nothing known of flows."""
    links: list[int] = []
    try:
        for node in nodes:
            furnish(node)
            links += attach(node)
        yield nodes
    finally:
        for link in links:
            os.close(link)


def frame(sender: Node, target: Node, body: bytes, **ip: Any) -> bytes:
    """UDP as the container sends it to its gateway, the same each time."""
    packet = packets.ip(
        packets.udp(body, 1000, 2000), IPv6Address(sender.guest.address), IPv6Address(target.guest.address),
        packets.UDP, **ip,
    )  # fmt: skip
    bridge = mac(sender.host, sender.host.bridge)
    return packets.ether(packet, MacAddress.parse(sender.guest.place.mac), bridge, packets.IPV6)


def travel(sender: Node, target: Node, sent: list[bytes], name: str) -> tuple[list[bytes], list[bytes]]:
    """What of these frames is on the wire, and what the container there is given."""

    def inject() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            for each in sent:
                raw.send(each)

    directory = sender.host.lab.dir
    wire = Capture(target.host, "eth0", directory / f"{name}-wire.pcap")
    end = Capture(target.guest.place, "eth0", directory / f"{name}-end.pcap")
    marks = [each[14 + 40 + 8 :] for each in sent]
    sender.guest.place.call(inject)
    wait_until(lambda: len(ours(end, marks, PROTO_AT)) == len(sent), 10, "they arrive")
    found = ours(wire, marks, INNER_PROTO_AT), ours(end, marks, PROTO_AT)
    wire.stop()
    end.stop()
    return found


def ours(capture: Capture, marks: list[bytes], proto_at: int) -> list[bytes]:
    """The frames of UDP that end so: ICMP quotes them, as nobody listens."""
    return [
        each for each in capture.frames() if each.endswith(tuple(marks)) and each[proto_at] == packets.UDP
    ]


def without_source_port(raw: bytes) -> bytes:
    """A frame of the tunnel with source port and checksum 0, once that one was seen to be right."""
    ip = packets.Ip.parse(raw[packets.ETH_LEN :])
    at = packets.ETH_LEN + packets.IPV6_LEN
    assert packets.with_checksum(raw[at:], ip.src, ip.dst, packets.UDP) == raw[at:] and raw[
        at + 6 : at + 8
    ] != bytes(2)
    return raw[:at] + bytes(2) + raw[at + 2 : at + 6] + bytes(2) + raw[at + 8 :]


def test_a_packet_is_the_same_whoever_carries_it(nodes: tuple[Node, Node]) -> None:
    """Kernel, tunnel gear, bypass: to the byte, but for the source port, which is of the flow's hash."""
    a, b = nodes
    sent = [
        frame(a, b, b"odd", tos=46 << 2 | 2, ident=0xABCDE),
        frame(a, b, bytes(1370), tos=46 << 2 | 2),
        frame(a, b, b"last hops", tos=46 << 2 | 2, ttl=3),
    ]
    kernel, delivered = travel(a, b, sent, "kernel")
    for node in nodes:
        furnish(node)
    links = attach(a) + attach(b)
    try:
        geared, arrived = travel(a, b, sent[:1], "gear")
        assert ([*map(without_source_port, geared)], arrived) == (
            [*map(without_source_port, kernel[:1])], delivered[:1],
        )  # fmt: skip
        assert a.count(Hook.TUNNEL_OUT, "tunnel_encap") and b.count(Hook.TUNNEL_IN, "tunnel_decap")
        bypassed, arrived = travel(a, b, sent, "bypass")
        assert [*map(without_source_port, bypassed)] == [*map(without_source_port, kernel)]
        assert arrived == delivered
        assert a.count(Hook.FROM_CONTAINER, "encap") == b.count(Hook.FROM_WIRE, "decap") == len(sent)
    finally:
        for link in links:
            os.close(link)


@pytest.mark.parametrize("turn", ["there", "back"])
def test_tcp_is_carried_with_right_checksums(attached: tuple[Node, Node], turn: str) -> None:
    one, two = attached if turn == "there" else attached[::-1]
    before = one.errors(), two.errors()
    sink = TcpSink(two.guest.place, address=two.guest.address)
    said = tcp_send(one.guest.place, two.guest.address, 20 * MEGABYTE)
    sink.stop()
    assert said["seen_as"] == one.guest.address
    assert (one.errors(), two.errors()) == before
    # In packets of one MTU, most of them; what eBPF leaves to the device are the last ones of a burst.
    assert one.count(Hook.FROM_CONTAINER, "encap") > 20 * MEGABYTE / 1430 / 2
    assert two.count(Hook.FROM_WIRE, "decap") > 20 * MEGABYTE / 1430 / 2
    assert two.count(Hook.FROM_CONTAINER, "encap") > 0, "acknowledgements"
