"""A node's kernel: what every backend shares, and the backend that the network asks for.

A Node belongs to one thread. Each `reconcile_*` reads a part of the kernel's state, plans,
and applies the difference; doing it twice does nothing the second time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final

from ctl.backend.hostgw import HostGwBackend
from ctl.backend.protocol import Backend
from ctl.backend.site import Site
from ctl.backend.told import told
from ctl.backend.udp.backend import UdpBackend
from ctl.backend.vxlan.backend import VxlanBackend
from ctl.core.abi import Event
from ctl.core.base_chains import Chain, base_chains
from ctl.core.errors import AgentError, ConfigError, Failures
from ctl.core.family import IPV4, lacks_ipv6
from ctl.core.findings import Concern, Findings
from ctl.core.host import (
    EVERYTHING,
    Change,
    Devices,
    Identity,
    IPv6Identity,
    Removed,
    Surroundings,
    Uplink,
)
from ctl.core.losing import Way
from ctl.core.model import (
    FOUND_OUT,
    MIN_IPV6_MTU,
    MIN_MTU,
    Addresses,
    Bypass,
    IPv4Address,
    IPv6Address,
    Lease,
    MacAddress,
    Network,
    Subnets,
)
from ctl.core.ports import Closing, Holding
from ctl.core.wire import env_of
from ctl.kernel import firewall, forward, sysctl
from ctl.kernel.bpf.maps import RING_BYTES, Maps
from ctl.kernel.bpf.ring import Ring
from ctl.kernel.command import run
from ctl.kernel.netlink.monitor import Monitor
from ctl.kernel.netlink.session import Netlink
from ctl.node import around
from ctl.node.bridge import ContainerBridge
from ctl.node.dual_stack import DualStack, networks
from ctl.node.env import EnvFile
from ctl.node.standing import Standing, known_as
from ctl.node.takeover import Takeover
from ctl.process import statedir
from ctl.settings.config import Settings

log = logging.getLogger(__name__)

BACKENDS: Final[Mapping[str, type[VxlanBackend] | type[HostGwBackend] | type[UdpBackend]]] = {
    "vxlan": VxlanBackend,
    "host-gw": HostGwBackend,
    "udp": UdpBackend,
}


class Node:
    """The host as a member of the overlay. Asks the kernel nothing before `find_uplink`."""

    def __init__(self, settings: Settings, netlink: Netlink) -> None:
        self.findings: Final = Findings()
        self._settings: Final = settings
        self._netlink: Final = netlink
        self._standing: Final = Standing(settings, netlink, self.findings)
        self._takeover: Final = Takeover(settings, netlink)
        self._firewall = firewall.Firewall(IPV4.version)
        self._bridge = ContainerBridge(settings, netlink, self.findings)
        self._env = EnvFile(settings)
        self._dual = DualStack(settings, netlink, self._bridge)
        self._network: Network | None = None
        self._leases: Sequence[Lease] = ()
        """All that there are, as we were told last."""
        self.told: tuple[Site, Sequence[Lease]] | None = None
        """Where we stood when the peers were looked at last, and the leases then. Any thread may read it."""
        self._backend: Backend | None = None
        """How packets get to other nodes; None, like the network: `preflight` has not been told yet."""
        self._tell: Callable[[Devices], None] = lambda _: None
        """Tells the monitor which devices are ours."""
        self._rings: dict[Maps[Any], Ring[Event]] = {}
        """Where the programs leave samples of what they drop, by the maps that it is one of."""

    @property
    def maps(self) -> Maps[IPv4Address] | None:
        """The open maps of IPv4, if the backend has any."""
        return self._backend.maps if self._backend else None

    @property
    def ipv6_maps(self) -> Maps[IPv6Address] | None:
        """The same of IPv6."""
        return self._backend.ipv6_maps if self._backend else None

    @property
    def _uplink(self) -> Uplink:
        return self._standing.uplink

    @property
    def _working(self) -> tuple[Network, Backend]:
        assert self._network is not None and self._backend is not None, "preflight() comes first"
        return self._network, self._backend

    # --- Start -----------------------------------------------------------------

    def find_uplink(self, addresses: Addresses = FOUND_OUT) -> None:
        """Look which interface is the uplink, and which address is ours. AgentError if there is none.

        `addresses`: those that are ours in any case.
        """
        self._standing.find(addresses)
        self._dual.stand_at(addresses.ipv6)

    def surroundings(self, network: Network) -> Surroundings:
        """What else is on this host, beside the uplink's networks; after `find_uplink`. KernelError."""
        return around.surroundings(self._netlink, network, self._uplink, self._settings.bridge)

    def preflight(self, network: Network) -> tuple[Identity, Subnets | None]:
        """Choose the backend; refuse everything that can be before anything is changed."""
        if network.backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise ConfigError(f"the network's backend is {network.backend}: this agent runs {known}")
        if why := lacks_ipv6(network):
            raise ConfigError(why)
        backend: Backend = BACKENDS[network.backend](self._settings, self._netlink, self.findings)
        self._inner_mtu(network, backend)
        self._bridge.check(self._uplink.link)
        if network.backend == "vxlan":
            self._netlink.check_port(network.port)
        sysctl.check(sysctl.FORWARDING)
        tunnel = backend.tunnel(network, self._uplink)
        masquerade, bridge = self._settings.ip_masq, self._settings.bridge
        firewall.check(network.network, tunnel=tunnel, masquerade=masquerade, bridge=bridge)
        self._dual.preflight(network, tunnel)
        backend.preflight(network, self._uplink)
        self._takeover.look(network, self._uplink)
        self._dual.await_address(network, self._uplink)
        self.findings.surroundings = self.surroundings(network)
        self._network, self._backend = network, backend
        return self._identity(), self.previous()

    def previous(self) -> Subnets | None:
        """The subnets of an earlier life: flanneld's if its datapath is here, or from subnet.env.

        While fenced, what is kept of that file.
        """
        kept, taken = self._env.subnets(), self._takeover
        if kept is None:
            return Subnets(taken.subnet, taken.ipv6_subnet) if taken.subnet else None
        return Subnets(taken.subnet or kept.ipv4, taken.ipv6_subnet or kept.ipv6)

    def _identity(self) -> Identity:
        """What the node publishes of itself. A VTEP MAC taken over from flanneld is kept."""
        network, _ = self._working
        host, host6 = self._uplink.address, self._dual.address
        ipv6 = IPv6Identity(host6, *self._vtep(host6)) if host6 else None
        return Identity(host, *self._vtep(host), self._settings.node_name, network.backend, ipv6)

    def _vtep(self, host: IPv4Address | IPv6Address) -> tuple[MacAddress | None, int | None]:
        """(MAC, VNI) of the VTEP at this address."""
        network, backend = self._working
        mac, vni = backend.identity(host, network)
        return mac and (self._takeover.macs.get(host.version) or mac), vni

    def _inner_mtu(self, network: Network, backend: Backend) -> int:
        """Largest inner IP packet, bytes. AgentError if it is too small to be of use."""
        uplink = self._uplink.link
        underlay, overhead = min(network.mtu or uplink.mtu, uplink.mtu), backend.overhead(network)
        mtu, least = underlay - overhead, MIN_MTU if network.ipv6 is None else MIN_IPV6_MTU
        if mtu < least:
            raise AgentError(
                f"MTU {underlay} of uplink {uplink.name} leaves {mtu} bytes for containers, "
                f"at least {least} are needed: raise it to {least + overhead} or more"
            )
        return mtu

    # --- Parts -----------------------------------------------------------------

    def follow_network(self, network: Network) -> None:
        """What changes by it is seen with the next look at each part."""
        _, backend = self._working
        self._inner_mtu(network, backend)
        self._network = network

    def follow_uplink(self) -> Identity | None:
        """Look at the uplink again. Named as a problem if it is not the one that was asked for."""
        before = self._uplink, self._dual.address
        self._standing.follow()
        network, _ = self._working
        told(self.findings, Concern.UPLINK_IPV6, self._dual.follow_address(network, self._uplink))
        near = around.underlay(self._netlink, network, self._uplink)
        self.findings.surroundings = replace(self.findings.surroundings, underlay=near)
        uplink, address = before
        same = known_as(uplink) == known_as(self._uplink) and address == self._dual.address
        return None if same else self._identity()

    def _site(self, holding: Holding) -> Site:
        """Where the node stands, for the backend."""
        network, _ = self._working
        sysctls = self._settings.state_dir / statedir.SYSCTLS
        lease, mtu = holding.lease, self.findings.mtu
        links = self.findings.surroundings.links
        return Site(network, lease, self._uplink, mtu, self._bridge.ifindex, sysctls, holding.fenced, links)

    def reconcile_devices(self, holding: Holding) -> frozenset[Change]:
        """Kernel settings, tunnel device, bridge, and what others are told of them."""
        before = self._devices()
        try:
            self._reconcile_devices(holding)
        finally:
            self._tell(self._devices())
        # A new one comes without what hung on the old.
        return EVERYTHING if self._devices() != before else frozenset()

    def _reconcile_devices(self, holding: Holding) -> None:
        network, backend = self._working
        # First: someone may have put the uplink into it, and the MTU would go by the bridge's.
        self._bridge.check(self._uplink.link)
        self.findings.mtu = self._inner_mtu(network, backend)
        self._takeover.take_devices(network, self._uplink)
        links = self._netlink.links()
        saved = self._settings.state_dir / statedir.SYSCTLS
        sysctl.ensure(sysctl.FORWARDING, saved)
        backend.ensure_device(self._site(holding), links)
        lowers = network.backend == "vxlan"
        self._bridge.ensure(holding.lease, self.findings.mtu, links, lowers=lowers)
        # What is wrong with IPv6 keeps nothing of IPv4 back.
        failures = Failures()
        failures.take(self._dual.ensure, self._site(holding), backend, links)
        self._bridge.ensure_forwarding(self._devices())
        env = env_of(network, holding.lease, self.findings.mtu, ip_masq=self._settings.ip_masq)
        self._env.write(env, fenced=holding.fenced)
        self._standing.keep()
        failures.raise_any()

    def reconcile_peers(self, holding: Holding, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        """The backend's ways to the nodes that have these leases."""
        _, backend = self._working
        self._leases = leases
        site = self._site(holding)
        self.told = site, leases
        try:
            backend.reconcile_peers(site, leases, changes)
        finally:
            self._tell(self._devices())

    def reconcile_firewall(self, holding: Holding) -> None:
        """Masquerade, forwarding, and what may come in as VXLAN."""
        network, backend = self._working
        if self._firewall.ensure(
            network.network,
            holding.lease.subnet,
            tunnel=backend.tunnel(network, self._uplink),
            masquerade=self._settings.ip_masq,
            bridge=self._settings.bridge,
        ):
            self.findings.count("firewall", 1)
        site = self._site(holding)
        if self._dual.ensure_rules(site, backend):
            self.findings.count("firewall", 1)
        told(self.findings, Concern.LEGACY, *self._firewall.unseen, *self._dual.unseen)
        chains = tuple(base_chains(run("nft", "list", "chains")))
        bridge = self._settings.bridge
        refusing = (line for each in networks(site) for line in forward.refusing(chains, each, bridge))
        told(self.findings, Concern.FORWARD, *refusing)
        self.findings.problems[Concern.FLANNELD] = self._takeover.remove_rules(network)
        self._look_for_clashes(network, backend, holding.lease, chains)

    def _look_for_clashes(
        self, network: Network, backend: Backend, own: Lease, chains: Sequence[Chain]
    ) -> None:
        """Name what of this host takes packets from the overlay, or changes them."""
        self.findings.surroundings = self.surroundings(network)
        devices, links = self._devices(), self._netlink.links()
        plainly = devices.hops if network.direct_routing or not devices.tunnel else ()
        ways = sorted(links[each].name for each in {*devices.tunnels, *plainly} if each in links)
        near, bridge = self.findings.surroundings, self._settings.bridge
        found = around.look_for_clashes(network, own, self._leases, near, chains, ways, bridge)
        told(self.findings, Concern.CLASH, *found.problems)
        told(self.findings, Concern.OVERLAP, *found.warnings)

    def load_programs(self, holding: Holding) -> frozenset[Change]:
        """The backend's maps and programs, if it has any."""
        _, backend = self._working
        return backend.load(self._site(holding))

    def reconcile_ports(self, holding: Holding, changes: frozenset[Change]) -> None:
        """Containers, and the backend's programs on interfaces."""
        _, backend = self._working
        backend.reconcile_ports(self._site(holding), changes)

    # --- Events ----------------------------------------------------------------

    def watch(self, changed: Callable[[frozenset[Change]], None]) -> Closing:
        """Hear of the kernel by netlink. From now on the monitor is told which devices are ours."""
        has_ipv6 = self._network is not None and self._network.ipv6 is not None
        monitor = Monitor(changed, self._wants, ipv6=has_ipv6)
        self._tell = monitor.watch
        self._tell(self._devices())
        return monitor

    def _wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        return self._backend is not None and self._backend.wants(entry)

    def _devices(self) -> Devices:
        devices = self._backend.devices() if self._backend else Devices()
        return replace(devices, bridge=self._bridge.ifindex, uplink=self._uplink.link.ifindex)

    def lost(self) -> frozenset[Change]:
        """What the backend has lost without an event."""
        _, backend = self._working
        return backend.lost()

    def look_in(self) -> float:
        """Seconds until `lost` has to be asked again, if the backend cannot wait for the next turn."""
        _, backend = self._working
        return backend.look_in()

    def losing(self) -> Mapping[Way, str]:
        """Where the backend loses all packets, a line each."""
        network, backend = self._working
        return backend.losing(network, self._uplink)

    def drops(self) -> Iterable[Event]:
        """What the programs have dropped; nothing while there are none."""
        if self._settings.bypass is Bypass.OFF:
            return ()
        opened = [each for each in (self.maps, self.ipv6_maps) if each is not None]
        for gone in self._rings.keys() - opened:
            self._rings.pop(gone).close()
        for each in opened:
            if each not in self._rings:
                self._rings[each] = Ring(each.fd("events"), RING_BYTES, Event.unpack)
        return chain.from_iterable(self._rings[each].drain() for each in opened)
