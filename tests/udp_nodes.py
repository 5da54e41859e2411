"""Two hosts whose udp forwarders are started directly, without an agent, and what is around them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from ctl.backend.udp.client import ForwarderProcess, TunnelRoutes
from ctl.backend.udp.underlay import OVERHEAD
from tests.host import Host
from tests.lab import Lab
from tests.namespace import Namespace
from tests.process import Process

NETWORK = IPv4Network("10.99.0.0/16")
PORT = 8285
MTU = 1500 - OVERHEAD

_STARTER = """
import json, sys, time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from ctl.backend.udp.client import TunnelRoutes, ForwarderProcess
peers = {IPv4Network(subnet): IPv4Address(host) for subnet, host in json.loads(sys.argv[5]).items()}
ForwarderProcess(Path(sys.argv[1]), IPv4Address(sys.argv[2]), int(sys.argv[3])).start(
    TunnelRoutes(IPv4Network(sys.argv[4]), peers))
print("started", flush=True)
time.sleep(3600)
"""


@dataclass
class UdpNode:
    """What the agent would do for a node of the udp backend, by `ip`."""

    host: Host
    subnet: IPv4Network
    state_dir: Path
    forwarder: ForwarderProcess
    container: Namespace
    address: str

    @property
    def tunnel_address(self) -> str:
        return str(self.subnet.network_address)

    def start(self, routes: TunnelRoutes) -> bool:
        """Start or adopt, and set the device up."""
        started = self.host.call(lambda: self.forwarder.start(routes))
        self.host.ip("addr", "replace", f"{self.tunnel_address}/32", "dev", self.forwarder.device)
        self.host.ip("link", "set", self.forwarder.device, "mtu", str(MTU), "up")
        self.host.ip("route", "replace", str(NETWORK), "dev", self.forwarder.device)
        return started

    def started_by_another(self, routes: TunnelRoutes) -> Process:
        """A process of its own that starts the forwarder, says `started` and stays."""
        peers = {str(subnet): str(host) for subnet, host in routes.peers.items()}
        return self.host.popen(sys.executable, "-c", _STARTER, str(self.state_dir), self.host.address,
                               str(PORT), str(routes.own), json.dumps(peers))  # fmt: skip

    def count(self, name: str) -> int:
        """One counter; the forwarder must run."""
        found = self.forwarder.stats()
        assert found is not None, "the forwarder runs"
        return found[name]


def udp_node(lab: Lab, host: Host, number: int) -> UdpNode:
    """A bridge with one container on a host; the forwarder is not started."""
    subnet = IPv4Network(f"10.99.{number}.0/24")
    host.sysctl("net.ipv4.ip_forward", "1")
    mtu = str(MTU)
    host.ip("link", "add", "br0", "mtu", mtu, "type", "bridge")
    host.ip("addr", "add", f"{subnet.network_address + 1}/24", "dev", "br0")
    host.ip("link", "set", "br0", "up")
    container = lab.namespace(f"{host.name}-c")
    host.ip("link", "add", "veth0", "mtu", mtu, "type", "veth",
            "peer", "name", "eth0", "mtu", mtu, "netns", container.netns)  # fmt: skip
    host.ip("link", "set", "veth0", "master", "br0", "up")
    address = subnet.network_address + 2
    container.ip("addr", "add", f"{address}/24", "dev", "eth0")
    container.ip("link", "set", "eth0", "up")
    container.ip("route", "add", "default", "via", str(subnet.network_address + 1))
    state_dir: Path = lab.dir / host.name
    forwarder = ForwarderProcess(state_dir, IPv4Address(host.address), PORT)
    lab.at_close(forwarder.stop)
    return UdpNode(host, subnet, state_dir, forwarder, container, str(address))


def peers_of(node: UdpNode, *others: UdpNode) -> TunnelRoutes:
    """The routes of a node that knows the others."""
    return TunnelRoutes(node.subnet, {other.subnet: IPv4Address(other.host.address) for other in others})
