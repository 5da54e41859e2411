"""The udp backend by itself: two hosts, a forwarder on each, and a peer that only speaks plain UDP."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from ctl.backend.udp.client import ForwarderProcess, TunnelRoutes
from ctl.backend.udp.files import TABLE
from ctl.core.errors import KernelError
from tests import packets
from tests.host import Host
from tests.lab import Lab, wait_until
from tests.namespace import alive
from tests.stream import TcpSink, UdpStream, tcp_send
from tests.udp_nodes import MTU, PORT, UdpNode, peers_of, udp_node

MEGABYTE = 1_000_000
PLAIN_SUBNET = IPv4Network("10.99.3.0/24")


class Nodes:
    """Nodes a and b, and host c: a peer whose datagrams the test writes and reads itself."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.a, self.b = (udp_node(lab, lab.host(name), number) for name, number in (("a", 1), ("b", 2)))
        self.c: Host = lab.host("c")
        self.stranger: Host = lab.host("d")

    def routes(self, node: UdpNode) -> TunnelRoutes:
        known = peers_of(node, self.a if node is self.b else self.b)
        return replace(known, peers={**known.peers, PLAIN_SUBNET: IPv4Address(self.c.address)})

    def start(self) -> None:
        for node in (self.a, self.b):
            node.start(self.routes(node))


@pytest.fixture(scope="module")
def shared() -> Iterator[Nodes]:
    with Lab() as lab:
        yield Nodes(lab)


@pytest.fixture
def nodes(shared: Nodes) -> Iterator[Nodes]:
    """Both forwarders run, whatever the test before did to them."""
    shared.start()
    yield shared
    for place in (shared.a.container, shared.b.container, shared.a.host, shared.b.host):
        place.stop_processes()


def open_udp(host: Host, port: int = 0) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host.address, port))
        made.settimeout(20)
        return made

    return host.call(make)


def address(text: str) -> IPv4Address:
    return IPv4Address(text)


def echo_request(source: str, target: str) -> bytes:
    return packets.ipv4(packets.icmp(b"hello", 8, 7), address(source), address(target), packets.ICMP)


def test_ping_both_ways_costs_one_ttl_at_each_of_four_hops(nodes: Nodes) -> None:
    for source, sink in ((nodes.a, nodes.b), (nodes.b, nodes.a)):
        out = source.container.run("ping", "-c3", "-i0.05", "-W2", sink.address).stdout
        assert " 0% packet loss" in out
        assert "ttl=60" in out


def test_tcp_both_ways_arrives_whole(nodes: Nodes) -> None:
    for source, sink in ((nodes.a, nodes.b), (nodes.b, nodes.a)):
        server = TcpSink(sink.container)
        seen = tcp_send(source.container, sink.address, 50 * MEGABYTE)["seen_as"]
        (end,) = server.wait_for(1)
        server.stop()
        assert (seen, end["bytes"], end["end"]) == (source.address, 50 * MEGABYTE, "fin")


def test_a_file_over_tcp_is_the_same_on_the_other_side(nodes: Nodes, tmp_path: Path) -> None:
    sent, got = tmp_path / "sent", tmp_path / "got"
    sent.write_bytes(os.urandom(20 * MEGABYTE))
    take = f"import socket,sys;s=socket.create_server(('',7000));c=s.accept()[0];f=open({str(got)!r},'wb')\n"
    take += "while d:=c.recv(1<<20): f.write(d)"
    give = f"import socket;s=socket.create_connection(({nodes.b.address!r},7000))\n"
    give += f"s.sendall(open({str(sent)!r},'rb').read())"
    server = nodes.b.container.serve("python3", "-c", take, port=7000)
    nodes.a.container.run("python3", "-c", give)
    assert server.wait(20) == 0
    assert got.read_bytes() == sent.read_bytes()


