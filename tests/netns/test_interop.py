"""A node of ours and a host that has nothing but the kernel's vxlan, set up as flannel does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from ctl.core.model import Lease, MacAddress
from ctl.store import open_store
from tests.host import Host
from tests.lab import Container, Lab, wait_until
from tests.stream import TcpSink, UdpStream, tcp_send

SUBNET = IPv4Network("172.17.200.0/24")
VTEP_MAC = "02:11:22:33:44:55"


@dataclass
class Mixed:
    node: Host
    plain: Host
    on_node: Container
    on_plain: Container
    checksums: bool
    """The plain host's device fills outer UDP checksums in, as flannel's does."""


def flannel_host(host: Host, checksum: str) -> None:
    """What flanneld's vxlan backend and its CNI plugin leave behind on a host."""
    base, bridge = SUBNET.network_address, f"{SUBNET.network_address + 1}/{SUBNET.prefixlen}"
    host.sysctl("net.ipv4.ip_forward", "1")
    host.ip("link", "add", "flannel.1", "address", VTEP_MAC, "mtu", "1450", "type", "vxlan", "id", "1",
            "dev", "eth0", "local", host.address, "dstport", "8472", "nolearning", checksum)  # fmt: skip
    host.ip("address", "add", f"{base}/32", "dev", "flannel.1")
    host.ip("link", "set", "flannel.1", "up")
    host.ip("link", "add", "cni0", "mtu", "1450", "type", "bridge")
    host.ip("address", "add", bridge, "dev", "cni0")
    host.ip("link", "set", "cni0", "up")
    host.bridge = "cni0"
    host.state_dir.mkdir()
    (host.state_dir / "subnet.env").write_text(f"FLANNEL_SUBNET={bridge}\nFLANNEL_MTU=1450\n")


def flannel_peer(host: Host, lease: dict[str, str]) -> None:
    """What flanneld does for the lease of another host."""
    subnet, mac = IPv4Network(lease["subnet"]), lease["vtep_mac"]
    vtep = str(subnet.network_address)
    host.ip("neigh", "replace", vtep, "lladdr", mac, "dev", "flannel.1", "nud", "permanent")
    host.run("bridge", "fdb", "replace", mac, "dev", "flannel.1", "dst", lease["host"], "self", "permanent")
    host.ip("route", "replace", str(subnet), "via", vtep, "dev", "flannel.1", "onlink")


