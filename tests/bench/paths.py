"""The ways between two containers that are compared, each with hosts of its own.

All are there at once, so that rounds can rotate between them; idle ones cost nothing.
Every path has the same MTU inside and the same offloads on its underlay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import product
from typing import Final

from ctl.backend.udp.underlay import OVERHEAD as UDP_OVERHEAD
from tests.host import Agent, Host
from tests.kube import nftables
from tests.kube.services import Endpoint, Proxy, Service
from tests.lab import Lab, wait_until
from tests.namespace import Namespace

INNER_MTU = 1450


@dataclass(frozen=True, slots=True)
class Ports:
    """Of the server's programs."""

    iperf: int = 5201
    sockperf: int = 11111
    crr: int = 11112


SERVICE: Final = "10.96.0.1"
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

    def like_a_wire(self) -> None:
        """Make the underlay like a wire: of `direct`, the one veth there is."""
        for place in self.hosts or (self.client, self.server):
            place.run("ethtool", "-K", "eth0", "tx", "off", "gro", "on")  # as Host.like_a_wire


def direct(lab: Lab) -> Path:
    """Containers joined by one veth: the limit of what the machine can do."""
    client, server = lab.namespace("direct-c"), lab.namespace("direct-s")
    client.ip("link", "add", "eth0", "mtu", str(INNER_MTU), "type", "veth",
              "peer", "name", "eth0", "mtu", str(INNER_MTU), "netns", server.netns)  # fmt: skip
    for end, address in ((client, "10.77.0.1/24"), (server, "10.77.0.2/24")):
        end.ip("addr", "add", address, "dev", "eth0")
        end.ip("link", "set", "eth0", "up")
    return Path("direct", client, server, "10.77.0.2")


def routed(lab: Lab) -> Path:
    """Host to host by plain routes, containers on bridges: no overlay."""
    hosts = lab.pair("ra", "rb")
    ends = []
    for host, own, other, via in ((hosts[0], 1, 2, hosts[1]), (hosts[1], 2, 1, hosts[0])):
        host.sysctl("net.ipv4.ip_forward", "1")
        host.ip("link", "add", "br0", "mtu", str(INNER_MTU), "type", "bridge")
        host.ip("addr", "add", f"10.78.{own}.1/24", "dev", "br0")
        host.ip("link", "set", "br0", "up")
        host.ip("route", "add", f"10.78.{other}.0/24", "via", via.address)
        ends.append(_plug(lab, host, f"routed-{own}", f"10.78.{own}"))
    return Path("routed", ends[0], ends[1], "10.78.2.2", hosts, network="10.78.0.0/16")


def _plug(lab: Lab, host: Host, name: str, prefix: str) -> Namespace:
    end = lab.namespace(name)
    host.ip("link", "add", "veth0", "mtu", str(INNER_MTU), "type", "veth",
            "peer", "name", "eth0", "mtu", str(INNER_MTU), "netns", end.netns)  # fmt: skip
    host.ip("link", "set", "veth0", "master", "br0", "up")
    end.ip("addr", "add", f"{prefix}.2/24", "dev", "eth0")
    end.ip("link", "set", "eth0", "up")
    end.ip("route", "add", "default", "via", f"{prefix}.1")
    return end


def _overlay(name: str, stem: str, bypass: str, hook: str = "tc") -> Callable[[Lab], Path]:
    def build(lab: Lab) -> Path:
        hosts = lab.pair(f"{stem}a", f"{stem}b")
        return _with_agents(name, stem, hosts, ("--bypass", bypass, "--hook", hook))

    return build


def _with_agents(name: str, stem: str, hosts: tuple[Host, Host], flags: tuple[str, ...]) -> Path:
    agents = tuple(host.agent(*flags, wait=False) for host in hosts)
    for agent in agents:
        agent.wait_ready()
    client, server = hosts[0].container(f"{stem}c"), hosts[1].container(f"{stem}s")

    def reached() -> bool:
        return client.run("ping", "-c1", "-W1", server.address, check=False).returncode == 0

    wait_until(reached, 20, f"the containers of {name} reach each other")
    return Path(name, client, server, server.address, hosts, agents, hosts[0].subnet_env()["FLANNEL_NETWORK"])


def udp(lab: Lab) -> Path:
    """The backend in user space; its network is another, so its store is too."""
    hosts = lab.pair("ua", "ub", mtu=INNER_MTU + UDP_OVERHEAD)
    shared, lab.store_url = lab.store_url, f"sqlite://{lab.dir}/udp.sqlite"
    try:
        lab.init_network("172.18.0.0/16", 24, "--backend", "udp")
        return _with_agents("udp", "u", hosts, ())
    finally:
        lab.store_url = shared


PATHS: dict[str, Callable[[Lab], Path]] = {
    "direct": direct,
    "routed": routed,
    "kernel-vxlan": _overlay("kernel-vxlan", "k", "off"),
    "ebpf": _overlay("ebpf", "e", "learned"),
    "ebpf-always": _overlay("ebpf-always", "w", "always"),
    "ebpf-xdp": _overlay("ebpf-xdp", "x", "learned", "xdp"),
    "udp": udp,
}
"""Builders by name, in the order of the table."""
WITH_CALLERS: Final = ("routed", "kernel-vxlan", "ebpf", "ebpf-xdp")
"""Those that are also measured as `service` and `from_host` have them."""


@contextmanager
def service(path: Path) -> Iterator[Path]:
    """The path for a client that calls a service, which the rules of a kube-proxy on its host translate.

    They are there for as long as the block: without, nothing of `routed` passes conntrack.
    """
    host = path.hosts[0]
    served = [
        Service(f"port-{port}", SERVICE, port, (Endpoint(path.server_address, port, "server"),), protocol)
        for port, protocol in product(astuple(SERVED), ("tcp", "udp"))
    ]
    host.nft(nftables.rules(Proxy("client", (host.address,), path.network), served))
    try:
        yield replace(path, server_address=SERVICE, ports=SERVED)
    finally:
        host.nft(f"delete table {nftables.TABLE}\n")


@contextmanager
def from_host(path: Path) -> Iterator[Path]:
    """The path for a client on the host itself, as kubelet's probes and pods of the host's network are."""
    yield replace(path, client=path.hosts[0])
