"""The faults that `ovctl doctor` is shown, and what it has to name: data of tests and of docs.

Each row is injected for as long as a block lasts, on two nodes whose agents run.
"""

from __future__ import annotations

import json
import os
import shlex
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from socket import if_nametoindex
from typing import Any

from ctl.core.model import IPv4Network, MacAddress
from ctl.kernel.bpf import syscall
from ctl.store import open_store
from tests.host import Container, Host, meet, ovctl_argv
from tests.lab import wait_until
from tests.namespace import REPOSITORY

TIMES = REPOSITORY / "docs" / "faults.json"
"""How long the doctor took over each, seconds by name: measured by tests/netns/test_doctor.py."""


@dataclass
class Ward:
    """Two nodes whose agents run; `a` is examined."""

    a: Host
    b: Host
    on_a: Container
    beside: Container
    """Another one on `a`."""
    on_b: Container


def agent(host: Host, *flags: str) -> None:
    """Start a node's agent, which mends nothing by itself for as long as a test takes.

    The leases of `b` are much shorter than those of `a`.
    """
    lasting = ("--lease-ttl", "600") if host.name == "b" else ()
    host.agent("--resync-interval", "3600", *lasting, *flags)


@dataclass(frozen=True)
class Fault:
    """A row: what is wrong, and by which words the doctor has to name it and its remedy."""

    name: str
    inject: Callable[[Ward], AbstractContextManager[None]]
    seen: str
    remedy: str
    flags: tuple[str, ...] = ()
    """Of `ovctl doctor`."""
    traced: str = ""
    """What `ovctl trace` to a container of `b` ends with; empty: a packet does not show it, or not here."""
    files: Callable[[Ward], dict[str, str]] | None = None
    """What the doctor reads in place of this machine's own files: text by path. Where a fault is one of
    the machine, which labs share."""


def findings(ward: Ward, *flags: str, files: Mapping[str, str] | None = None) -> list[str]:
    """What it sees that is not well, with the remedies; the exit code agrees. `files`: as `Fault.files`."""
    command = [*ovctl_argv(), "doctor", "-o", "json", *flags]
    if files:
        command = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-ec",
            covered(files),
            "-",
            *command,
        ]
    done = ward.a.run(*command, check=False, env=ward.a.environment())
    found: list[dict[str, Any]] = json.loads(done.stdout)
    wrong = [each for each in found if each["level"] != "ok"]
    assert done.returncode == any(each["level"] == "failure" for each in found), done.stderr
    assert all(each["means"] and each["remedy"] for each in wrong)
    return [f"{each['seen']}: {each['remedy']}" for each in wrong]


def covered(files: Mapping[str, str]) -> str:
    """A script that shows these files to its arguments, in a mount namespace of its own.

    /run is empty but for them; other directories are as they are, with them.
    """
    lines = ["mount -t tmpfs none /run"]
    for number, (path, text) in enumerate(files.items()):
        file, quoted = PurePosixPath(path), shlex.quote(text)
        if file.is_relative_to("/proc"):
            lines += [f"echo {quoted} > /run/{number}", f"mount --bind /run/{number} {file}"]
        elif file.is_relative_to("/etc"):
            lines += ["cp -a /etc /run/etc", "mount --bind /run/etc /etc"]
        if not file.is_relative_to("/proc"):
            lines += [f"mkdir -p {file.parent}", f"echo {quoted} > {file}"]
    return "; ".join((*lines, 'exec "$@"'))


@contextmanager
def lost_on_the_way(*rules: tuple[Host, str]) -> Iterator[None]:
    """What is sent to a host and a rule fits does not arrive: the switch drops it.

    Not a rule of the host's: eBPF takes VXLAN off the uplink before any, and hands it over behind any.
    """
    wire = rules[0][0].lab.wire
    lines = "; ".join(f"ip daddr {host.address} {rule}" for host, rule in rules)
    wire.nft(
        f"table bridge somebody {{ chain between {{ type filter hook forward priority 0; {lines}; }}; }}"
    )
    try:
        yield
    finally:
        wire.run("nft", "delete", "table", "bridge", "somebody")


DROPPED = "udp dport 8472 drop"


def no_way_in(ward: Ward) -> AbstractContextManager[None]:
    return lost_on_the_way((ward.a, DROPPED))


def no_way_out(ward: Ward) -> AbstractContextManager[None]:
    return lost_on_the_way((ward.b, DROPPED))


