"""Uplinks that are no Ethernet: WireGuard's, a TUN, PPP, a modem; and those that eBPF cannot read.

this process -- tun0 -- node -- ovnet0 -- one        holds the TUN's other end: a peer, or a stranger
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from ctl.core.host import NONE, PPP, RAW_IP
from ctl.core.model import Lease, MacAddress
from ctl.store import open_store
from tests import packets
from tests.host import Agent, Host, served, started
from tests.lab import Container, Lab, wait_until
from tests.netns.test_cli_errors import FAILED, refused
from tests.netns.test_source_check import EVIL, GOOD, VICTIM_PORT, VXLAN_PORT, device_mac, listener
from tests.packets import MF, UDP, Ip, Tunnel, forwarded
from tests.stream import TcpSink, UdpStream, tcp_send
from tests.tun import Relay, Tun

SOON = 10
INFINIBAND, IPGRE = 32, 778
DEVICE, ADDRESS = "up0", IPv4Interface("10.8.0.1/24")
PEER = ADDRESS.ip + 1
STRANGER = ADDRESS.ip + 2
PEER_MAC = MacAddress.parse("02:11:22:33:44:55")
SUBNET = IPv4Network("172.17.200.0/24")
"""Of the peer behind the uplink."""
FLAGS = ("--approval-ttl", "60")
NOBODYS = IPv4Address("172.17.250.9")
ALL_FRAMES = 0x0003


@dataclass(frozen=True)
class Kind:
    """What an uplink is."""

    type: int
    tap: bool = False


KINDS = {
    "wireguard": Kind(NONE),
    "ppp": Kind(PPP),
    "modem": Kind(RAW_IP),
    # As xfrm over Ethernet: it says that it has no header, and leaves that of the link below.
    "xfrm": Kind(NONE, tap=True),
}


@dataclass
class Site:
    """The node, its container, and the far end of its uplink."""

    node: Host
    one: Container
    tun: Tun
    sink: socket.socket
    """The container's, for datagrams to VICTIM_PORT."""
    frames: socket.socket
    """Sees the frames that the container is handed."""

    def counted(self, reason: str, hook: str = "from_wire") -> int:
        return self.node.counters().get((hook, reason), 0)

    def packet(self, payload: bytes, source: IPv4Address | None = None) -> bytes:
        """Of a container behind the peer, to ours."""
        datagram = packets.udp(payload, 1, VICTIM_PORT)
        return packets.ipv4(datagram, source or SUBNET[9], IPv4Address(self.one.address), UDP)

    def tunnelled(
        self, packet: bytes, *, host: IPv4Address | None = None, tag: bool = False, **ip: object
    ) -> bytes:
        """As the peer sends it, or `host`; `tag`: with a VLAN tag inside; `ip` of the outer header."""
        macs = PEER_MAC, device_mac(self.node, "ovnet.1")
        frame = packets.ether(
            b"\0\0\x08\0" + packet if tag else packet, *macs, packets.VLAN if tag else packets.IPV4
        )
        datagram = packets.udp(packets.vxlan(frame, 1), 40000, VXLAN_PORT)
        outer = {"fragment": 0, **ip}
        return packets.ipv4(datagram, host or PEER, ADDRESS.ip, UDP, **outer)  # type: ignore[arg-type]

    def received(self) -> set[bytes]:
        """What has come to the container's socket since the last look."""
        found = set()
        with suppress(BlockingIOError):
            while True:
                found.add(self.sink.recv(1 << 16))
        return found

    def send_true(self) -> set[bytes]:
        """When it is there, nothing sent earlier is still on its way; returns what came till then."""
        self.tun.put(self.tunnelled(self.packet(GOOD)))
        found: set[bytes] = set()

        def came() -> bool:
            found.update(self.received())
            return GOOD in found

        wait_until(came, SOON, lambda: f"a true packet arrives: {self.node.counters()}")
        return found

    def handed(self, payload: bytes) -> bytes:
        """The frame with that payload, as the container gets it."""
        found: list[bytes] = []

        def came() -> bool:
            with suppress(BlockingIOError):
                while True:
                    found.append(self.frames.recv(1 << 16))
            return any(payload in frame for frame in found)

        wait_until(came, SOON, lambda: f"{payload!r} arrives: {self.node.counters()}")
        return next(frame for frame in found if payload in frame)


