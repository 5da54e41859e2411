"""The shortest proof that a node works on this kernel: `make kernels` runs it on others, in emulation."""

from __future__ import annotations

from functools import partial

import pytest

from tests.host import Host
from tests.lab import Lab, wait_until
from tests.netns.conftest import build
from tests.netns.test_xdp import like_a_wire
from tests.stream import TcpSink, UdpStream, tcp_send

ENOUGH = 100
"""Datagrams."""


def carried(host: Host) -> dict[str, int]:
    """Packets that eBPF took out of the host and into it."""
    found = host.counters()
    ways = {
        "out": ("from_container", "encap"),
        "tc": ("from_wire", "decap"),
        "xdp": ("from_wire_xdp", "decap"),
        "delivered": ("from_wire", "delivered"),
    }
    return {way: found.get(key, 0) for way, key in ways.items()}


@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_ebpf_carries_traffic_both_ways(lab: Lab, hook: str) -> None:
    # An approval outlasts what a slow machine makes of the test.
    pair = build(lab, "--hook", hook, "--approval-ttl", "60")
    like_a_wire(lab, pair.a, pair.b)
    # The maps come after the routes: until then the peer is a stranger, who is refused.
    for host in (pair.a, pair.b):
        wait_until(partial(host.json, "map", "dump", "peers"), 30, f"{host.name}'s programs know the peer")
    both = [
        UdpStream(pair.on_a, pair.on_b, pair.on_b.address, port=9001, rate=50),
        UdpStream(pair.on_b, pair.on_a, pair.on_a.address, port=9002, rate=50),
    ]

    def all_carried() -> bool:
        ways = [carried(host) for host in (pair.a, pair.b)]
        return all(min(way["out"], way[hook]) >= ENOUGH for way in ways)

    def shown() -> str:
        return f"{pair.a.json('map', 'dump', 'counters')}\n{pair.agents['a'].log()}"

    wait_until(all_carried, 30, lambda: f"eBPF carries both ways\n{shown()}", every=0.5)
    for stream in both:
        assert stream.finish()[1].received >= ENOUGH
    server = TcpSink(pair.on_b)
    assert tcp_send(pair.on_a, pair.on_b.address, 300_000)["seen_as"] == pair.on_a.address
    server.stop()
    for host in (pair.a, pair.b):
        assert host.status()["hook"] == hook
        ways = carried(host)
        assert (ways["delivered"] >= ENOUGH) == (hook == "xdp")
        assert not [
            row for row in host.json("map", "dump", "counters") if row["verdict"] in ("drop", "abort")
        ]