def no_way_at_all(ward: Ward) -> AbstractContextManager[None]:
    return lost_on_the_way((ward.a, DROPPED), (ward.b, DROPPED))


def a_smaller_path(ward: Ward) -> AbstractContextManager[None]:
    return lost_on_the_way((ward.b, "ip length > 1400 drop"))


def fragmented(ward: Ward) -> AbstractContextManager[None]:
    """The path takes the tunnel's packets in pieces, and no whole one of that size."""
    return lost_on_the_way((ward.b, "ip length > 1400 ip protocol icmp drop"))


@contextmanager
def unfinished(ward: Ward) -> Iterator[None]:
    """What `a` sends goes on as frames of XDP, which nobody remembers to have unfinished checksums.

    As by a device that forgets what the kernel has left to it (CHECKSUM_PARTIAL).
    """
    wire = ward.a.lab.wire
    on = ward.a.bpffs.with_name(f"{ward.a.bpffs.name}-forgets")
    code = redirecting(wire.call(lambda: if_nametoindex(ward.b.name)))
    program = syscall.prog_load(code, "forgets", syscall.PROG_TYPE_XDP)
    syscall.obj_pin(program, str(on))
    os.close(program)
    ward.b.run("ethtool", "-K", "eth0", "gro", "on")  # without NAPI a veth takes no frames of XDP
    port = ("link", "set", "dev", ward.a.name, "xdpdrv")
    try:
        wire.run("ip", *port, "pinned", str(on))  # `ip -n` would see another bpffs
        yield
    finally:
        on.unlink()
        wire.ip(*port, "off")


def redirecting(ifindex: int) -> bytes:
    """An XDP program that sends all on by another interface: `return bpf_redirect(ifindex, 0)`."""
    mov, call, end = 0xB7, 0x85, 0x95
    instructions = ((mov, 1, ifindex), (mov, 2, 0), (call, 0, 23), (end, 0, 0))
    return b"".join(struct.pack("=BBhi", code, register, 0, value) for code, register, value in instructions)


@contextmanager
def peer_down(ward: Ward) -> Iterator[None]:
    ward.b.ip("link", "set", "eth0", "down")
    ward.a.ip("neigh", "flush", "dev", "eth0")
    try:
        yield
    finally:
        ward.b.ip("link", "set", "eth0", "up")
        meet(ward.a, ward.b)


@contextmanager
def stolen(ward: Ward) -> Iterator[None]:
    thief = (f"{ward.b.gateway.network.network_address}/25", "via", ward.b.address, "dev", "eth0")
    ward.a.ip("route", "add", *thief)
    try:
        yield
    finally:
        ward.a.ip("route", "del", *thief)


@contextmanager
def a_large_port(ward: Ward) -> Iterator[None]:
    ward.a.ip("link", "set", ward.on_a.port, "mtu", "1500")
    try:
        yield
    finally:
        ward.a.ip("link", "set", ward.on_a.port, "mtu", "1450")


@contextmanager
def a_large_container(ward: Ward) -> Iterator[None]:
    ward.on_a.ip("link", "set", "eth0", "mtu", "1500")
    try:
        yield
    finally:
        ward.on_a.ip("link", "set", "eth0", "mtu", "1450")


@contextmanager
def a_chain_of_somebody(ward: Ward, chain: str) -> Iterator[None]:
    ward.a.nft(f"table ip somebody {{ chain theirs {{ type filter hook forward priority 0; {chain} }}; }}")
    try:
        yield
    finally:
        ward.a.run("nft", "delete", "table", "ip", "somebody")


def a_policy_that_drops(ward: Ward) -> AbstractContextManager[None]:
    return a_chain_of_somebody(ward, "policy drop;")


def a_rule_that_drops(ward: Ward) -> AbstractContextManager[None]:
    return a_chain_of_somebody(ward, 'iifname "ovnet0" counter drop;')


@contextmanager
def routed(container: Container, *route: str) -> Iterator[None]:
    """With this default route, or none, in place of its own."""
    own = ("default", "via", str(container.host.gateway.ip))
    container.ip("route", "del", "default")
    if route:
        container.ip("route", "add", "default", *route)
    try:
        yield
    finally:
        container.ip("route", "replace", *own)


def no_route_inside(ward: Ward) -> AbstractContextManager[None]:
    return routed(ward.on_a)


