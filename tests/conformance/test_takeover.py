"""A flannel cluster of which one host is taken over, and given back, while its containers talk."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.etcd import Etcd
from tests.flannel import SUBNETS, Flanneld, cni_bridge
from tests.host import Host
from tests.lab import Container, Lab, wait_until
from tests.process import Process
from tests.stream import TcpSink, UdpStream

RATE = 500
"""Datagrams a second of each stream."""

TRICKLE = """
import signal, socket, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
sock, sent = socket.create_connection((sys.argv[1], int(sys.argv[2]))), 0
while not stop:
    sent += sock.send(bytes(1000))
    time.sleep(0.01)
sock.shutdown(socket.SHUT_WR)
print(sent, flush=True)
"""
"""A connection that lasts: a kilobyte each 10 ms until SIGTERM."""


@dataclass
class Cluster:
    """Hosts a, b and c of a flannel network, a container on each."""

    lab: Lab
    etcd: Etcd
    hosts: list[Host]
    containers: list[Container]
    daemons: dict[str, Flanneld] = field(default_factory=dict)

    def value(self, host: Host) -> str:
        """What etcd has of the host."""
        subnet = host.gateway.network
        return self.etcd.value(f"{SUBNETS}/{subnet.network_address}-{subnet.prefixlen}")


def build(lab: Lab, *network: str) -> Cluster:
    etcd = lab.etcd()
    lab.init_network("172.17.0.0/16", 24, *network)
    hosts = [lab.host(name) for name in "abc"]
    daemons = {}
    for host in hosts:
        daemons[host.name] = Flanneld(host, "--ip-masq")
        cni_bridge(host)
    return Cluster(lab, etcd, hosts, [host.container("one") for host in hosts], daemons)


class Traffic:
    """Streams from a to b and back, and from c to a; a TCP connection from b to a."""

    def __init__(self, cluster: Cluster) -> None:
        a, b, c = cluster.containers
        pairs = ((a, b), (b, a), (c, a))
        self.streams = [
            UdpStream(source, sink, sink.address, port=9000 + number, rate=RATE)
            for number, (source, sink) in enumerate(pairs)
        ]
        self.sink = TcpSink(a, 9200)
        self.trickle: Process = b.popen(sys.executable, "-c", TRICKLE, a.address, "9200")
        self.flow()

    def flow(self) -> None:
        for stream in self.streams:
            stream.advance(0.4)

    def finish(self) -> int:
        """Stop; how many datagrams were lost. The connection has to have lost nothing."""
        self.flow()
        tallies = [stream.finish() for stream in self.streams]
        self.trickle.stop()
        (end,) = self.sink.wait_for(1)
        self.sink.stop()
        assert (end["end"], end["bytes"]) == ("fin", int(self.trickle.out()))
        assert all(tally.duplicates == 0 for _, tally in tallies)
        return sum(sent - tally.received for sent, tally in tallies)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Lab() as lab:
        yield build(lab)


@pytest.fixture(scope="module")
def gateways() -> Iterator[Cluster]:
    with Lab() as lab:
        yield build(lab, "--backend", "host-gw")


def rules(host: Host) -> str:
    return host.run("iptables-save").stdout


def footprint(host: Host) -> dict[str, str]:
    """Without what moves by itself: counters of rules, a new bridge's state."""
    moving = re.compile(r"packets \d+ bytes \d+|\b(UNKNOWN|UP) +")
    return {what: moving.sub("", text) for what, text in host.footprint().items()}


def reaches(source: Container, sink: Container) -> bool:
    return source.run("ping", "-c1", "-W1", sink.address, check=False).returncode == 0


