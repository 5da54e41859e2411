"""Nodes of a cluster with both families, whose store is the twin of the Kubernetes API."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ctl.core.model import IPv4Address, IPv4Network, IPv6Lease, IPv6Network, Lease
from tests.conformance.test_kubernetes_nodes import SECONDS, Cluster, made
from tests.dual import guest, ping, reaches, underlay, with_ipv6
from tests.kube.nodes import PREFIX, node, published
from tests.kube.state import merge
from tests.lab import Lab
from tests.process import wait_until

NET_CONF = {
    "Network": "10.244.0.0/16",
    "EnableIPv6": True,
    "IPv6Network": "fd00:10:244::/56",
    "Backend": {"Type": "vxlan"},
}


def subnets(third: int) -> tuple[str, str]:
    return f"10.244.{third}.0/24", f"fd00:10:244:{third}::/64"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The Nodes a and b, and c, which was registered when cluster and hosts had IPv4 only."""
    with Lab() as lab:
        cluster = made(lab)
        (lab.dir / "net-conf.json").write_text(json.dumps(NET_CONF))
        cluster.twin.state.create(node("a", *subnets(1)))
        cluster.twin.state.create(node("b", *reversed(subnets(2))))
        cluster.twin.state.create(node("c", "10.244.3.0/24"))
        for name in "ab":
            with_ipv6(cluster.host(name))
        for agent in [cluster.agent(name, wait=False) for name in "abc"]:
            agent.wait_ready()
        for name in "ab":
            knows_by_ipv6(cluster, name, subnets(3 - "ab".index(name) - 1)[1])
        yield cluster


def peers(cluster: Cluster, name: str) -> set[str]:
    """Those to which a node has routes by IPv6."""
    lines = cluster.host(name).ip("-6", "route", "show", "proto", "147").splitlines()
    return {line.split()[0] for line in lines}


def knows_by_ipv6(cluster: Cluster, name: str, *subnets: str) -> None:
    wait_until(
        lambda: peers(cluster, name) == set(subnets),
        SECONDS,
        lambda: f"{name} has routes to {peers(cluster, name)}",
    )


def test_pods_of_two_nodes_reach_each_other_by_both_families(cluster: Cluster) -> None:
    one, two = (
        guest(
            cluster.host(name),
            Lease(
                IPv4Network(subnets(third)[0]),
                IPv4Address(cluster.host(name).address),
                ipv6=IPv6Lease(IPv6Network(subnets(third)[1])),
            ),
            "pod",
        )
        for third, name in enumerate("ab", start=1)
    )
    reaches(one.place, two.address)
    assert ping(two.place, one.address)
    one.place.run("ping", "-c1", "-W2", two.place.address)


def test_a_node_is_published_as_flannel_does_and_its_runtime_has_both_ranges(cluster: Cluster) -> None:
    for third, name in enumerate("ab", start=1):
        host = cluster.host(name)
        mac, mac6 = (
            json.loads(host.ip("-j", "link", "show", each))[0]["address"]
            for each in ("ovnet.1", "ovnet-v6.1")
        )
        assert cluster.stands(name) == {
            "backend-type": "vxlan", "kube-subnet-manager": "true",
            "backend-data": f'{{"VNI":1,"VtepMAC":"{mac}"}}', "public-ip": host.address,
            "backend-v6-data": f'{{"VNI":1,"VtepMAC":"{mac6}"}}', "public-ipv6": underlay(host),
        }  # fmt: skip
        ipv4, ipv6 = subnets(third)
        env = host.subnet_env()
        assert (env["FLANNEL_IPV6_NETWORK"], env["FLANNEL_IPV6_SUBNET"]) == (
            NET_CONF["IPv6Network"],
            ipv6.replace("::/64", "::1/64"),
        )
        wait_until(cluster.conflist(name).exists, SECONDS, f"{name} takes containers")
        ipam = json.loads(cluster.conflist(name).read_text())["plugins"][0]["ipam"]
        assert ipam["ranges"] == [[{"subnet": ipv4}], [{"subnet": ipv6}]]
        assert ipam["routes"] == [{"dst": NET_CONF["Network"]}, {"dst": NET_CONF["IPv6Network"]}]


def test_a_node_of_flannels_is_a_peer_of_both_families_until_its_node_goes(cluster: Cluster) -> None:
    theirs = published("192.168.77.99")
    theirs[f"{PREFIX}public-ipv6"] = "fd77::99"
    theirs[f"{PREFIX}backend-v6-data"] = '{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}'
    cluster.twin.state.create(node("f", *subnets(9), annotations=theirs))
    try:
        knows_by_ipv6(cluster, "a", subnets(2)[1], subnets(9)[1])
        fdb = cluster.host("a").run("bridge", "fdb", "show", "dev", "ovnet-v6.1").stdout
        assert "02:00:00:00:00:09 dst fd77::99" in fdb
    finally:
        cluster.twin.state.delete("f")
    knows_by_ipv6(cluster, "a", subnets(2)[1])


def test_an_ipv6_address_that_an_administrator_has_chosen_names_the_interface_without_a_default_route(
    cluster: Cluster,
) -> None:
    host = with_ipv6(cluster.host("d"))
    assert not host.ip("route", "show", "default")
    host.ip("link", "add", "second", "type", "bridge")
    host.sysctl("net.ipv6.conf.second.disable_ipv6", "0")
    for address in ("192.0.2.4/24", "2001:db8::3/64", "2001:db8::4/64"):
        host.ip("address", "add", address, "dev", "second", *(["nodad"] if ":" in address else []))
    host.ip("link", "set", "second", "up")
    chosen = {f"{PREFIX}node-public-ipv6": "2001:db8::4"}
    cluster.twin.state.create(node("d", *subnets(4), annotations=chosen))
    try:
        agent = cluster.agent("d", OVNET_IFACE="", OVNET_BYPASS="off")
        stands = cluster.stands("d")
        assert (stands["public-ip"], stands["public-ipv6"]) == ("192.0.2.4", "2001:db8::4")
        assert host.status()["uplink"] == "second"
        assert agent.stop() == 0
        wrong = {"metadata": {"annotations": {f"{PREFIX}node-public-ipv6": underlay(host)}}}
        cluster.twin.state.patch("d", merge, wrong, status=False)
        env = {**cluster.env, "OVNET_IFACE": "second"}
        done = host.ovctl("agent", check=False, env=env)
        assert done.returncode == 1
        assert f"the store has {underlay(host)} for this node" in done.stderr.splitlines()[-1]
    finally:
        cluster.twin.state.delete("d")
    knows_by_ipv6(cluster, "a", subnets(2)[1])


def test_a_node_that_was_given_no_ipv6_has_ipv4_and_says_so_as_do_its_peers(cluster: Cluster) -> None:
    cluster.knows("c", "10.244.1.0/24", "10.244.2.0/24")
    says(cluster, "c", "node c has no podCIDR for IPv6, which the network has")
    assert "FLANNEL_IPV6_SUBNET" not in cluster.host("c").subnet_env()
    says(cluster, "a", "nodes without IPv6, reached by IPv4 only: c")


def says(cluster: Cluster, name: str, line: str) -> None:
    """Returns when a node's status has the line."""
    host = cluster.host(name)
    wait_until(lambda: line in host.ovctl("status", check=False).stdout, SECONDS, f"{name} says: {line}")
