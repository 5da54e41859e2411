"""eBPF writes what the kernel's own vxlan device and router write, byte for byte.

The same packet is sent twice between two containers on two nodes. The first is of an
unknown flow, so bridge, router and vxlan device carry it; the second is carried by eBPF.
Both are captured on the wire and at the container.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import count
from typing import Any

import pytest

from ctl.core.abi import Hook
from ctl.core.model import MacAddress
from ctl.kernel.bpf.maps import Maps, open_maps
from tests import packets
from tests.host import Container, Host, served
from tests.lab import Lab
from tests.namespace import Namespace
from tests.packets import ICMP, IP_LEN, TCP, UDP, Tunnel

ENCAP, DECAP = 1, 2
SECONDS = 30
ports = count(20000)


class Tap:
    """A packet socket on eth0 of a namespace."""

    def __init__(self, place: Namespace) -> None:
        self._socket = place.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self._socket.bind(("eth0", 3))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self, wanted: Callable[[bytes], bool]) -> bytes:
        """The next frame that came in and is wanted."""
        deadline = time.monotonic() + SECONDS
        while select.select([self._socket], [], [], max(deadline - time.monotonic(), 0))[0]:
            frame, address = self._socket.recvfrom(65535)
            if address[2] != socket.PACKET_OUTGOING and wanted(frame):
                return frame
        raise AssertionError(f"no such frame in {SECONDS} s")


@dataclass
class Wire:
    """Two nodes, a container on each, and taps at every place where a packet shows."""

    a: Host
    b: Host
    one: Container
    two: Container
    maps_a: Maps[IPv4Address]
    maps_b: Maps[IPv4Address]
    at_one: Tap
    at_a: Tap
    at_b: Tap
    at_two: Tap
    gateway: MacAddress

    def frame(self, l4: bytes, proto: int, **ip: Any) -> bytes:
        """From container one to container two, by its gateway."""
        src, dst = IPv4Address(self.one.address), IPv4Address(self.two.address)
        return packets.ether(
            packets.ipv4(l4, src, dst, proto, **ip), MacAddress.parse(self.one.mac), self.gateway
        )

    def injected(self, frame: bytes, l4: bytes) -> bytes:
        """Put a frame on the wire as if from node a; returns what container two gets of it."""
        self.at_a.send(frame)
        return self.at_two.receive(lambda got: got.endswith(l4))

    def refused(self, frame: bytes, l4: bytes) -> bool:
        """Put a frame on the wire; whether container two gets nothing of it."""
        end = datagram()
        self.at_a.send(frame)
        # By the kernel as well, so what has not come before it will not come.
        self.at_a.send(marked(frame, 0)[: -len(l4)] + end)
        return self.at_two.receive(lambda got: got.endswith((l4, end))).endswith(end)

    def carried(self) -> tuple[int, int]:
        """Packets that eBPF has encapsulated on a and decapsulated on b."""
        out = self.maps_a.counters().get((Hook.FROM_CONTAINER, ENCAP))
        into = self.maps_b.counters().get((Hook.FROM_WIRE, DECAP))
        return out.packets if out else 0, into.packets if into else 0


def mac_of(host: Host, device: str) -> MacAddress:
    (link,) = json.loads(host.ip("-j", "link", "show", device))
    return MacAddress.parse(link["address"])


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.init_network()
        for host in (a, b):
            host.agent("--approval-ttl", "60")
        one, two = a.container("one"), b.container("two")
        # Nobody listens: a reset would end the flow that the test looks at.
        two.nft("table ip t { chain c { type filter hook output priority 0; tcp flags rst drop; }; }")
        served(one, two)
        one.run("ping", "-c2", "-i0.1", "-W2", two.address)
        with (
            open_maps(a.bpffs) as maps_a,
            open_maps(b.bpffs) as maps_b,
            closing(Tap(one)) as at_one,
            closing(Tap(a)) as at_a,
            closing(Tap(b)) as at_b,
            closing(Tap(two)) as at_two,
        ):
            yield Wire(a, b, one, two, maps_a, maps_b, at_one, at_a, at_b, at_two, mac_of(a, a.bridge))


def same_flow(frame: bytes) -> Callable[[bytes], bool]:
    """Frames with this one's L4 bytes, in a tunnel or not."""
    return lambda other: other.endswith(frame[packets.ETH_LEN + IP_LEN :])


def without_ident(frame: bytes) -> bytes:
    """Less the outer IP id, which has to differ, and the checksum, which follows it."""
    return frame[:18] + frame[20:24] + frame[26:]


def send(wire: Wire, frame: bytes) -> tuple[bytes, bytes]:
    """One packet all the way: as on the wire, and as container two gets it."""
    wire.at_one.send(frame)
    return wire.at_b.receive(same_flow(frame)), wire.at_two.receive(same_flow(frame))