def test_tcp_where_the_wire_has_no_offloads(nodes: Nodes) -> None:
    """No checksum by the device: slower, not broken."""
    for node in (nodes.a, nodes.b):
        node.host.offload("eth0", "tx", on=False)
    try:
        test_tcp_both_ways_arrives_whole(nodes)
    finally:
        for node in (nodes.a, nodes.b):
            node.host.offload("eth0", "tx", on=True)


def test_numbered_udp_loses_nothing(nodes: Nodes) -> None:
    stream = UdpStream(nodes.a.container, nodes.b.container, nodes.b.address, rate=2000)
    stream.advance(1)
    sent, tally = stream.finish()
    assert (tally.received, tally.duplicates, tally.late) == (sent, 0, 0)
    assert tally.sources == (nodes.a.address,)


@pytest.mark.parametrize(
    ("ttl", "answers"), [(1, "10.99.1.1"), (2, "10.99.1.0"), (3, "10.99.2.0"), (4, "10.99.2.0")]
)
def test_every_hop_answers_when_the_ttl_ends(nodes: Nodes, ttl: int, answers: str) -> None:
    out = nodes.a.container.run("ping", "-c1", "-W2", "-t", str(ttl), nodes.b.address, check=False).stdout
    assert f"From {answers} icmp_seq=1 Time to live exceeded" in out


def test_a_subnet_without_a_peer_is_unreachable(nodes: Nodes) -> None:
    before = nodes.a.count("drop_no_route")
    out = nodes.a.container.run("ping", "-c1", "-W2", "10.99.200.1", check=False).stdout
    assert "From 10.99.1.0 icmp_seq=1 Destination Net Unreachable" in out
    assert nodes.a.count("drop_no_route") == before + 1


def test_every_size_up_to_the_mtu_passes(nodes: Nodes) -> None:
    for payload in (0, 1, 100, MTU - 28):
        nodes.a.container.run("ping", "-c2", "-i0.05", "-W2", "-Mdo", "-s", str(payload), nodes.b.address)
    nodes.a.container.run("ping", "-c2", "-i0.05", "-W2", "-Mdont", "-s", "4000", nodes.b.address)


def test_oversize_is_answered_with_the_size_that_fits(nodes: Nodes) -> None:
    """The underlay became narrower than the device: the forwarder finds out by itself."""
    nodes.a.host.ip("route", "add", f"{nodes.b.host.address}/32", "dev", "eth0", "mtu", "1400")
    try:
        before, lost = nodes.a.count("drop_too_big"), nodes.a.count("drop_send")
        out = nodes.a.container.run(
            "ping", "-c1", "-W2", "-Mdo", "-s", "1400", nodes.b.address, check=False
        ).stdout
        assert "From 10.99.1.0 icmp_seq=1 Frag needed and DF set (mtu = 1372)" in out
        assert (nodes.a.count("drop_too_big"), nodes.a.count("drop_send")) == (before + 1, lost)
        nodes.a.container.run("ping", "-c1", "-W2", "-Mdont", "-s", "1400", nodes.b.address)
        # TCP finds the path's MTU by such answers.
        server = TcpSink(nodes.b.container)
        tcp_send(nodes.a.container, nodes.b.address, MEGABYTE)
        assert server.wait_for(1)[0]["bytes"] == MEGABYTE
    finally:
        nodes.a.host.ip("route", "del", f"{nodes.b.host.address}/32", "dev", "eth0")
        nodes.a.container.run("ip", "route", "flush", "cache")


def test_a_plain_peer_sends_and_gets_raw_packets(nodes: Nodes) -> None:
    """Flannel's wire format: the payload is the packet, nothing else."""
    with open_udp(nodes.c, PORT) as peer:
        peer.sendto(echo_request("10.99.3.9", nodes.a.address), (nodes.a.host.address, PORT))
        reply, sender = peer.recvfrom(65536)
    assert sender == (nodes.a.host.address, PORT)
    head = packets.Ip.parse(reply)
    assert head.valid
    assert (head.total, head.ttl, str(head.src), str(head.dst)) == (
        len(reply), 62, nodes.a.address, "10.99.3.9")  # fmt: skip
    assert reply[-5:] == b"hello"


