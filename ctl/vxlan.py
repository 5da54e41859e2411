"""The vxlan backend: the kernel's vxlan device, and the eBPF shortcut over it."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface
from typing import Any, Final

from ctl.abi import PEER_F_KERNEL_PATH, NodeEntry
from ctl.config import Settings
from ctl.errors import ForeignProgram
from ctl.host import Link, Uplink, VxlanDevice
from ctl.kernel import bpffs, loader, maps, sysctl
from ctl.kernel.netlink import Netlink
from ctl.kernel.tables import Fdb, Filters, Routes, VtepNeighbours
from ctl.model import VXLAN_OVERHEAD, Bypass, IPv4Address, Lease, MacAddress, Network
from ctl.plan import diff, plan_endpoints, plan_filters, plan_peers, remote_leases
from ctl.ports import Table
from ctl.report import KernelPort
from ctl.site import Seen, Site, apply, apply_in_order

log = logging.getLogger(__name__)


def vtep_mac(host: IPv4Address, vni: int) -> MacAddress:
    """The VTEP MAC of a node: a function of what is unique, so that it survives reboots."""
    return MacAddress.local(hashlib.sha256(f"ovnet vtep {host} {vni}".encode()).digest()[:6])


class VxlanBackend:
    """VXLAN between hosts. One thread's, like its Netlink."""

    overhead: Final = VXLAN_OVERHEAD

    def __init__(self, settings: Settings, netlink: Netlink, seen: Seen) -> None:
        self.maps: maps.Maps | None = None
        self.programs: loader.Programs | None = None
        self.device = 0
        """ifindex of the vxlan device; 0: not made yet."""
        self._settings, self._netlink, self._seen = settings, netlink, seen
        self._filters = Filters(netlink)
        self._first_look = True
        """Programs of an earlier life may hang on any interface."""

    @staticmethod
    def identity(host: IPv4Address, network: Network) -> tuple[MacAddress | None, int | None]:
        """(VTEP MAC, VNI) to publish."""
        return vtep_mac(host, network.vni), network.vni

    def preflight(self, uplink: Uplink) -> None:
        """ForeignProgram if the uplink carries a program that ours would get in the way of."""
        if self._settings.bypass is Bypass.OFF:
            return
        link = uplink.link
        if link.xdp:
            raise ForeignProgram(
                f"{link.name} carries an XDP program that is not ours (id {link.xdp}): "
                f"remove it (ip link set dev {link.name} xdp off), or run with --bypass=off"
            )
        if why := self._filters.foreign(link.ifindex, ingress=True):
            raise ForeignProgram(f"{link.name}: {why}: remove it, or run with --bypass=off")

    def ensure_device(self, site: Site, links: dict[int, Link]) -> None:
        """The vxlan device and the settings that bypassing needs."""
        if self._settings.bypass is Bypass.LEARNED:
            sysctl.ensure(sysctl.CONNTRACK, site.sysctls)
        self.device = self._netlink.ensure_vxlan(self._wanted(site), links)

    def _wanted(self, site: Site) -> VxlanDevice:
        network, uplink = site.network, site.uplink
        return VxlanDevice(
            name=f"ovnet.{network.vni}",
            vni=network.vni,
            port=network.port,
            local=uplink.address,
            uplink=uplink.link.ifindex,
            mac=vtep_mac(uplink.address, network.vni),
            mtu=site.mtu,
            address=IPv4Interface((site.lease.vtep_ip, 32)),
        )

    def load(self, site: Site) -> None:
        """Maps and programs: adopted, or made. The kernel path is in place already."""
        settings = self._settings
        if self.maps is None:
            bpffs.ensure(str(settings.bpffs))
            wanted = maps.specs(settings.peers_max, settings.endpoints_max, settings.flows_max)
            if why := maps.mismatch(settings.bpffs, wanted):
                # Nothing is lost: without programs the kernel path carries everything.
                log.warning("pinned maps do not fit (%s): making new ones", why)
                self.detach()
                maps.unpin_all(settings.bpffs)
            self.maps = maps.create_or_adopt(settings.bpffs, wanted)
        self._write_node(self.maps, site)
        if self.programs is None and settings.bypass is not Bypass.OFF:
            self.programs = loader.load(self.maps, settings.bpffs, settings.state_dir)
            self._filters.fds = {name: program.fd for name, program in self.programs.by_name.items()}
            log.info("datapath %s loaded", self.programs.digest)

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
            vtep_mac=vtep_mac(site.uplink.address, network.vni),
            port=network.port,
            source_ports=sysctl.source_ports(),
            bypass=self._settings.bypass,
            approval_ttl_ns=int(self._settings.approval_ttl * 1e9),
            flow_seed=before.flow_seed if before else secrets.randbits(64) | 1,
        )
        if entry != before:
            opened.write_node(entry)

    def reconcile_peers(self, site: Site, leases: Sequence[Lease]) -> None:
        """Routes, neighbours, FDB and maps for the other nodes' leases."""
        remote, problems = remote_leases(leases, site.lease, site.network)
        hops = {each.host: self._netlink.hop(each.host) for each in remote}
        plan = plan_peers(remote, site.network, hops, self.device)
        assert self.maps is not None, "load() comes first"
        tables: list[tuple[str, Table[Any, Any], Mapping[Any, Any]]] = [
            ("neighbours", VtepNeighbours(self._netlink, self.device), plan.neighbours),
            ("fdb", Fdb(self._netlink, self.device), plan.fdb),
            ("routes", Routes(self._netlink), plan.routes),
            ("vteps", self.maps.vtep_table, plan.vteps),
            ("peers", self.maps.peer_table, plan.peers),
        ]
        apply_in_order(tables, self._seen)
        slow = sum(bool(entry.flags & PEER_F_KERNEL_PATH) for entry in plan.peers.values())
        self._seen.peers_kernel_path = len(remote) if self._settings.bypass is Bypass.OFF else slow
        self._seen.peers_ebpf = len(remote) - self._seen.peers_kernel_path
        self._seen.problems["leases"] = problems

    def reconcile_ports(self, site: Site) -> None:
        """Programs on every port of the bridge, and the containers behind them."""
        assert self.maps is not None, "load() comes first"
        links = self._netlink.links()
        self._filters.gone(links)
        ports = self._sort_ports(links, site.bridge)
        self._attach(site, ports, links)
        bridge = links.get(site.bridge)
        if bridge is None:
            return  # just deleted; the event that says so is under way
        endpoints = plan_endpoints(self._netlink.neighbours(site.bridge), ports, bridge, site.lease.subnet)
        table = self.maps.endpoint_table
        apply("endpoints", table, diff(endpoints, table.read()), self._seen)

    def _attach(self, site: Site, ports: Mapping[int, Link], links: Mapping[int, Link]) -> None:
        ids = {name: p.id for name, p in self.programs.by_name.items()} if self.programs else {}
        wanted = plan_filters(ids, site.uplink.link.ifindex, self.device, ports)
        present = self._filters.read_on({*links} if self._first_look else {key.ifindex for key in wanted})
        apply("filters", self._filters, diff(wanted, present), self._seen)
        if self._first_look:
            loader.drop_others(self._settings.bpffs, self.programs.digest if self.programs else "")
            self._first_look = False

    def _sort_ports(self, links: Mapping[int, Link], bridge: int) -> dict[int, Link]:
        """The bridge's ports that can have our programs; the rest is noted in `seen`."""
        ours, others = {}, []
        for link in links.values():
            if link.master != bridge or not bridge:
                continue
            if why := self._why_not(link):
                others.append(KernelPort(link.name, why))
            else:
                ours[link.ifindex] = link
        self._seen.ports = tuple(sorted(link.name for link in ours.values()))
        self._seen.kernel_ports = tuple(sorted(others, key=lambda port: port.name))
        return ours

    def _why_not(self, link: Link) -> str:
        if self._settings.bypass is Bypass.OFF:
            return "bypass is off"
        if link.kind != "veth":
            return f"a {link.kind or 'hardware'} interface: only veth ports can be bypassed"
        if not link.peer_elsewhere:
            return "its other end is in this network namespace"
        return self._filters.taken(link.ifindex)

    def forget_filters(self) -> None:
        """Someone touched filters: look at all of them again."""
        self._filters.forget()

    def detach(self) -> None:
        """Take every program of ours off every interface."""
        self._filters.forget()
        self._filters.apply(diff({}, self._filters.read_on(self._netlink.links())))
