"""Hosts that have addresses, routes, rules or bridges of their own where the overlay would have them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network
from subprocess import CompletedProcess

import pytest

from ctl.backend.vxlan.device import vtep_mac
from ctl.core.model import Lease
from ctl.store import open_store
from tests.host import Host
from tests.lab import Lab, wait_until

FAILED, USAGE = 1, 2
LINK = IPv4Network("172.17.5.0/24")
PLAIN = ("--bypass", "off")
"""Nothing here is about eBPF."""


def footprint(host: Host) -> dict[str, str]:
    """But for what a LAN's bridge learns by itself."""
    return {name: shown for name, shown in host.footprint().items() if name != "bridge fdb show"}


def refused(host: Host, *command: str, env: dict[str, str] | None = None) -> str:
    """Its one line. It ends with exit code 2, and has changed nothing."""
    before = footprint(host)
    done = host.ovctl(*command, check=False, env=env)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (USAGE, 1), done.stderr
    assert footprint(host) == before
    assert not (host.state_dir / "subnet.env").exists()
    return lines[0]


def status(host: Host) -> CompletedProcess[str]:
    return host.ovctl("status", check=False)


def reach(one: Host, other: Host) -> bool:
    return one.run("ping", "-c1", "-W2", other.address, check=False).returncode == 0


def leases(lab: Lab) -> dict[str, Lease]:
    """By the host's address."""
    with closing(open_store(lab.store_url)) as store:
        return {str(lease.host): lease for lease in store.snapshot().leases}


def test_a_network_over_the_hosts_link_is_refused_where_it_is_made_and_where_it_is_used(lab: Lab) -> None:
    a, b = lab.host("a", "172.17.5.11"), lab.host("b", "172.17.5.12")
    line = refused(a, "network", "init", "--network", "172.17.0.0/16")
    assert "eth0 has 172.17.5.11/24" in line
    assert "--force" in line
    assert not lab.store.exists()
    a.ovctl("network", "init", "--network", "172.17.0.0/16", "--subnet-min", "172.17.5.0",
            "--subnet-max", "172.17.6.0", "--force")  # fmt: skip
    a.ovctl("network", "init", "--network", "172.17.0.0/16", "--subnet-min", "172.17.5.0",
            "--subnet-max", "172.17.6.0")  # fmt: skip
    a.agent(*PLAIN)
    assert a.gateway.network == IPv4Network("172.17.6.0/24")
    assert status(a).returncode == 0
    line = refused(b, "agent", *PLAIN)
    assert "eth0 has 172.17.5.12/24" in line
    assert "SubnetMin" in line
    assert "172.17.5.12" not in leases(lab)
    a.ip("link", "set", "eth0", "down")
    a.ip("link", "set", "eth0", "up")
    wait_until(lambda: reach(a, b), 10, "host a reaches host b")


def test_a_reservation_over_the_link_is_refused(lab: Lab) -> None:
    a = lab.host("a", "172.17.5.11")
    lab.init_network()
    with closing(open_store(lab.store_url)) as store:
        store.put(Lease(LINK, IPv4Address(a.address)), None)
    assert "ovctl lease release 172.17.5.0/24" in refused(a, "agent", *PLAIN)
    assert leases(lab)[a.address].node == "", "it is as it was"


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_a_peers_subnet_over_our_link_costs_nobody_else(lab: Lab, backend: str) -> None:
    a, b, c = (lab.host(name, f"172.17.5.{n}") for name, n in (("a", 11), ("b", 12), ("c", 13)))
    lab.init_network("172.17.0.0/16", 24, "--backend", backend)
    host = IPv4Address(c.address)
    mac, vni = (vtep_mac(host, 1), 1) if backend == "vxlan" else (None, None)
    with closing(open_store(lab.store_url)) as store:
        store.put(Lease(LINK, host, vtep_mac=mac, vni=vni, node="c", backend=backend), None)
    for each in (a, b):
        each.agent(*PLAIN, wait=False)
    env = b.state_dir / "subnet.env"
    wait_until(lambda: env.exists() and a.reaches(b), 60, "a reaches b's containers")
    assert "lease 172.17.5.0/24 of c ignored: it covers 172.17.5.0/24" in status(a).stdout
    assert "172.17.5.0/24 dev eth0" in a.ip("route", "show", "172.17.5.0/24")
    assert reach(a, c)


