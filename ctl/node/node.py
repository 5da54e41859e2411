"""A node's kernel: what every backend shares, and the backend that the network asks for.

A Node belongs to one thread. Each `reconcile_*` reads a part of the kernel's state, plans,
and applies the difference; doing it twice does nothing the second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Interface
from typing import Final

from ctl.backend.hostgw import HostGwBackend
from ctl.backend.protocol import Backend
from ctl.backend.site import Site
from ctl.backend.udp.backend import UdpBackend
from ctl.backend.vxlan.backend import VxlanBackend
from ctl.core.errors import AgentError, ConfigError
from ctl.core.findings import Findings
from ctl.core.host import BridgeDevice, Identity, Removed, Uplink
from ctl.core.model import MIN_MTU, IPv4Address, Lease, MacAddress, Network
from ctl.core.wire import SubnetEnv, format_subnet_env
from ctl.kernel import firewall, sysctl
from ctl.kernel.bpf import maps
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.uplink import Wish, find_uplink, follow_uplink
from ctl.node.takeover import Takeover
from ctl.process import statedir
from ctl.settings.config import Settings

BACKENDS: Final[Mapping[str, type[VxlanBackend] | type[HostGwBackend] | type[UdpBackend]]] = {
    "vxlan": VxlanBackend,
    "host-gw": HostGwBackend,
    "udp": UdpBackend,
}


class Node:
    """The host as a member of the overlay."""

    def __init__(self, settings: Settings, netlink: Netlink) -> None:
        self.settings: Final = settings
        self.netlink: Final = netlink
        self.findings: Final = Findings()
        self._wish = Wish(settings.iface, settings.iface_regex, settings.iface_can_reach, settings.public_ip)
        self.uplink: Uplink = find_uplink(netlink, self._wish)
        self.takeover: Final = Takeover(settings, netlink)
        self._firewall = firewall.Firewall()
        self.bridge = 0
        """ifindex of the bridge; 0: not made yet."""
        self.mtu = 0
        self.backend: Backend | None = None
        """None until `preflight` has seen the network."""
        self.fenced = False
        """Whether another host holds our subnet: then nothing may be added to it."""

    @property
    def maps(self) -> maps.Maps | None:
        """The open maps, if the backend has any."""
        return self.backend.maps if self.backend else None

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        return self.backend is not None and self.backend.wants(entry)

    def preflight(self, network: Network) -> Backend:
        """Choose the backend; refuse everything that can be before anything is changed."""
        if network.backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise ConfigError(f"the network's backend is {network.backend}: this agent runs {known}")
        backend: Backend = BACKENDS[network.backend](self.settings, self.netlink, self.findings)
        self._inner_mtu(network, backend)
        for link in self.netlink.links().values():
            if link.name == self.settings.bridge and link.kind != "bridge":
                kind = link.kind or "hardware"
                raise ConfigError(f"{link.name} is no bridge but {kind}: choose another --bridge")
        backend.preflight(self.uplink)
        self.takeover.look(network, self.uplink)
        self.backend = backend
        return backend

    def identity(self, network: Network) -> Identity:
        """What the node publishes of itself. A VTEP MAC taken over from flanneld is kept."""
        assert self.backend is not None, "preflight() comes first"
        host = self.uplink.address
        mac, vni = self.backend.identity(host, network)
        mac = mac and (self.takeover.mac or mac)
        return Identity(host, mac, vni, self.settings.node_name, network.backend)

    def _inner_mtu(self, network: Network, backend: Backend) -> int:
        """Largest inner IP packet, bytes. AgentError if it is too small to be of use."""
        underlay = min(network.mtu or self.uplink.link.mtu, self.uplink.link.mtu)
        mtu = underlay - backend.overhead
        if mtu < MIN_MTU:
            raise AgentError(
                f"MTU {underlay} of uplink {self.uplink.link.name} leaves {mtu} bytes for containers, "
                f"at least {MIN_MTU} are needed: raise it to {MIN_MTU + backend.overhead} or more"
            )
        return mtu

    def refresh_uplink(self) -> bool:
        """Look at the uplink again; True if our address, the interface or its name changed."""
        before = self.uplink
        self.uplink, wrong = follow_uplink(self.netlink, self._wish, before)
        self.findings.problems["uplink"] = (wrong,) if wrong else ()
        return _identity(before) != _identity(self.uplink)

    def site(self, network: Network, lease: Lease) -> Site:
        """Where the node stands, for the backend."""
        sysctls = self.settings.state_dir / statedir.SYSCTLS
        return Site(network, lease, self.uplink, self.mtu, self.bridge, sysctls, self.fenced)

    def reconcile_devices(self, network: Network, lease: Lease) -> None:
        """Kernel settings, tunnel device, bridge, and what others are told of them."""
        assert self.backend is not None, "preflight() comes first"
        self.mtu = self._inner_mtu(network, self.backend)
        self.takeover.take_devices(network, self.uplink)
        links = self.netlink.links()
        sysctl.ensure(sysctl.FORWARDING, self.settings.state_dir / statedir.SYSCTLS)
        self.backend.ensure_device(self.site(network, lease), links)
        self.bridge, wrong = self.netlink.ensure_bridge(self._bridge_device(lease), links)
        self.findings.problems["bridge"] = (wrong,) if wrong else ()
        self._write_subnet_env(network, lease)

    def _bridge_device(self, lease: Lease) -> BridgeDevice:
        return BridgeDevice(
            name=self.settings.bridge,
            # Docker's rule for MACs, so that a restart keeps the gateway's.
            mac=MacAddress(b"\x02\x42" + lease.gateway.packed),
            mtu=self.mtu,
            address=IPv4Interface((lease.gateway, lease.subnet.prefixlen)),
        )

    def _write_subnet_env(self, network: Network, lease: Lease) -> None:
        """What container runtimes wait for, by ctl.core.wire.

        A fenced node takes it away, and keeps the text for itself: the CNI plugin adds no
        container without the file, and an agent that starts later asks for the same subnet.
        """
        env = SubnetEnv(network.network, lease.subnet, self.mtu, self.settings.ip_masq)
        places = [self.settings.subnet_file, self.settings.state_dir / statedir.FENCED]
        wanted, other = reversed(places) if self.fenced else places
        text = format_subnet_env(env)
        try:
            if not wanted.exists() or wanted.read_text() != text:
                statedir.write_atomically(wanted, text)
            other.unlink(missing_ok=True)
        except OSError as error:
            raise AgentError(f"cannot write {wanted}: {error.strerror}") from error

    def reconcile_firewall(self, network: Network, lease: Lease) -> None:
        """Masquerade, forwarding, and what may come in as VXLAN."""
        assert self.backend is not None, "preflight() comes first"
        tunnel = self.backend.tunnel(self.site(network, lease))
        if self._firewall.ensure(
            network.network,
            lease.subnet,
            masquerade=self.settings.ip_masq,
            tunnel=tunnel,
            bridge=self.settings.bridge,
        ):
            self.findings.count("firewall", 1)
        self.findings.problems["flanneld"] = self.takeover.remove_rules(network)


def _identity(uplink: Uplink) -> tuple[IPv4Address, int, str]:
    """What peers send to, what programs hang on, what rules name."""
    return uplink.address, uplink.link.ifindex, uplink.link.name