def test_a_plain_peer_gets_each_packet_in_a_datagram_of_its_own(nodes: Nodes) -> None:
    count = 300
    with open_udp(nodes.c, PORT) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        nodes.a.container.run(
            "python3", "-c", "import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
            f"for n in range({count}): s.sendto(n.to_bytes(4,'big')+bytes(60),('10.99.3.9',7))",
        )  # fmt: skip
        got = [peer.recv(65536) for _ in range(count)]
    heads = [packets.Ip.parse(packet) for packet in got]
    assert all(
        head.valid and head.total == len(packet) == 92 for head, packet in zip(heads, got, strict=True)
    )
    assert [int.from_bytes(packet[28:32], "big") for packet in got] == list(range(count))


@pytest.mark.parametrize(
    ("sender", "source", "target", "counter"),
    [
        ("stranger", "10.99.3.9", "10.99.2.2", "drop_unknown_host"),
        ("stranger", "10.99.1.2", "10.99.2.2", "drop_unknown_host"),
        ("c", "10.99.1.2", "10.99.2.2", "drop_spoofed"),
        ("c", "10.99.2.7", "10.99.2.2", "drop_spoofed"),
        ("c", "8.8.8.8", "10.99.2.2", "drop_spoofed"),
        ("c", "10.99.3.9", "192.168.77.12", "drop_not_ours"),
        ("c", "10.99.3.9", "10.99.1.2", "drop_not_ours"),
    ],
)
def test_what_nobody_may_send_is_refused_and_counted(
    nodes: Nodes, sender: str, source: str, target: str, counter: str
) -> None:
    before, received = nodes.b.count(counter), nodes.b.count("rx_packets")
    with open_udp(nodes.c if sender == "c" else nodes.stranger) as sock:
        sock.sendto(echo_request(source, target), (nodes.b.host.address, PORT))
        wait_until(lambda: nodes.b.count(counter) == before + 1, 5, f"{counter} counts")
    assert nodes.b.count("rx_packets") == received


def test_garbage_is_counted_and_harms_nothing(nodes: Nodes) -> None:
    garbage = [
        b"",
        b"\0",
        b"E",
        bytes(19),
        bytes(20),
        b"\x45" + bytes(30),
        b"\x4f" + b"\xff" * 30,
        os.urandom(1400),
    ]
    before = nodes.b.count("drop_not_ipv4")
    with open_udp(nodes.c) as sock:
        for each in garbage[:-1]:
            sock.sendto(each, (nodes.b.host.address, PORT))
        wait_until(lambda: nodes.b.count("drop_not_ipv4") == before + 7, 5, "garbage is counted")
        sock.sendto(garbage[-1], (nodes.b.host.address, PORT))
    nodes.a.container.run("ping", "-c1", "-W2", nodes.b.address)


def test_ttl_that_ends_at_a_peer_is_answered_through_the_tunnel(nodes: Nodes) -> None:
    with open_udp(nodes.c, PORT) as peer:
        packet = packets.ipv4(
            packets.udp(b"x", 5, 6), address("10.99.3.9"), address(nodes.b.address), packets.UDP, ttl=1
        )
        peer.sendto(packet, (nodes.b.host.address, PORT))
        answer = peer.recv(65536)
    head = packets.Ip.parse(answer)
    assert (head.proto, str(head.src), str(head.dst), answer[20]) == (
        packets.ICMP, "10.99.2.0", "10.99.3.9", 11)  # fmt: skip
    assert answer[28:] == packet


