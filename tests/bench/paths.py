"""The ways between two containers that are compared, each with hosts of its own.

All are there at once, so that rounds can rotate between them; idle ones cost nothing.
Every path has the same MTU inside and the same offloads on its underlay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ctl.backend.udp.underlay import OVERHEAD as UDP_OVERHEAD
from tests.host import Agent, Host
from tests.lab import Lab, wait_until
from tests.namespace import Namespace

INNER_MTU = 1450


@dataclass(frozen=True, slots=True)
class Path:
    """Two ends that can talk; `hosts` are the nodes between them, if any."""

    name: str
    client: Namespace
    server: Namespace
    server_address: str
    hosts: tuple[Host, ...] = ()
    agents: tuple[Agent, ...] = ()

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
    return Path("routed", ends[0], ends[1], "10.78.2.2", hosts)


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
    return Path(name, client, server, server.address, hosts, agents)


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
