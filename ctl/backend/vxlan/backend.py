"""The vxlan backend: the kernel's vxlan devices, and the eBPF shortcut over them.

Here is the order of things for both families; what there is of each is in `datapath`, what hangs on this
node's interfaces in `ports`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ctl.backend.programless import remove_tunnels
from ctl.backend.settle import apply_counted
from ctl.backend.site import Site
from ctl.backend.told import told, told_of_ipv6
from ctl.backend.vxlan import silent
from ctl.backend.vxlan.beside import Beside, IPv6Datapath
from ctl.backend.vxlan.datapath import Datapath
from ctl.backend.vxlan.device import device_name, vtep_mac
from ctl.backend.vxlan.lookout import Lookout
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
    IPv4Address,
    IPv6Address,
    Lease,
    MacAddress,
    Network,
)
from ctl.core.plan import diff, unreadable
from ctl.kernel import firewall, sysctl
from ctl.kernel.bpf import bpffs, maps, probe
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.hooks.filters import Filters
from ctl.kernel.netlink import headroom
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings

log = logging.getLogger(__name__)


class VxlanBackend:
    """VXLAN between hosts. One thread's, like its Netlink."""

    def __init__(self, settings: Settings, netlink: Netlink, findings: Findings) -> None:
        self._settings, self._netlink, self._findings = settings, netlink, findings
        self._ipv4 = Datapath(settings, netlink, IPV4, findings)
        self._ipv6: IPv6Datapath | None = None
        """None where there is no IPv6."""
        self._beside = Beside(settings, findings)
        self._filters = Filters(netlink.rtnl, settings.bpffs)
        self._hook = UplinkHook(settings, netlink, findings)
        self._ports = Ports(settings, netlink, self._filters, self._hook, findings)
        self._lookout = Lookout(netlink.rtnl, self._filters, findings)
        self._blind = False
        """Whether it does without maps, as this host has no place for them."""

    @property
    def maps(self) -> Maps[IPv4Address] | None:
        """Those of IPv4; None: there are none yet, or those of a newer version are there."""
        return self._ipv4.maps

    @property
    def ipv6_maps(self) -> Maps[IPv6Address] | None:
        """Those of IPv6; None: there are none, as where there is no IPv6."""
        return self._ipv6.maps if self._ipv6 else None

    @property
    def _datapaths(self) -> tuple[Datapath[Any, Any], ...]:
        """Of each family that there is."""
        return (self._ipv4, self._ipv6) if self._ipv6 else (self._ipv4,)

    @staticmethod
    def overhead(network: Network) -> int:
        """Of the family that needs more: containers have one MTU for both."""
        return VXLAN_OVERHEAD if network.ipv6 is None else VXLAN_IPV6_OVERHEAD

    @staticmethod
    def identity(host: IPv4Address | IPv6Address, network: Network) -> tuple[MacAddress | None, int | None]:
        """(VTEP MAC, VNI) to publish."""
        return vtep_mac(host, network.vni), network.vni

    def preflight(self, network: Network, uplink: Uplink) -> None:
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
            self._has_ipv6(network.ipv6 is not None)
            for each in self._datapaths:
                each.compile_ahead()

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
        watched = {each.device: each.watched for each in self._datapaths if each.device}
        off = self._ports.detached(watched)
        if off:
            self._lookout.forget()
        found = self._lookout.look(watched, self._ports.uplink)
        return found | {Change.FILTERS} if off else found

    def look_in(self) -> float:
        """Sooner than usual after programs of others have come."""
        return self._lookout.look_in()

    def losing(self, network: Network, uplink: Uplink) -> Mapping[Way, str]:
        """Where packets that programs leave to the kernel path are lost; none are counted without."""
        lost: dict[Way, str] = {}
        lines: list[str] = []
        gone = set()
        for each in self._datapaths:
            for way, line in each.losing(network, uplink).items():
                lost[way] = f"{lost[way]}; {line}" if way in lost else line
            lines += silent.lines(each.silent, network.port)
            gone |= {each.peering.key_at(host) for host in each.silent}
        self._findings.peers_silent = len(gone)
        self._findings.problems[Concern.SILENT] = tuple(lines)
        return lost

    def tunnel(self, network: Network, uplink: Uplink) -> firewall.Tunnel:
        """VXLAN is taken of peers, from the uplink and for our own address only."""
        return self._ipv4.tunnel(network, uplink, uplink.address)

    def ipv6_tunnel(self, site: Site) -> firewall.Tunnel | None:
        """As for IPv4, where there is IPv6."""
        if self._ipv6 is None or not site.has_ipv6:
            return None
        return self._ipv6.tunnel(site.network, site.uplink, IPV6.source(site.uplink, site.lease))

    def _has_ipv6(self, has_ipv6: bool) -> None:
        """Whether there is IPv6, from now on. KernelError; IPv6 is the kernel path's by then."""
        gone = self._ipv6
        if has_ipv6 and gone is None:
            self._ipv6 = Datapath(self._settings, self._netlink, IPV6, self._findings)
        elif not has_ipv6 and gone is not None:
            self._ipv6 = None
            if self._ipv4.maps is not None:
                self._beside.remove(self._ipv4.maps, gone)
            gone.close()

    def ensure_device(self, site: Site, links: dict[int, Link]) -> None:
        """The vxlan device, and no other tunnel of ours but that of IPv6, if there is any."""
        self._has_ipv6(site.has_ipv6)
        versions = (4, 6) if site.has_ipv6 else (4,)
        keep = {headroom.DEVICE, *(device_name(site.network, version) for version in versions)}
        remove_tunnels(self._netlink, links.values(), self._settings.state_dir, keep)
        self._ipv4.ensure_device(site, links)

    def ensure_ipv6_device(self, site: Site, links: dict[int, Link]) -> None:
        """The vxlan device of IPv6."""
        assert self._ipv6 is not None, "ensure_device() comes first"
        self._ipv6.ensure_device(site, links)

    def reconcile_peers(self, site: Site, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        """The maps of the shortcut, FDB, neighbours and routes to the other nodes."""
        failures, findings, ipv6 = Failures(), self._findings, self._ipv6
        for each in self._datapaths:
            failures.take(each.reconcile_peers, site, leases, changes, first=self._lookout.first)
        peering = self._ipv4.peering
        findings.peers_ebpf, findings.peers_kernel_path = peering.reached
        findings.problems[Concern.LEASES] = peering.problems
        findings.peers_ipv6 = ipv6.peering.count_peers() if ipv6 else None
        findings.peers_ipv6_ebpf = ipv6.peering.reached[0] if ipv6 and ipv6.maps else None
        told_of_ipv6(findings, site, leases, ipv6.peering.problems if ipv6 else ())
        failures.raise_any()

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        return any(each.peering.wants(entry) for each in self._datapaths)

    def devices(self) -> Devices:
        """The vxlan devices, and the interfaces of the underlay through which peers are reached now."""
        hops = frozenset[int]().union(*(each.peering.hop_interfaces() for each in self._datapaths))
        return Devices(self._ipv4.device, hops=hops, ipv6_tunnel=self._ipv6.device if self._ipv6 else 0)

    def reconcile_ports(self, site: Site, changes: frozenset[Change]) -> None:
        """Programs on every port of the bridge, and the containers behind them."""
        if Change.FILTERS in changes:
            self._filters.forget()
        opened = self._ipv4.maps
        if opened is None:
            return
        failures, devices = Failures(), tuple(each.device for each in self._datapaths if each.device)
        if Change.FILTERS in changes:
            failures.take(self._lookout.heed, devices, site.uplink.link.ifindex)
        first = self._lookout.first
        if first:
            failures.take(self._announce, site)  # or it would redirect past the others
        find = [partial(each.find_containers, site) for each in self._datapaths]
        failures.take(self._ports.reconcile, site, devices, find, self._ipv4.programs, first=first)
        failures.take(self._announce, site)  # whether XDP is there
        if self._ipv6 is not None:
            failures.take(self._beside.hand_over, opened, self._ipv6)
        failures.raise_any()

    def _announce(self, site: Site) -> None:
        """Say in the maps what is true of this node now. KernelError."""
        for each in self._datapaths:
            each.announce(site, first=self._lookout.first)

    def load(self, site: Site) -> frozenset[Change]:
        """Maps and programs: adopted, or made. The kernel path is in place already."""
        before = self.maps, self.ipv6_maps
        if self._settings.bypass is not Bypass.OFF:
            _refuse_unreadable(site.uplink.link)  # it may be another one by now
        self._sysctls(site)
        if self._blind:
            self._take_programs_off(site)
        elif self.maps is not None or not self._left_to_newer(site):
            self._load(site)
        return frozenset({Change.MAPS} if (self.maps, self.ipv6_maps) != before else ())

    def _load(self, site: Site) -> None:
        ipv4, first = self._ipv4, self._lookout.first
        if ipv4.open_maps():
            self._hook.keep()
        assert ipv4.maps is not None
        ipv4.announce(site, first=first)
        if ipv4.programs is not None and self._filters.pin():
            log.warning("pins of links under %s were gone: pinned again", ipv4.root)
        if self._settings.bypass is not Bypass.OFF:
            ipv4.load_programs()
            assert ipv4.programs is not None
            self._filters.programs = ipv4.programs.by_name
            self._findings.program = ipv4.programs.digest
        self._beside.load(ipv4.maps, self._ipv6, site, first=first)

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