def frames_of() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_FRAMES))
    made.bind(("eth0", ALL_FRAMES))
    made.setblocking(False)
    return made


def host_of(lab: Lab) -> Host:
    """A host that is to be a node, in a network with a peer behind its uplink."""
    lab.init_network()
    with closing(open_store(lab.store_url)) as store:
        store.put(Lease(SUBNET, PEER, PEER_MAC, vni=1, node="peer"), None)
    return lab.host("node")


def uplink(node: Host, kind: Kind) -> Tun:
    return Tun(node, DEVICE, ADDRESS, type=kind.type, tap=kind.tap)


def knows_its_peer(node: Host) -> bool:
    """Whether the peer is reached by eBPF, through the uplink."""
    rows = node.json("map", "dump", "peers")
    return any((row["dev"], row["flags"]) == (DEVICE, []) for row in rows)


def agent_on(node: Host, *flags: str) -> Agent:
    return node.agent(*FLAGS, "--iface", DEVICE, *flags)


@pytest.fixture(scope="module")
def node() -> Iterator[Host]:
    with Lab() as lab:
        yield host_of(lab)


@pytest.fixture(scope="module", params=KINDS)
def site(request: pytest.FixtureRequest, node: Host) -> Iterator[Site]:
    kind = KINDS[request.param]
    with ExitStack() as stack:
        tun = stack.enter_context(uplink(node, kind))
        if kind.tap:
            node.ip("neigh", "add", str(PEER), "lladdr", str(PEER_MAC), "dev", DEVICE)
        agent = agent_on(node)
        stack.callback(agent.stop)
        wait_until(lambda: knows_its_peer(node), SOON, lambda: f"the peer is known: {agent.log()}")
        one = next(iter(node.containers), None) or node.container("one")
        sink = stack.enter_context(one.call(listener))
        frames = stack.enter_context(one.call(frames_of))
        served(one)
        yield Site(node, one, tun, sink, frames)


def test_a_container_is_handed_the_same_frame_on_either_path(site: Site) -> None:
    before = site.counted("decap")
    for payload in (b"first", b"second", b"third"):
        packet = site.packet(payload)
        site.tun.put(site.tunnelled(packet))
        macs = device_mac(site.node, site.node.bridge), MacAddress.parse(site.one.mac)
        assert site.handed(payload) == packets.ether(forwarded(packet), *macs)
        assert payload in site.received()
    assert site.counted("decap") > before


def test_what_a_container_sends_leaves_whole_on_either_path(site: Site) -> None:
    target = str(SUBNET[9]), VICTIM_PORT
    before = site.counted("encap", "from_container")
    site.tun.sent()
    inner = []
    with site.one.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        for payload in (b"first", b"second", b"third"):
            sender.sendto(payload, target)
            found: list[bytes] = []

            def left(payload: bytes = payload, found: list[bytes] = found) -> bool:
                found.extend(packet for packet in site.tun.sent() if payload in packet)
                return bool(found)

            wait_until(left, SOON, lambda: f"it leaves: {site.node.counters()}")
            tunnel = Tunnel.parse(bytes(12) + b"\x08\0" + found[0])
            assert (tunnel.ip.src, tunnel.ip.dst) == (ADDRESS.ip, PEER)
            assert tunnel.ip.total == len(found[0])
            ip = Ip.parse(tunnel.frame[packets.ETH_LEN :])
            inner.append((tunnel.frame[:14], tunnel.vni, ip.src, ip.dst, ip.ttl))
    assert inner == [inner[0]] * 3
    assert site.counted("encap", "from_container") > before


def test_nobody_gets_in_who_is_no_peer(site: Site) -> None:
    packet = site.packet(EVIL)
    forged = {
        "unknown_vtep": site.tunnelled(packet, host=STRANGER),
        "spoofed_source": site.tunnelled(site.packet(EVIL, NOBODYS)),
        "outer_fragment": site.tunnelled(packet, fragment=MF),
        "outer_options": site.tunnelled(packet, host=STRANGER, options=bytes(4)),
        "tagged": site.tunnelled(packet, tag=True),
    }
    site.send_true()
    before = {reason: site.counted(reason) for reason in forged}
    for frame in forged.values():
        site.tun.put(frame)
    assert EVIL not in site.send_true()
    assert {reason: site.counted(reason) - count for reason, count in before.items()} == dict.fromkeys(
        forged, 1
    )