def test_a_host_is_taken_over_and_given_back_without_a_lost_packet(cluster: Cluster) -> None:
    a, b, _ = cluster.hosts
    before = cluster.value(a)
    # Of a network with another VNI; and of a peer that has gone while flanneld did not look.
    a.ip(
        "link", "add", "flannel.2", "type", "vxlan", "id", "2", "dev", "eth0", "dstport", "8472", "nolearning"
    )
    a.ip("address", "add", "10.9.0.0/32", "dev", "flannel.2")
    a.ip("link", "set", "flannel.2", "up")
    a.ip("route", "add", "10.9.1.0/24", "via", "10.9.1.0", "dev", "flannel.2", "onlink")
    other = a.ip("-d", "link", "show", "flannel.2"), a.ip("route", "show", "dev", "flannel.2")
    a.ip("neigh", "add", "172.17.99.0", "lladdr", "02:00:00:00:00:99", "dev", "flannel.1", "nud", "permanent")
    a.run("bridge", "fdb", "add", "02:00:00:00:00:99", "dev", "flannel.1", "dst", "192.168.77.99", "self")
    a.ip("route", "add", "172.17.99.0/24", "via", "172.17.99.0", "dev", "flannel.1", "onlink")

    traffic = Traffic(cluster)
    cluster.daemons["a"].stop()
    agent = a.agent("--bypass=off")
    assert traffic.finish() == 0

    # The MAC that the peers know has not changed, and they had nothing to do.
    mac = re.search(r'"VtepMAC":"([^"]+)"', before)
    assert mac and f'"VtepMAC":"{mac[1]}"' in cluster.value(a)
    assert f"link/ether {mac[1]}" in a.ip("link", "show", "ovnet.1")
    assert "flannel.1" not in a.ip("link")
    assert "FLANNEL" not in rules(a)
    assert "OVNET-FWD" in rules(a)
    assert "02:00:00:00:00:99" not in a.run("bridge", "fdb").stdout
    assert "172.17.99" not in a.ip("neigh") + a.ip("route")
    assert (a.ip("-d", "link", "show", "flannel.2"), a.ip("route", "show", "dev", "flannel.2")) == other

    # The same MAC after a restart of the agent; programs come on top.
    agent.stop()
    traffic = Traffic(cluster)
    a.agent()
    assert traffic.finish() == 0
    assert f'"VtepMAC":"{mac[1]}"' in cluster.value(a)
    assert a.bypassed()[0] > 0
    a.ovctl("status")

    traffic = Traffic(cluster)
    a.stop_processes()
    a.ovctl("teardown", "--to-flannel")
    traffic.flow()
    cluster.daemons["a"] = Flanneld(a, "--ip-masq")
    a.teardown()
    assert traffic.finish() == 0
    assert cluster.value(a) == before
    assert "ovnet" not in a.run("nft", "list", "ruleset").stdout.lower() + a.ip("-d", "link")
    assert a.ip("route", "show", "proto", "147") == ""
    assert "172.17.1.1" in (a.state_dir / "subnet.env").read_text(), "flanneld's now"


def test_a_flanneld_that_runs_is_left_alone(cluster: Cluster) -> None:
    b, on_a, on_b = cluster.hosts[1], *cluster.containers[:2]
    before, value = footprint(b), cluster.value(b)
    done = b.ovctl("agent", check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert f"flanneld (pid {cluster.daemons['b'].pid}) runs on this host (flannel.1, " in done.stderr
    assert "systemctl disable --now flanneld" in done.stderr
    after = footprint(b)
    assert {what: (before[what], text) for what, text in after.items() if text != before[what]} == {}
    assert cluster.value(b) == value
    assert reaches(on_b, on_a)


def test_peers_of_both_kinds_come_and_go(cluster: Cluster) -> None:
    """After host by host: b is ours, a and c are flannel's, and one that is new."""
    b, on_b = cluster.hosts[1], cluster.containers[1]
    cluster.daemons["b"].stop()
    b.agent()
    new = cluster.lab.host("new")
    daemon = Flanneld(new, "--ip-masq")
    cni_bridge(new)
    on_new = new.container("one")
    for other in (*cluster.containers[::2], on_new):
        wait_until(partial(reaches, on_b, other), 10, "the containers reach each other")
        assert reaches(other, on_b)
    daemon.stop()
    subnet = new.gateway.network
    cluster.etcd.ctl("del", f"{SUBNETS}/{subnet.network_address}-{subnet.prefixlen}")
    wait_until(lambda: str(subnet) not in b.ip("route"), 10, "its route goes")
    a = cluster.hosts[0]
    wait_until(lambda: str(subnet) not in a.ip("route"), 10, "on a flannel host too")


def test_after_a_plain_teardown_flanneld_gets_the_same_subnet(cluster: Cluster) -> None:
    b, on_b = cluster.hosts[1], cluster.containers[1]
    subnet = b.gateway.network
    b.stop_processes()
    b.teardown()
    assert "vxlan id 1 " not in b.ip("-d", "link")
    cluster.daemons["b"] = Flanneld(b, "--ip-masq")
    assert b.gateway.network == subnet
    for other in cluster.containers[::2]:
        wait_until(partial(reaches, other, on_b), 10, "peers follow its new MAC")


def test_host_gw_is_taken_over_and_given_back_without_a_lost_packet(gateways: Cluster) -> None:
    a, b, _ = gateways.hosts
    before = gateways.value(a)
    a.ip("route", "add", "172.17.99.0/24", "via", b.address)
    a.ip("route", "add", "10.9.0.0/16", "via", b.address)
    traffic = Traffic(gateways)
    gateways.daemons["a"].stop()
    a.agent()
    traffic.flow()
    assert len(a.ip("route", "show", "proto", "147").splitlines()) == 2
    assert "172.17.99.0/24" not in a.ip("route")
    assert "10.9.0.0/16" in a.ip("route")
    assert "FLANNEL" not in rules(a)
    a.stop_processes()
    a.ovctl("teardown", "--to-flannel")
    gateways.daemons["a"] = Flanneld(a, "--ip-masq")
    a.teardown()
    assert traffic.finish() == 0
    assert gateways.value(a) == before
    assert a.ip("route", "show", "proto", "147") == ""
    peers = [host.gateway.network for host in gateways.hosts[1:]]
    assert all(f"{subnet} via {host.address} dev eth0" in a.ip("route")
               for subnet, host in zip(peers, gateways.hosts[1:], strict=True))  # fmt: skip
