"""rtnetlink: what the host looks like, and the devices of the kernel path.

One Netlink belongs to one thread: pyroute2 has a private event loop for each.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Interface
from socket import AF_BRIDGE, AF_INET
from typing import Any, Final, Self

from pyroute2 import IPRoute, NetlinkError

from ctl.errors import KernelError
from ctl.host import OWNER, BridgeDevice, Link, Neighbours, VxlanDevice
from ctl.kernel.rtnl import (
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDA_MASTER,
    NDMSG,
    RTM_GETNEIGH,
    Rtnl,
    attribute,
    attributes,
)
from ctl.model import MacAddress

_IFF_UP: Final = 1
NUD_USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
"""Reachable, stale, delay, probe, permanent: there is a MAC (linux/neighbour.h)."""
_NUD_UNASKED: Final = 0x02 | 0x04
"""Reachable, stale."""
_NUD_PERMANENT: Final = 0x80
GONE: Final = (0, errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EINVAL)
"""How the kernel answers a removal that worked, or that someone else was quicker with."""


class Netlink:
    """An rtnetlink session. Failures are KernelError with what was being done."""

    def __init__(self) -> None:
        self.ipr: Final = IPRoute(ext_ack=True)  # drivers say why they refuse XDP
        self.rtnl: Final = Rtnl()
        """For what there are thousands of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.ipr.close()
        self.rtnl.close()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turn the kernel's errno into a line that names the thing."""
        try:
            yield
        except NetlinkError as error:
            raise KernelError(f"{what}: {words(error)}") from error
        except LookupError as error:
            # Listed a moment ago, gone now: another event is under way.
            raise KernelError(f"{what}: it vanished meanwhile") from error

    def links(self) -> dict[int, Link]:
        """All interfaces by ifindex."""
        with self.doing("list interfaces"):
            return {message["index"]: _link(message) for message in self.ipr.get_links()}

    def addresses(self, ifindex: int) -> list[IPv4Interface]:
        """IPv4 addresses of an interface, in the kernel's order (primary first)."""
        with self.doing(f"list addresses of interface {ifindex}"):
            found = self.ipr.get_addr(family=AF_INET, index=ifindex)
            return [IPv4Interface((m.get("IFA_LOCAL"), m["prefixlen"])) for m in found]

    def neighbours(self, bridge: int) -> Neighbours:
        """Containers' addresses and MACs, as bridge and neighbour table know them."""
        which = bridge.to_bytes(4, sys.byteorder)
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
            self.ipr.neigh("change", dst=str(address), ifindex=bridge, state="probe")

    def ensure_vxlan(self, want: VxlanDevice, links: dict[int, Link]) -> int:
        """Make the vxlan device what it has to be; returns its ifindex.

        A device of that name with another tunnel is replaced if it is ours.
        """
        found = next((link for link in links.values() if link.name == want.name), None)
        with self.doing(f"create {want.name}"):
            if found and not self._same_tunnel(found, want):
                if found.alias != OWNER:
                    raise KernelError(f"{want.name} exists, is not ours and is another tunnel: remove it")
                self.ipr.link("del", index=found.ifindex)
                found = None
            if found is None:
                self._add_vxlan(want)
            ifindex: int = self.ipr.link_lookup(ifname=want.name)[0]
            if found is None or (found.mtu, found.up, found.alias) != (want.mtu, True, OWNER):
                self.ipr.link("set", index=ifindex, mtu=want.mtu, ifalias=OWNER, state="up")
            if found and found.mac != want.mac:
                # Only then: to set even the same MAC flushes the neighbours, permanent ones too.
                self.ipr.link("set", index=ifindex, address=str(want.mac))
            self._only_address(ifindex, want.address)
        return ifindex

    def _add_vxlan(self, want: VxlanDevice) -> None:
        try:
            self.ipr.link(
                "add",
                ifname=want.name,
                kind="vxlan",
                vxlan_id=want.vni,
                vxlan_link=want.uplink,
                vxlan_local=str(want.local),
                vxlan_port=want.port,
                vxlan_learning=0,
                vxlan_udp_csum=0,
                address=str(want.mac),
                mtu=want.mtu,
            )
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                raise KernelError(
                    f"another vxlan device has VNI {want.vni} on port {want.port}: "
                    "remove it, or choose another VNI for the network"
                ) from error
            raise

    def _same_tunnel(self, link: Link, want: VxlanDevice) -> bool:
        if link.kind != "vxlan":
            return False
        data = self.ipr.get_links(link.ifindex)[0].get(("linkinfo", "data"))
        return (data.get("IFLA_VXLAN_ID"), data.get("IFLA_VXLAN_PORT"), data.get("IFLA_VXLAN_LINK"),
                data.get("IFLA_VXLAN_LOCAL"), data.get("IFLA_VXLAN_LEARNING")) == (
                    want.vni, want.port, want.uplink, str(want.local), 0)  # fmt: skip

    def ensure_tun(self, name: str, address: IPv4Interface, mtu: int) -> int:
        """Address, MTU and state of the forwarder's device; returns its ifindex."""
        with self.doing(f"set up {name}"):
            ifindex: int = self.ipr.link_lookup(ifname=name)[0]
            link = _link(self.ipr.get_links(ifindex)[0])
            if (link.mtu, link.up) != (mtu, True):
                self.ipr.link("set", index=ifindex, mtu=mtu, state="up")
            self._only_address(ifindex, address)
        return ifindex

    def _only_address(self, ifindex: int, address: IPv4Interface) -> None:
        present = self.addresses(ifindex)
        if address not in present:
            self.ipr.addr("add", index=ifindex, address=str(address.ip), prefixlen=address.network.prefixlen)
        for other in present:
            if other != address:
                self.ipr.addr("del", index=ifindex, address=str(other.ip), prefixlen=other.network.prefixlen)

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
                self.ipr.link("add", ifname=want.name, kind="bridge", address=str(want.mac), mtu=want.mtu)
                ifindex: int = self.ipr.link_lookup(ifname=want.name)[0]
                self.ipr.link("set", index=ifindex, ifalias=OWNER)
            else:
                ifindex = found.ifindex
            if found is None or not found.up:
                self.ipr.link("set", index=ifindex, state="up")
            ours = found is None or found.alias == OWNER
            if ours and found and found.mtu != want.mtu:
                self.ipr.link("set", index=ifindex, mtu=want.mtu)
            return ifindex, self._bridge_address(ifindex, want, ours)

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

    def remove(self, link: Link) -> None:
        with self.doing(f"remove {link.name}"), suppress_missing():
            self.ipr.link("del", index=link.ifindex)