def test_hosts_beside_what_is_handed_out_are_no_fault(lab: Lab) -> None:
    """Flannel's documented example."""
    a, b = lab.host("a", "10.240.0.11"), lab.host("b", "10.240.0.12")
    a.ovctl(
        "network", "init", "--network", "10.0.0.0/8", "--subnet-min", "10.10.0.0", "--subnet-max", "10.99.0.0"
    )
    for each in (a, b):
        each.agent(*PLAIN)
        assert each.status()["problems"] == each.status()["warnings"] == []
        assert status(each).returncode == 0
    wait_until(lambda: a.reaches(b), 20, "a reaches b's containers")
    assert reach(a, b)


# --- Somebody else's on a node that runs ---------------------------------------------


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Host, Host]]:
    """Two nodes that look around every second; the subnet of b's is 172.17.200.0/24."""
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.init_network()
        with closing(open_store(lab.store_url)) as store:
            store.put(Lease(IPv4Network("172.17.200.0/24"), IPv4Address(b.address)), None)
        for each in (a, b):
            each.agent(*PLAIN, "--resync-interval", "1")
        wait_until(lambda: a.reaches(b), 20, "a reaches b's containers")
        yield a, b


def named(host: Host, key: str, *words: str) -> bool:
    """Whether a line of the agent's report has all these words."""
    return any(all(word in line for word in words) for line in host.status()[key])


def clean(host: Host) -> bool:
    report = host.status()
    return not (report["problems"] or report["warnings"])


def test_dockers_default_range_is_named_as_long_as_it_is_there(nodes: tuple[Host, Host]) -> None:
    a, _ = nodes
    rule = ("POSTROUTING", "-s", "172.17.0.0/16", "!", "-o", "docker0", "-j", "MASQUERADE")
    assert clean(a)
    a.ip("link", "add", "docker0", "type", "bridge")
    a.ip("addr", "add", "172.17.0.1/16", "dev", "docker0")
    wait_until(lambda: named(a, "warnings", "docker0 has 172.17.0.1/16"), 20, "the bridge is named")
    done = status(a)
    assert done.returncode == 0, "nothing is lost so far"
    assert "warning     docker0 has 172.17.0.1/16" in done.stdout
    a.run("iptables", "-t", "nat", "-A", *rule)
    wait_until(lambda: named(a, "problems", "POSTROUTING", "not by docker0"), 20, "the rule is named")
    done = status(a)
    assert done.returncode == FAILED
    assert "changes the source address" in done.stderr
    a.run("iptables", "-t", "nat", "-D", *rule)
    a.ip("link", "del", "docker0")
    wait_until(lambda: clean(a), 20, "what has gone is named no more")
    assert status(a).returncode == 0


@pytest.mark.parametrize(
    ("put", "take", "words"),
    [
        (
            "nft -f -",
            "nft delete table inet zones",
            ("table inet zones, chain post",),
        ),
        (
            "iptables-legacy -t nat -A POSTROUTING -s 172.16.0.0/12 -j MASQUERADE",
            "iptables-legacy -t nat -F POSTROUTING",
            ("legacy iptables", "from 172.16.0.0/12"),
        ),
        (
            "iptables-nft -t nat -A POSTROUTING -m addrtype ! --dst-type LOCAL -j MASQUERADE",
            "iptables-nft -t nat -F POSTROUTING",
            ("iptables' nat POSTROUTING", "everything"),
        ),
    ],
    ids=["nft", "legacy iptables", "iptables-nft"],
)
def test_rules_of_each_kind_are_seen(
    nodes: tuple[Host, Host], put: str, take: str, words: tuple[str, ...]
) -> None:
    a, _ = nodes
    a.run(*put.split(), stdin=ZONES)
    try:
        wait_until(lambda: named(a, "problems", *words), 20, "the rule is named")
    finally:
        a.run(*take.split())
    wait_until(lambda: clean(a), 20, "what has gone is named no more")


