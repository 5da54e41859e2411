"""The rules of kube-proxy's two modes that tests load: what they say of each kind of service."""

from __future__ import annotations

from dataclasses import replace

from tests.kube import iptables, nftables
from tests.kube.services import Endpoint, Proxy, Service

HERE = Proxy("here", ("192.0.2.1",), "10.244.0.0/16")
THERE = replace(HERE, node="there")
PODS = (Endpoint("10.244.1.2", 9100, "here"), Endpoint("10.244.1.3", 9100, "here"))
WEB = Service("web", "10.96.0.1", 80, PODS, node_port=30080)


def test_a_headless_service_has_no_rules() -> None:
    headless = replace(WEB, cluster_ip="")
    assert iptables.rules(HERE, [headless]) == iptables.rules(HERE, [])
    assert nftables.rules(HERE, [headless]) == nftables.rules(HERE, [])


def test_a_service_without_endpoints_is_rejected_and_not_translated() -> None:
    empty = replace(WEB, endpoints=())
    assert "-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 80 -j REJECT" in iptables.rules(HERE, [empty])
    assert "no-endpoint-services { 10.96.0.1 . tcp . 80 : goto reject-chain }" in nftables.rules(
        HERE, [empty]
    )
    assert "KUBE-SVC" not in iptables.rules(HERE, [empty])
    assert "dnat to" not in nftables.rules(HERE, [empty])


def test_a_node_without_endpoints_drops_what_comes_to_a_local_node_port() -> None:
    local = replace(WEB, external_local=True)
    dropped = "-A KUBE-EXTERNAL-SERVICES -m addrtype --dst-type LOCAL -p tcp --dport 30080 -j DROP"
    assert dropped in iptables.rules(THERE, [local])
    assert dropped not in iptables.rules(HERE, [local])
    assert "no-endpoint-nodeports { tcp . 30080 : drop }" in nftables.rules(THERE, [local])
    assert "no-endpoint-nodeports { tcp" not in nftables.rules(HERE, [local])


def test_lots_are_drawn_unless_a_test_compares() -> None:
    assert "--mode random --probability 0.5" in iptables.rules(HERE, [WEB])
    assert "--mode nth --every 2 --packet 0" in iptables.rules(replace(HERE, in_turn=True), [WEB])
    assert "numgen random mod 2" in nftables.rules(HERE, [WEB])
    assert "numgen inc mod 2" in nftables.rules(replace(HERE, in_turn=True), [WEB])


def test_source_ranges_are_a_load_balancers_and_not_a_node_ports() -> None:
    balanced = replace(WEB, load_balancer="10.9.9.9", source_ranges=("10.0.0.0/8",))
    text = iptables.rules(HERE, [balanced])
    assert "-A KUBE-PROXY-FIREWALL -d 10.9.9.9/32 -p tcp --dport 80 -j DROP" in text
    (port,) = [line for line in text.splitlines() if line.startswith("-A KUBE-NODEPORTS")]
    assert "-j KUBE-EXT-" in port
    text = nftables.rules(HERE, [balanced])
    assert "firewall-ips { 10.9.9.9 . tcp . 80 : goto firewall-" in text
    assert "ip saddr != { 10.0.0.0/8 } drop" in text