def a_wrong_gateway(ward: Ward) -> AbstractContextManager[None]:
    return routed(ward.on_a, "via", str(ward.a.gateway.ip + 99))


@contextmanager
def addressed(container: Container, address: str) -> Iterator[None]:
    """With this address in place of its own, and with its route."""
    gateway = container.host.gateway
    own = f"{container.address}/{gateway.network.prefixlen}"
    container.ip("addr", "flush", "dev", "eth0", "scope", "global")
    container.ip("addr", "add", address, "dev", "eth0")
    container.ip("route", "replace", "default", "via", str(gateway.ip), "dev", "eth0", "onlink")
    try:
        yield
    finally:
        container.ip("addr", "flush", "dev", "eth0", "scope", "global")
        container.ip("addr", "add", own, "dev", "eth0")
        container.ip("route", "replace", "default", "via", str(gateway.ip))


def a_foreign_address(ward: Ward) -> AbstractContextManager[None]:
    return addressed(ward.on_a, "10.9.9.9/24")


@contextmanager
def another_tunnel(ward: Ward) -> Iterator[None]:
    ward.a.ip("link", "add", "flannel.9", "type", "vxlan", "id", "9", "dstport", "8472", "dev", "eth0")
    try:
        yield
    finally:
        ward.a.ip("link", "del", "flannel.9")


@contextmanager
def ipsec(ward: Ward) -> Iterator[None]:
    policy = ("src", "192.0.2.0/24", "dst", "198.51.100.0/24", "dir", "out")
    ward.a.ip("xfrm", "policy", "add", *policy, "action", "allow")
    try:
        yield
    finally:
        ward.a.ip("xfrm", "policy", "delete", *policy)


@contextmanager
def a_lease(ward: Ward, vni: int, ends_in: float) -> Iterator[None]:
    """A node that is not there, with this lease, as another one that has not followed would have it."""
    store = open_store(ward.a.lab.store_url)
    try:
        like = next(lease for lease in store.snapshot(fresh=True).leases if str(lease.host) == ward.b.address)
        assert like.expires_at is not None
        stray = replace(
            like,
            subnet=IPv4Network("172.17.250.0/24"),
            host=IPv4Address("192.168.77.250"),
            vtep_mac=MacAddress.parse("02:00:00:00:00:fa"),
            vni=vni,
            node="stray",
            expires_at=like.expires_at + ends_in,
            revision=0,
        )
        stray = store.put(stray, None)
        yield
    finally:
        store.delete(stray)
        store.close()
        wait_until(lambda: not ward.a.status()["problems"], 30, "the agent believes that the lease is gone")


def another_vni(ward: Ward) -> AbstractContextManager[None]:
    return a_lease(ward, 7, 0)


@contextmanager
def another_port(ward: Ward) -> Iterator[None]:
    """The peer's tunnel is there, made by somebody who has not heard of the network's port."""
    b = ward.b
    b.stop_processes()
    b.ovctl("teardown")
    b.ip("link", "add", "ovnet.1", "type", "vxlan", "id", "1", "dstport", "4789", "dev", "eth0")
    b.ip("link", "set", "ovnet.1", "up")
    try:
        yield
    finally:
        b.ip("link", "del", "ovnet.1")
        agent(b)
        meet(ward.a, b)


@contextmanager
def a_learned_mtu(ward: Ward) -> Iterator[None]:
    """As ICMP's "fragmentation needed" leaves it in the kernel."""
    route = (ward.b.address, "dev", "eth0")
    ward.a.ip("route", "add", *route, "mtu", "1400")
    try:
        yield
    finally:
        ward.a.ip("route", "del", *route)
        meet(ward.a, ward.b)


@contextmanager
def with_agents_flags(ward: Ward, *flags: str) -> Iterator[None]:
    """`a` runs with these, and then as before."""
    ward.a.stop_processes()
    try:
        agent(ward.a, *flags)
        meet(ward.a, ward.b)
        yield
    finally:
        ward.a.stop_processes()
        agent(ward.a)
        meet(ward.a, ward.b)


@contextmanager
def few_endpoints(ward: Ward) -> Iterator[None]:
    with with_agents_flags(ward, "--endpoints-max", "1"):
        for container in (ward.on_a, ward.beside):
            container.run("ping", "-c", "1", str(ward.a.gateway.ip))
        wait_until(lambda: ward.a.json("map", "dump", "endpoints"), 30, "one of them is known")
        yield


