"""A node's kernel: devices, tables, programs. Everything that is done to it, is done here.

A Node belongs to one thread. Each `reconcile_*` reads a part of the kernel's state, plans,
and applies the difference; doing it twice does nothing the second time.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface
from typing import Any, Final

from ctl import statedir
from ctl.abi import PEER_F_KERNEL_PATH, NodeEntry
from ctl.config import Settings
from ctl.errors import AgentError, ConfigError, ForeignProgram
from ctl.host import BridgeDevice, Link, Uplink, VxlanDevice
from ctl.kernel import bpffs, firewall, loader, maps, sysctl
from ctl.kernel.netlink import Netlink
from ctl.kernel.tables import Fdb, Filters, Routes, VtepNeighbours
from ctl.model import MIN_MTU, VXLAN_OVERHEAD, Bypass, IPv4Address, Lease, MacAddress, Network
from ctl.plan import Delta, diff, plan_endpoints, plan_filters, plan_peers, remote_leases
from ctl.ports import Table
from ctl.report import KernelPort
from ctl.wire import SubnetEnv, format_subnet_env

log = logging.getLogger(__name__)


def vtep_mac(host: IPv4Address, vni: int) -> MacAddress:
    """The VTEP MAC of a node: a function of what is unique, so that it survives reboots."""
    return MacAddress.local(hashlib.sha256(f"ovnet vtep {host} {vni}".encode()).digest()[:6])


def inner_mtu(network: Network, uplink: Uplink) -> int:
    """Largest inner IP packet, bytes. AgentError if it is too small to be of use."""
    underlay = min(network.mtu or uplink.link.mtu, uplink.link.mtu)
    mtu = underlay - VXLAN_OVERHEAD
    if mtu < MIN_MTU:
        raise AgentError(
            f"MTU {underlay} of uplink {uplink.link.name} leaves {mtu} bytes for containers, "
            f"at least {MIN_MTU} are needed: raise it to {MIN_MTU + VXLAN_OVERHEAD} or more"
        )
    return mtu


@dataclass(slots=True)
class Seen:
    """What the last reconciles found, for the report."""

    problems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By the part that noticed."""
    operations: dict[str, int] = field(default_factory=dict)
    peers_ebpf: int = 0
    peers_kernel_path: int = 0
    ports: tuple[str, ...] = ()
    kernel_ports: tuple[KernelPort, ...] = ()


