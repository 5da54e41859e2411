"""A network whose config changes while nodes run: followed under traffic."""

from __future__ import annotations

import json
import re
import signal

from tests.host import Host, meet
from tests.lab import Lab, wait_until


def mtu(host: Host, device: str) -> int:
    (found,) = json.loads(host.ip("-json", "link", "show", device))
    return int(found["mtu"])


def test_mtu_and_direct_routing_are_followed_without_a_restart_and_without_loss(lab: Lab) -> None:
    hosts = a, b = lab.host("a"), lab.host("b")
    lab.init_network()
    for host in hosts:
        host.agent("--resync-interval", "3600")
    meet(a, b)
    one, two = a.container("one"), b.container("two")
    one.run("ping", "-c1", "-W5", two.address)
    stream = one.popen("ping", "-i0.02", "-s1200", two.address)

    lab.init_network("172.17.0.0/16", 24, "--mtu", "1400", "--force")
    for host in hosts:
        wait_until(lambda host=host: host.subnet_env()["FLANNEL_MTU"] == "1350", 30, "subnet.env says so")  # type: ignore[misc]
        assert (mtu(host, "ovnet.1"), mtu(host, "ovnet0")) == (1350, 1350)

    subnet = str(b.gateway.network)
    assert "dev ovnet.1" in a.ip("route", "show", subnet)
    lab.init_network("172.17.0.0/16", 24, "--mtu", "1400", "--direct-routing", "--force")
    wait_until(lambda: f"via {b.address} dev eth0" in a.ip("route", "show", subnet), 30, "a routes plainly")
    wait_until(
        lambda: f"via {a.address} dev eth0" in b.ip("route", "show", str(a.gateway.network)), 30, "and b"
    )
    lab.init_network("172.17.0.0/16", 24, "--force")
    wait_until(lambda: "dev ovnet.1" in a.ip("route", "show", subnet), 30, "back by the tunnel")
    for host in hosts:
        wait_until(lambda host=host: host.subnet_env()["FLANNEL_MTU"] == "1450", 30, "and the MTU")  # type: ignore[misc]
        assert host.ovctl("status").returncode == 0

    stream.kill(signal.SIGINT)
    stream.wait()
    found = re.search(r"(\d+) packets transmitted, (\d+) received", stream.out())
    assert found, stream.out()[-500:]
    assert int(found[1]) - int(found[2]) <= 1, "none but the one that was under way at the end"
