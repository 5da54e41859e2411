"""rtnetlink: what the host looks like, and the devices of the kernel path.

One Netlink belongs to one thread.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Interface
from socket import AF_BRIDGE, AF_INET
from typing import Final, Self

from ctl.core.errors import KernelError
from ctl.core.host import OWNER, BridgeDevice, Link, Neighbours, VxlanDevice
from ctl.core.model import MacAddress
from ctl.core.plan import plan_bridge_mtu
from ctl.kernel.netlink import link as link_messages
from ctl.kernel.netlink.socket import (
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDA_MASTER,
    NDMSG,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_OIF,
    RTA_PREFSRC,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTMSG,
    RTN_UNICAST,
    Refused,
    Rtnl,
    attribute,
    attributes,
    number,
)

log = logging.getLogger(__name__)

NUD_USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
"""Reachable, stale, delay, probe, permanent: there is a MAC (linux/neighbour.h)."""
_NUD_UNASKED: Final = 0x02 | 0x04
"""Reachable, stale."""
_RTPROT_KERNEL, _RT_SCOPE_LINK = 2, 253
"""linux/rtnetlink.h."""
_NUD_PROBE: Final = 0x10
_NUD_PERMANENT: Final = 0x80
_NEW: Final = NLM_F_CREATE | NLM_F_EXCL
GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ESRCH)
"""How the kernel answers who names something that is not there."""


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
            raise KernelError(f"{what}: {error}") from error

    def links(self) -> dict[int, Link]:
        """All interfaces by ifindex."""
        with self.doing("list interfaces"):
            found = map(link_messages.parse, self.rtnl.dump(RTM_GETLINK, link_messages.which()))
            return {link.ifindex: link for link in found}

    def link(self, ifindex: int = 0, name: str = "") -> Link:
        """One interface, by either. Refused if there is none: inside `doing`."""
        return link_messages.parse(self.rtnl.get(RTM_GETLINK, link_messages.which(ifindex, name)))

    def change(self, message: bytes) -> None:
        """Change an interface (see ctl.kernel.netlink.link). Refused: inside `doing`."""
        self.rtnl.do(RTM_NEWLINK, 0, message)

    def vxlan(self, ifindex: int) -> link_messages.Vxlan:
        """The tunnel of a vxlan device. Refused if there is none: inside `doing`."""
        return link_messages.parse_vxlan(self.rtnl.get(RTM_GETLINK, link_messages.which(ifindex)))

    def addresses(self, ifindex: int) -> list[IPv4Interface]:
        """IPv4 addresses of an interface, in the kernel's order (primary first)."""
        found: list[bytes] = []
        with self.doing(f"list addresses of interface {ifindex}"), suppress_missing():
            found.extend(self.rtnl.dump(RTM_GETADDR, link_messages.addresses_of(ifindex)))
        return [link_messages.parse_address(body) for body in found]

    def neighbours(self, bridge: int) -> Neighbours:
        """Containers' addresses and MACs, as bridge and neighbour table know them."""
        which = number(bridge)
        request = NDMSG.pack(AF_INET, 0, 0, 0, 0) + attribute(NDA_IFINDEX, which)
        addresses = list(map(_neighbour, self.rtnl.dump(RTM_GETNEIGH, request)))
        # By the bridge, or the kernel would list every peer's entry of the vxlan device too.
        ports = self.rtnl.dump(RTM_GETNEIGH, NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0) + attribute(NDA_MASTER, which))
        return Neighbours(
            {
                IPv4Address(found[NDA_DST]): MacAddress(found[NDA_LLADDR])
                for _, state, found in addresses
                if state & NUD_USABLE and NDA_LLADDR in found
            },
            {
                MacAddress(found[NDA_LLADDR]): port
                for port, state, found in map(_neighbour, ports)
                # Permanent: the port's own address, not that of something behind it.
                if found.get(NDA_MASTER) == which and not state & _NUD_PERMANENT
            },
            frozenset(IPv4Address(found[NDA_DST]) for _, state, found in addresses if state & _NUD_UNASKED),
        )

    def ask(self, bridge: int, address: IPv4Address) -> None:
        """Have the kernel verify a container's MAC by ARP, now."""
        with self.doing(f"ask for {address}"), suppress_missing():
            body = NDMSG.pack(AF_INET, bridge, _NUD_PROBE, 0, 0) + attribute(NDA_DST, address.packed)
            self.rtnl.do(RTM_NEWNEIGH, NLM_F_REPLACE, body)

    def ensure_vxlan(self, want: VxlanDevice, links: dict[int, Link]) -> int:
        """Make the vxlan device what it has to be; returns its ifindex.

        A device of that name with another tunnel is replaced if it is ours.
        """
        found = next((link for link in links.values() if link.name == want.name), None)
        with self.doing(f"create {want.name}"):
            if found and not self._same_tunnel(found, want):
                if found.alias != OWNER:
                    raise KernelError(f"{want.name} exists, is not ours and is another tunnel: remove it")
                self._delete(found)
                found = None
            if found is None:
                self._add_vxlan(want)
            ifindex = self.link(name=want.name).ifindex
            if found is None or (found.mtu, found.up, found.alias) != (want.mtu, True, OWNER):
                self.change(link_messages.changes(ifindex, mtu=want.mtu, alias=OWNER, up=True))
            if found and found.mac != want.mac:
                # Only then: to set even the same MAC flushes the neighbours, permanent ones too.
                self.change(link_messages.changes(ifindex, mac=want.mac))
            self._only_address(ifindex, want.address)
        return ifindex

    def _add_vxlan(self, want: VxlanDevice) -> None:
        try:
            self.rtnl.do(RTM_NEWLINK, _NEW, link_messages.vxlan(want))
        except Refused as error:
            if error.code == errno.EEXIST:
                raise KernelError(
                    f"another vxlan device has VNI {want.vni} on port {want.port}: "
                    "remove it, or choose another VNI for the network"
                ) from error
            raise

    def _same_tunnel(self, link: Link, want: VxlanDevice) -> bool:
        if link.kind != "vxlan":
            return False
        wanted = link_messages.Vxlan(want.vni, want.port, want.uplink, want.local, learning=False)
        return self.vxlan(link.ifindex) == wanted

    def ensure_tun(self, name: str, address: IPv4Interface, mtu: int) -> int:
        """Address, MTU and state of the forwarder's device; returns its ifindex."""
        with self.doing(f"set up {name}"):
            link = self.link(name=name)
            if (link.mtu, link.up) != (mtu, True):
                self.change(link_messages.changes(link.ifindex, mtu=mtu, up=True))
            self._only_address(link.ifindex, address)
        return link.ifindex

    def _only_address(self, ifindex: int, address: IPv4Interface) -> None:
        present = self.addresses(ifindex)
        if address not in present:
            self.rtnl.do(RTM_NEWADDR, _NEW, link_messages.address(ifindex, address))
        for other in present:
            if other != address:
                self.rtnl.do(RTM_DELADDR, 0, link_messages.address(ifindex, other))

    def ensure_bridge(self, want: BridgeDevice, links: dict[int, Link]) -> tuple[int, str]:
        """Make or adopt the bridge: (ifindex, what is wrong with an adopted one or "").

        An adopted bridge keeps its settings; it only gets our address if it has none.
        """
        found = next((link for link in links.values() if link.name == want.name), None)
        if found and found.kind != "bridge":
            raise KernelError(
                f"{want.name} is no bridge but {found.kind or 'hardware'}: choose another --bridge"
            )
        with self.doing(f"create bridge {want.name}"):
            if found is None:
                self.rtnl.do(RTM_NEWLINK, _NEW, link_messages.bridge(want))
                ifindex = self.link(name=want.name).ifindex
                self.change(link_messages.changes(ifindex, alias=OWNER))
            else:
                ifindex = found.ifindex
            if found is None or not found.up:
                self.change(link_messages.changes(ifindex, up=True))
            ours = found is None or found.alias == OWNER
            if ours and found:
                mtu = plan_bridge_mtu(found, want.mtu, links.values())
                if found.mtu != mtu:
                    self.change(link_messages.changes(ifindex, mtu=mtu))
            wrong = self._bridge_address(ifindex, want, ours)
            if not wrong:
                self._bridge_route(ifindex, want.address)
            return ifindex, wrong

    def _bridge_address(self, ifindex: int, want: BridgeDevice, ours: bool) -> str:
        present = self.addresses(ifindex)
        if want.address in present:
            return ""
        if present and not ours:
            return (
                f"bridge {want.name} has {present[0]}, not {want.address}: restart its owner with that "
                f"address (dockerd: --bip={want.address} --mtu={want.mtu})"
            )
        self._only_address(ifindex, want.address)
        return ""

    def _bridge_route(self, ifindex: int, address: IPv4Interface) -> None:
        """The route that came with the address: the kernel does not make it again for who flushes it."""
        inside = address.network.broadcast_address - 1
        inside -= inside == address.ip
        which = number(ifindex)
        with suppress(Refused):  # no route at all
            if attributes(self.rtnl.route_to(inside), RTMSG.size).get(RTA_OIF) == which:
                return
        head = RTMSG.pack(AF_INET, address.network.prefixlen, 0, 0, RT_TABLE_MAIN, _RTPROT_KERNEL,
                          _RT_SCOPE_LINK, RTN_UNICAST, 0)  # fmt: skip
        named = (
            (RTA_DST, address.network.network_address.packed),
            (RTA_OIF, which),
            (RTA_PREFSRC, address.ip.packed),
        )
        try:
            self.rtnl.do(RTM_NEWROUTE, _NEW, head + b"".join(attribute(*each) for each in named))
        except Refused as error:
            if error.code != errno.EEXIST:  # there, but a more specific one of someone else counts more
                raise
        else:
            log.warning("the route to our containers (%s) was gone: made again", address.network)

    def remove(self, link: Link) -> None:
        with self.doing(f"remove {link.name}"), suppress_missing():
            self._delete(link)

    def _delete(self, link: Link) -> None:
        self.rtnl.do(RTM_DELLINK, 0, link_messages.changes(link.ifindex))


def _neighbour(body: bytes) -> tuple[int, int, dict[int, bytes]]:
    """(ifindex, state, attributes) of struct ndmsg."""
    _, ifindex, state, _, _ = NDMSG.unpack_from(body)
    return ifindex, state, attributes(body, NDMSG.size)


@contextmanager
def suppress_missing(*, also: int = 0) -> Iterator[None]:
    """What is to be removed, or asked for, may be gone already. `also`: an errno that says so too."""
    try:
        yield
    except Refused as error:
        if error.code not in (*GONE, also):
            raise
