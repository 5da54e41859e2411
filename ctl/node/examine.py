"""What can be seen of this node and its way to the others, for `ovctl doctor`. Nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from ctl.backend.site import Site
from ctl.backend.vxlan.device import device_name
from ctl.core.base_chains import base_chains
from ctl.core.bridge import Interface, in_the_way, misplaced, ports
from ctl.core.diagnosis import node
from ctl.core.diagnosis.finding import Finding
from ctl.core.diagnosis.inside import of_inside
from ctl.core.diagnosis.way import Way
from ctl.core.errors import NotFound, OvnetError
from ctl.core.family import Family, Member
from ctl.core.findings import IPSEC_LINE
from ctl.core.host import OWNER, Link
from ctl.core.ipam import State, capacity
from ctl.core.model import A, Bypass, HookMode, N
from ctl.core.report import AgentReport
from ctl.kernel import forward, sysctl
from ctl.kernel.command import run
from ctl.kernel.echo import SMALL, Echo
from ctl.kernel.hooks.listing import listing
from ctl.kernel.managers import managers
from ctl.kernel.netlink import link as links_of
from ctl.kernel.netlink.fib import next_hop
from ctl.kernel.netlink.inside import look_inside
from ctl.kernel.netlink.session import Netlink, by_name
from ctl.kernel.netlink.socket import Refused
from ctl.kernel.netlink.xfrm import Policies
from ctl.kernel.refusal import closed, spoilt
from ctl.node import cni
from ctl.node.alive import directory, judged
from ctl.node.bridge import device
from ctl.node.dual_stack import networks
from ctl.node.host_local import reservations
from ctl.node.reach import PATIENCE_S, answering, largest, overlay_address, own_address
from ctl.settings.config import Settings


class Examination:
    """One look at this node. One thread's, like its Netlink."""

    def __init__(self, settings: Settings, netlink: Netlink, site: Site, report: AgentReport) -> None:
        self._settings, self._netlink, self._site, self._report = settings, netlink, site, report
        self._links = netlink.links()
        self.told: list[str] = []
        """Lines that an agent has of the same things: who shows these findings need not show them."""

    def own(self) -> Iterator[Finding]:
        """Kernel settings, conntrack, devices, programs. KernelError."""
        network, report = self._site.network, self._report
        devices = [name for name in (report.bridge, self._tunnel()) if by_name(self._links, name)]
        names = ["net/ipv4/ip_forward", *(sysctl.forwarding(name) for name in devices)]
        if self._site.has_ipv6:
            names += sysctl.IPV6_FORWARDING
        yield from node.of_settings({name: sysctl.read(name) for name in names}, devices)
        yield from node.of_conntrack(
            _number("net/netfilter/nf_conntrack_count"), _number("net/netfilter/nf_conntrack_max")
        )
        ports = self.ports()
        device = by_name(self._links, self._tunnel())
        sizes = {link.name: link.mtu for link in ports}
        yield from node.of_mtu(report.mtu, device.mtu if device else None, sizes)
        # Who is told that there are no maps here cannot tell whose programs are ours.
        if network.backend == "vxlan" and Bypass.OFF not in (report.bypass, self._settings.bypass):
            yield from self._programs(ports)

    def bridge(self) -> Iterator[Finding]:
        """Whether an adopted bridge has our addresses. KernelError."""
        found = by_name(self._links, self._report.bridge)
        if found is None or found.alias == OWNER:
            return
        want = device(replace(self._settings, bridge=found.name), self._site.lease, self._report.mtu)
        present: dict[Interface, Sequence[Interface]] = {want.address: self._netlink.addresses(found.ifindex)}
        if want.ipv6 and self._site.has_ipv6:
            present[want.ipv6] = self._netlink.ipv6_addresses(found.ifindex)
        plugged = len(ports(found.ifindex, self._links))
        lines = [
            misplaced(want, wanted, others[0], plugged)
            for wanted, addresses in present.items()
            if (others := in_the_way(addresses, wanted, ours=False, by_cni=want.by_cni))
            and (plugged or not want.by_cni)  # else the agent mends it
        ]
        self.told += [f"not ready: {line}" for line in lines]
        yield from node.of_bridge(lines)

    def runtimes(self) -> Iterator[Finding]:
        """What container runtimes are told of this node. AgentError."""
        path = self._settings.cni_conf
        if path is None:
            return
        shadowed = cni.shadowed(path)
        if shadowed:
            self.told.append(shadowed)
        yield from node.of_runtimes(str(path), shadowed, there=cni.is_there(path) or not self._report.ready)

    def addresses(self) -> Iterator[Finding]:
        """How many addresses are left for containers that come by CNI. AgentError; KernelError."""
        if self._settings.cni_conf is None:
            return
        subnet, most = self._site.lease.subnet, capacity(self._site.lease.subnet)
        with suppress(NotFound):
            reserved = reservations(directory(self._settings))
            count = sum(each.address in subnet for each in reserved)
            if count < node.RUNNING_FULL * most:  # then nobody has to be asked
                yield from node.of_addresses(count, most, 0)
                return
            verdicts = judged(self._settings, self._netlink, self._report.bridge, time.time())
            inside = [each for each in verdicts if each.reservation.address in subnet]
            yield from node.of_addresses(
                len(inside), most, sum(each.state is State.LEAKED for each in inside)
            )

    def rules(self) -> Iterator[Finding]:
        """What others' rules drop, and IPsec policies. KernelError."""
        site, bridge = self._site, self._report.bridge
        chains = tuple(base_chains(run("nft", "list", "chains")))
        refusing = [line for each in networks(site) for line in forward.refusing(chains, each, bridge)]
        self.told += (*refusing, IPSEC_LINE)
        yield from node.of_forward(refusing, forward.dropping(chains, site.network.network, bridge))
        with closing(Policies()) as policies:
            yield from node.of_ipsec(policies.any())

    def others(self) -> Iterator[Finding]:
        """Other tunnels on our port, and who else manages devices of ours. KernelError."""
        ours = {self._report.bridge, self._tunnel(), self._tunnel(6)}
        tunnels = {}
        for link in self._links.values():
            with suppress(Refused):  # gone meanwhile
                if link.kind == "vxlan" and link.name not in ours:
                    tunnel = links_of.tunnel(self._netlink.rtnl, link.ifindex)
                    if tunnel.port == self._site.network.port:
                        tunnels[link.name] = tunnel.vni
        managed = managers(link for link in self._links.values() if link.name in ours)
        yield from node.of_others(tunnels, self._site.network.port, managed)

    def containers(self, ports: Sequence[Link]) -> Iterator[Finding]:
        """What those at these ports have inside that can be looked into. KernelError."""
        network, own = self._site.network, self._site.lease
        other = next(subnet for subnet in network.network.subnets(new_prefix=own.subnet.prefixlen)
                     if subnet != own.subnet)  # fmt: skip
        inside = look_inside(self._netlink, ports, other.network_address + 1)
        yield from of_inside(inside, own, network, self._report.mtu)

    def _programs(self, ports: Sequence[Link]) -> Iterator[Finding]:
        present = {
            (each.dev, each.hook) for each in listing(self._netlink, self._settings.bpffs) if each.ours
        }
        left = {port.name for port in self._report.kernel_ports}
        wanted = [(self._report.uplink, "ingress"), (self._tunnel(), "egress")]
        if self._report.hook == HookMode.XDP.value:
            wanted.append((self._report.uplink, "xdp"))
        wanted += [(link.name, "ingress") for link in ports if link.name not in left]
        yield from node.of_programs(wanted, present)

    def ports(self) -> list[Link]:
        """The bridge's ports that lead to containers, by name."""
        bridge = by_name(self._links, self._report.bridge)
        found = [link for link in self._links.values() if bridge and link.master == bridge.ifindex]
        return sorted((link for link in found if link.kind == "veth"), key=lambda link: link.name)

    def _tunnel(self, version: int = 4) -> str:
        network = self._site.network
        return device_name(network, version) if network.backend == "vxlan" else ""

    # --- The others ------------------------------------------------------------

    def ways(
        self, family: Family[A, N], peers: Sequence[Member[A, N]], step: Callable[[], None] = lambda: None
    ) -> list[Way]:
        """The way to each of these peers, by FIB, echoes and datagrams; a `step` for each echo. KernelError.

        `family`: one that we have.
        """
        source = own_address(family, self._site)
        mtu = self._report.mtu
        with Echo(source) as echo:
            targets = {overlay_address(self._site.network, lease): lease for lease in peers}
            there = answering(echo, targets, SMALL, step=step)
            sizes = largest(echo, there, mtu, step=step)
        spoilt_at = spoilt(source, there, PATIENCE_S)
        silent = [lease for address, lease in targets.items() if address not in there]
        reached = self._underlay(family, [lease.host for lease in silent])
        fragmented = self._fragmented(family, {targets[each].host: size for each, size in sizes.items()})
        closed_at = closed(sorted(reached), self._site.network.port, PATIENCE_S) if self._tunnel() else set()
        unresolved = self._netlink.unresolved(family)  # now: the echoes have had it asked for
        return [
            Way(
                lease,
                *self._way(lease, unresolved),
                wanted=self._expected(family, lease),
                uplink=self._device_to(lease.host),
                underlay=lease.host in reached or lease not in silent,
                answered=address in there,
                largest=sizes.get(address, 0),
                strict=self._strict(lease),
                closed=lease.host in closed_at,
                spoilt=address in spoilt_at,
                underlay_mtu=fragmented.get(lease.host, 0),
            )
            for address, lease in targets.items()
        ]

    def _underlay(self, family: Family[A, N], hosts: Sequence[A]) -> set[A]:
        """Those hosts that answer on the underlay itself."""
        if not hosts:
            return set()
        with Echo(family.source(self._site.uplink, self._site.lease)) as echo:
            return set(answering(echo, hosts, SMALL))

    def _fragmented(self, family: Family[A, N], carried: Mapping[A, int]) -> dict[A, int]:
        """The largest whole packet that passes on the underlay, where one of the tunnel's does not.

        `carried`: the largest that the tunnel carries to each host, bytes.
        """
        if not carried or not self._tunnel():
            return {}
        mtu = self._report.mtu
        whole = mtu + family.vxlan_overhead
        with Echo(family.source(self._site.uplink, self._site.lease)) as echo:
            passed = answering(echo, [host for host, size in carried.items() if size == mtu], whole)
            # Who answers no echo on the underlay at all says nothing about its path.
            known = answering(echo, [host for host in carried if host not in passed], SMALL)
            return echo.largest(known, SMALL, whole, PATIENCE_S)

    def _strict(self, lease: Member[A, N]) -> str:
        """The uplink, if its rp_filter, which is IPv4's alone, refuses what comes from this peer's host."""
        if lease.subnet.version != 4:
            return ""
        uplink = self._site.uplink.link.name
        values = [_number(f"net/ipv4/conf/{name}/rp_filter") or 0 for name in ("all", uplink)]
        device = self._device_to(lease.host)
        return uplink if max(values) == 1 and device and device != uplink else ""

    def _expected(self, family: Family[A, N], lease: Member[A, N]) -> str:
        """The interface that its subnet is to be routed to; with plain routes, its host's."""
        network, tunnel = self._site.network, self._tunnel(family.version)
        if network.backend == "vxlan" and not network.direct_routing:
            return tunnel
        device = self._device_to(lease.host)
        return tunnel if tunnel and self._device_to(lease.gateway) == tunnel else device

    def _way(self, lease: Member[A, N], unresolved: Collection[A]) -> tuple[str, str]:
        """(interface of its route, the next hop to its host whose MAC nobody tells, or "")."""
        device = self._device_to(lease.gateway)
        try:
            ifindex, hop = next_hop(self._netlink.rtnl, lease.host)
        except OvnetError:
            return device, f"no route to {lease.host}"
        link = self._links.get(ifindex)
        return device, f"{hop} on {link.name if link else ifindex}" if hop in unresolved else ""

    def _device_to(self, host: IPv4Address | IPv6Address) -> str:
        try:
            ifindex, _ = next_hop(self._netlink.rtnl, host)
        except OvnetError:
            return ""
        link = self._links.get(ifindex)
        return link.name if link else ""


def _number(name: str) -> int | None:
    text = sysctl.read(name)
    return int(text) if text and text.isdigit() else None