@contextmanager
def few_peers(ward: Ward) -> Iterator[None]:
    with with_agents_flags(ward, "--peers-max", "1"), a_lease(ward, 1, 0):
        wait_until(lambda: ward.a.status()["peers_kernel_path"], 30, "a peer has found no room")
        yield


MANY = """
import itertools, socket, sys, time
def sockets():
    for number in range(int(sys.argv[2])):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.connect((sys.argv[1], 7))
        yield made
for each in itertools.cycle(list(sockets())):
    each.send(b"x")
    time.sleep(0.001)
"""
"""Datagrams of so many flows in turn, for ever."""
ECHOES = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 7))
while True:
    sock.sendto(*sock.recvfrom(99))
"""
FEW = 64
"""The smallest map of flows."""


@contextmanager
def few_flows(ward: Ward) -> Iterator[None]:
    """More conversations than there is room for, none of which ends."""
    with with_agents_flags(ward, "--flows-max", str(FEW)), ExitStack() as talk:
        talk.callback(ward.on_b.serve("python3", "-c", ECHOES, port=7, protocol="udp").stop)
        talk.callback(ward.on_a.popen("python3", "-c", MANY, ward.on_b.address, str(FEW)).stop)
        wait_until(lambda: len(ward.a.json("map", "dump", "flows")) >= FEW / 2, 30, "flows fill their map")
        yield


@contextmanager
def another_way_back(ward: Ward) -> Iterator[None]:
    """A second cable: `a` sends by it, `b` answers by the first, where `a` is strict.

    Without eBPF at the uplink, which takes VXLAN off it before rp_filter.
    """
    a, b = ward.a, ward.b
    with with_agents_flags(ward, "--bypass", "off"):
        a.ip("link", "add", "second", "type", "veth", "peer", "name", "second", "netns", b.netns)
        for host in (a, b):
            host.ip("link", "set", "second", "up")
        a.ip("route", "add", b.address, "dev", "second", "src", a.address)
        a.sysctl("net.ipv4.conf.eth0.rp_filter", "1")
        try:
            yield
        finally:
            a.sysctl("net.ipv4.conf.eth0.rp_filter", "0")
            a.ip("link", "del", "second")


@contextmanager
def peers_agent_dead(ward: Ward) -> Iterator[None]:
    """For so long that it should have renewed its lease, which has not ended yet."""
    ward.b.stop_processes()
    store = open_store(ward.a.lab.store_url)
    try:
        own = next(lease for lease in store.snapshot(fresh=True).leases if str(lease.host) == ward.b.address)
        now = time.time()
        store.put(replace(own, renew_at=now - 900, expires_at=now + 600), own)
        yield
    finally:
        store.close()
        agent(ward.b)
        meet(ward.a, ward.b)


@contextmanager
def elsewhere(_: Ward) -> Iterator[None]:
    """What is wrong is said by flags or files: the doctor sees another bpffs than the agent, or a manager."""
    yield


FAULTS: tuple[Fault, ...] = (
    Fault(
        "UDP of the port is stopped on its way in", no_way_in, "answers nothing, its host", "open UDP 8472"
    ),
    Fault(
        "UDP of the port is stopped on its way out", no_way_out, "answers nothing, its host", "open UDP 8472"
    ),
    Fault(
        "UDP of the port is stopped both ways", no_way_at_all, "answers nothing, its host", "open UDP 8472"
    ),
    Fault(
        "the path's MTU is smaller than the uplink's, no ICMP tells of it",
        a_smaller_path,
        "answers packets up to 1350 bytes, not 1450",
        "--mtu 1400",
    ),
    Fault(
        "the path's MTU is smaller, and it fragments",
        fragmented,
        "answers whole echoes up to 1400 bytes, not 1500",
        "--mtu 1400",
    ),
    Fault(
        "a device breaks checksums that it should finish",
        unfinished,
        "none whose checksums a device finishes",
        "ethtool -K eth0 tx off",
    ),
    Fault(
        "the next hop's MAC is not known",
        peer_down,
        "no ARP",
        "ping 192.168.77.12",
        traced="next hop 192.168.77.12 does not answer ARP",
    ),
    Fault(
        "a more specific route steals a subnet",
        stolen,
        "is routed to eth0, not to ovnet.1",
        "ip route get",
        traced="not to ovnet.1: another route is more specific, or comes first in the rules",
    ),
    Fault(
        "a port's MTU is larger than the overlay's",
        a_large_port,
        "MTU 1500, the overlay carries 1450",
        "with MTU 1450",
    ),
    Fault(
        "a container's MTU is larger than the overlay's",
        a_large_container,
        "MTU 1500, the overlay carries 1450",
        "inside: ip link set dev eth0 mtu 1450",
    ),
    Fault(
        "somebody's chain refuses what it has no rule for",
        a_policy_that_drops,
        "ip somebody theirs",
        "nft insert rule ip somebody theirs ip saddr 172.17.0.0/16 accept",
        traced="ip somebody theirs",
    ),
    Fault(
        "somebody's rule drops what is forwarded",
        a_rule_that_drops,
        'iifname "ovnet0" counter drop',
        "nft delete rule",
    ),
    Fault(
        "a container has no route",
        no_route_inside,
        "has no route to 172.17.0.0/16",
        "ip route add default via",
    ),
    Fault("a container has a wrong gateway", a_wrong_gateway, "not by 172.17.", "ip route replace default"),
    Fault(
        "a container has an address that is none of its node's",
        a_foreign_address,
        "has 10.9.9.9/24",
        "start it anew with an address of 172.17.",
    ),
    Fault("another tunnel has the UDP port", another_tunnel, "flannel.9 (VNI 9)", "ip link del flannel.9"),
    Fault("IPsec policies", ipsec, "IPsec policies", "ip xfrm policy"),
    Fault("a peer with another VNI", another_vni, "its VNI is 7", "restart the agent there"),
    Fault(
        "a peer's tunnel has another port", another_port, "nothing listens on UDP 8472 of its host", "(Port)"
    ),
    Fault(
        "the path's MTU is smaller, and ICMP tells of it",
        a_learned_mtu,
        "answers packets up to 1350 bytes, not 1450",
        "--mtu 1400",
    ),
    Fault("map endpoints is full", few_endpoints, "map endpoints is full: 1 of 1", "--endpoints-max 2"),
    Fault(
        "map peers is full",
        few_peers,
        "map peers is full: 1 of 1",
        "--peers-max 2",
        flags=("--peers-max", "1", "--peer", "b"),
    ),
    Fault(
        "flows in use push each other out of their map",
        few_flows,
        "map flows thrashes",
        "--flows-max 128",
    ),
    Fault(
        "rp_filter is strict, and the way back another",
        another_way_back,
        "its packets come in by eth0, and the route back is another",
        "net.ipv4.conf.eth0.rp_filter=2",
    ),
    Fault(
        "the agent's bpffs is private to its container",
        elsewhere,
        "/sys/fs/bpf/ovnet-elsewhere",
        "--volume /sys/fs/bpf:/sys/fs/bpf",
        flags=("--bpffs", "/sys/fs/bpf/ovnet-elsewhere"),
    ),
    Fault(
        "the agent of a peer is dead",
        peers_agent_dead,
        "has not renewed its lease, which ends in",
        "systemctl status ovnet; ovctl doctor",
    ),
    Fault(
        "systemd-networkd manages a device of ours",
        elsewhere,
        "systemd-networkd manages ovnet.1",
        "Unmanaged=yes",
        files=lambda ward: {
            f"/run/systemd/netif/links/{ward.a.ifindex('ovnet.1')}": "ADMIN_STATE=configured"
        },
    ),
    Fault(
        "NetworkManager manages a device of ours",
        elsewhere,
        "NetworkManager manages ovnet.1",
        "unmanaged-devices=interface-name:ovnet.1",
        files=lambda ward: {
            f"/run/NetworkManager/devices/{ward.a.ifindex('ovnet.1')}": "connection-uuid=u1",
            "/etc/NetworkManager/system-connections/one.nmconnection": "uuid=u1",
        },
    ),
    Fault(
        "the table of conntrack is full",
        elsewhere,
        "its table is full: ",
        "sysctl -w net.netfilter.nf_conntrack_max=2",
        files=lambda _: {
            "/proc/sys/net/netfilter/nf_conntrack_max": "1",
            "/proc/sys/net/netfilter/nf_conntrack_count": "1",
        },
    ),
)


# --- While no agent runs, which would mend them --------------------------------


def peers_vtep(ward: Ward) -> tuple[str, str]:
    """(address, MAC) of `b`'s tunnel."""
    (peer,) = ward.a.json("map", "dump", "peers")
    return peer["subnet"].split("/")[0], peer["vtep_mac"]


