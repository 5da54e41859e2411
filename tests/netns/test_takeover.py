"""What flanneld leaves in a kernel, one piece at a time: what is taken, what is removed, what stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import TypeVar

import pytest

from ctl.core.errors import KernelError
from ctl.core.host import OWNER
from ctl.kernel import flannel
from ctl.kernel.netlink.rename import rename
from ctl.kernel.netlink.session import Netlink
from tests.flannel import Daemon
from tests.host import Host
from tests.lab import Lab, wait_until

T = TypeVar("T")

NETWORK = IPv4Network("172.17.0.0/16")
OTHER = IPv4Network("10.9.0.0/16")
PEER, PEER_MAC = "172.17.2.0", "02:00:00:00:00:02"


def device(host: Host, address: str = "172.17.1.0", *, port: str = "8472") -> None:
    """As flanneld makes it, with a peer."""
    host.ip("link", "add", "flannel.1", "mtu", "1450", "type", "vxlan", "id", "1", "dev", "eth0",
            "local", host.address, "dstport", port, "nolearning")  # fmt: skip
    host.ip("address", "add", f"{address}/32", "dev", "flannel.1")
    host.ip("link", "set", "flannel.1", "up")
    host.ip("neigh", "add", PEER, "lladdr", PEER_MAC, "dev", "flannel.1", "nud", "permanent")
    host.run(
        "bridge", "fdb", "add", PEER_MAC, "dev", "flannel.1", "dst", "192.168.77.99", "self", "permanent"
    )
    host.ip("route", "add", f"{PEER}/24", "via", PEER, "dev", "flannel.1", "onlink")


def inside(host: Host, function: Callable[[Netlink], T]) -> T:
    def call() -> T:
        with Netlink() as netlink:
            return function(netlink)

    return host.call(call)


def refused(host: Host, *flags: str) -> tuple[int, str]:
    """Exit code and the line of an agent that changed nothing."""
    before = host.footprint()
    done = host.ovctl("agent", *flags, check=False)
    assert host.footprint() == before
    (line,) = done.stderr.splitlines()
    return done.returncode, line


NAMED = "open('/proc/self/comm', 'w').write('flanneld'); print(flush=True); import time; time.sleep(60)"


def test_a_running_flanneld_is_seen_with_the_units_few_capabilities(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    daemon = a.popen(sys.executable, "-c", NAMED)
    wait_until(daemon.out, 10, "it has its name")
    look = (
        "setpriv", "--bounding-set=-all,+net_admin,+bpf,+perfmon", sys.executable, "-c",
        "from ctl.kernel.flannel import running; print(running())",
    )  # fmt: skip
    assert a.run(*look).stdout == f"{daemon.pid}\n"
    assert b.run(*look).stdout == "None\n", "it is another host's"


@pytest.mark.parametrize("live", [True, False], ids=["live", "before Linux 6.2"])
def test_a_renamed_device_keeps_what_hangs_on_it(lab: Lab, live: bool) -> None:
    a = lab.host("a")
    device(a)
    a.ip("route", "replace", f"{PEER}/24", "via", PEER, "dev", "flannel.1", "onlink", "proto", "147")

    def shown() -> tuple[str, str, str, str]:
        texts = (a.ip("route"), a.ip("neigh"), a.run("bridge", "fdb").stdout, a.ip("-br", "address"))
        return tuple(text.replace("flannel.1", "ovnet.1") for text in texts)  # type: ignore[return-value]

    before = shown()

    def there(netlink: Netlink) -> None:
        (link,) = (each for each in netlink.links().values() if each.name == "flannel.1")
        rename(netlink, link, "ovnet.1", ours=True, live=live)

    inside(a, there)
    (link,) = json.loads(a.ip("-j", "link", "show", "ovnet.1"))
    assert (link["ifalias"], "UP" in link["flags"]) == (OWNER, True)
    assert [sorted(text.split()) for text in shown()] == [sorted(text.split()) for text in before]
    assert PEER_MAC in shown()[1]

    def back(netlink: Netlink) -> None:
        (link,) = (each for each in netlink.links().values() if each.name == "ovnet.1")
        rename(netlink, link, "flannel.1", ours=False, live=live)

    inside(a, back)
    (link,) = json.loads(a.ip("-j", "link", "show", "flannel.1"))
    assert "ifalias" not in link


@pytest.mark.parametrize("live", [True, False], ids=["live", "before Linux 6.2"])
def test_a_name_that_is_refused_leaves_the_device_as_it_was(lab: Lab, live: bool) -> None:
    a = lab.host("a")
    device(a)
    a.ip("route", "replace", f"{PEER}/24", "via", PEER, "dev", "flannel.1", "onlink", "proto", "147")
    a.ip("link", "add", "ovnet.1", "type", "bridge")

    def shown() -> tuple[list[str], ...]:
        texts = (a.ip("route"), a.ip("neigh"), a.run("bridge", "fdb").stdout, a.ip("-br", "link"))
        return tuple(sorted(text.split()) for text in texts)

    before = shown()

    def there(netlink: Netlink) -> None:
        (link,) = (each for each in netlink.links().values() if each.name == "flannel.1")
        with pytest.raises(KernelError, match="rename flannel.1 to ovnet.1: File exists"):
            rename(netlink, link, "ovnet.1", ours=True, live=live)

    inside(a, there)
    assert shown() == before
    assert PEER_MAC in a.ip("neigh")


def test_the_lease_that_ran_out_is_asked_for_again_by_the_devices_address(lab: Lab) -> None:
    """No lease is left and no subnet.env: what the containers have is in the kernel."""
    a = lab.host("a")
    lab.init_network()
    device(a, "172.17.77.0")
    mac = json.loads(a.ip("-j", "link", "show", "flannel.1"))[0]["address"]
    a.agent()
    assert str(a.gateway) == "172.17.77.1/24"
    (lease,) = a.json("lease", "list")
    assert lease["vtep_mac"] == mac
    (node,) = a.json("map", "dump", "node")
    assert node["vtep_mac"] == mac
    assert a.ip("route", "show", "dev", "ovnet.1") == "", "the peer is none of this network"


def test_a_device_of_another_network_is_refused_and_stays(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    device(a, "10.9.3.0")
    code, line = refused(a)
    assert code == 1
    assert "flannel.1 has VNI 1 on port 8472, and its address 10.9.3.0 is not in 172.17.0.0/16" in line


def test_a_device_on_another_port_is_not_in_the_way(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    device(a, port="4789")
    before = a.ip("-d", "link", "show", "flannel.1"), a.ip("route", "show", "dev", "flannel.1")
    a.agent()
    assert (a.ip("-d", "link", "show", "flannel.1"), a.ip("route", "show", "dev", "flannel.1")) == before
    assert "ovnet.1" in a.ip("link")


def test_the_containers_bridge_has_to_be_named(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    device(a)
    a.ip("link", "add", "cni0", "type", "bridge")
    a.ip("address", "add", "172.17.1.1/24", "dev", "cni0")
    code, line = refused(a)
    assert (code, line) == (
        2,
        "ovctl: error: bridge cni0 has the containers' gateway 172.17.1.1/24: run with --bridge=cni0",
    )
    a.bridge = "cni0"
    a.agent()
    a.ovctl("status")


def test_a_device_that_is_not_as_we_need_it_is_made_anew_with_its_mac(lab: Lab) -> None:
    """Another local address, as after --public-ip was changed. Learning alone can be turned off."""
    a = lab.host("a")
    lab.init_network()
    device(a)
    a.ip("address", "add", "192.168.77.200/24", "dev", "eth0")
    a.run("ip", "link", "set", "flannel.1", "type", "vxlan", "learning")
    (before,) = json.loads(a.ip("-j", "link", "show", "flannel.1"))
    agent = a.agent("--bypass=off")
    (same,) = json.loads(a.ip("-d", "-j", "link", "show", "ovnet.1"))
    assert (same["ifindex"], same["linkinfo"]["info_data"]["learning"]) == (before["ifindex"], False)
    agent.stop()
    a.agent("--bypass=off", "--public-ip", "192.168.77.200")
    (after,) = json.loads(a.ip("-d", "-j", "link", "show", "ovnet.1"))
    assert after["linkinfo"]["info_data"]["local"] == "192.168.77.200"
    assert after["address"] == before["address"]


def test_another_mtu_costs_no_neighbour(lab: Lab) -> None:
    """To set a MAC, the same one too, would flush the neighbours, and packets stop until they are back."""
    a, b = lab.host("a"), lab.host("b")
    lab.init_network()
    b.agent("--bypass=off")
    (peer,) = b.json("lease", "list")
    device(a)
    a.ip("link", "set", "flannel.1", "mtu", "1400")
    base = peer["subnet"].partition("/")[0]
    a.ip("neigh", "replace", base, "lladdr", peer["vtep_mac"], "dev", "flannel.1", "nud", "permanent")
    monitor = a.popen("ip", "monitor", "neigh", "dev", "flannel.1")
    a.agent("--bypass=off")
    assert "mtu 1450" in a.ip("link", "show", "ovnet.1")
    # What is no peer of this cluster goes; the peer stays.
    wait_until(lambda: f"Deleted {PEER} " in monitor.out(), 10, "neighbours are watched")
    assert f"Deleted {base} " not in monitor.out()


def test_a_blackhole_route_goes(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    device(a)
    a.ip("route", "add", "blackhole", "172.17.1.0/24")
    a.agent("--bypass=off")
    assert "blackhole" not in a.ip("route")


def restore(network: IPv4Network, own: str) -> str:
    """What flanneld gives to iptables-restore, by its twin."""
    texts: list[str] = []
    daemon = object.__new__(Daemon)
    daemon.network, daemon.own = network, IPv4Network(own)
    daemon.restore = lambda *given: texts.append(Daemon.restore_text(*given, jump=True))  # type: ignore[method-assign]
    daemon.masquerade()
    daemon.forward()
    return "".join(texts)


@pytest.mark.parametrize("legacy", [False, True], ids=["nft", "legacy"])
def test_chains_go_with_their_jumps_and_nothing_else(lab: Lab, legacy: bool) -> None:
    a = lab.host("a")
    tool = "iptables-legacy" if legacy else "iptables"
    if a.run(tool, "-t", "nat", "-S", check=False).returncode:
        pytest.skip(f"this kernel has no {tool}")
    a.run(tool, "-t", "nat", "-A", "POSTROUTING", "-s", "10.1.0.0/16", "-j", "MASQUERADE")
    a.run(tool, "-A", "FORWARD", "-s", "172.17.0.0/16", "-d", "10.1.0.0/16", "-j", "DROP")
    before = rules(a, tool)
    a.run(f"{tool}-restore", "--noflush", stdin=restore(NETWORK, "172.17.1.0/24"))
    assert rules(a, tool).count("FLANNEL-POSTRTG") == 8
    # Chains that speak of another network are another flanneld's.
    assert inside(a, lambda _: flannel.remove_rules(OTHER)) == []
    assert inside(a, lambda _: flannel.remove_rules(IPv4Network("172.17.0.0/17"))) == []
    assert len(inside(a, lambda _: flannel.rules(NETWORK))) == 2
    assert len(inside(a, lambda _: flannel.remove_rules(NETWORK))) == 2
    assert rules(a, tool) == before
    assert inside(a, lambda _: flannel.remove_rules(NETWORK)) == []


def rules(host: Host, tool: str) -> str:
    return "".join(host.run(tool, "-t", table, "-S").stdout for table in ("nat", "filter"))


def test_nftables_tables_go(lab: Lab) -> None:
    a = lab.host("a")
    a.nft("""
        table ip flannel-ipv4 {
            comment "rules for flannel-ipv4"
            chain postrtg {
                type nat hook postrouting priority srcnat; policy accept;
                meta mark 0x4000 return
                ip saddr 172.17.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
            }
            chain forward {
                type filter hook forward priority filter; policy accept;
                ip saddr 172.17.0.0/16 accept
            }
        }
        table ip6 flannel-ipv6 { comment "rules for flannel-ipv6"; }
        table ip others { chain postrtg { ip saddr 172.17.0.0/16 accept; }; }
    """)
    assert inside(a, lambda _: flannel.remove_rules(OTHER)) == []
    assert inside(a, lambda _: flannel.remove_rules(NETWORK)) == ["table flannel-ipv4"]
    listing = a.run("nft", "list", "ruleset").stdout
    assert "flannel" not in listing
    assert "table ip others" in listing


def test_a_device_that_somebody_renamed_is_given_to_flannel_all_the_same(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    a.agent().stop()
    a.ip("link", "set", "ovnet.1", "down")
    a.ip("link", "set", "ovnet.1", "name", "mine")
    a.ip("link", "set", "mine", "up")
    a.ovctl("teardown", "--to-flannel")
    assert "vxlan id 1 " in a.ip("-d", "link", "show", "flannel.1")


def test_subnet_env_stays_where_only_its_rules_show_that_flanneld_is_back(lab: Lab) -> None:
    """As from a pod, which sees no process of others."""
    a = lab.host("a")
    lab.init_network()
    a.agent().stop()
    env = a.state_dir / "subnet.env"
    a.ovctl("teardown", "--to-flannel")
    a.nft(f"table ip filter {{ chain FLANNEL-FWD {{ ip saddr {NETWORK} accept; }}; }}\n")
    a.teardown()
    assert env.exists()
    a.nft("delete table ip filter\n")
    a.teardown()
    assert not env.exists()
