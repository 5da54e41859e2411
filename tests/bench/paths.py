"""The ways between two containers that are compared, each with hosts of its own.

All are there at once, so that rounds can rotate between them; idle ones cost nothing.
Every path has the same MTU inside and the same offloads on its underlay. Each is there for either
family: of IPv6 the nodes are those of a dual-stack network, and packets are IPv6 inside and outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from ipaddress import ip_address
from itertools import product
from typing import Final

from ctl.backend.udp.underlay import OVERHEAD as UDP_OVERHEAD
from tests import dual
from tests.host import Agent, Container, Host
from tests.kube import nftables
from tests.kube.services import Endpoint, Proxy, Service
from tests.lab import Lab, wait_until
from tests.namespace import Namespace

INNER_MTU: Final = {4: 1450, 6: 1430}
"""By version of IP, as everything here."""
DIRECT: Final = {4: "10.77.0.{}", 6: "fd77:1::{}"}
ROUTED: Final = {4: "10.78.{}.{}", 6: "fd78:0:0:{}::{}"}
"""Addresses by number of host and end."""
PREFIX: Final = {4: 24, 6: 64}
ROUTED_NETWORK: Final = {4: "10.78.0.0/16", 6: "fd78::/48"}


@dataclass(frozen=True, slots=True)
class Ports:
    """Of the server's programs."""

    iperf: int = 5201
    sockperf: int = 11111
    crr: int = 11112


SERVICE: Final = {4: "10.96.0.1", 6: "fd96::1"}
SERVED: Final = Ports(5211, 11121, 11122)
"""What is behind the service. Else the server, which sees the same client in both, would be told of a
new connection by the ports of one that it has in TIME_WAIT, with timestamps of the other address: it
answers none such, and the client asks again a second later. conntrack would change the port instead."""


@dataclass(frozen=True, slots=True)
class Path:
    """Two ends that can talk; `hosts` are the nodes between them, if any."""

    name: str
    client: Namespace
    server: Namespace
    server_address: str
    hosts: tuple[Host, ...] = ()
    agents: tuple[Agent, ...] = ()
    network: str = ""
    """Of the containers, where there are hosts."""
    ports: Ports = Ports()

    @property
    def version(self) -> int:
        """Of the IP that it is measured by."""
        return ip_address(self.server_address).version

    @property
    def anywhere(self) -> str:
        """What a server listens at."""
        return "0.0.0.0" if self.version == 4 else "::"

    def like_a_wire(self) -> None:
        """Make the underlay like a wire: of `direct`, the one veth there is."""
        for place in self.hosts or (self.client, self.server):
            place.run("ethtool", "-K", "eth0", "tx", "off", "gro", "on")  # as Host.like_a_wire


Build = Callable[[Lab, int], Path]
"""Makes a path for a version of IP."""


def direct(lab: Lab, version: int) -> Path:
    """Containers joined by one veth: the limit of what the machine can do."""
    client, server = lab.namespace("direct-c"), lab.namespace("direct-s")
    mtu = str(INNER_MTU[version])
    client.ip("link", "add", "eth0", "mtu", mtu, "type", "veth",
              "peer", "name", "eth0", "mtu", mtu, "netns", server.netns)  # fmt: skip
    for end, number in ((client, 1), (server, 2)):
        _add(end, DIRECT[version].format(number), "eth0")
    return Path("direct", client, server, DIRECT[version].format(2))


def _add(place: Namespace, address: str, device: str) -> None:
    """Give a device an address, and set it up."""
    version = ip_address(address).version
    at_once: tuple[str, ...] = ()
    if version == 6:
        place.sysctl(f"net.ipv6.conf.{device}.disable_ipv6", "0")
        at_once = ("nodad",)
    place.ip("addr", "add", f"{address}/{PREFIX[version]}", "dev", device, *at_once)
    place.ip("link", "set", device, "up")


def routed(lab: Lab, version: int) -> Path:
    """Host to host by plain routes, containers on bridges: no overlay."""
    hosts = lab.pair("ra", "rb")
    ends = []
    for host, own, other, via in ((hosts[0], 1, 2, hosts[1]), (hosts[1], 2, 1, hosts[0])):
        _route(host, version)
        host.ip("link", "add", "br0", "mtu", str(INNER_MTU[version]), "type", "bridge")
        _add(host, ROUTED[version].format(own, 1), "br0")
        subnet = ROUTED[version].format(other, 0)
        host.ip("route", "add", f"{subnet}/{PREFIX[version]}", "via", underlay_address(via, version))
        ends.append(_plug(lab, host, own, version))
    return Path(
        "routed", ends[0], ends[1], ROUTED[version].format(2, 2), hosts, network=ROUTED_NETWORK[version]
    )


