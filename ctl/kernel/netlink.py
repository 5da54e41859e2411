"""rtnetlink: what the host looks like, and the devices of the kernel path.

One Netlink belongs to one thread: pyroute2 has a private event loop for each.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Interface
from socket import AF_BRIDGE, AF_INET
from typing import Any, Final, Self

from pyroute2 import IPRoute, NetlinkError

from ctl.errors import AgentError, KernelError
from ctl.host import OWNER, BridgeDevice, Hop, Link, Neighbours, Uplink, VxlanDevice
from ctl.model import MacAddress

_IFF_UP: Final = 1
NUD_USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
"""Reachable, stale, delay, probe, permanent: there is a MAC (linux/neighbour.h)."""
_NUD_PERMANENT: Final = 0x80
_RTM_F_FIB_MATCH: Final = 0x2000
_RTN_UNICAST: Final = 1
_NO_ROUTE: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)


class Netlink:
    """An rtnetlink session. Failures are KernelError with what was being done."""

    def __init__(self) -> None:
        self.ipr: Final = IPRoute(ext_ack=True)  # drivers say why they refuse XDP

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.ipr.close()

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

    def uplink(self, name: str, wanted: IPv4Address | None, before: IPv4Address | None = None) -> Uplink:
        """The underlay interface: by name, or that of the default route.

        Our address is `wanted`; else the one that we had `before` while it is there (a
        second address must not take over); else the first. AgentError if there is none.
        """
        links = self.links()
        link = self._named(links, name) if name else self._default(links)
        addresses = [each.ip for each in self.addresses(link.ifindex)]
        if not addresses:
            raise AgentError(
                f"uplink {link.name} has no IPv4 address: give it one, or choose another --iface"
            )
        if wanted and wanted not in addresses:
            raise AgentError(f"uplink {link.name} does not have {wanted}: see --public-ip and --iface")
        if before not in addresses:
            before = None
        return Uplink(link, wanted or before or addresses[0])

    def _named(self, links: dict[int, Link], name: str) -> Link:
        for link in links.values():
            if link.name == name:
                return link
        raise AgentError(f"uplink {name} does not exist: see --iface")

    def _default(self, links: dict[int, Link]) -> Link:
        with self.doing("list routes"):
            routes = [r for r in self.ipr.get_default_routes(family=AF_INET) if r.get("RTA_OIF")]
        if not routes:
            raise AgentError("no default route to find the uplink by: name it with --iface")
        best = min(routes, key=lambda r: r.get("RTA_PRIORITY") or 0)
        with self.doing("find the default route's interface"):
            return links[best.get("RTA_OIF")]

    def hop(self, host: IPv4Address, uplink: Uplink) -> Hop | None:
        """How the FIB takes packets from `uplink`'s address to `host`; None if eBPF cannot.

        That is: no route, a local or unreachable one, one over several interfaces, over
        an IPv6 neighbour or another tunnel, or with a smaller MTU than the uplink's.
        """
        try:
            # The route itself, not one path that was picked of it.
            reply = self.ipr.route("get", dst=str(host), src=str(uplink.address), flags=_RTM_F_FIB_MATCH)[0]
        except NetlinkError as error:
            if error.code in _NO_ROUTE:
                return None
            raise KernelError(f"route to {host}: {words(error)}") from error
        if reply["type"] != _RTN_UNICAST or reply.get("RTA_VIA") or reply.get("RTA_ENCAP"):
            return None
        mtu = reply.get(("metrics", "mtu"))
        if mtu and mtu < uplink.link.mtu:
            return None
        if paths := reply.get("RTA_MULTIPATH"):
            interfaces = {path["oif"] for path in paths}
            return Hop(interfaces.pop(), None) if len(interfaces) == 1 else None
        gateway = reply.get("RTA_GATEWAY")
        return Hop(reply.get("RTA_OIF"), IPv4Address(gateway) if gateway else host)

    def neighbours(self, bridge: int) -> Neighbours:
        """Containers' addresses and MACs, as bridge and neighbour table know them."""
        with self.doing("list neighbours"):
            entries = self.ipr.get_neighbours(family=AF_INET, ifindex=bridge)
            macs = {
                IPv4Address(m.get("NDA_DST")): MacAddress.parse(m.get("NDA_LLADDR"))
                for m in entries
                if m["state"] & NUD_USABLE and m.get("NDA_LLADDR")
            }
            ports = {
                MacAddress.parse(m.get("NDA_LLADDR")): m["ifindex"]
                for m in self.ipr.get_neighbours(family=AF_BRIDGE)
                # Permanent: the port's own address, not that of something behind it.
                if m.get("NDA_MASTER") == bridge and not m["state"] & _NUD_PERMANENT
            }
        return Neighbours(macs, ports)

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
            if found is None or (found.mac, found.mtu, found.up, found.alias) != (
                want.mac,
                want.mtu,
                True,
                OWNER,
            ):
                self.ipr.link(
                    "set", index=ifindex, address=str(want.mac), mtu=want.mtu, ifalias=OWNER, state="up"
                )
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


def words(error: NetlinkError) -> str:
    """The kernel's reason, without its number."""
    return str(error.args[1] if len(error.args) > 1 else error)


@contextmanager
def suppress_missing() -> Iterator[None]:
    """What is to be removed may be gone already."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EINVAL):
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
