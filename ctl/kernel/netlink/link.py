"""Interfaces and their addresses as rtnetlink has them: messages to values and back.

Formats: struct ifinfomsg and IFLA_* of linux/if_link.h, struct ifaddrmsg of linux/if_addr.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from socket import AF_INET
from typing import Final

from ctl.core.host import BridgeDevice, Link, VxlanDevice
from ctl.core.model import MacAddress
from ctl.kernel.netlink.socket import attribute, attributes, number, text, to_number

_IFINFO: Final = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, ifindex, flags, which flags to change."""
_IFADDR: Final = struct.Struct("=BBBBi")
"""struct ifaddrmsg: family, prefix length, flags, scope, ifindex."""

_IFF_UP: Final = 1
_ADDRESS, _IFNAME, _MTU, _MASTER, _LINKINFO, _IFALIAS = 1, 3, 4, 10, 18, 20
_EXT_MASK, _LINK_NETNSID, _XDP = 29, 37, 43
_SKIP_STATISTICS: Final = 1 << 3
_INFO_KIND, _INFO_DATA = 1, 2
_VXLAN_ID, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_UDP_CSUM = 1, 3, 4, 7, 15, 18
_XDP_FD, _XDP_FLAGS, _XDP_EXPECTED_FD = 1, 3, 8
_XDP_IDS: Final = (4, 5, 6, 7)
"""IFLA_XDP_PROG_ID, and of the driver's, the stack's and the hardware's hook, where there are several."""
_NESTED: Final = 1 << 15
"""NLA_F_NESTED."""
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


@dataclass(frozen=True, slots=True)
class Vxlan:
    """The tunnel of a vxlan device; 0 and 0.0.0.0 for what it has not set."""

    vni: int
    port: int
    uplink: int
    local: IPv4Address
    learning: bool


def which(ifindex: int = 0, name: str = "") -> bytes:
    """Names one interface, by either; none: all of them. Their counters are not asked for."""
    named = attribute(_IFNAME, name.encode() + b"\0") if name else b""
    return _IFINFO.pack(0, 0, ifindex, 0, 0) + attribute(_EXT_MASK, number(_SKIP_STATISTICS)) + named


def parse(body: bytes) -> Link:
    """A link by its message."""
    _, _, ifindex, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body, _IFINFO.size)
    mac = found.get(_ADDRESS, b"")
    info = attributes(found.get(_LINKINFO, b""))
    return Link(
        ifindex=ifindex,
        name=text(found.get(_IFNAME, b"")),
        kind=text(info.get(_INFO_KIND, b"")),
        mac=MacAddress(mac) if len(mac) == 6 else None,
        mtu=to_number(found.get(_MTU, b"")),
        up=bool(flags & _IFF_UP),
        master=to_number(found.get(_MASTER, b"")),
        peer_elsewhere=_LINK_NETNSID in found,
        alias=text(found.get(_IFALIAS, b"")),
        xdp=_xdp(found.get(_XDP, b"")),
    )


def _xdp(nested: bytes) -> int:
    """Id of an XDP program in whichever mode; 0: none."""
    found = attributes(nested)
    return next((ident for mode in _XDP_IDS if (ident := to_number(found.get(mode, b"")))), 0)


def parse_vxlan(body: bytes) -> Vxlan:
    """The tunnel of a vxlan device, by its link's message."""
    info = attributes(attributes(body, _IFINFO.size).get(_LINKINFO, b""))
    data = attributes(info.get(_INFO_DATA, b""))
    return Vxlan(
        vni=to_number(data.get(_VXLAN_ID, b"")),
        port=int.from_bytes(data.get(_VXLAN_PORT, b""), "big"),
        uplink=to_number(data.get(_VXLAN_LINK, b"")),
        local=IPv4Address(data.get(_VXLAN_LOCAL, bytes(4))),
        learning=bool(to_number(data.get(_VXLAN_LEARNING, b""))),
    )


def changes(
    ifindex: int,
    *,
    up: bool | None = None,
    name: str | None = None,
    alias: str | None = None,
    mac: MacAddress | None = None,
    mtu: int | None = None,
    master: int | None = None,
) -> bytes:
    """What is to be different about an interface; an empty alias takes it away."""
    body = _IFINFO.pack(0, 0, ifindex, _IFF_UP if up else 0, 0 if up is None else _IFF_UP)
    if name is not None:
        body += attribute(_IFNAME, name.encode() + b"\0")
    if alias is not None:
        body += attribute(_IFALIAS, alias.encode())
    if mac is not None:
        body += attribute(_ADDRESS, mac.packed)
    if mtu is not None:
        body += attribute(_MTU, number(mtu))
    if master is not None:
        body += attribute(_MASTER, number(master))
    return body


def vxlan(want: VxlanDevice) -> bytes:
    """A new vxlan device, down."""
    data = (
        attribute(_VXLAN_ID, number(want.vni))
        + attribute(_VXLAN_LINK, number(want.uplink))
        + attribute(_VXLAN_LOCAL, want.local.packed)
        + attribute(_VXLAN_PORT, want.port.to_bytes(2, "big"))
        + attribute(_VXLAN_LEARNING, b"\0")
        + attribute(_VXLAN_UDP_CSUM, b"\0")
    )
    return changes(0, name=want.name, mac=want.mac, mtu=want.mtu) + _info("vxlan", data)


def bare_vxlan(name: str, vni: int, port: int, mac: MacAddress) -> bytes:
    """A new vxlan device that leads nowhere, down."""
    data = attribute(_VXLAN_ID, number(vni)) + attribute(_VXLAN_PORT, port.to_bytes(2, "big"))
    return changes(0, name=name, mac=mac) + _info("vxlan", data)


def bridge(want: BridgeDevice) -> bytes:
    """A new bridge, down."""
    return changes(0, name=want.name, mac=want.mac, mtu=want.mtu) + _info("bridge")


def not_learning(ifindex: int) -> bytes:
    """A vxlan device is not to learn from what it receives."""
    return changes(ifindex) + _info("vxlan", attribute(_VXLAN_LEARNING, b"\0"))


def _info(kind: str, data: bytes = b"") -> bytes:
    return attribute(
        _LINKINFO, attribute(_INFO_KIND, kind.encode()) + (attribute(_INFO_DATA, data) if data else b"")
    )


def xdp(ifindex: int, fd: int, flags: int, expected: int | None) -> bytes:
    """Attach an XDP program (-1: none), in place of `expected` where the flags say so."""
    nested = attribute(_XDP_FD, struct.pack("=i", fd)) + attribute(_XDP_FLAGS, number(flags))
    if expected is not None:
        nested += attribute(_XDP_EXPECTED_FD, struct.pack("=i", expected))
    return changes(ifindex) + attribute(_XDP | _NESTED, nested)


def addresses_of(ifindex: int) -> bytes:
    """Asks for an interface's IPv4 addresses."""
    return _IFADDR.pack(AF_INET, 0, 0, 0, ifindex)


def address(ifindex: int, value: IPv4Interface) -> bytes:
    """An address on an interface, to be added or removed."""
    head = _IFADDR.pack(AF_INET, value.network.prefixlen, 0, 0, ifindex)
    return head + attribute(_IFA_LOCAL, value.ip.packed) + attribute(_IFA_ADDRESS, value.ip.packed)


def parse_address(body: bytes) -> IPv4Interface:
    """An interface's address by its message."""
    found = attributes(body, _IFADDR.size)
    return IPv4Interface((found[_IFA_LOCAL], body[1]))
