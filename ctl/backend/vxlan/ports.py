"""The vxlan backend's way to this node's containers: their ports, their addresses, programs on interfaces.

In this order: room for headers, who is behind which port, programs on the ports, the vxlan
devices and the uplink, XDP in front of the uplink's. These are the programs for IPv4, which hand IPv6 on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from ctl.backend.settle import apply_counted
from ctl.backend.site import Site
from ctl.backend.vxlan.uplink_hook import UplinkHook
from ctl.core.errors import Failures
from ctl.core.findings import Findings
from ctl.core.host import FilterKey, Link
from ctl.core.model import Bypass
from ctl.core.plan import diff, plan_filters, why_kernel_path
from ctl.core.report import KernelPort
from ctl.kernel.bpf import loader, maps
from ctl.kernel.hooks.filters import Filters
from ctl.kernel.hooks.xdp import PROGRAM as XDP_PROGRAM
from ctl.kernel.netlink import headroom
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings

Find = Callable[[Link, Mapping[int, Link]], None]
"""Finds who is behind these ports of this bridge. KernelError."""


class Ports:
    """Ports of the bridge, containers behind them, and the programs that meet their packets."""

    def __init__(
        self, settings: Settings, netlink: Netlink, filters: Filters, hook: UplinkHook, findings: Findings
    ) -> None:
        self._settings, self._netlink, self._findings = settings, netlink, findings
        self._filters, self._hook = filters, hook
        self.uplink = 0
        """ifindex of the interface that was given from_wire last; 0: none was."""
        self._first_look = True
        """Programs of an earlier life may hang on any interface, so all of them are looked at."""

    def detached(self, devices: Collection[int]) -> bool:
        """Whether someone took the program off the uplink, or one of the vxlan devices, by ifindex.

        Or has put one of their own beside ours, or taken it away, there or on a port. At tcx there are
        no events. Ours that is off a port costs no more than its container's shortcut, until the next
        resync.
        """
        return self._filters.detached((self.uplink, *devices))

    def reconcile(
        self,
        site: Site,
        devices: Collection[int],
        find: Sequence[Find],
        programs: loader.Programs | None,
        *,
        first: bool = False,
    ) -> None:
        """Bring endpoints and programs in line with the ports that the bridge has. KernelError.

        Each part has its turn: what eBPF lacks in one, the kernel path carries. `devices`: ifindexes
        of the vxlan devices. `find`: one for each family that has maps. `programs`: those that are
        loaded; None: none are. `first`: from_wire before programs of others on the uplink.
        """
        links, failures = self._netlink.links(), Failures()
        if site.bridge:
            netlink, ipv6 = self._netlink, site.has_ipv6
            failures.take(headroom.ensure, netlink, site.bridge, site.mtu, links, ipv6=ipv6)
        self._filters.gone(links)
        ports = self._sort(links, site.bridge)
        if bridge := links.get(site.bridge):
            for each in find:
                failures.take(each, bridge, ports)
        # Programs that did not load: those of an earlier life stay where they are.
        if programs is not None or self._settings.bypass is Bypass.OFF:
            failures.take(self._attach, site, devices, ports, links, programs, first)
        failures.raise_any()

    def _sort(self, links: Mapping[int, Link], bridge: int) -> dict[int, Link]:
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
        return why_kernel_path(link) or self._filters.taken(link.ifindex)

    def _attach(
        self,
        site: Site,
        devices: Collection[int],
        ports: Mapping[int, Link],
        links: Mapping[int, Link],
        programs: loader.Programs | None,
        first: bool,
    ) -> None:
        ids = {name: p.id for name, p in programs.by_name.items()} if programs else {}
        uplink = self.uplink = site.uplink.link.ifindex
        wanted = plan_filters(ids, uplink, devices, ports, first=first)
        present = self._filters.read_on({*links} if self._first_look else {key.ifindex for key in wanted})
        place, failures = FilterKey(uplink, True), Failures()
        if place not in wanted:
            self._hook.reconcile(links, uplink, None)
        failures.take(apply_counted, "filters", self._filters, diff(wanted, present), self._findings)
        if programs is not None and place in wanted:
            # XDP goes in front of from_wire, if that is there to deliver.
            delivers = self._filters.read().get(place) == wanted[place]
            program = programs.by_name.get(XDP_PROGRAM) if delivers else None
            lacking = programs.xdp_refused if delivers else ""
            failures.take(self._hook.reconcile, links, uplink, program, lacking)
        failures.raise_any()
        if self._first_look:
            loader.drop_others(self._settings.bpffs, programs.digest if programs else "")
            maps.unpin_older_layouts(self._settings.bpffs)
            self._first_look = False
