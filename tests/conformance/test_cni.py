"""Who reads subnet.env can do so unchanged: the CNI plugin `flannel`, and a shell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import pytest

from ctl.store import open_store
from tests.cni import CniContainer
from tests.host import Host
from tests.lab import Lab, run, wait_until
from tests.stream import TcpSink, tcp_send


@dataclass
class Hosts:
    a: Host
    b: Host
    outside: Host


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two nodes on the bridge that the plugin uses unless told otherwise."""
    with Lab() as lab:
        made = Hosts(lab.host("a"), lab.host("b"), lab.outside())
        lab.init_network()
        for host in (made.a, made.b):
            host.bridge = "cni0"
            host.agent("--approval-ttl", "1")
        yield made


def test_containers_of_the_cni_plugin_reach_each_other(hosts: Hosts) -> None:
    one, two = CniContainer(hosts.a, "one"), CniContainer(hosts.b, "two")
    for host, container in ((hosts.a, one), (hosts.b, two)):
        assert container.address.startswith(str(host.gateway.network).rpartition(".")[0])
        assert container.result["ips"][0]["gateway"] == str(host.gateway.ip)
        assert f"mtu {host.subnet_env()['FLANNEL_MTU']} " in container.ip("link", "show", "eth0")
        assert f"default via {host.gateway.ip}" in container.ip("route")
        assert host.ip("-br", "addr", "show", "cni0").split()[2] == str(host.gateway), "and no other"
    for source, sink, port in ((one, two, 9100), (two, one, 9101)):
        source.run("ping", "-c5", "-i0.05", "-W2", sink.address)
        server = TcpSink(sink, port)
        assert tcp_send(source, sink.address, 1_000_000, port=port)["seen_as"] == source.address
        server.stop()

    def carried() -> bool:
        one.run("ping", "-c4", "-i0.05", "-W1", two.address, check=False)
        return min(hosts.a.bypassed()[0], hosts.b.bypassed()[0]) > 0

    wait_until(carried, 10, "eBPF carries it")
    # The agent masquerades (FLANNEL_IPMASQ=true), so the plugin does not.
    server = TcpSink(hosts.outside, 9102)
    assert tcp_send(one, hosts.outside.address, port=9102)["seen_as"] == hosts.a.address
    assert "CNI-" not in hosts.a.run("iptables-save", "-t", "nat").stdout
    one.unplug()
    assert "eth0" not in one.ip("-br", "link")
    again = CniContainer(hosts.a, "again")
    assert again.address != one.address, "host-local goes on in its range"
    again.run("ping", "-c2", "-i0.05", "-W2", two.address)


def test_a_fenced_node_takes_no_new_containers_of_the_plugin(hosts: Hosts) -> None:
    a = hosts.a
    env = a.state_dir / "subnet.env"
    with closing(open_store(a.lab.store_url)) as store:
        held = next(lease for lease in store.snapshot().leases if lease.subnet == a.gateway.network)
        thief = store.put(replace(held, host=IPv4Address("192.168.77.99"), node="c"), held)
        wait_until(lambda: not env.exists(), 10, "subnet.env is taken away")
        with pytest.raises(FileNotFoundError):
            CniContainer(a, "none")
        store.delete(thief)
    wait_until(env.exists, 10, "subnet.env is back")
    CniContainer(a, "some").run("ping", "-c1", "-W2", a.address)


def test_a_shell_reads_subnet_env_as_flannels_docker_script_does(hosts: Hosts) -> None:
    path = hosts.a.state_dir / "subnet.env"
    names = ("FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ")
    script = f'. {path}; printf "%s\\n" ' + " ".join(f'"${name}"' for name in names)
    expected = ["172.17.0.0/16", str(hosts.a.gateway), "1450", "true"]
    for shell in (("sh", "-euc"), ("bash", "-euc"), ("busybox", "sh", "-euc")):
        assert run([*shell, script]).stdout.split() == expected
    options = hosts.a.ovctl("docker-opts").stdout
    assert options == f"--bip={hosts.a.gateway} --ip-masq=false --mtu=1450\n"
