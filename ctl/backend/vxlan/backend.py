"""The vxlan backend: the kernel's vxlan device, and the eBPF shortcut over it."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface
from typing import Final

from ctl.backend.plain import remove_tunnels
from ctl.backend.site import Site, apply, apply_fitting
from ctl.backend.vxlan.peering import Peering
from ctl.backend.vxlan.uplink_hook import UplinkHook
from ctl.core.abi import LAYOUT, NO_MAC, NODE_F_PEERS_INCOMPLETE, NODE_F_XDP, EndpointEntry, NodeEntry
from ctl.core.errors import Failures, ForeignProgram
from ctl.core.findings import Findings
from ctl.core.host import Change, Devices, FilterKey, Link, Removed, Uplink, VxlanDevice
from ctl.core.model import VXLAN_OVERHEAD, Bypass, HookMode, IPv4Address, Lease, MacAddress, Network
from ctl.core.plan import diff, plan_endpoints, plan_filters, plan_questions
from ctl.core.report import KernelPort
from ctl.kernel import firewall, sysctl
from ctl.kernel.bpf import bpffs, loader, maps, probe
from ctl.kernel.hooks.filters import Filters
from ctl.kernel.hooks.xdp import PROGRAM as XDP_PROGRAM
from ctl.kernel.netlink import headroom
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings

log = logging.getLogger(__name__)


def vtep_mac(host: IPv4Address, vni: int) -> MacAddress:
    """The VTEP MAC of a node: a function of what is unique, so that it survives reboots."""
    return MacAddress.local(hashlib.sha256(f"ovnet vtep {host} {vni}".encode()).digest()[:6])


def _published_mac(site: Site) -> MacAddress:
    """What the lease says is what the device has: peers send to nothing else."""
    return site.lease.vtep_mac or vtep_mac(site.uplink.address, site.network.vni)


class VxlanBackend:
    """VXLAN between hosts. One thread's, like its Netlink."""

    overhead: Final = VXLAN_OVERHEAD

    def __init__(self, settings: Settings, netlink: Netlink, findings: Findings) -> None:
        self.maps: maps.Maps | None = None
        self.programs: loader.Programs | None = None
        self.device = 0
        """ifindex of the vxlan device; 0: not made yet."""
        self._uplink = 0
        """ifindex of the interface that has from_wire."""
        self._settings, self._netlink, self._findings = settings, netlink, findings
        self._filters = Filters(netlink.rtnl, settings.bpffs)
        self._hook = UplinkHook(settings, netlink, findings)
        self._peering = Peering(netlink.rtnl, findings, settings.peers_max)
        self._ahead: loader.Compiler | None = None
        """At work since `preflight`, if there is something to compile."""
        self._seed = 0
        """flow_seed of maps that are gone: packets on their way carry its signatures. 0: none."""
        self._first_look = True
        """Programs of an earlier life may hang on any interface."""

    @staticmethod
    def identity(host: IPv4Address, network: Network) -> tuple[MacAddress | None, int | None]:
        """(VTEP MAC, VNI) to publish."""
        return vtep_mac(host, network.vni), network.vni

    def preflight(self, uplink: Uplink) -> None:
        """KernelError if the kernel is too old, or carries a program in our place on the uplink."""
        if self._settings.bypass is Bypass.OFF:
            return
        probe.check()
        link = uplink.link
        self._hook.preflight(link)
        if why := self._filters.foreign(link.ifindex, ingress=True):
            raise ForeignProgram(f"{link.name}: {why}: remove it, or run with --bypass=off")
        if maps.newer_layout(self._settings.bpffs) is None:
            self._ahead = loader.compile_ahead(self._settings.bpffs, self._settings.state_dir)

    def lost(self) -> frozenset[Change]:
        """Programs of uplink and tunnel that someone took off: of tcx there are no events.

        One of a port costs no more than its container's shortcut, until the next resync.
        """
        return frozenset({Change.FILTERS} if self._filters.detached((self._uplink, self.device)) else ())

    @staticmethod
    def tunnel(site: Site) -> firewall.Tunnel:
        """VXLAN is taken from the uplink and for our own address only."""
        network, uplink = site.network, site.uplink
        name = device_name(network)
        return firewall.Tunnel(network.port, network.vni, uplink.link.name, uplink.address, name)

    def ensure_device(self, site: Site, links: dict[int, Link]) -> None:
        """The vxlan device, and no other tunnel of ours."""
        wanted = self._wanted(site)
        keep = {wanted.name, headroom.DEVICE}
        remove_tunnels(self._netlink, links.values(), self._settings.state_dir, keep)
        self.device = self._netlink.ensure_vxlan(wanted, links)

    def _wanted(self, site: Site) -> VxlanDevice:
        network, uplink = site.network, site.uplink
        return VxlanDevice(
            name=device_name(network),
            vni=network.vni,
            port=network.port,
            local=uplink.address,
            uplink=uplink.link.ifindex,
            mac=_published_mac(site),
            mtu=site.mtu,
            address=IPv4Interface((site.lease.vtep_ip, 32)),
        )

    def reconcile_peers(self, site: Site, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        """FDB, neighbours and routes to the other nodes, and the maps of the shortcut."""
        failures = Failures()
        failures.take(self._peering.reconcile_routes, site, self.device, leases, changes)
        if self.maps is not None:
            failures.take(self._fill, self.maps, site)
        failures.raise_any()

    def _fill(self, opened: maps.Maps, site: Site) -> None:
        """The shortcut to the other nodes. What does not fit stays on the kernel path."""
        self._write_node(opened, site)  # first of all: who does not fit must not be refused
        self._peering.reconcile_maps(opened, bypassing=self.programs is not None)

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        return self._peering.wants(entry)

    def devices(self) -> Devices:
        """The vxlan device, and the interfaces of the underlay through which peers are reached now."""
        return Devices(self.device, hops=self._peering.hop_interfaces())

    def load(self, site: Site) -> frozenset[Change]:
        """Maps and programs: adopted, or made. The kernel path is in place already."""
        before = self.maps
        self._sysctls(site)
        if self.maps is not None or not self._left_to_newer(site):
            self._open_maps(site)
            self._load_programs()
        return frozenset({Change.MAPS} if self.maps is not before else ())

    def _open_maps(self, site: Site) -> None:
        settings = self._settings
        if self.maps is None:
            bpffs.ensure(str(settings.bpffs))
            wanted = maps.specs(settings.peers_max, settings.endpoints_max, settings.flows_max)
            if why := maps.mismatch(settings.bpffs, wanted):
                # Running programs keep the old maps until new ones take their place.
                log.warning("pinned maps do not fit (%s): making new ones", why)
                self._seed = maps.pinned_seed(settings.bpffs) or self._seed
                maps.unpin_all(settings.bpffs)
                self._hook.keep()
            self.maps = maps.create_or_adopt(settings.bpffs, wanted)
        elif self.maps.repin(settings.bpffs):
            log.warning("pins of maps under %s were gone: pinned again", settings.bpffs)
        self._write_node(self.maps, site)

    def _load_programs(self) -> None:
        assert self.maps is not None
        settings = self._settings
        if self.programs and (self.programs.repin(settings.bpffs) | self._filters.pin()):
            log.warning("pins of programs under %s were gone: pinned again", settings.bpffs)
        if self.programs is None and settings.bypass is not Bypass.OFF:
            ahead, self._ahead = self._ahead, None
            self.programs = loader.load(self.maps, settings.bpffs, settings.state_dir, ahead)
            self._filters.programs = self.programs.by_name
            self._findings.program = self.programs.digest
            log.info("datapath %s loaded", self.programs.digest)

    def _left_to_newer(self, site: Site) -> bool:
        """Whether a newer version's pins are here: then eBPF carries nothing, and somebody has to decide.

        What it has pinned stays for its return. Its programs are taken off the interfaces: nobody
        fills the maps that they go by. (How it attaches is known: filters, links and XDP of ours.)
        """
        settings = self._settings
        newer = None if settings.bypass is Bypass.OFF else maps.newer_layout(settings.bpffs)
        if newer is None:
            self._findings.problems["pins"] = ()
            return False
        text = (
            f"pins of a newer version under {settings.bpffs} (layout {newer}, this one has {LAYOUT}): "
            f"refused, the kernel path carries all; "
            f"run that version again, or remove {settings.bpffs}/v{newer}"
        )
        if self._findings.problems.get("pins") != (text,):
            log.warning("%s", text)
        self._findings.problems["pins"] = (text,)
        links = self._netlink.links()
        self._hook.reconcile(links, site.uplink.link.ifindex, None)
        apply("filters", self._filters, diff({}, self._filters.read_on(links)), self._findings)
        return True

    def _sysctls(self, site: Site) -> None:
        """Conntrack has to be lenient only while it does not see everything."""
        if self._settings.bypass is Bypass.LEARNED:
            sysctl.ensure(sysctl.CONNTRACK, site.sysctls)
        else:
            sysctl.restore(site.sysctls, sysctl.CONNTRACK)

    def _write_node(self, opened: maps.Maps, site: Site) -> None:
        before = opened.node()
        network = site.network
        entry = NodeEntry(
            host=site.uplink.address,
            network=network.network,
            subnet=site.lease.subnet,
            vni=network.vni,
            uplink_ifindex=site.uplink.link.ifindex,
            mtu=site.mtu,
            vtep_mac=_published_mac(site),
            port=network.port,
            source_ports=sysctl.source_ports(),
            bypass=self._settings.bypass,
            approval_ttl_ns=int(self._settings.approval_ttl * 1e9),
            flow_seed=before.flow_seed if before else self._seed or secrets.randbits(64) | 1,
            flags=(0 if self._peering.fits() else NODE_F_PEERS_INCOMPLETE)
            | (NODE_F_XDP if self._findings.hook is HookMode.XDP else 0),
            uplink_mac=site.uplink.link.mac or NO_MAC,
        )
        if entry != before:
            opened.write_node(entry)

    def reconcile_ports(self, site: Site, changes: frozenset[Change]) -> None:
        """Programs on every port of the bridge, and the containers behind them."""
        if Change.FILTERS in changes:
            self._filters.forget()
        if self.maps is None:
            return
        links = self._netlink.links()
        if site.bridge:
            headroom.ensure(self._netlink, site.bridge, site.mtu, links)
        self._filters.gone(links)
        ports = self._sort_ports(links, site.bridge)
        bridge = links.get(site.bridge)
        if bridge is not None:
            seen = self._netlink.neighbours(site.bridge)
            found = {} if site.fenced else plan_endpoints(seen, ports, bridge, site.lease.subnet)
            self._endpoints(self.maps, found)
            for address in plan_questions(seen, site.lease.subnet) if ports else ():
                self._netlink.ask(site.bridge, address)
        self._attach(site, ports, links)

    def _endpoints(self, opened: maps.Maps, found: dict[IPv4Address, EndpointEntry]) -> None:
        room = self._settings.endpoints_max
        left = apply_fitting("endpoints", opened.endpoint_table, found, room, self._findings)
        text = f"map endpoints is full: {left} containers by the kernel path only, raise --endpoints-max"
        self._findings.problems["endpoints"] = (text,) if left else ()

    def _attach(self, site: Site, ports: Mapping[int, Link], links: Mapping[int, Link]) -> None:
        if self.programs is None and self._settings.bypass is not Bypass.OFF:
            return  # they did not load: those of an earlier life stay
        ids = {name: p.id for name, p in self.programs.by_name.items()} if self.programs else {}
        wanted = plan_filters(ids, site.uplink.link.ifindex, self.device, ports)
        present = self._filters.read_on({*links} if self._first_look else {key.ifindex for key in wanted})
        self._uplink = site.uplink.link.ifindex
        place = FilterKey(self._uplink, True)
        if place not in wanted:
            self._hook.reconcile(links, place.ifindex, None)
        try:
            apply("filters", self._filters, diff(wanted, present), self._findings)
        finally:
            if place in wanted:
                delivers = self._filters.read().get(place) == wanted[place]
                self._attach_xdp(site, links, delivers)
        if self._first_look:
            loader.drop_others(self._settings.bpffs, self.programs.digest if self.programs else "")
            maps.unpin_older_layouts(self._settings.bpffs)
            self._first_look = False

    def _attach_xdp(self, site: Site, links: Mapping[int, Link], delivers: bool) -> None:
        """XDP in front of from_wire, if that is there to deliver."""
        assert self.programs is not None and self.maps is not None
        programs, uplink = self.programs, site.uplink.link.ifindex
        program = programs.by_name.get(XDP_PROGRAM) if delivers else None
        self._hook.reconcile(links, uplink, program, programs.xdp_refused if delivers else "")
        self._write_node(self.maps, site)

    def _sort_ports(self, links: Mapping[int, Link], bridge: int) -> dict[int, Link]:
        """The bridge's ports that can have our programs; the rest is noted in the findings."""
        ours, others = {}, []
        for link in links.values():
            if link.master != bridge or not bridge or link.name == headroom.DEVICE:
                continue
            if why := self._why_not(link):
                others.append(KernelPort(link.name, why))
            else:
                ours[link.ifindex] = link
        self._findings.ports = tuple(sorted(link.name for link in ours.values()))
        self._findings.kernel_ports = tuple(sorted(others, key=lambda port: port.name))
        return ours

    def _why_not(self, link: Link) -> str:
        if self._settings.bypass is Bypass.OFF:
            return "bypass is off"
        if link.kind != "veth":
            return f"a {link.kind or 'hardware'} interface: only veth ports can be bypassed"
        if not link.peer_elsewhere:
            return "its other end is in this network namespace"
        return self._filters.taken(link.ifindex)


def device_name(network: Network) -> str:
    """What the vxlan device is called."""
    return f"ovnet.{network.vni}"