@contextmanager
def another_fdb_entry(ward: Ward) -> Iterator[None]:
    _, mac = peers_vtep(ward)
    entry = ("bridge", "fdb", "replace", mac, "dev", "ovnet.1", "dst")
    ward.a.run(*entry, "192.0.2.9", "self", "permanent")
    try:
        yield
    finally:
        ward.a.run(*entry, ward.b.address, "self", "permanent")


@contextmanager
def another_neighbour(ward: Ward) -> Iterator[None]:
    address, mac = peers_vtep(ward)
    entry = ("neigh", "replace", address, "dev", "ovnet.1", "nud", "permanent", "lladdr")
    ward.a.ip(*entry, "02:00:00:00:00:99")
    try:
        yield
    finally:
        ward.a.ip(*entry, mac)


@contextmanager
def no_route(ward: Ward) -> Iterator[None]:
    (route,) = ward.a.ip("route", "show", "proto", "147").splitlines()
    words = [*route.split(), "proto", "147"]
    ward.a.ip("route", "del", *words)
    try:
        yield
    finally:
        ward.a.ip("route", "add", *words)


@contextmanager
def not_forwarding(ward: Ward) -> Iterator[None]:
    ward.a.sysctl("net.ipv4.ip_forward", "0")
    try:
        yield
    finally:
        ward.a.sysctl("net.ipv4.ip_forward", "1")