def both_ways(wire: Wire, frame: bytes) -> tuple[bytes, bytes]:
    """The packet by the kernel, then by eBPF; fails unless they are the same. The kernel's is returned."""
    start = wire.carried()
    kernel_wire, kernel_delivered = send(wire, frame)
    assert wire.carried() == start, "the first packet was the kernel's to carry"
    for _ in range(2):  # so late that UDP's first approval was over, on a node or both: the next one lasts
        before = wire.carried()
        ours_wire, ours_delivered = send(wire, frame)
        if wire.carried() == (before[0] + 1, before[1] + 1):
            break
    else:
        pytest.fail("the second packet was ours to carry")
    assert without_ident(ours_wire) == without_ident(kernel_wire)
    assert Tunnel.parse(ours_wire).ip.valid
    assert ours_delivered == kernel_delivered
    return kernel_wire, kernel_delivered


def datagram(size: int = 32) -> bytes:
    """UDP of a flow that was never used before."""
    return packets.udp(bytes(size), next(ports), 2000)


@pytest.mark.parametrize("dscp", [0, 46])
@pytest.mark.parametrize("ecn", range(4))
def test_dscp_and_ecn_travel_as_by_the_kernel(wire: Wire, ecn: int, dscp: int) -> None:
    both_ways(wire, wire.frame(datagram(), UDP, tos=dscp << 2 | ecn))


@pytest.mark.parametrize("ttl", [3, 64, 255])
@pytest.mark.parametrize("fragment", [0, packets.DF])
def test_ttl_and_df(wire: Wire, ttl: int, fragment: int) -> None:
    both_ways(wire, wire.frame(datagram(), UDP, ttl=ttl, fragment=fragment))


@pytest.mark.parametrize("size", [0, 1, 1421, 1422])
def test_sizes_up_to_the_mtu_travel_as_by_the_kernel(wire: Wire, size: int) -> None:
    both_ways(wire, wire.frame(datagram(size), UDP))


def test_tcp_travels_as_by_the_kernel(wire: Wire) -> None:
    both_ways(wire, wire.frame(packets.tcp(b"data", next(ports), 2000, options=bytes(12)), TCP))


def test_an_echo_travels_as_by_the_kernel(wire: Wire) -> None:
    both_ways(wire, wire.frame(packets.icmp(b"ping", 8, next(ports)), ICMP))


def test_what_is_known_of_the_outer_header(wire: Wire) -> None:
    """Lest both be wrong in the same way: the kernel's device is set up as the design says."""
    frame = wire.frame(datagram(), UDP, tos=46 << 2 | 3)
    tunnel = Tunnel.parse(both_ways(wire, frame)[0])
    assert (tunnel.ip.src, tunnel.ip.dst) == (IPv4Address(wire.a.address), IPv4Address(wire.b.address))
    assert (tunnel.ip.ttl, tunnel.ip.fragment, tunnel.ip.tos) == (64, 0, 2)
    assert (tunnel.dport, tunnel.udp_check) == (8472, 0)
    low, high = map(int, wire.a.sysctl("net.ipv4.ip_local_port_range").split())
    assert low <= tunnel.sport < high


def marked(outer: bytes, tos: int) -> bytes:
    """A captured frame with another TOS outside."""
    head = outer[14:15] + bytes([tos]) + outer[16:24] + bytes(2) + outer[26:34]
    return outer[:14] + head[:10] + struct.pack("!H", packets.checksum(head)) + head[12:] + outer[34:]


@pytest.mark.parametrize("outer", range(4))
@pytest.mark.parametrize("inner", range(4))
def test_a_congestion_mark_on_the_wire_is_treated_as_by_the_kernel(
    wire: Wire, inner: int, outer: int
) -> None:
    template, _ = send(wire, wire.frame(datagram(), UDP, tos=46 << 2 | inner))
    probe = datagram()
    # As container one would have sent it: routed once, and marked on the way.
    routed = packets.forwarded(wire.frame(probe, UDP, tos=46 << 2 | inner)[packets.ETH_LEN :])
    frame = marked(template, outer)[: packets.OUTER_LEN + packets.ETH_LEN] + routed
    before = wire.carried()[1]
    if (inner, outer) == (0, 3):
        assert all(wire.refused(frame, probe) for _ in range(2))
        assert wire.carried()[1] == before
    else:
        by_kernel = wire.injected(frame, probe)
        ours = wire.injected(frame, probe)
        if wire.carried()[1] == before:  # as in both_ways
            ours = wire.injected(frame, probe)
        assert ours == by_kernel
        assert wire.carried()[1] == before + 1