@pytest.fixture(scope="module", params=["udpcsum", "noudpcsum"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Mixed]:
    with Lab() as lab:
        node, plain = lab.host("node"), lab.host("plain")
        lab.init_network()
        node.agent()
        flannel_host(plain, request.param)
        lease = Lease(SUBNET, IPv4Address(plain.address), MacAddress.parse(VTEP_MAC), vni=1, node="plain")
        with closing(open_store(lab.store_url)) as store:
            store.put(lease, None)
        wait_until(
            lambda: str(SUBNET) in str(node.json("map", "dump", "peers")), 10, "the peer is programmed"
        )
        (ours,) = [row for row in node.json("lease", "list") if row["host"] == node.address]
        flannel_peer(plain, ours)
        yield Mixed(node, plain, node.container("one"), plain.container("one"), request.param == "udpcsum")


@pytest.fixture
def mixed(hosts: Mixed) -> Iterator[Mixed]:
    """The module's two hosts; what the test has started in them ends with the test."""
    yield hosts
    for place in (hosts.on_node, hosts.on_plain):
        place.stop_processes()


def test_peer_entry_is_what_the_lease_says(mixed: Mixed) -> None:
    (row,) = mixed.node.json("map", "dump", "peers")
    assert (row["subnet"], row["host"], row["vtep_mac"]) == (str(SUBNET), mixed.plain.address, VTEP_MAC)
    assert (row["vni"], row["port"], row["dev"]) == (1, 8472, "eth0")


def test_ping_both_ways(mixed: Mixed) -> None:
    for source, sink in ((mixed.on_node, mixed.on_plain), (mixed.on_plain, mixed.on_node)):
        assert " 0% packet loss" in source.run("ping", "-c5", "-i0.05", "-W2", sink.address).stdout


def test_tcp_both_ways_by_ebpf(mixed: Mixed) -> None:
    """With outer UDP checksums too: several segments in one packet count as verified.

    They do for the kernel: GRO has verified them, or, here, they come whole over a veth.
    """
    for source, sink in ((mixed.on_node, mixed.on_plain), (mixed.on_plain, mixed.on_node)):
        before = mixed.node.bypassed()
        server = TcpSink(sink)
        assert tcp_send(source, sink.address, 20_000_000)["seen_as"] == source.address
        (end,) = server.wait_for(1)
        server.stop()
        assert (end["bytes"], end["end"]) == (20_000_000, "fin")
        carried, kept = (now - then for now, then in zip(mixed.node.bypassed(), before, strict=True))
        assert carried > 10 * kept


def test_a_merged_stream_over_a_wire_without_offload_goes_by_ebpf(mixed: Mixed) -> None:
    """As from a NIC that verifies nothing: GRO merges, and has verified each segment before."""
    lab = mixed.node.lab
    mixed.plain.offload("eth0", "tx", False)  # finished checksums, one segment a packet
    lab.wire.offload("node", "tx", False)  # else veth does not let GRO near
    mixed.node.offload("eth0", "gro", True)
    try:
        before = mixed.node.counters().get(("from_wire", "decap"), 0)
        server = TcpSink(mixed.on_node)
        tcp_send(mixed.on_plain, mixed.on_node.address, 20_000_000)
        (end,) = server.wait_for(1)
        server.stop()
        assert (end["bytes"], end["end"]) == (20_000_000, "fin")
        assert mixed.node.counters()["from_wire", "decap"] - before > 10_000  # of some 14,300 segments
    finally:
        mixed.node.offload("eth0", "gro", False)
        lab.wire.offload("node", "tx", True)
        mixed.plain.offload("eth0", "tx", True)


def test_udp_both_ways_loses_nothing(mixed: Mixed) -> None:
    """An outer UDP checksum on a single packet, as on a veth, only the kernel can verify."""
    for source, sink in ((mixed.on_node, mixed.on_plain), (mixed.on_plain, mixed.on_node)):
        before = mixed.node.bypassed()
        stream = UdpStream(source, sink, sink.address)
        stream.advance(2)
        sent, tally = stream.finish()
        assert (tally.received, tally.duplicates, tally.late) == (sent, 0, 0)
        carried, kept = (now - then for now, then in zip(mixed.node.bypassed(), before, strict=True))
        if source is mixed.on_plain and mixed.checksums:
            assert kept >= sent
            assert mixed.node.counters()["from_wire", "outer_checksum"] >= sent
        else:
            assert carried > sent * 0.9


@pytest.mark.parametrize("payload", [1, 1422])
def test_every_size_passes_unfragmented(mixed: Mixed, payload: int) -> None:
    for source, sink in ((mixed.on_node, mixed.on_plain), (mixed.on_plain, mixed.on_node)):
        source.run("ping", "-c3", "-i0.05", "-W2", "-Mdo", "-s", str(payload), sink.address)


def test_a_vtep_without_a_lease_is_refused(mixed: Mixed) -> None:
    mixed.plain.ip("address", "add", "192.168.77.99/24", "dev", "eth0")
    mixed.plain.ip("link", "set", "flannel.1", "down")
    try:
        mixed.plain.run("ip", "link", "set", "flannel.1", "type", "vxlan", "local", "192.168.77.99")
        mixed.plain.ip("link", "set", "flannel.1", "up")
        (ours,) = [row for row in mixed.node.json("lease", "list") if row["host"] == mixed.node.address]
        flannel_peer(mixed.plain, ours)
        assert mixed.on_plain.run(
            "ping", "-c2", "-i0.1", "-W1", mixed.on_node.address, check=False
        ).returncode
        assert mixed.node.counters()[("from_wire", "unknown_vtep")] >= 2
    finally:
        mixed.plain.ip("link", "set", "flannel.1", "down")
        mixed.plain.run("ip", "link", "set", "flannel.1", "type", "vxlan", "local", mixed.plain.address)
        mixed.plain.ip("link", "set", "flannel.1", "up")
        mixed.plain.ip("address", "del", "192.168.77.99/24", "dev", "eth0")
        flannel_peer(mixed.plain, ours)


def test_a_source_that_the_peer_does_not_hold_is_refused(mixed: Mixed) -> None:
    """A container of the plain host claims an address of a third node's subnet."""
    forged = "172.17.201.7"
    mixed.on_plain.ip("address", "add", f"{forged}/32", "dev", "eth0")
    before = mixed.node.counters().get(("from_wire", "spoofed_source"), 0)
    mixed.on_plain.run("ping", "-c2", "-i0.1", "-W1", "-I", forged, mixed.on_node.address, check=False)
    mixed.on_plain.ip("address", "del", f"{forged}/32", "dev", "eth0")
    assert mixed.node.counters().get(("from_wire", "spoofed_source"), 0) - before >= 2


def reboot(mixed: Mixed, mac: str) -> None:
    """What flanneld does after one: a device with another, random MAC, and the same key put again."""
    mixed.plain.ip("link", "set", "flannel.1", "address", mac)
    (ours,) = [row for row in mixed.node.json("lease", "list") if row["host"] == mixed.node.address]
    flannel_peer(mixed.plain, ours)  # its neighbours went with the address
    with closing(open_store(mixed.node.lab.store_url)) as store:
        (lease,) = [each for each in store.snapshot().leases if each.subnet == SUBNET]
        store.put(replace(lease, vtep_mac=MacAddress.parse(mac)), lease)
    wait_until(lambda: mac in str(mixed.node.json("map", "dump", "peers")), 10, "the map follows")


def test_a_flannel_host_that_rebooted_is_followed_to_its_new_mac(mixed: Mixed) -> None:
    stream = UdpStream(mixed.on_node, mixed.on_plain, mixed.on_plain.address)
    stream.advance(0.5)  # eBPF has an approval for it
    try:
        reboot(mixed, "02:11:22:33:44:66")
        stream.advance(0.5)  # returns when datagrams arrive again
        mixed.on_plain.run("ping", "-c2", "-i0.05", "-W2", mixed.on_node.address)
        assert "02:11:22:33:44:66" in mixed.node.ip("neigh", "show", "dev", "ovnet.1")
        assert VTEP_MAC not in mixed.node.run("bridge", "fdb", "show", "dev", "ovnet.1").stdout
    finally:
        stream.finish()
        reboot(mixed, VTEP_MAC)


def test_a_reservation_that_nobody_uses_yet_is_no_peer_and_harms_none(mixed: Mixed) -> None:
    """It has a host, and no MAC that one could send to."""
    before = mixed.node.json("map", "dump", "peers")
    with closing(open_store(mixed.node.lab.store_url)) as store:
        reserved = store.put(Lease(IPv4Network("172.17.210.0/24"), IPv4Address("192.168.77.99")), None)
        try:
            wait_until(lambda: "172.17.210.0/24" in mixed.node.ovctl("status").stdout, 10, "it is told of")
            assert mixed.node.json("map", "dump", "peers") == before
            assert "172.17.210.0" not in mixed.node.ip("route")
            mixed.on_node.run("ping", "-c2", "-i0.05", "-W2", mixed.on_plain.address)
        finally:
            store.delete(reserved)