@contextmanager
def without_xdp(ward: Ward) -> Iterator[None]:
    """Of an agent that had it, which ran last."""
    try:
        agent(ward.a, "--hook", "xdp")
        ward.a.stop_processes()
        ward.a.ip("link", "set", "dev", "eth0", "xdpdrv", "off")
        yield
    finally:
        agent(ward.a)
        meet(ward.a, ward.b)
        ward.a.stop_processes()


@contextmanager
def subnet_of_another(ward: Ward) -> Iterator[None]:
    store = open_store(ward.a.lab.store_url)
    try:
        own = next(lease for lease in store.snapshot(fresh=True).leases if str(lease.host) == ward.a.address)
        taken = store.put(replace(own, host=IPv4Address("192.168.77.99"), node="thief"), own)
        yield
        store.put(replace(own, revision=0), taken)
    finally:
        store.close()


@contextmanager
def clock_set_back(ward: Ward) -> Iterator[None]:
    """By half an hour, since our lease was renewed; which is to say that it ends so much later."""
    store = open_store(ward.a.lab.store_url)
    try:
        own = next(lease for lease in store.snapshot(fresh=True).leases if str(lease.host) == ward.a.address)
        assert own.expires_at is not None
        later = store.put(replace(own, expires_at=own.expires_at + 1800), own)
        yield
        store.put(own, later)
    finally:
        store.close()


@contextmanager
def lease_ended(ward: Ward) -> Iterator[None]:
    """Our own, a second ago: the store does not show it any more."""
    store = open_store(ward.a.lab.store_url)
    try:
        own = next(lease for lease in store.snapshot(fresh=True).leases if str(lease.host) == ward.a.address)
        store.put(replace(own, expires_at=time.time() - 1), own)
        yield
        store.put(replace(own, revision=0), None)
    finally:
        store.close()


WITHOUT_AGENT: tuple[Fault, ...] = (
    Fault(
        "an FDB entry of ours is replaced",
        another_fdb_entry,
        "fdb: ",
        "systemctl start ovnet; who changed it?",
    ),
    Fault(
        "a neighbour of ours is replaced",
        another_neighbour,
        "neighbours: ",
        "systemctl start ovnet; who changed it?",
    ),
    Fault(
        "a route of ours is gone",
        no_route,
        "routes: ",
        "systemctl start ovnet; who changed it?",
        traced="the kernel has no route to 172.17.",
    ),
    Fault(
        "XDP is taken off the uplink", without_xdp, "none of ours at xdp of eth0", "systemctl restart ovnet"
    ),
    Fault("ip_forward is off", not_forwarding, "net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1"),
    Fault(
        "another host holds our lease",
        subnet_of_another,
        "is held by 192.168.77.99 (thief)",
        "ovctl lease release 172.17.",
    ),
    Fault("our lease has ended", lease_ended, "the store has no lease of", "ovctl lease list"),
    Fault("the clock was set back", clock_set_back, "our lease ends in 88", "have the clock set by NTP"),
)
"""Beside the agent that is dead, each of these is named alone."""
