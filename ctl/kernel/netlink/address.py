"""IPv4 addresses of all interfaces, as the kernel lists them."""

from __future__ import annotations

from ipaddress import IPv4Address
from socket import AF_INET
from typing import Final

from pyroute2.netlink.rtnl import RTM_GETADDR
from pyroute2.netlink.rtnl.ifaddrmsg import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_SECONDARY,
    IFA_F_TENTATIVE,
    ifaddrmsg,
)
from pyroute2.netlink.rtnl.rtmsg import RT_SCOPE_LINK

from ctl.core.candidates import Address
from ctl.kernel.netlink.message import attributes, body, layout, message, number_of, to_number
from ctl.kernel.netlink.socket import Rtnl

_HEAD: Final = layout(ifaddrmsg)
_LOCAL, _FLAGS = (number_of(ifaddrmsg, f"IFA_{name}") for name in ("LOCAL", "FLAGS"))
_FADING: Final = IFA_F_DEPRECATED | IFA_F_TENTATIVE | IFA_F_DADFAILED


def listing(rtnl: Rtnl) -> dict[int, tuple[Address, ...]]:
    """The addresses of each interface that has any, in the kernel's order (primary first). Refused."""
    found: dict[int, tuple[Address, ...]] = {}
    for content in rtnl.bulk.dump(RTM_GETADDR, body(message(ifaddrmsg, family=AF_INET))):
        ifindex, address = parse(content)
        found[ifindex] = (*found.get(ifindex, ()), address)
    return found


def parse(content: bytes) -> tuple[int, Address]:
    """(ifindex, address) of an address's message. Of a point-to-point link it is our end's."""
    _, length, _, scope, ifindex = _HEAD.unpack_from(content)
    found = attributes(content, _HEAD.size)
    flags = to_number(found.get(_FLAGS, b""))
    address = Address(
        IPv4Address(found[_LOCAL]),
        length,
        narrow=scope >= RT_SCOPE_LINK,
        secondary=bool(flags & IFA_F_SECONDARY),
        fading=bool(flags & _FADING),
    )
    return ifindex, address
