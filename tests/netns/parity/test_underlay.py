"""What the underlay does to a node, it does to both paths: next hops, neighbours, ICMP errors."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, Final

import pytest

from ctl.core.model import MacAddress
from tests import packets
from tests.netns.parity.capture import SO_RCVBUFFORCE, Shot, Tap, fields
from tests.netns.parity.rows import Ends, together, udp
from tests.netns.parity.site import UPLINK_MACS, Seen, Site
from tests.netns.parity.talk import PORT, Told, servers, talk
from tests.process import wait_until

FLOWS: Final = 300
FIRST: Final = 27000
SECOND_MAC: Final = "02:00:c0:a8:4d:99"
HOPS: Final = {"192.168.77.101": UPLINK_MACS["b"], "192.168.77.102": SECOND_MAC}


def many_flows(site: Site) -> Seen:
    """A datagram of each of many flows; the second time, when eBPF may carry them."""
    src, dst = site.addresses()
    mac = MacAddress.parse(site.one.mac)
    shots = [
        shot
        for port in range(FIRST, FIRST + FLOWS)
        for shot in together(udp())(Ends(src, dst, mac, site.gateway, port))
    ]

    def shoot() -> None:
        for shot in shots:
            site.at_one.send(shot)

    site.exchange(shoot)
    return site.exchange(shoot)


def outer(seen: Seen, name: str) -> list[Any]:
    """One outer field of each packet on the wire."""
    return [fields(frame)[f"outer.{name}"] for frame in seen.wire]


def test_source_ports_are_spread_as_the_kernels(kernel: Site, learned: Site) -> None:
    for site in (kernel, learned):
        ports = outer(many_flows(site), "sport")
        low, high = map(int, site.a.sysctl("net.ipv4.ip_local_port_range").split())
        assert len(ports) == FLOWS
        assert min(ports) >= low
        assert max(ports) < high
        assert len(set(ports)) > 0.9 * FLOWS
        eighths = Counter((port - low) * 8 // (high - low) for port in ports)
        assert all(FLOWS / 8 / 4 < eighths[part] < FLOWS / 8 * 2 for part in range(8)), eighths


@contextmanager
def two_next_hops(site: Site) -> Iterator[None]:
    """Node a reaches node b by two routers. There is none: the switch sends both MACs to b."""
    a, wire = site.a, site.lab.wire
    wire.nft(
        "table bridge routers { chain pre { type filter hook prerouting priority 0; "
        f"ether daddr {SECOND_MAC} ether daddr set {UPLINK_MACS['b']}; }}; }}"
    )
    for hop, mac in HOPS.items():
        a.ip("neigh", "replace", hop, "lladdr", mac, "dev", "eth0", "nud", "permanent")
    routes = [word for hop in HOPS for word in ("nexthop", "via", hop, "dev", "eth0")]
    a.ip("route", "add", f"{site.b.address}/32", *routes)
    try:
        wait_until(lambda: next_hops(site) <= HOPS.keys(), 20, "the agent follows")
        yield
    finally:
        a.ip("route", "del", f"{site.b.address}/32")
        for hop in HOPS:
            a.ip("neigh", "del", hop, "dev", "eth0")
        wire.nft("delete table bridge routers")
        wait_until(lambda: next_hops(site) in (set(), {site.b.address}), 20, "the agent follows")


def next_hops(site: Site) -> set[str | None]:
    """Of the peers that node a's programs know; none where there are no programs."""
    return (
        {row["next_hop"] for row in site.a.json("map", "dump", "peers")} if "off" not in site.flags else set()
    )


def test_a_route_with_two_next_hops(kernel: Site, learned: Site) -> None:
    """The kernel chooses by the hosts' addresses: all flows to a peer take one next hop, and by eBPF
    the same one.
    """
    used = []
    for site in (kernel, learned):
        with two_next_hops(site):
            seen = many_flows(site)
        assert len(seen.wire) == FLOWS
        used.append(set(outer(seen, "to")))
    assert used[1] == used[0]
    assert len(used[0]) == 1


def test_arp_of_the_next_hop_expires_under_load(kernel: Site, learned: Site) -> None:
    got = [numbers_through(site, lambda site=site: forget_neighbour(site)) for site in (kernel, learned)]
    assert got[0] == list(range(600))
    assert sorted(got[1]) == got[0]


def forget_neighbour(site: Site) -> None:
    with suppress(AssertionError):  # it may just be being asked for
        site.a.ip("neigh", "del", site.b.address, "dev", "eth0")