def test_routes_change_while_packets_flow(nodes: Nodes) -> None:
    stream = UdpStream(nodes.a.container, nodes.b.container, nodes.b.address, rate=500)
    stream.advance(0.2)
    routes = nodes.routes(nodes.a)
    many = {
        IPv4Network((172 << 24 | 16 << 20 | n << 8, 24)): IPv4Address("192.168.77.200") for n in range(4000)
    }
    nodes.a.forwarder.update(replace(routes, peers={**routes.peers, **many}))
    nodes.a.forwarder.update(replace(routes, peers={PLAIN_SUBNET: IPv4Address(nodes.c.address)}))
    out = nodes.a.container.run("ping", "-c1", "-W2", nodes.b.address, check=False).stdout
    assert "Destination Net Unreachable" in out
    nodes.a.forwarder.update(routes)
    stream.advance(0.2)
    sent, tally = stream.finish()
    assert 0 < tally.received < sent, "some were lost while there was no route"


def test_a_table_that_cannot_be_read_changes_nothing(nodes: Nodes) -> None:
    errors = nodes.a.count("table_errors")
    pid = nodes.a.forwarder.pid()
    assert pid
    table = nodes.a.state_dir / "udp" / TABLE
    text = table.read_text()
    table.write_text(text.removesuffix("end\n"))
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: nodes.a.count("table_errors") == errors + 1, 5, "the error is counted")
    nodes.a.container.run("ping", "-c1", "-W2", nodes.b.address)
    table.write_text(text)


def test_a_killed_starter_leaves_the_forwarder_and_the_next_adopts_it(nodes: Nodes) -> None:
    nodes.a.forwarder.stop()
    starter = nodes.a.started_by_another(nodes.routes(nodes.a))
    wait_until(lambda: "started" in starter.out() or starter.poll() is not None, 20, "starter starts")
    assert starter.poll() is None, starter.log()
    successor = ForwarderProcess(nodes.a.state_dir, IPv4Address(nodes.a.host.address), PORT)
    pid = successor.pid()
    assert pid
    stream = UdpStream(nodes.a.container, nodes.b.container, nodes.b.address, rate=1000)
    stream.advance(0.3)
    starter.kill(signal.SIGKILL)
    stream.advance(0.3)
    assert nodes.a.host.call(lambda: successor.start(nodes.routes(nodes.a))) is False
    assert successor.pid() == pid
    routes = nodes.routes(nodes.a)
    extra = {IPv4Network("10.99.9.0/24"): IPv4Address(nodes.c.address)}
    successor.update(replace(routes, peers={**routes.peers, **extra}))
    stream.advance(0.3)
    sent, tally = stream.finish()
    assert (tally.received, tally.late) == (sent, 0)
    nodes.a.forwarder = successor


def test_a_killed_forwarder_is_started_again_and_its_device_was_kept(nodes: Nodes) -> None:
    before = nodes.a.host.ip("-o", "addr", "show", "dev", nodes.a.forwarder.device)
    pid = nodes.a.forwarder.pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: nodes.a.forwarder.pid() is None, 5, "the lock is free")
    assert not alive(pid)
    assert nodes.a.forwarder.stats() is None
    with pytest.raises(KernelError, match="does not run"):
        nodes.a.forwarder.update(nodes.routes(nodes.a))
    assert nodes.a.host.call(lambda: nodes.a.forwarder.start(nodes.routes(nodes.a))) is True
    assert nodes.a.host.ip("-o", "addr", "show", "dev", nodes.a.forwarder.device) == before
    nodes.a.container.run("ping", "-c1", "-W2", nodes.b.address)


def test_a_forwarder_of_other_settings_is_replaced(nodes: Nodes) -> None:
    pid = nodes.a.forwarder.pid()
    changed = ForwarderProcess(nodes.a.state_dir, IPv4Address(nodes.a.host.address), 9999)
    try:
        assert nodes.a.host.call(lambda: changed.start(nodes.routes(nodes.a))) is True
        assert changed.pid() != pid
        assert nodes.a.host.listens(9999, "udp")
        assert not nodes.a.host.listens(PORT, "udp")
        assert nodes.a.forwarder.device not in nodes.a.host.ip("link")
    finally:
        nodes.a.host.call(lambda: changed.stop(remove=True))
    assert "ovnetu9999" not in nodes.a.host.ip("link")


