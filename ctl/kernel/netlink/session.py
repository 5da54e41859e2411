"""rtnetlink: what the host looks like, and the devices of the kernel path.

One Netlink belongs to one thread.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from socket import AF_BRIDGE, if_indextoname
from typing import Final, Self

from pyroute2.netlink.rtnl import RTM_GETNEIGH, rt_proto
from pyroute2.netlink.rtnl.ndmsg import (
    NUD_DELAY,
    NUD_FAILED,
    NUD_INCOMPLETE,
    NUD_PERMANENT,
    NUD_PROBE,
    NUD_REACHABLE,
    NUD_STALE,
    ndmsg,
)
from pyroute2.netlink.rtnl.rtmsg import RT_SCOPE_LINK

from ctl.core import bridge
from ctl.core.errors import KernelError
from ctl.core.family import Family
from ctl.core.host import OWNER, BridgeDevice, Link, Neighbours, VxlanDevice
from ctl.core.model import A, MacAddress, N
from ctl.core.plan import plan_bridge_mtu
from ctl.core.uplink_ipv6 import UplinkIPv6
from ctl.kernel import sysctl
from ctl.kernel.netlink import addressing, fib, link, taken
from ctl.kernel.netlink.message import attributes, body, message, to_number
from ctl.kernel.netlink.socket import Refused, Rtnl, suppress_missing
from ctl.kernel.netlink.tables import AF, MAIN_TABLE, NDA_DST, NDA_LLADDR, NDA_MASTER, NDMSG

log = logging.getLogger(__name__)

NUD_USABLE: Final = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT
"""The states in which a neighbour's entry has a MAC."""
_IPV6_METRIC: Final = 256
"""IP6_RT_PRIO_ADDRCONF of linux/ipv6_route.h."""
_NEEDS_ADMIN: Final = " (needs CAP_NET_ADMIN in the user namespace that this network namespace is of)"
_NUD_UNASKED: Final = NUD_REACHABLE | NUD_STALE