ZONES = """\
table inet zones {
    chain post { type nat hook postrouting priority srcnat + 10; oifname "eth0" goto inside; goto other; }
    chain inside { return; }
    chain other { meta nfproto ipv4 oifname != "lo" masquerade; }
}
"""
"""As firewalld writes masquerade of its default zone."""


def test_who_takes_a_peers_subnet_is_a_problem(nodes: tuple[Host, Host]) -> None:
    a, b = nodes
    assert a.reaches(b)
    a.ip("link", "add", "virbr0", "type", "bridge")
    a.ip("link", "set", "virbr0", "up")
    a.ip("addr", "add", "172.17.200.1/24", "dev", "virbr0")
    try:
        wait_until(lambda: named(a, "problems", "virbr0 has 172.17.200.1/24", "of b at"), 20, "it is named")
        assert status(a).returncode == FAILED
    finally:
        a.ip("link", "del", "virbr0")
    wait_until(lambda: clean(a) and a.reaches(b), 20, "all is well again")


# --- Bridges ---------------------------------------------------------------------------


def on_a_bridge(host: Host, name: str) -> None:
    """The NIC in a bridge that has the host's address, as Proxmox has it."""
    host.ip("link", "add", name, "type", "bridge")
    host.ip("link", "set", name, "up")
    host.ip("addr", "flush", "dev", "eth0")
    host.ip("link", "set", "eth0", "master", name)
    host.ip("addr", "add", f"{host.address}/24", "dev", name)


def test_a_bridge_that_carries_the_uplink_is_refused_and_keeps_its_mtu(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    on_a_bridge(a, "vmbr0")
    line = refused(a, "agent", env={"OVNET_IFACE": "vmbr0", "OVNET_BRIDGE": "vmbr0"})
    assert "--bridge vmbr0 is the uplink itself" in line
    a.ip("link", "add", "mv0", "link", "vmbr0", "type", "macvlan")
    a.ip("link", "set", "mv0", "up")
    a.ip("addr", "add", "192.168.78.11/24", "dev", "mv0")
    line = refused(a, "agent", env={"OVNET_IFACE": "mv0", "OVNET_BRIDGE": "vmbr0"})
    assert "--bridge vmbr0 carries the uplink mv0" in line


def test_an_uplink_that_is_put_into_our_bridge_lowers_no_mtu(lab: Lab) -> None:
    """Later, when the agent runs: it does not spiral, says so, and goes on when it is taken out again."""
    a = lab.host("a")
    lab.init_network()
    a.agent("--resync-interval", "1")
    before = a.ip("-o", "link", "show", "ovnet0").split()[4]
    a.ip("link", "set", "eth0", "master", "ovnet0")
    wait_until(lambda: "carries the uplink" in a.status()["reconcile"]["error"], 20, "it is named")
    assert status(a).returncode == FAILED
    assert a.ip("-o", "link", "show", "ovnet0").split()[4] == before
    a.ip("link", "set", "eth0", "nomaster")
    wait_until(lambda: status(a).returncode == 0, 60, "all is well again")


def test_a_lans_bridge_is_told_of_its_mtu(lab: Lab) -> None:
    a, lan = lab.host("a"), lab.namespace("lan")
    lab.init_network()
    a.bridge = "br0"
    a.ip("link", "add", "br0", "type", "bridge")
    a.ip("link", "add", "tap0", "type", "veth", "peer", "name", "lan0", "netns", lan.netns)
    a.ip("link", "add", "mv0", "link", "tap0", "type", "macvlan", "mode", "passthru")
    a.ip("link", "set", "mv0", "master", "br0")
    a.agent()
    assert named(a, "warnings", "br0", "mv0 (MTU 1500)", "1450")
    assert status(a).returncode == 0
