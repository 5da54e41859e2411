"""Interfaces: told by IPRoute's calls, listed by messages that are taken apart here.

A host with 250 containers has 501 links, which are listed two or three times a pass: pyroute2
takes 206 ms to unpack them (410 us each), `parse` 17. Names and numbers are pyroute2's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_GETLINK
from pyroute2.netlink.rtnl.ifinfmsg import (
    IFF_UP,
    XDP_FLAGS_DRV_MODE,
    XDP_FLAGS_REPLACE,
    XDP_FLAGS_UPDATE_IF_NOEXIST,
    ifinfmsg,
)

from ctl.core.host import BridgeDevice, FarEnd, Link, VxlanDevice
from ctl.core.losing import Device
from ctl.core.model import MacAddress
from ctl.kernel.netlink.message import (
    Attribute,
    attributes,
    body,
    layout,
    message,
    nested,
    number_of,
    raw,
    text,
    to_number,
)
from ctl.kernel.netlink.socket import Rtnl, suppress_missing

_GET: Final = (RTM_GETLINK, NLM_F_REQUEST)
"""IPRoute's "get" without the acknowledgement that it leaves in memory."""
_SKIP_STATISTICS: Final = 1 << 3
"""RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h."""

_HEAD: Final = layout(ifinfmsg)
_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _LINKINFO, _IFALIAS, _LINK_NETNSID, _XDP = (
    number_of(ifinfmsg, f"IFLA_{name}")
    for name in ("ADDRESS", "IFNAME", "MTU", "LINK", "MASTER", "LINKINFO", "IFALIAS", "LINK_NETNSID", "XDP")
)
_QDISC, _MAX_MTU = (number_of(ifinfmsg, f"IFLA_{name}") for name in ("QDISC", "MAX_MTU"))
_ETH_MAX_MTU: Final = 65535
"""Of a veth, unless there is XDP at its other end: then by how much that takes (veth_xdp_set)."""
_INFO_KIND: Final = number_of(ifinfmsg.ifinfo, "IFLA_INFO_KIND")
_XDP_IDS: Final = tuple(
    number_of(ifinfmsg.xdp, f"IFLA_XDP_{mode}PROG_ID") for mode in ("", "DRV_", "SKB_", "HW_")
)
"""Attributes with the id of the XDP program; where an interface has several, of the driver's, the stack's
and the hardware's."""


@dataclass(frozen=True, slots=True)
class Vxlan:
    """The tunnel of a vxlan device; 0 and 0.0.0.0 for what it has not set."""

    vni: int
    port: int
    uplink: int
    local: IPv4Address | IPv6Address
    learning: bool


def listing(rtnl: Rtnl) -> list[Link]:
    """All interfaces. Refused."""
    request = body(message(ifinfmsg, [("IFLA_EXT_MASK", _SKIP_STATISTICS)]))
    return [parse(content) for content in rtnl.bulk.dump(RTM_GETLINK, request)]


def one(rtnl: Rtnl, **which: int | str) -> Link:
    """An interface by its `index` or its `ifname`. Refused if there is none."""
    (found,) = rtnl.link(_GET, ext_mask=_SKIP_STATISTICS, **which)
    return parse(raw(found))


def parse(content: bytes) -> Link:
    """A link by its message."""
    _, hardware, ifindex, flags, _ = _HEAD.unpack_from(content)
    found = attributes(content, _HEAD.size)
    mac = found.get(_ADDRESS, b"")
    info = attributes(found.get(_LINKINFO, b""))
    netns, elsewhere = to_number(found.get(_LINK_NETNSID, b"")), _LINK_NETNSID in found
    kind, largest = text(info.get(_INFO_KIND, b"")), to_number(found.get(_MAX_MTU, b""))
    return Link(
        ifindex=ifindex,
        name=text(found.get(_IFNAME, b"")),
        kind=kind,
        mac=MacAddress(mac) if len(mac) == 6 else None,
        mtu=to_number(found.get(_MTU, b"")),
        up=bool(flags & IFF_UP),
        master=to_number(found.get(_MASTER, b"")),
        peer_elsewhere=elsewhere,
        alias=text(found.get(_IFALIAS, b"")),
        xdp=_xdp(found.get(_XDP, b"")),
        # Of another namespace the number says nothing here.
        lower=0 if elsewhere else to_number(found.get(_LINK, b"")),
        qdisc=text(found.get(_QDISC, b"")),
        peer_xdp=kind == "veth" and largest not in (0, _ETH_MAX_MTU),
        type=hardware,
        peer=FarEnd(netns, to_number(found.get(_LINK, b""))) if elsewhere and kind == "veth" else None,
    )


def _xdp(inner: bytes) -> int:
    """Id of an XDP program in whichever mode; 0: none."""
    found = attributes(inner)
    return next((ident for mode in _XDP_IDS if (ident := to_number(found.get(mode, b"")))), 0)


def traffic(rtnl: Rtnl, ifindex: int) -> Device:
    """What an interface has counted. Refused if there is none."""
    found = _statistics(rtnl, index=ifindex)
    return Device(rx=found["rx_packets"], tx=found["tx_packets"])


def counted(rtnl: Rtnl, port: Link) -> tuple[int, int, int, int] | None:
    """What a container with this port has sent and received: packets and bytes each; None if it is gone.

    Of a veth the container's end says so, in whichever namespace: what redirect_peer brings there, no one
    else sees. Refused.
    """
    far = port.peer
    where = {"index": far.ifindex, "if_netnsid": far.netns} if far else {"index": port.ifindex}
    found: Mapping[str, int] = {}
    with suppress_missing():
        found = _statistics(rtnl, **where)
    if not found:
        return None
    sent, received = (found["tx_packets"], found["tx_bytes"]), (found["rx_packets"], found["rx_bytes"])
    return (*sent, *received) if far else (*received, *sent)