def numbers_through(site: Site, disturb: Any) -> list[int]:
    """600 numbered datagrams of one flow, and a disturbance after each 50; what arrives, in order."""
    with (
        site.two.call(sink) as receiver,
        site.one.call(partial(socket.socket, type=socket.SOCK_DGRAM)) as sender,
    ):
        sender.connect((site.two.address, PORT))
        for number in range(600):
            sender.send(struct.pack("!I", number))
            if number % 50 == 49:
                disturb()
        found: list[int] = []
        with suppress(TimeoutError):
            while len(found) < 600:
                found.append(struct.unpack("!I", receiver.recv(100))[0])
        return found


def sink() -> socket.socket:
    made = socket.socket(type=socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    made.bind(("", PORT))
    made.settimeout(20)
    return made


@contextmanager
def impatient(site: Site) -> Iterator[None]:
    """Node a gives a neighbour up after a tenth of a second."""
    settings = {"retrans_time_ms": "30", "mcast_solicit": "2", "ucast_solicit": "1"}
    before = {name: site.a.sysctl(f"net.ipv4.neigh.eth0.{name}") for name in settings}
    for name, value in settings.items():
        site.a.sysctl(f"net.ipv4.neigh.eth0.{name}", value)
    try:
        yield
    finally:
        for name, value in before.items():
            site.a.sysctl(f"net.ipv4.neigh.eth0.{name}", value)


def cut_off(site: Site) -> tuple[Told, Told, Told]:
    """A conversation before node b's cable is pulled, one while it is, one afterwards."""
    to = (site.two.address, PORT)
    with impatient(site), servers({"two": site.two}) as answering:
        before = talk(site.one, to, answering)
        site.lab.wire.ip("link", "set", "dev", "b", "down")
        forget_neighbour(site)
        meanwhile = talk(site.one, to, answering)
        site.lab.wire.ip("link", "set", "dev", "b", "up")

        def back() -> bool:
            return bool(site.a.run("ping", "-c1", "-W1", site.b.address, check=False).returncode == 0)

        wait_until(back, 20, "the hosts reach each other")
        return before, meanwhile, talk(site.one, to, answering)


def test_an_unreachable_next_hop(kernel: Site, learned: Site) -> None:
    by_kernel = cut_off(kernel)
    assert (by_kernel[1].udp, by_kernel[1].tcp) == (("lost",), ("lost",))
    assert by_kernel[2] == by_kernel[0]
    assert cut_off(learned) == by_kernel


ICMP_ERRORS: Final = {
    "host unreachable": (3, 1, 0),
    "protocol unreachable": (3, 2, 0),
    "port unreachable": (3, 3, 0),
    "fragmentation needed": (3, 4, 1300),
    "administratively prohibited": (3, 13, 0),
    "source quench": (4, 0, 0),
    "time exceeded": (11, 0, 0),
}
"""Type, code, and the MTU that it tells."""


def told_by_underlay(site: Site, kind: int, code: int, mtu: int) -> tuple[Told, int, int, Told]:
    """Conversations before and after an ICMP error about VXLAN has come to node a.

    Between them: how many packets containers have got of it.
    """
    to = (site.two.address, PORT)
    with servers({"two": site.two}) as answering, closing(Tap(site.lab.wire, "a")) as cable:
        before = talk(site.one, to, answering)
        about = many_flows(site).wire[0][packets.ETH_LEN :][:28]
        body = struct.pack("!BBHHH", kind, code, 0, 0, mtu) + about
        body = body[:2] + struct.pack("!H", packets.checksum(body)) + body[4:]
        hosts = packets.Ip.parse(about)
        error = packets.ip(body, hosts.dst, hosts.src, packets.ICMP)
        b_mac, a_mac = (MacAddress.parse(UPLINK_MACS[name]) for name in "ba")
        seen = site.exchange(lambda: cable.send(Shot(packets.ether(error, b_mac, a_mac))))
        after = talk(site.one, to, answering)
        site.a.ip("route", "flush", "cache")
        return before, len(seen.one), len(seen.two), after


@pytest.mark.parametrize("error", ICMP_ERRORS)
def test_icmp_errors_of_the_underlay(kernel: Site, learned: Site, error: str) -> None:
    by_kernel = told_by_underlay(kernel, *ICMP_ERRORS[error])
    assert by_kernel[1:3] == (0, 0)
    assert by_kernel[3] == by_kernel[0]
    assert told_by_underlay(learned, *ICMP_ERRORS[error]) == by_kernel