def test_what_is_cut_short_does_no_harm(site: Site) -> None:
    whole = site.tunnelled(site.packet(EVIL))
    for length in range(len(whole)):
        site.tun.put(whole[:length])
    assert EVIL not in site.send_true()
    assert site.counted("aborted") == 0


def test_the_hosts_other_traffic_passes(site: Site) -> None:
    site.tun.sent()
    ping = packets.icmp(b"are you there", 8, 7)
    site.tun.put(packets.ipv4(ping, PEER, ADDRESS.ip, packets.ICMP))
    wait_until(lambda: any(b"are you there" in each for each in site.tun.sent()), SOON, "the host answers")


def test_xdp_is_not_for_what_has_no_frames(lab: Lab) -> None:
    node = host_of(lab)
    with uplink(node, KINDS["wireguard"]):
        agent = agent_on(node, "--hook", "xdp")
        assert "up0 is no Ethernet device, and XDP needs frames: from_wire stays at tc" in agent.log()
        assert {each.at for each in node.hooks() if each.dev == DEVICE} == {"tcx"}
        wait_until(lambda: node.status().get("hook") == "tc", SOON, lambda: str(node.status()))


@pytest.mark.parametrize("type", [INFINIBAND, IPGRE])
def test_an_uplink_that_ebpf_cannot_read_is_refused(lab: Lab, type: int) -> None:
    node = host_of(lab)
    with uplink(node, Kind(type)):
        refused(node, FAILED, DEVICE, str(type), "--iface", "--bypass=off", env={"OVNET_IFACE": DEVICE})
        agent_on(node, "--bypass=off")


def test_an_uplink_that_becomes_a_tun_is_read_as_one(lab: Lab) -> None:
    node = host_of(lab)
    node.ip("route", "add", "default", "dev", "eth0")
    agent = node.agent(*FLAGS, env={"OVNET_IFACE": ""})
    one = node.container("one")
    with uplink(node, KINDS["wireguard"]) as tun, one.call(listener) as sink, one.call(frames_of) as frames:
        node.ip("addr", "flush", "dev", "eth0")
        node.ip("route", "replace", "default", "dev", DEVICE)
        wait_until(lambda: knows_its_peer(node), 20, lambda: f"the uplink is up0: {agent.log()}")
        site = Site(node, one, tun, sink, frames)
        before = site.counted("unknown_vtep")
        site.tun.put(site.tunnelled(site.packet(EVIL), host=STRANGER))
        assert EVIL not in site.send_true()
        assert site.counted("unknown_vtep") == before + 1


def test_two_nodes_over_a_link_without_headers(lab: Lab) -> None:
    lab.init_network()
    hosts = lab.host("a"), lab.host("b")
    with ExitStack() as stack:
        tuns = [
            stack.enter_context(Tun(host, "wg0", IPv4Interface(f"10.8.0.{number}/24")))
            for number, host in enumerate(hosts, start=1)
        ]
        stack.enter_context(Relay(*tuns))
        started(hosts, *FLAGS, "--iface", "wg0")
        for host in hosts:
            wait_until(host.knows_a_peer, SOON, f"{host.name} knows its peer")
        one, two = (host.container("one") for host in hosts)
        for source, sink in ((one, two), (two, one)):
            assert " 0% packet loss" in source.run("ping", "-c5", "-i0.05", "-W2", sink.address).stdout
            server = TcpSink(sink)
            tcp_send(source, sink.address, 2_000_000)
            (end,) = server.wait_for(1)
            server.stop()
            assert (end["bytes"], end["end"], end["source"]) == (2_000_000, "fin", source.address)
        stream = UdpStream(one, two, two.address, rate=200)
        stream.advance(1)
        sent, tally = stream.finish()
        assert (tally.received, tally.sources) == (sent, (one.address,))
        for host in hosts:
            carried, kept = host.bypassed()
            assert carried > 10 * kept, host.counters()
