"""A bridge for CNI that was there with other addresses: the plugin `bridge` would add no container to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv6Interface
from pathlib import Path

import pytest

from tests.cni import ConflistContainer
from tests.dual import init_network, with_ipv6
from tests.host import Host
from tests.lab import Lab, wait_until

OTHER = "10.99.0.1/24"


@pytest.fixture
def node() -> Iterator[Host]:
    """A host that will be a node of a network of both families, beside a bridge of somebody's."""
    with Lab() as lab:
        a = with_ipv6(lab.host("a"))
        init_network(a)
        for bridge in ("cni0", "br9"):
            a.ip("link", "add", bridge, "type", "bridge")
            a.sysctl(f"net.ipv6.conf.{bridge}.disable_ipv6", "0")
            a.ip("address", "add", OTHER, "dev", bridge)
            a.ip("address", "add", "fd00:10::7/48", "dev", bridge, "nodad")
        a.ip("address", "add", "fd00:99::1/64", "dev", "cni0", "nodad")
        a.bridge = "cni0"
        yield a


def addresses(host: Host, bridge: str) -> set[str]:
    """Its own, but for the link's."""
    return {each for each in host.ip("-br", "address", "show", bridge).split()[2:] if "fe80" not in each}


def conflist(host: Host) -> Path:
    return host.lab.dir / "10-flannel.conflist"


def test_it_is_put_right_where_nothing_is_plugged_in_and_named_where_something_is(node: Host) -> None:
    others = addresses(node, "br9")
    agent = node.agent("--bypass", "off", "--cni-conf", str(conflist(node)))
    wait_until(conflist(node).exists, 30, "runtimes are told")
    env = node.subnet_env()
    ours = {str(node.gateway), str(IPv6Interface(env["FLANNEL_IPV6_SUBNET"]))}
    assert addresses(node, "cni0") == {*ours, "fd00:99::1/64"}, "the plugin bears one that does not overlap"
    assert f"cni0 had {OTHER} and no port: it has {node.gateway} now" in agent.log()

    one = ConflistContainer(node, "one", conflist(node), [])
    beside = f"{node.gateway.network[7]}/24"
    node.ip("address", "add", beside, "dev", "cni0")
    node.sysctl("net.ipv4.conf.cni0.promote_secondaries", "1")
    node.ip("address", "del", str(node.gateway), "dev", "cni0")
    for conf in ("all", "cni0"):  # ours comes behind it now, and would go with it
        node.sysctl(f"net.ipv4.conf.{conf}.promote_secondaries", "0")
    wait_until(lambda: not conflist(node).exists(), 30, "no container may come")
    named = f"bridge cni0 has {beside}, not {node.gateway}, and 1 port"
    assert named in node.ovctl("status", check=False).stdout
    flags = ("--bypass", "off", "--no-probe", "--cni-conf", str(conflist(node)))
    found = json.loads(node.ovctl("doctor", "-o", "json", *flags, check=False).stdout)
    (line,) = (each for each in found if each["level"] == "failure" and "cni0" in each["seen"])
    assert line["seen"] == named and "kubectl drain" in line["remedy"]
    assert beside in addresses(node, "cni0"), "a container is there: it stays as it is"

    one.ip("link", "del", "eth0")
    wait_until(conflist(node).exists, 30, "the last port is gone: it is put right")
    assert addresses(node, "cni0") == {*ours, "fd00:99::1/64"}
    assert addresses(node, "br9") == others