class Node:
    """The host as a member of the overlay."""

    def __init__(self, settings: Settings, netlink: Netlink) -> None:
        self.settings: Final = settings
        self.netlink: Final = netlink
        self.seen: Final = Seen()
        self.maps: maps.Maps | None = None
        self.programs: loader.Programs | None = None
        self.uplink: Uplink = netlink.uplink(settings.iface, settings.public_ip)
        self.vxlan = 0
        """ifindex of the vxlan device; 0: not made yet."""
        self.bridge = 0
        self.mtu = 0
        self._filters = Filters(netlink)
        self._first_look = True
        """Programs of an earlier life may hang on any interface."""

    def preflight(self, network: Network) -> None:
        """Everything that can be refused before anything is changed."""
        if network.backend != "vxlan":
            raise ConfigError(
                f"the network's backend is {network.backend or 'udp'}: this agent only does vxlan"
            )
        inner_mtu(network, self.uplink)
        for link in self.netlink.links().values():
            if link.name == self.settings.bridge and link.kind != "bridge":
                kind = link.kind or "hardware"
                raise ConfigError(f"{link.name} is no bridge but {kind}: choose another --bridge")
        if self.settings.bypass is not Bypass.OFF:
            self._refuse_foreign(self.uplink.link)

    def _refuse_foreign(self, link: Link) -> None:
        if link.xdp:
            raise ForeignProgram(
                f"{link.name} carries an XDP program that is not ours (id {link.xdp}): "
                f"remove it (ip link set dev {link.name} xdp off), or run with --bypass=off"
            )
        if why := self._filters.foreign(link.ifindex, ingress=True):
            raise ForeignProgram(f"{link.name}: {why}: remove it, or run with --bypass=off")

    def refresh_uplink(self) -> bool:
        """Look at the uplink again; True if our address or the interface changed."""
        before = self.uplink
        self.uplink = self.netlink.uplink(self.settings.iface, self.settings.public_ip)
        return (before.address, before.link.ifindex) != (self.uplink.address, self.uplink.link.ifindex)

    def reconcile_devices(self, network: Network, lease: Lease) -> None:
        """Settings, vxlan device, bridge, and what the programs know of them."""
        self.mtu = inner_mtu(network, self.uplink)
        links = self.netlink.links()
        self._sysctls()
        vxlan = self.netlink.ensure_vxlan(self._vxlan_device(network, lease), links)
        bridge, wrong = self.netlink.ensure_bridge(self._bridge_device(lease), links)
        self.seen.problems["bridge"] = (wrong,) if wrong else ()
        self.vxlan, self.bridge = vxlan, bridge
        self._write_subnet_env(network, lease)

    def _sysctls(self) -> None:
        wanted = dict(sysctl.FORWARDING)
        if self.settings.bypass is Bypass.LEARNED:
            wanted.update(sysctl.CONNTRACK)
        sysctl.ensure(wanted, self.settings.state_dir / statedir.SYSCTLS)

    def _vxlan_device(self, network: Network, lease: Lease) -> VxlanDevice:
        return VxlanDevice(
            name=f"ovnet.{network.vni}",
            vni=network.vni,
            port=network.port,
            local=self.uplink.address,
            uplink=self.uplink.link.ifindex,
            mac=vtep_mac(self.uplink.address, network.vni),
            mtu=self.mtu,
            address=IPv4Interface((lease.vtep_ip, 32)),
        )

    def _bridge_device(self, lease: Lease) -> BridgeDevice:
        return BridgeDevice(
            name=self.settings.bridge,
            # Docker's rule for MACs, so that a restart keeps the gateway's.
            mac=MacAddress(b"\x02\x42" + lease.gateway.packed),
            mtu=self.mtu,
            address=IPv4Interface((lease.gateway, lease.subnet.prefixlen)),
        )

    def _write_subnet_env(self, network: Network, lease: Lease) -> None:
        env = SubnetEnv(network.network, lease.subnet, self.mtu, self.settings.ip_masq)
        text, path = format_subnet_env(env), self.settings.subnet_file
        try:
            if not path.exists() or path.read_text() != text:
                statedir.write_atomically(path, text)
        except OSError as error:
            raise AgentError(f"cannot write {path}: {error.strerror}") from error

    def reconcile_firewall(self, network: Network, lease: Lease) -> None:
        if firewall.ensure(network.network, lease.subnet, masquerade=self.settings.ip_masq):
            self._count("firewall", 1)

    def reconcile_datapath(self, network: Network, lease: Lease) -> None:
        """Maps and programs: adopted, or made. The kernel path is in place already."""
        settings = self.settings
        if self.maps is None:
            bpffs.ensure(str(settings.bpffs))
            wanted = maps.specs(settings.peers_max, settings.endpoints_max, settings.flows_max)
            if why := maps.mismatch(settings.bpffs, wanted):
                # Nothing is lost: without programs the kernel path carries everything.
                log.warning("pinned maps do not fit (%s): making new ones", why)
                self.detach()
                maps.unpin_all(settings.bpffs)
            self.maps = maps.create_or_adopt(settings.bpffs, wanted)
        self._write_node(self.maps, network, lease)
        if self.programs is None and settings.bypass is not Bypass.OFF:
            self.programs = loader.load(self.maps, settings.bpffs, settings.state_dir)
            self._filters.fds = {name: program.fd for name, program in self.programs.by_name.items()}
            log.info("datapath %s loaded", self.programs.digest)

    def _write_node(self, opened: maps.Maps, network: Network, lease: Lease) -> None:
        before = opened.node()
        entry = NodeEntry(
            host=self.uplink.address,
            network=network.network,
            subnet=lease.subnet,
            vni=network.vni,
            uplink_ifindex=self.uplink.link.ifindex,
            mtu=self.mtu,
            vtep_mac=vtep_mac(self.uplink.address, network.vni),
            port=network.port,
            source_ports=sysctl.source_ports(),
            bypass=self.settings.bypass,
            approval_ttl_ns=int(self.settings.approval_ttl * 1e9),
            flow_seed=before.flow_seed if before else secrets.randbits(32) | 1,
        )
        if entry != before:
            opened.write_node(entry)

    def reconcile_peers(self, leases: Sequence[Lease], network: Network, lease: Lease) -> None:
        """Routes, neighbours, FDB and maps for the other nodes' leases.

        What is new goes in from the wire up, what is stale goes out the other way
        round: a route never points at a neighbour that is not there.
        """
        remote, problems = remote_leases(leases, lease, network.vni)
        self.seen.problems["leases"] = problems
        hops = {each.host: self.netlink.hop(each.host) for each in remote}
        plan = plan_peers(remote, network, hops)
        assert self.maps is not None, "reconcile_datapath() comes first"
        tables: list[tuple[str, Table[Any, Any], Mapping[Any, Any]]] = [
            ("neighbours", VtepNeighbours(self.netlink, self.vxlan), plan.neighbours),
            ("fdb", Fdb(self.netlink, self.vxlan), plan.fdb),
            ("routes", Routes(self.netlink, self.vxlan), plan.routes),
            ("vteps", self.maps.vtep_table, plan.vteps),
            ("peers", self.maps.peer_table, plan.peers),
        ]
        deltas = [(name, table, diff(desired, table.read())) for name, table, desired in tables]
        for name, table, delta in deltas:
            self._apply(name, table, replace(delta, removals=()))
        for name, table, delta in reversed(deltas):
            self._apply(name, table, replace(delta, puts=()))
        slow = sum(bool(entry.flags & PEER_F_KERNEL_PATH) for entry in plan.peers.values())
        self.seen.peers_kernel_path = len(remote) if self.settings.bypass is Bypass.OFF else slow
        self.seen.peers_ebpf = len(remote) - self.seen.peers_kernel_path

    def reconcile_ports(self, lease: Lease) -> None:
        """Programs on every port of the bridge, and the containers behind them."""
        assert self.maps is not None, "reconcile_datapath() comes first"
        links = self.netlink.links()
        self._filters.gone(links)
        ports = self._sort_ports(links)
        ids = {name: p.id for name, p in self.programs.by_name.items()} if self.programs else {}
        wanted = plan_filters(ids, self.uplink.link.ifindex, self.vxlan, ports)
        present = self._filters.read_on({*links} if self._first_look else {key.ifindex for key in wanted})
        self._apply("filters", self._filters, diff(wanted, present))
        if self._first_look:
            loader.drop_others(self.settings.bpffs, self.programs.digest if self.programs else "")
            self._first_look = False
        bridge = links.get(self.bridge)
        if bridge is None:
            return  # just deleted; the event that says so is under way
        endpoints = plan_endpoints(self.netlink.neighbours(self.bridge), ports, bridge, lease.subnet)
        table = self.maps.endpoint_table
        self._apply("endpoints", table, diff(endpoints, table.read()))

    def _sort_ports(self, links: Mapping[int, Link]) -> dict[int, Link]:
        """The bridge's ports that can have our programs; the rest is noted in `seen`."""
        ours, others = {}, []
        for link in links.values():
            if link.master != self.bridge or not self.bridge:
                continue
            if why := self._why_not(link):
                others.append(KernelPort(link.name, why))
            else:
                ours[link.ifindex] = link
        if self.settings.bypass is Bypass.OFF:
            others += [KernelPort(link.name, "bypass is off") for link in ours.values()]
            ours = {}
        self.seen.ports = tuple(sorted(link.name for link in ours.values()))
        self.seen.kernel_ports = tuple(sorted(others, key=lambda port: port.name))
        return ours

    def _why_not(self, link: Link) -> str:
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
        self._filters.apply(diff({}, self._filters.read_on(self.netlink.links())))

    def _apply(self, name: str, table: Table[Any, Any], delta: Delta[Any, Any]) -> None:
        if not delta:
            return
        log.debug("%s: %s", name, delta)
        self._count(name, len(delta))
        table.apply(delta)

    def _count(self, name: str, operations: int) -> None:
        self.seen.operations[name] = self.seen.operations.get(name, 0) + operations
