"""The vxlan backend: the kernel's vxlan device, and the eBPF shortcut over it.

Here are the maps and programs, and the order of things; the peers are in `peering`, this node's
containers in `ports`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ctl.backend.programless import remove_tunnels
from ctl.backend.settle import apply_counted
from ctl.backend.site import Site
from ctl.backend.told import told, told_of_ipv6
from ctl.backend.vxlan import losses, silent
from ctl.backend.vxlan.device import device_name, vtep_mac, wanted_device
from ctl.backend.vxlan.kernel_path import KernelPath
from ctl.backend.vxlan.lookout import Lookout
from ctl.backend.vxlan.own_entry import OwnEntry
from ctl.backend.vxlan.peering import Peering, Shortcut
from ctl.backend.vxlan.ports import Ports
from ctl.backend.vxlan.uplink_hook import UplinkHook
from ctl.core.abi import LAYOUT
from ctl.core.errors import AgentError, Failures, ForeignProgram, KernelError
from ctl.core.family import IPV4, IPV6
from ctl.core.findings import Concern, Findings
from ctl.core.host import Change, Devices, Link, Removed, Uplink
from ctl.core.losing import Way
from ctl.core.model import (
    VXLAN_IPV6_OVERHEAD,
    VXLAN_OVERHEAD,
    Bypass,
    HookMode,
    IPv4Address,
    IPv6Address,
    Lease,
    MacAddress,
    Network,
)
from ctl.core.plan import diff, unreadable
from ctl.kernel import firewall, sysctl
from ctl.kernel.bpf import bpffs, loader, maps, probe
from ctl.kernel.bpf.child import Bcc
from ctl.kernel.hooks.filters import Filters
from ctl.kernel.netlink import headroom
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings

log = logging.getLogger(__name__)


class VxlanBackend:
    """VXLAN between hosts. One thread's, like its Netlink."""

    def __init__(self, settings: Settings, netlink: Netlink, findings: Findings) -> None:
        self.maps: maps.Maps[IPv4Address] | None = None
        """The maps that are open; None: there are none yet, or those of a newer version are there."""
        self.programs: loader.Programs | None = None
        """The programs that are loaded; None: none are."""
        self.device = 0
        """ifindex of the vxlan device; 0: not made yet."""
        self._settings, self._netlink, self._findings = settings, netlink, findings
        self._filters = Filters(netlink.rtnl, settings.bpffs)
        self._hook = UplinkHook(settings, netlink, findings)
        self._own = OwnEntry(settings)
        self.ipv6_device = 0
        """The same of IPv6, which has a device of its own; 0 where there is no IPv6, too."""
        self._ipv6 = KernelPath(netlink.rtnl, IPV6)
        self._peering = Peering(netlink.rtnl, findings, settings.peers_max)
        self._ports = Ports(settings, netlink, self._filters, self._hook, findings)
        self._losses = losses.Losses(netlink, settings.resync_interval)
        self._silent = silent.SilentPeers(self._peering, settings.resync_interval)
        self._lookout = Lookout(netlink.rtnl, self._filters, findings)
        self._ahead: Bcc | None = None
        """The compiler's child, at work since `preflight`; None: nothing to compile, or it was used."""

        self._blind = False
        """Whether it does without maps, as this host has no place for them."""

    @staticmethod
    def overhead(network: Network) -> int:
        """Of the family that needs more: containers have one MTU for both."""
        return VXLAN_OVERHEAD if network.ipv6 is None else VXLAN_IPV6_OVERHEAD

    @staticmethod
    def identity(host: IPv4Address | IPv6Address, network: Network) -> tuple[MacAddress | None, int | None]:
        """(VTEP MAC, VNI) to publish."""
        return vtep_mac(host, network.vni), network.vni

    def preflight(self, uplink: Uplink) -> None:
        """KernelError if the kernel is too old or forbids it, or a program is in our place on the uplink."""
        if self._settings.bypass is Bypass.OFF:
            self._blind = self._is_blind()
            return
        probe.check()
        bpffs.check(str(self._settings.bpffs))
        if self._settings.bypass is Bypass.LEARNED:
            sysctl.check(sysctl.CONNTRACK)
        link = uplink.link
        _refuse_unreadable(link)
        self._hook.preflight(link)
        if why := self._filters.foreign(link.ifindex, ingress=True):
            raise ForeignProgram(f"{link.name}: {why}: remove it, or run with --bypass=off")
        if maps.newer_layout(self._settings.bpffs) is None:
            self._ahead = loader.compile_ahead(self._settings.bpffs)

    def _is_blind(self) -> bool:
        """Whether there can be no maps here. Without eBPF they are only looked into: it is told, no more."""
        try:
            if why := probe.forbidden():
                raise KernelError(why)
            bpffs.check(str(self._settings.bpffs))
        except KernelError as error:
            log.warning("no maps, so that ovctl map and metrics have nothing of packets to show: %s", error)
            return True
        return False

    def lost(self) -> frozenset[Change]:
        """Programs of uplink and vxlan device that someone took off; what goes wrong, or is right again."""
        off = self._ports.detached(self.device)
        if off:
            self._lookout.forget()
        found = self._lookout.look(self.device, self._ports.uplink, self.maps)
        return found | {Change.FILTERS} if off else found

    def look_in(self) -> float:
        """Sooner than usual after programs of others have come."""
        return self._lookout.look_in()

    def losing(self, network: Network, uplink: Uplink) -> Mapping[Way, str]:
        """Where packets that programs leave to the kernel path are lost; none are counted without."""
        if self.maps is None or self.programs is None or not self.device:
            return {}
        lost = self._losses.look(self.device, self.maps)
        self._silent.look(self.maps)
        self._findings.peers_silent = len(self._silent.silent)
        self._findings.problems[Concern.SILENT] = silent.lines(self._silent.silent, network.port)
        return {way: losses.line(way, packets, network, uplink) for way, packets in lost.items()}

    def tunnel(self, network: Network, uplink: Uplink) -> firewall.Tunnel:
        """VXLAN is taken of peers, from the uplink and for our own address only."""
        return firewall.Tunnel(
            network.port,
            network.vni,
            uplink.link.name,
            uplink.address,
            device_name(network),
            self._peering.senders(),
        )

    def ipv6_tunnel(self, site: Site) -> firewall.Tunnel | None:
        """As for IPv4, where there is IPv6."""
        if not site.has_ipv6:
            return None
        network = site.network
        return firewall.Tunnel(
            network.port,
            network.vni,
            site.uplink.link.name,
            IPV6.source(site.uplink, site.lease),
            device_name(network, IPV6.version),
            self._ipv6.senders(),
        )

    def ensure_device(self, site: Site, links: dict[int, Link]) -> None:
        """The vxlan device, and no other tunnel of ours but that of IPv6, if there is any."""
        wanted, keep = wanted_device(site, IPV4), {headroom.DEVICE}
        if site.has_ipv6:
            keep.add(device_name(site.network, IPV6.version))
        elif self.ipv6_device:
            self.ipv6_device, self._ipv6 = 0, KernelPath(self._netlink.rtnl, IPV6)
        remove_tunnels(self._netlink, links.values(), self._settings.state_dir, keep | {wanted.name})
        self.device = self._netlink.ensure_vxlan(wanted, links)

    def ensure_ipv6_device(self, site: Site, links: dict[int, Link]) -> None:
        """The vxlan device of IPv6."""
        self.ipv6_device = self._netlink.ensure_vxlan(wanted_device(site, IPV6), links)

    def reconcile_peers(self, site: Site, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        """The maps of the shortcut, FDB, neighbours and routes to the other nodes."""
        opened, shortcut = self.maps, None
        if opened is not None:
            shortcut = Shortcut(opened, self.programs is not None, lambda: self._announce(opened, site))
        failures = Failures()
        failures.take(self._peering.reconcile, site, self.device, leases, changes, shortcut)
        if site.has_ipv6:
            failures.take(self._ipv6.reconcile, site, self.ipv6_device, leases, changes, self._findings)
        self._findings.peers_ipv6 = len(self._ipv6.roster.usable) if site.has_ipv6 else None
        told_of_ipv6(self._findings, site, leases, self._ipv6.problems)
        failures.raise_any()

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        return self._peering.wants(entry) or self._ipv6.wants(entry)

    def devices(self) -> Devices:
        """The vxlan devices, and the interfaces of the underlay through which peers are reached now."""
        hops = self._peering.hop_interfaces() | self._ipv6.hop_interfaces()
        return Devices(self.device, hops=hops, ipv6_tunnel=self.ipv6_device)

    def reconcile_ports(self, site: Site, changes: frozenset[Change]) -> None:
        """Programs on every port of the bridge, and the containers behind them."""
        if Change.FILTERS in changes:
            self._filters.forget()
        if self.maps is None:
            return
        failures = Failures()
        if Change.FILTERS in changes:
            failures.take(self._lookout.heed, self.device, site.uplink.link.ifindex)
        first = self._lookout.first
        if first:
            failures.take(self._announce, self.maps, site)  # or it would redirect past the others
        failures.take(self._ports.reconcile, site, self.device, self.maps, self.programs, first=first)
        failures.take(self._announce, self.maps, site)  # whether XDP is there
        failures.raise_any()

    def _announce(self, opened: maps.Maps[IPv4Address], site: Site) -> None:
        """Say in the maps what is true of this node now. KernelError."""
        xdp = self._findings.hook is HookMode.XDP
        peering, first = self._peering, self._lookout.first
        fits, filled, marks = peering.fits(), peering.has_filled(opened), peering.marks()
        self._own.write(
            opened, site, self.device, fits=fits, filled=filled, xdp=xdp, first=first, marks=marks
        )

    def load(self, site: Site) -> frozenset[Change]:
        """Maps and programs: adopted, or made. The kernel path is in place already."""
        before = self.maps
        if self._settings.bypass is not Bypass.OFF:
            _refuse_unreadable(site.uplink.link)  # it may be another one by now
        self._sysctls(site)
        if self._blind:
            self._take_programs_off(site)
        elif self.maps is not None or not self._left_to_newer(site):
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
                self._own.keep_seed(maps.pinned_seed(settings.bpffs))
                maps.unpin_all(settings.bpffs)
                self._hook.keep()
            self.maps = maps.create_or_adopt(settings.bpffs, wanted)
        elif self.maps.repin(settings.bpffs):
            log.warning("pins of maps under %s were gone: pinned again", settings.bpffs)
        self._announce(self.maps, site)

    def _load_programs(self) -> None:
        assert self.maps is not None
        settings = self._settings
        if self.programs and (self.programs.repin(settings.bpffs) | self._filters.pin()):
            log.warning("pins of programs under %s were gone: pinned again", settings.bpffs)
        if self.programs is None and settings.bypass is not Bypass.OFF:
            ahead, self._ahead = self._ahead, None
            self.programs = loader.load(self.maps, settings.bpffs, ahead)
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
            self._findings.problems[Concern.PINS] = ()
            return False
        text = (
            f"pins of a newer version under {settings.bpffs} (layout {newer}, this one has {LAYOUT}): "
            f"refused, the kernel path carries all; "
            f"run that version again, or remove {settings.bpffs}/v{newer}"
        )
        told(self._findings, Concern.PINS, text)
        self._take_programs_off(site)
        return True

    def _take_programs_off(self, site: Site) -> None:
        links = self._netlink.links()
        self._hook.reconcile(links, site.uplink.link.ifindex, None)
        apply_counted("filters", self._filters, diff({}, self._filters.read_on(links)), self._findings)

    def _sysctls(self, site: Site) -> None:
        """Conntrack has to be lenient only while it does not see everything."""
        if self._settings.bypass is Bypass.LEARNED:
            sysctl.ensure(sysctl.CONNTRACK, site.sysctls)
        else:
            sysctl.restore(site.sysctls, sysctl.CONNTRACK)


def _refuse_unreadable(link: Link) -> None:
    """AgentError if the programs could not check who sends through this uplink."""
    if why := unreadable(link):
        raise AgentError(why)