class Netlink:
    """An rtnetlink session. Failures are KernelError with what was being done."""

    def __init__(self) -> None:
        self.rtnl: Final = Rtnl()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.rtnl.close()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turn the kernel's errno into a line that names the thing."""
        try:
            yield
        except Refused as error:
            hint = _NEEDS_ADMIN if error.code == errno.EPERM else ""
            raise KernelError(f"{what}: {error}{hint}") from error

    def links(self) -> dict[int, Link]:
        """All interfaces by ifindex."""
        with self.doing("list interfaces"):
            return {found.ifindex: found for found in link.listing(self.rtnl)}

    def addresses(self, ifindex: int) -> list[IPv4Interface]:
        """IPv4 addresses of an interface, in the kernel's order (primary first)."""
        with self.doing(f"list addresses of interface {ifindex}"):
            return list(map(IPv4Interface, addressing.of(self.rtnl, ifindex, 4)))

    def ipv6_addresses(self, ifindex: int) -> list[IPv6Interface]:
        """IPv6 addresses of an interface, but for those of its link."""
        with self.doing(f"list addresses of interface {ifindex}"):
            return list(map(IPv6Interface, addressing.of(self.rtnl, ifindex, 6)))

    def uplink_ipv6(self, ifindex: int) -> list[UplinkIPv6]:
        """All IPv6 addresses of an interface, and what is wrong with each, in the kernel's order."""
        with self.doing(f"list addresses of interface {ifindex}"):
            return addressing.judged_ipv6(self.rtnl, ifindex)

    def interface_with(self, address: IPv6Address) -> int:
        """The ifindex of the first interface that has this address; 0: none has it."""
        with self.doing("list IPv6 addresses"):
            return addressing.holder_of(self.rtnl, address)

    def remove_own_ipv6(self, found: Link) -> None:
        """Take the IPv6 addresses away that we have given an interface of ours."""
        with self.doing(f"remove IPv6 addresses of {found.name}"):
            addressing.remove_own_ipv6(self.rtnl, found.ifindex)

    def neighbours(self, bridge: int, family: Family[A, N]) -> Neighbours[A]:
        """Containers' addresses of a family and MACs, as bridge and neighbour table know them."""
        dump, address = self.rtnl.bulk.dump, family.address
        by_device = body(message(ndmsg, [("NDA_IFINDEX", bridge)], family=AF[family.version]))
        addresses = list(map(_neighbour, dump(RTM_GETNEIGH, by_device)))
        # By the bridge, or the kernel would list every peer's entry of the vxlan device too.
        by_master = body(message(ndmsg, [("NDA_MASTER", bridge)], family=AF_BRIDGE))
        ports = map(_neighbour, dump(RTM_GETNEIGH, by_master))
        return Neighbours(
            {
                address(found[NDA_DST]): MacAddress(found[NDA_LLADDR])
                for _, state, found in addresses
                if state & NUD_USABLE and NDA_LLADDR in found
            },
            {
                MacAddress(found[NDA_LLADDR]): port
                for port, state, found in ports
                # Permanent: the port's own address, not that of something behind it.
                if to_number(found.get(NDA_MASTER, b"")) == bridge and not state & NUD_PERMANENT
            },
            frozenset(address(found[NDA_DST]) for _, state, found in addresses if state & _NUD_UNASKED),
        )

    def unresolved(self, family: Family[A, N]) -> frozenset[A]:
        """Addresses whose MAC was asked for in vain, by ARP or NDP, or is being asked for. KernelError."""
        return self._in_state(family, NUD_FAILED | NUD_INCOMPLETE)

    def resolved(self, family: Family[A, N]) -> frozenset[A]:
        """Addresses whose MAC is known for sure, or is being verified, on any interface. KernelError."""
        return self._in_state(family, NUD_REACHABLE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT)

    def _in_state(self, family: Family[A, N], states: int) -> frozenset[A]:
        with self.doing("list neighbours"):
            request = body(message(ndmsg, family=AF[family.version]))
            found = map(_neighbour, self.rtnl.bulk.dump(RTM_GETNEIGH, request))
            return frozenset(family.address(entry[NDA_DST]) for _, state, entry in found if state & states)

    def ask(self, bridge: int, address: IPv4Address | IPv6Address) -> None:
        """Have the kernel verify a container's MAC by ARP or NDP, now."""
        with self.doing(f"ask for {address}"), suppress_missing():
            self.rtnl.neigh(
                "change", family=AF[address.version], ifindex=bridge, dst=str(address), state=NUD_PROBE
            )

    def ensure_vxlan(self, want: VxlanDevice, links: dict[int, Link]) -> int:
        """Make the vxlan device what it has to be; returns its ifindex.

        A device of that name with another tunnel is replaced if it is ours.
        """
        found = by_name(links, want.name)
        with self.doing(f"create {want.name}"):
            if found and not self._same_tunnel(found, want):
                if found.alias != OWNER:
                    what = "is another tunnel" if found.kind == "vxlan" else f"is {found.kind or 'hardware'}"
                    raise KernelError(f"{want.name} exists, is not ours and {what}: remove it, or rename it")
                link.delete(self.rtnl, found.ifindex)
                found = None
            if found is None:
                self._add_vxlan(want, links)
            ifindex = link.one(self.rtnl, ifname=want.name).ifindex
            if found is None or (found.mtu, found.up, found.alias) != (want.mtu, True, OWNER):
                self._set_up(ifindex, want, links, new=found is None)
            if found and found.mac != want.mac:
                # Only then: to set even the same MAC flushes the neighbours, permanent ones too.
                link.change(self.rtnl, ifindex, mac=want.mac)
            if want.address.version == 6:
                # What a new device may have hangs on conf.default, which hardened hosts set against it.
                sysctl.put({sysctl.disable_ipv6(want.name): "0", sysctl.accept_ra(want.name): "0"})
            addressing.set_only(self.rtnl, ifindex, want.address)
        return ifindex

    def _add_vxlan(self, want: VxlanDevice, links: dict[int, Link]) -> None:
        try:
            link.add_vxlan(self.rtnl, want)
        except Refused as error:
            if error.code != errno.EEXIST:
                raise
            other = taken.by_vni(self.rtnl, want.vni, want.port, links.values())
            raise KernelError(
                f"{other} has VNI {want.vni} on port {want.port}: "
                "remove it, or choose another VNI for the network (ovctl network init --vni)"
            ) from error

    def _set_up(self, ifindex: int, want: VxlanDevice, links: dict[int, Link], *, new: bool) -> None:
        """The vxlan device opens its UDP socket now; one that is `new` goes again where it cannot."""
        try:
            link.change(self.rtnl, ifindex, mtu=want.mtu, alias=OWNER, up=True)
        except Refused as error:
            if error.code != errno.EADDRINUSE:
                raise
            if new:
                link.delete(self.rtnl, ifindex)
            other = taken.by_port(self.rtnl, want.port, links.values(), want.name)
            raise KernelError(_port_taken(want.port, other)) from error

    def check_port(self, port: int) -> None:
        """KernelError if somebody has it who would let no vxlan device of ours have it too."""
        with self.doing(f"look who has UDP port {port}"):
            other = taken.surely_by(self.rtnl, port, self.links().values())
        if other:
            raise KernelError(_port_taken(port, other))

    def _same_tunnel(self, found: Link, want: VxlanDevice) -> bool:
        if found.kind != "vxlan":
            return False
        wanted = link.Vxlan(want.vni, want.port, want.uplink, want.local, learning=False)
        return link.tunnel(self.rtnl, found.ifindex) == wanted

    def ensure_tun(self, name: str, address: IPv4Interface, mtu: int) -> int:
        """Address, MTU and state of the forwarder's device; returns its ifindex."""
        with self.doing(f"set up {name}"):
            found = link.one(self.rtnl, ifname=name)
            if (found.mtu, found.up) != (mtu, True):
                link.change(self.rtnl, found.ifindex, mtu=mtu, up=True)
            addressing.set_only(self.rtnl, found.ifindex, address)
        return found.ifindex

    def ensure_bridge(
        self, want: BridgeDevice, links: dict[int, Link], plugged: int | None
    ) -> tuple[int, str]:
        """Make or adopt the bridge: (ifindex, what is wrong with an adopted one or "").

        An adopted bridge keeps its settings; it only gets our address if it has none, or if it is there for
        CNI and nothing is plugged in. `links`: looked at by ctl.core.bridge; `plugged`: how many ports an
        adopted one has, None: it is ours, or not there yet.
        """
        found = by_name(links, want.name)
        with self.doing(f"create bridge {want.name}"):
            if found is None:
                link.add_bridge(self.rtnl, want)
                ifindex = link.one(self.rtnl, ifname=want.name).ifindex
                link.change(self.rtnl, ifindex, alias=OWNER)
            else:
                ifindex = found.ifindex
            if found is None or not found.up:
                link.change(self.rtnl, ifindex, up=True)
            if plugged is None and found:
                mtu = plan_bridge_mtu(found, want.mtu, links.values())
                if found.mtu != mtu:
                    link.change(self.rtnl, ifindex, mtu=mtu)
            return ifindex, self._bridge_address(ifindex, want, want.address, plugged)

    def ensure_ipv6_on_bridge(self, ifindex: int, want: BridgeDevice, plugged: int | None) -> str:
        """What is wrong with its IPv6 address, or "". `want` has one; `plugged`: see ensure_bridge."""
        assert want.ipv6 is not None
        with self.doing(f"give {want.name} {want.ipv6}"):
            return self._bridge_address(ifindex, want, want.ipv6, plugged)

    def put_back_mac(self, found: Link, mac: MacAddress) -> None:
        """Give an interface the MAC that it was made with."""
        log.warning("%s had the MAC %s: put back to %s", found.name, found.mac, mac)
        with self.doing(f"put the MAC of {found.name} back"):
            link.change(self.rtnl, found.ifindex, mac=mac)

    def _bridge_address(
        self, ifindex: int, want: BridgeDevice, address: IPv4Interface | IPv6Interface, plugged: int | None
    ) -> str:
        present = addressing.of(self.rtnl, ifindex, address.version)
        others = bridge.in_the_way(present, address, ours=plugged is None, by_cni=want.by_cni)
        if others and plugged is not None:
            if plugged or not want.by_cni:
                return bridge.misplaced(want, address, others[0], plugged)
            log.warning("%s had %s and no port: it has %s now", want.name, others[0], address)
        addressing.put(self.rtnl, ifindex, address, others)
        self._bridge_route(ifindex, address)
        return ""

    def _bridge_route(self, ifindex: int, address: IPv4Interface | IPv6Interface) -> None:
        """The route that came with the address: the kernel does not make it again for who flushes it."""
        inside = address.network.broadcast_address - 1
        inside -= inside == address.ip
        with suppress(Refused):  # no route at all
            if fib.route_to(self.rtnl, inside)[0] == ifindex:
                return
        # As the kernel makes it.
        ipv4, ipv6 = {"prefsrc": str(address.ip), "scope": RT_SCOPE_LINK}, {"priority": _IPV6_METRIC}
        try:
            self.rtnl.route(
                "add",
                family=AF[address.version],
                dst=str(address.network),
                oif=ifindex,
                table=MAIN_TABLE,
                proto=rt_proto["kernel"],
                **(ipv4 if address.version == 4 else ipv6),
            )
        except Refused as error:
            if error.code != errno.EEXIST:  # there, but a more specific one of someone else counts more
                raise
        else:
            log.warning("the route to our containers (%s) was gone: made again", address.network)

    def remove(self, found: Link) -> None:
        with self.doing(f"remove {found.name}"), suppress_missing():
            link.delete(self.rtnl, found.ifindex)


def _port_taken(port: int, other: str) -> str:
    return (
        f"UDP port {port}, which the vxlan device needs, is taken by {other}: "
        "end that, or choose another port for the network (ovctl network init --port)"
    )


def names(interfaces: Iterable[int]) -> list[str]:
    """What interfaces are called, by ifindex; 0 and those that are gone have no name."""
    found = []
    for ifindex in interfaces:
        with suppress(OSError):
            found.append(if_indextoname(ifindex))
    return found


def by_name(links: Mapping[int, Link], name: str) -> Link | None:
    """The interface of that name."""
    return next((found for found in links.values() if found.name == name), None)


def _neighbour(content: bytes) -> tuple[int, int, dict[int, bytes]]:
    """(ifindex, state, attributes) of struct ndmsg."""
    _, ifindex, state, _, _ = NDMSG.unpack_from(content)
    return ifindex, state, attributes(content, NDMSG.size)
