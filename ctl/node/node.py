"""A node's kernel: what every backend shares, and the backend that the network asks for.

A Node belongs to one thread. Each `reconcile_*` reads a part of the kernel's state, plans,
and applies the difference; doing it twice does nothing the second time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Final

from ctl.backend.hostgw import HostGwBackend
from ctl.backend.protocol import Backend
from ctl.backend.site import Site
from ctl.backend.udp.backend import UdpBackend
from ctl.backend.vxlan.backend import VxlanBackend
from ctl.core import bridge as bridges
from ctl.core.abi import Event
from ctl.core.errors import AgentError, ConfigError, KernelError
from ctl.core.findings import Concern, Findings
from ctl.core.host import (
    EVERYTHING,
    OWNER,
    BridgeDevice,
    Change,
    Devices,
    Identity,
    Link,
    Removed,
    Surroundings,
    Uplink,
)
from ctl.core.losing import Way
from ctl.core.model import MIN_MTU, Bypass, IPv4Network, Lease, MacAddress, Network
from ctl.core.ports import Closing, Holding
from ctl.core.wire import SubnetEnv, format_subnet_env, parse_subnet_env
from ctl.kernel import firewall, forward, sysctl
from ctl.kernel.bpf import maps
from ctl.kernel.bpf.maps import RING_BYTES
from ctl.kernel.bpf.ring import Ring
from ctl.kernel.netlink.monitor import Monitor
from ctl.kernel.netlink.session import Netlink, by_name, names
from ctl.kernel.netlink.surroundings import look_at_underlay
from ctl.node import around, forwarding
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
        self._firewall = firewall.Firewall()
        self._bridge = 0
        """ifindex of the bridge; 0: not made yet."""
        self._network: Network | None = None
        self._leases: Sequence[Lease] = ()
        """All that there are, as we were told last."""
        self._backend: Backend | None = None
        """How packets get to other nodes; None, like the network: `preflight` has not been told yet."""
        self._tell: Callable[[Devices], None] = lambda _: None
        """Tells the monitor which devices are ours."""
        self._ring: Ring | None = None
        """Where the programs leave samples of what they drop; None: not opened yet."""

    @property
    def maps(self) -> maps.Maps | None:
        """The open maps, if the backend has any."""
        return self._backend.maps if self._backend else None

    @property
    def _uplink(self) -> Uplink:
        return self._standing.uplink

    @property
    def _working(self) -> tuple[Network, Backend]:
        assert self._network is not None and self._backend is not None, "preflight() comes first"
        return self._network, self._backend

    # --- Start -----------------------------------------------------------------

    def find_uplink(self) -> None:
        """Look which interface is the uplink, and which address is ours. AgentError if there is none."""
        self._standing.find()

    def surroundings(self) -> Surroundings:
        """What else is on this host, beside the uplink's networks; after `find_uplink`. KernelError."""
        return around.surroundings(self._netlink, self._uplink, self._settings.bridge)

    def preflight(self, network: Network) -> tuple[Identity, IPv4Network | None]:
        """Choose the backend; refuse everything that can be before anything is changed."""
        if network.backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise ConfigError(f"the network's backend is {network.backend}: this agent runs {known}")
        backend: Backend = BACKENDS[network.backend](self._settings, self._netlink, self.findings)
        self._inner_mtu(network, backend)
        self._check_bridge(self._netlink.links())
        if network.backend == "vxlan":
            self._netlink.check_port(network.port)
        sysctl.check(sysctl.FORWARDING)
        firewall.check(
            network.network,
            tunnel=backend.tunnel(network, self._uplink),
            masquerade=self._settings.ip_masq,
            bridge=self._settings.bridge,
        )
        backend.preflight(self._uplink)
        self._takeover.look(network, self._uplink)
        self.findings.surroundings = self.surroundings()
        self._network, self._backend = network, backend
        return self._identity(), self.previous()

    def _check_bridge(self, links: Mapping[int, Link]) -> None:
        """ConfigError if the interface of the bridge's name cannot be the containers'."""
        if why := bridges.why_not(self._settings.bridge, self._uplink.link, links):
            raise ConfigError(why)

    def previous(self) -> IPv4Network | None:
        """The subnet of an earlier life: flanneld's if its datapath is here, or from subnet.env.

        While fenced, what is kept of that file.
        """
        if self._takeover.subnet:
            return self._takeover.subnet
        for path in self._env_files():
            with suppress(OSError, ValueError):
                return parse_subnet_env(path.read_text()).subnet
        return None

    def _identity(self) -> Identity:
        """What the node publishes of itself. A VTEP MAC taken over from flanneld is kept."""
        network, backend = self._working
        host = self._uplink.address
        mac, vni = backend.identity(host, network)
        mac = mac and (self._takeover.mac or mac)
        return Identity(host, mac, vni, self._settings.node_name, network.backend)

    def _inner_mtu(self, network: Network, backend: Backend) -> int:
        """Largest inner IP packet, bytes. AgentError if it is too small to be of use."""
        uplink = self._uplink.link
        underlay = min(network.mtu or uplink.mtu, uplink.mtu)
        mtu = underlay - backend.overhead
        if mtu < MIN_MTU:
            raise AgentError(
                f"MTU {underlay} of uplink {uplink.name} leaves {mtu} bytes for containers, "
                f"at least {MIN_MTU} are needed: raise it to {MIN_MTU + backend.overhead} or more"
            )
        return mtu

    # --- Parts -----------------------------------------------------------------

    def follow_uplink(self) -> Identity | None:
        """Look at the uplink again. Named as a problem if it is not the one that was asked for."""
        before = self._uplink
        self._standing.follow()
        near = look_at_underlay(self._netlink, self._uplink.link)
        self.findings.surroundings = replace(self.findings.surroundings, underlay=near)
        return None if known_as(before) == known_as(self._uplink) else self._identity()

    def _site(self, holding: Holding) -> Site:
        """Where the node stands, for the backend."""
        network, _ = self._working
        sysctls = self._settings.state_dir / statedir.SYSCTLS
        lease, mtu = holding.lease, self.findings.mtu
        links = self.findings.surroundings.links
        return Site(network, lease, self._uplink, mtu, self._bridge, sysctls, holding.fenced, links)

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
        self._check_bridge(self._netlink.links())
        self.findings.mtu = self._inner_mtu(network, backend)
        self._takeover.take_devices(network, self._uplink)
        links = self._netlink.links()
        sysctl.ensure(sysctl.FORWARDING, self._settings.state_dir / statedir.SYSCTLS)
        backend.ensure_device(self._site(holding), links)
        wanted, found = self._bridge_device(holding.lease), by_name(links, self._settings.bridge)
        self._bridge, wrong = self._netlink.ensure_bridge(wanted, links)
        self._note_lowered(links)
        if found:
            self._guard_mac(found, wanted.mac)
        silent = self._ensure_forwarding(adopted=found is not None and found.alias != OWNER)
        self.findings.problems[Concern.BRIDGE] = (wrong,) if wrong else silent
        self._write_subnet_env(network, holding)
        self._standing.keep()

    def _guard_mac(self, bridge: Link, chosen: MacAddress) -> None:
        """Whoever gives the bridge another MAC takes the containers' gateway away.

        Ours gets back the one that was chosen for it, and containers are told, for some may know
        the other one by now. Of a bridge that is not ours they are told by the kernel, at once.
        """
        notify = sysctl.arp_notify(bridge.name)
        if bridge.alias != OWNER:
            with suppress(KernelError):  # where /proc/sys is read-only they find out by themselves
                sysctl.ensure({notify: "1"}, self._settings.state_dir / statedir.SYSCTLS)
        elif bridge.mac != chosen:
            with sysctl.meanwhile(notify, "1"):
                self._netlink.put_back_mac(bridge, chosen)

    def _ensure_forwarding(self, *, adopted: bool) -> tuple[str, ...]:
        """Of our devices, and look at others'; a line if the bridge is `adopted` and does not forward."""
        devices, bridge = self._devices(), self._settings.bridge
        ours = [*names({devices.tunnel}), *([] if adopted else [bridge])]
        forwarding.ensure(ours, self._settings.state_dir / statedir.SYSCTLS)
        self._name(Concern.FORWARDING, forwarding.lacking(names({devices.uplink, *devices.hops})))
        return forwarding.lacking([bridge] if adopted else [])

    def _note_lowered(self, links: Mapping[int, Link]) -> None:
        """Say what else is on an adopted bridge, and has to do with the MTU that we give it."""
        network, _ = self._working
        adopted = links.get(self._bridge) if network.backend == "vxlan" else None
        told = bridges.lowered(adopted, self.findings.mtu, links) if adopted else ""
        self._name(Concern.BRIDGE_MTU, (told,) if told else ())

    def _name(self, concern: Concern, lines: tuple[str, ...]) -> None:
        """Have `status` say these lines, and the log those that are new."""
        before = self.findings.problems.get(concern, ())
        for line in lines:
            if line not in before:
                log.warning("%s", line)
        self.findings.problems[concern] = lines

    def _bridge_device(self, lease: Lease) -> BridgeDevice:
        return BridgeDevice(
            name=self._settings.bridge,
            # Docker's rule for MACs, so that a restart keeps the gateway's.
            mac=MacAddress(b"\x02\x42" + lease.gateway.packed),
            mtu=self.findings.mtu,
            address=IPv4Interface((lease.gateway, lease.subnet.prefixlen)),
        )

    def _env_files(self) -> tuple[Path, Path]:
        """Where subnet.env is, and where its text is while the node is fenced."""
        return self._settings.subnet_file, self._settings.state_dir / statedir.FENCED

    def _write_subnet_env(self, network: Network, holding: Holding) -> None:
        """What container runtimes wait for, by ctl.core.wire.

        A fenced node takes it away, and keeps the text for itself: the CNI plugin adds no
        container without the file, and an agent that starts later asks for the same subnet.
        """
        env = SubnetEnv(network.network, holding.lease.subnet, self.findings.mtu, self._settings.ip_masq)
        places = self._env_files()
        wanted, other = reversed(places) if holding.fenced else places
        text = format_subnet_env(env)
        try:
            if not wanted.exists() or wanted.read_text() != text:
                statedir.write_atomically(wanted, text)
            other.unlink(missing_ok=True)
        except OSError as error:
            raise AgentError(f"cannot write {wanted}: {error.strerror}") from error

    def reconcile_peers(self, holding: Holding, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        """The backend's ways to the nodes that have these leases."""
        _, backend = self._working
        self._leases = leases
        try:
            backend.reconcile_peers(self._site(holding), leases, changes)
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
        self._name(Concern.LEGACY, self._firewall.unseen)
        self._name(Concern.FORWARD, forward.refusing(network.network, self._settings.bridge))
        self.findings.problems[Concern.FLANNELD] = self._takeover.remove_rules(network)
        self._look_for_clashes(network, backend, holding.lease.subnet)

    def _look_for_clashes(self, network: Network, backend: Backend, own: IPv4Network) -> None:
        """Name what of this host takes packets from the overlay, or changes them."""
        self.findings.surroundings = self.surroundings()
        devices, links = self._devices(), self._netlink.links()
        plainly = devices.hops if network.direct_routing or not devices.tunnel else ()
        ways = sorted(links[each].name for each in {devices.tunnel, *plainly} if each in links)
        bridge = self._settings.bridge
        found = around.look_for_clashes(network, own, self._leases, self.findings.surroundings, ways, bridge)
        self._name(Concern.CLASH, found.problems)
        self._name(Concern.OVERLAP, found.warnings)

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
        monitor = Monitor(changed, self._wants)
        self._tell = monitor.watch
        self._tell(self._devices())
        return monitor

    def _wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        return self._backend is not None and self._backend.wants(entry)

    def _devices(self) -> Devices:
        devices = self._backend.devices() if self._backend else Devices()
        return replace(devices, bridge=self._bridge, uplink=self._uplink.link.ifindex)

    def lost(self) -> frozenset[Change]:
        """What the backend has lost without an event."""
        _, backend = self._working
        return backend.lost()

    def losing(self) -> Mapping[Way, str]:
        """Where the backend loses all packets, a line each."""
        network, backend = self._working
        return backend.losing(network, self._uplink)

    def drops(self) -> Iterable[Event]:
        """What the programs have dropped; nothing while there are none."""
        if self.maps is None or self._settings.bypass is Bypass.OFF:
            return ()
        if self._ring is None:
            self._ring = Ring(self.maps.fd("events"), RING_BYTES)
        return self._ring.drain()