def _neighbour(body: bytes) -> tuple[int, int, dict[int, bytes]]:
    """(ifindex, state, attributes) of struct ndmsg."""
    _, ifindex, state, _, _ = NDMSG.unpack_from(body)
    return ifindex, state, attributes(body, NDMSG.size)


def words(error: NetlinkError) -> str:
    """The kernel's reason, without its number."""
    return str(error.args[1] if len(error.args) > 1 else error)


@contextmanager
def suppress_missing() -> Iterator[None]:
    """What is to be removed, or asked for, may be gone already."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in GONE:
            raise


def _xdp(message: Any) -> int:
    """Id of an XDP program in whichever mode; 0: none."""
    details = message.get("IFLA_XDP")
    modes = ("IFLA_XDP_PROG_ID", "IFLA_XDP_DRV_PROG_ID", "IFLA_XDP_SKB_PROG_ID", "IFLA_XDP_HW_PROG_ID")
    return next((details.get(mode) for mode in modes if details and details.get(mode)), 0)


def _link(message: Any) -> Link:
    address = message.get("IFLA_ADDRESS")
    mac = None
    with suppress(ValueError):
        mac = MacAddress.parse(address or "")
    return Link(
        ifindex=message["index"],
        name=message.get("IFLA_IFNAME"),
        kind=message.get(("linkinfo", "kind")) or "",
        mac=mac,
        mtu=message.get("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        master=message.get("IFLA_MASTER") or 0,
        peer_elsewhere=message.get("IFLA_LINK_NETNSID") is not None,
        alias=message.get("IFLA_IFALIAS") or "",
        xdp=_xdp(message),
    )