def _route(host: Host, version: int) -> None:
    """Have a host forward, by an uplink that has an address of that family."""
    if version == 6:
        dual.with_ipv6(host)
    host.sysctl("net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding", "1")


def underlay_address(host: Host, version: int) -> str:
    return host.address if version == 4 else dual.underlay(host)


def _plug(lab: Lab, host: Host, number: int, version: int) -> Namespace:
    end, mtu = lab.namespace(f"routed-{number}"), str(INNER_MTU[version])
    host.ip("link", "add", "veth0", "mtu", mtu, "type", "veth",
            "peer", "name", "eth0", "mtu", mtu, "netns", end.netns)  # fmt: skip
    host.ip("link", "set", "veth0", "master", "br0", "up")
    _add(end, ROUTED[version].format(number, 2), "eth0")
    end.ip("route", "add", "default", "via", ROUTED[version].format(number, 1))
    return end


def _overlay(name: str, stem: str, bypass: str, hook: str = "tc") -> Build:
    def build(lab: Lab, version: int) -> Path:
        hosts = lab.pair(f"{stem}a", f"{stem}b")
        return _with_agents(name, stem, hosts, ("--bypass", bypass, "--hook", hook), version)

    return build


def _with_agents(
    name: str, stem: str, hosts: tuple[Host, Host], flags: tuple[str, ...], version: int = 4
) -> Path:
    for host in hosts if version == 6 else ():
        dual.with_ipv6(host)
    agents = tuple(host.agent(*flags, wait=False) for host in hosts)
    for agent in agents:
        agent.wait_ready()
    client, _ = _end(hosts[0], f"{stem}c", version)
    server, server_address = _end(hosts[1], f"{stem}s", version)

    def reached() -> bool:
        return client.run("ping", "-c1", "-W1", server_address, check=False).returncode == 0

    wait_until(reached, 20, f"the containers of {name} reach each other")
    key = "FLANNEL_NETWORK" if version == 4 else "FLANNEL_IPV6_NETWORK"
    return Path(name, client, server, server_address, hosts, agents, hosts[0].subnet_env()[key])


def _end(host: Host, name: str, version: int) -> tuple[Container, str]:
    """A container on a node, and its address of that family."""
    if version == 4:
        made = host.container(name)
        return made, made.address
    guest = dual.guest(host, dual.leases(host)[host.name], name)
    return guest.place, guest.address


def udp(lab: Lab, version: int) -> Path:
    """The backend in user space; its network is another, so its store is too. It has no IPv6."""
    hosts = lab.pair("ua", "ub", mtu=INNER_MTU[version] + UDP_OVERHEAD)
    shared, lab.store_url = lab.store_url, f"sqlite://{lab.dir}/udp.sqlite"
    try:
        lab.init_network("172.18.0.0/16", 24, "--backend", "udp")
        return _with_agents("udp", "u", hosts, ())
    finally:
        lab.store_url = shared


PATHS: dict[str, Build] = {
    "direct": direct,
    "routed": routed,
    "kernel-vxlan": _overlay("kernel-vxlan", "k", "off"),
    "ebpf": _overlay("ebpf", "e", "learned"),
    "ebpf-always": _overlay("ebpf-always", "w", "always"),
    "ebpf-xdp": _overlay("ebpf-xdp", "x", "learned", "xdp"),
    "udp": udp,
}
"""Builders by name, in the order of the table."""
IPV4_ONLY: Final = ("udp",)
WITH_CALLERS: Final = ("routed", "kernel-vxlan", "ebpf", "ebpf-xdp")
"""Those that are also measured as `service` and `from_host` have them."""


@contextmanager
def service(path: Path) -> Iterator[Path]:
    """The path for a client that calls a service, which the rules of a kube-proxy on its host translate.

    They are there for as long as the block: without, nothing of `routed` passes conntrack.
    """
    host, address = path.hosts[0], SERVICE[path.version]
    served = [
        Service(f"port-{port}", address, port, (Endpoint(path.server_address, port, "server"),), protocol)
        for port, protocol in product(astuple(SERVED), ("tcp", "udp"))
    ]
    proxy = Proxy("client", (underlay_address(host, path.version),), path.network)
    host.nft(nftables.rules(proxy, served))
    try:
        yield replace(path, server_address=address, ports=SERVED)
    finally:
        host.nft(nftables.removal(proxy))


@contextmanager
def from_host(path: Path) -> Iterator[Path]:
    """The path for a client on the host itself, as kubelet's probes and pods of the host's network are."""
    yield replace(path, client=path.hosts[0])