def _statistics(rtnl: Rtnl, **which: int) -> Mapping[str, int]:
    """The counters of an interface by the names of struct rtnl_link_stats64. Refused if there is none."""
    (found,) = rtnl.link(_GET, **which)
    counters: Mapping[str, int] = found.get("stats64")
    return counters


def tunnel(rtnl: Rtnl, ifindex: int) -> Vxlan:
    """The tunnel of a vxlan device. Refused if there is no such interface."""
    (found,) = rtnl.link(_GET, ext_mask=_SKIP_STATISTICS, index=ifindex)
    data = found.get(("linkinfo", "data"))
    return Vxlan(
        vni=data.get("vxlan_id") or 0,
        port=data.get("vxlan_port") or 0,
        uplink=data.get("vxlan_link") or 0,
        local=ip_address(data.get("vxlan_local6") or data.get("vxlan_local") or "0.0.0.0"),
        learning=bool(data.get("vxlan_learning")),
    )


def udp_port(rtnl: Rtnl, found: Link) -> int:
    """The UDP port on which a tunnel receives; 0 for any other interface, or one that has gone. Refused."""
    if found.kind not in ("vxlan", "geneve"):
        return 0
    return int(_data(rtnl, found).get(f"{found.kind}_port") or 0)


def is_alone(rtnl: Rtnl, found: Link) -> bool:
    """Whether a vxlan device shares its port with none such as ours. Refused."""
    data = _data(rtnl, found)
    return any(data.get(f"vxlan_{flag}") for flag in _RECEIVING)


_RECEIVING: Final = ("collect_metadata", "gbp", "gpe", "remcsum_rx", "udp_zero_csum6_rx")
"""What a vxlan device may ask of its socket, and ours does not: VXLAN_F_RCV_FLAGS of include/net/vxlan.h."""


def _data(rtnl: Rtnl, found: Link) -> Any:
    """What only its kind of interface has; nothing of one that has gone. Refused."""
    answers: list[Any] = []
    with suppress_missing():
        answers = rtnl.link(_GET, ext_mask=_SKIP_STATISTICS, index=found.ifindex)
    return answers[0].get(("linkinfo", "data")) if answers else {}


def change(
    rtnl: Rtnl,
    ifindex: int,
    *,
    up: bool | None = None,
    name: str | None = None,
    alias: str | None = None,
    mac: MacAddress | None = None,
    mtu: int | None = None,
    master: int | None = None,
) -> None:
    """What is to be different about an interface; an empty alias takes it away. Refused."""
    state = None if up is None else "up" if up else "down"
    address = None if mac is None else str(mac)
    wanted = {
        "state": state,
        "ifname": name,
        "ifalias": alias,
        "address": address,
        "mtu": mtu,
        "master": master,
    }
    rtnl.link("set", index=ifindex, **{word: value for word, value in wanted.items() if value is not None})


def add_vxlan(rtnl: Rtnl, want: VxlanDevice) -> None:
    """A new vxlan device, down. Refused.

    Over IPv6 its UDP checksums are computed, and asked for of what comes (RFC 8200, 8.1): the kernel's
    default, and flannel's. Over IPv4 they are 0 (RFC 7348, section 5).
    """
    over_ipv4 = want.local.version == 4
    rtnl.link(
        "add",
        ifname=want.name,
        address=str(want.mac),
        mtu=want.mtu,
        kind="vxlan",
        vxlan_id=want.vni,
        vxlan_link=want.uplink,
        vxlan_port=want.port,
        vxlan_learning=0,
        **({"vxlan_local": str(want.local)} if over_ipv4 else {"vxlan_local6": str(want.local)}),
        **({"vxlan_udp_csum": 0} if over_ipv4 else {}),
    )


def add_bare_vxlan(rtnl: Rtnl, name: str, vni: int, port: int, mac: MacAddress, *, ipv6: bool) -> None:
    """A new vxlan device that leads nowhere, down. `ipv6`: over IPv6. Refused."""
    over = {"vxlan_local6": "::1"} if ipv6 else {}
    rtnl.link("add", ifname=name, address=str(mac), kind="vxlan", vxlan_id=vni, vxlan_port=port, **over)


def add_bridge(rtnl: Rtnl, want: BridgeDevice) -> None:
    """A new bridge, down. Refused."""
    rtnl.link("add", ifname=want.name, address=str(want.mac), mtu=want.mtu, kind="bridge")


def stop_learning(rtnl: Rtnl, ifindex: int) -> None:
    """Have a vxlan device learn nothing from what it receives. Refused."""
    rtnl.link("set", index=ifindex, kind="vxlan", vxlan_learning=0)


def set_xdp(rtnl: Rtnl, ifindex: int, fd: int, expected: int | None) -> None:
    """Attach an XDP program (-1: none) in the driver. Refused, with the driver's words.

    In place of the open program `expected`, or (None) where there is none: never of another one.
    """
    how = XDP_FLAGS_UPDATE_IF_NOEXIST if expected is None else XDP_FLAGS_REPLACE
    wanted: list[Attribute] = [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", XDP_FLAGS_DRV_MODE | how)]
    if expected is not None:
        wanted.append(("IFLA_XDP_EXPECTED_FD", expected))
    rtnl.link("set", index=ifindex, xdp=nested(ifinfmsg.xdp, wanted))


def delete(rtnl: Rtnl, ifindex: int) -> None:
    """Remove an interface. Refused."""
    rtnl.link("del", index=ifindex)
