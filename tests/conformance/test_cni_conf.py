"""Containers that a runtime starts by the CNI configuration of ours, with Debian's plugins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.store import open_store
from tests.cni import ConflistContainer, conflist
from tests.host import Host, meet
from tests.kube.cluster import started_on
from tests.lab import Lab, wait_until
from tests.stream import TcpSink, tcp_send

ANOTHERS = json.dumps({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [{"type": "flannel"}]})


def is_told(host: Host) -> bool:
    """Whether the runtime is told to take our containers."""
    return conflist(host).exists() and "ovnet" in conflist(host).read_text()


@pytest.fixture
def nodes() -> Iterator[tuple[Host, Host]]:
    """Two nodes that tell their runtimes; on the first one flannel's configuration was there before."""
    with Lab() as lab:
        yield told(lab)


def told(lab: Lab) -> tuple[Host, Host]:
    a, b = lab.host("a"), lab.host("b")
    lab.init_network()
    for host in (a, b):
        conflist(host).parent.mkdir()
    conflist(a).write_text(ANOTHERS)
    for host in (a, b):
        host.bridge = "cni0"
    for agent in [started_on(host, wait=False) for host in (a, b)]:
        agent.wait_ready()
        wait_until(partial(is_told, agent.host), 10, "its runtime is told")
    meet(a, b)
    return a, b


def test_a_runtime_needs_nothing_but_our_file(nodes: tuple[Host, Host]) -> None:
    a, b = nodes
    published = {"hostPort": 18080, "containerPort": 9100, "protocol": "tcp"}
    one = ConflistContainer(a, "one", conflist(a), [])
    two = ConflistContainer(b, "two", conflist(b), [published])
    assert f"mtu {b.subnet_env()['FLANNEL_MTU']} " in two.ip("link", "show", "eth0")
    assert f"default via {b.gateway.ip}" in two.ip("route")
    assert b.ip("-br", "addr", "show", "cni0").split()[2] == str(b.gateway), "and no other"
    server = TcpSink(two, 9100)
    assert tcp_send(one, two.address, 1_000_000, port=9100)["seen_as"] == one.address
    server.stop()
    server = TcpSink(two, 9100)
    tcp_send(a, b.address, 1_000_000, port=18080)
    server.stop()

    def carried() -> bool:
        one.run("ping", "-c4", "-i0.05", "-W1", two.address, check=False)
        return min(a.bypassed()[0], b.bypassed()[0]) > 0

    wait_until(carried, 10, "eBPF carries it")
    two.unplug()
    assert "eth0" not in two.ip("-br", "link")


def test_it_goes_while_no_container_may_come_and_at_the_end_what_was_before_is_back(
    nodes: tuple[Host, Host],
) -> None:
    a, b = nodes
    with closing(open_store(a.lab.store_url)) as store:
        held = next(lease for lease in store.snapshot().leases if lease.subnet == a.gateway.network)
        thief = store.put(replace(held, host=IPv4Address("192.168.77.99"), node="c"), held)
        wait_until(lambda: not conflist(a).exists(), 10, "it is taken away")
        store.delete(thief)
    wait_until(conflist(a).exists, 10, "it is back")
    for host in (a, b):
        host.stop_processes()
        assert conflist(host).exists(), "as the datapath"
        host.ovctl("teardown", "--cni-conf", str(conflist(host)))
    assert [(each.name, each.read_text()) for each in conflist(a).parent.iterdir()] == [
        (conflist(a).name, ANOTHERS)
    ]
    assert list(conflist(b).parent.iterdir()) == []


def test_what_others_do_in_the_directory_is_named_and_followed_without_a_restart(
    nodes: tuple[Host, Host],
) -> None:
    a, _ = nodes
    net_d = conflist(a).parent
    first = net_d / "00-multus.conf"
    named = f"{first} sorts before 10-flannel.conflist"
    first.write_text("{}")
    wait_until(lambda: named in str(a.status()), 30, "it is named")
    assert named in a.ovctl("status", check=False).stdout
    assert a.ovctl("status", check=False).returncode == 1
    doctor = a.ovctl("doctor", "--no-probe", "--cni-conf", str(conflist(a)), "-o", "json", check=False)
    (line,) = (each for each in json.loads(doctor.stdout) if each["level"] == "failure")
    assert named in line["seen"] and line["remedy"].startswith("remove it")
    first.unlink()
    conflist(a).write_text(ANOTHERS)
    wait_until(lambda: a.ovctl("status", check=False).returncode == 0, 30, "it is well again")
    assert is_told(a)
    moved = net_d.rename(net_d.with_suffix(".away"))
    wait_until(lambda: f"no directory {net_d}" in str(a.status()), 30, "that is named, too")
    moved.rename(net_d)
    wait_until(lambda: a.ovctl("status", check=False).returncode == 0, 30, "it is well again")