def test_why_it_cannot_start_is_said(nodes: Nodes, tmp_path: Path) -> None:
    second = ForwarderProcess(tmp_path, IPv4Address(nodes.a.host.address), PORT)
    with pytest.raises(KernelError, match=rf"UDP [0-9.]+:{PORT}: Address already in use"):
        nodes.a.host.call(lambda: second.start(nodes.routes(nodes.a)))
    elsewhere = ForwarderProcess(tmp_path, IPv4Address("192.0.2.1"), 7777)
    with pytest.raises(KernelError, match=r"UDP 192\.0\.2\.1:7777: Cannot assign requested address"):
        nodes.a.host.call(lambda: elsewhere.start(nodes.routes(nodes.a)))
    assert "ovnetu7777" not in nodes.a.host.ip("link"), "a start that failed leaves no device"
    nodes.a.host.ip("link", "add", "ovnetu7778", "type", "bridge")
    taken = ForwarderProcess(tmp_path, IPv4Address(nodes.a.host.address), 7778)
    with pytest.raises(KernelError, match="TUN device ovnetu7778: a device of another kind"):
        nodes.a.host.call(lambda: taken.start(nodes.routes(nodes.a)))
    nodes.a.host.ip("link", "del", "ovnetu7778")


def test_a_deleted_device_ends_the_forwarder_and_start_mends_it(nodes: Nodes) -> None:
    pid = nodes.a.forwarder.pid()
    nodes.a.host.ip("link", "del", nodes.a.forwarder.device)
    wait_until(lambda: nodes.a.forwarder.pid() is None, 5, "the forwarder ends")
    assert nodes.a.start(nodes.routes(nodes.a)) is True
    assert nodes.a.forwarder.pid() != pid
    nodes.a.container.run("ping", "-c1", "-W2", nodes.b.address)


def test_a_device_that_was_down_goes_on(nodes: Nodes) -> None:
    pid = nodes.b.forwarder.pid()
    nodes.b.host.ip("link", "set", nodes.b.forwarder.device, "down")
    before = nodes.b.count("drop_tun")
    nodes.a.container.run("ping", "-c1", "-W1", nodes.b.address, check=False)
    assert nodes.b.count("drop_tun") == before + 1
    assert nodes.b.start(nodes.routes(nodes.b)) is False
    assert nodes.b.forwarder.pid() == pid
    nodes.a.container.run("ping", "-c1", "-W2", nodes.b.address)


def test_stop_and_remove_leaves_nothing(nodes: Nodes) -> None:
    nodes.b.host.call(lambda: nodes.b.forwarder.stop(remove=True))
    nodes.b.host.call(lambda: nodes.b.forwarder.stop(remove=True))
    assert nodes.b.forwarder.device not in nodes.b.host.ip("link")
    assert not (nodes.b.state_dir / "udp").exists()
    assert not nodes.b.host.listens(PORT, "udp")


def test_the_forwarder_is_small(nodes: Nodes) -> None:
    pid = nodes.a.forwarder.pid()
    rss = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    assert int(rss.split()[1]) < 16 * 1024, rss


def test_throughput_is_told(nodes: Nodes, record_property: Callable[[str, object], None]) -> None:
    server = nodes.b.container.serve("iperf3", "-s", "-1", "-p", "5201", port=5201)
    done = nodes.a.container.run("iperf3", "-c", nodes.b.address, "-p", "5201", "-J", "-t", "3")
    server.wait(10)
    rate = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 1e9
    record_property("gbit_per_second", round(rate, 3))
    print(f"udp backend, TCP one flow: {rate:.2f} Gb/s")
    assert rate > 0
