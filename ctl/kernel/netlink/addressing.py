"""The addresses of one interface: read, and made what they have to be. Of IPv6 but those of the link."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Interface, ip_interface
from typing import Any, Final

from pyroute2.netlink.rtnl import RTM_GETADDR
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD, ifaddrmsg

from ctl.core.bridge import Interface
from ctl.kernel.netlink.message import body, message, unpack
from ctl.kernel.netlink.socket import Rtnl, suppress_missing
from ctl.kernel.netlink.tables import AF


def of(rtnl: Rtnl, ifindex: int, version: int) -> Sequence[Interface]:
    """Those of that IP version, in the kernel's order (primary first). Refused."""
    return [address for address, _ in _listed(rtnl, ifindex, version)]


def lasting_ipv6(rtnl: Rtnl, ifindex: int) -> list[IPv6Interface]:
    """Those at which others can reach it for good, in the kernel's order. Refused.

    Not temporary ones (RFC 8981), nor what is going (deprecated) or is not (yet) known to be ours alone.
    """
    return [
        address
        for address, flags in _listed(rtnl, ifindex, 6)
        if isinstance(address, IPv6Interface) and not flags & _PASSING
    ]


_PASSING: Final = 0x01 | 0x08 | 0x20 | 0x40
"""IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE (linux/if_addr.h)."""


def set_only(rtnl: Rtnl, ifindex: int, address: Interface) -> None:
    """That one, and none beside it of its family. Refused."""
    present = of(rtnl, ifindex, address.version)
    put(rtnl, ifindex, address, [other for other in present if other != address])


def put(rtnl: Rtnl, ifindex: int, address: Interface, instead: Sequence[Interface] = ()) -> None:
    """Have that one there, and none of those that it takes the place of. Refused.

    IPv4 addresses of one subnet go with the first of them, so one may have to be put twice.
    """
    if address not in of(rtnl, ifindex, address.version):
        _tell(rtnl, "add", ifindex, address)
    for other in instead:
        _tell(rtnl, "del", ifindex, other)
    if instead and address not in of(rtnl, ifindex, address.version):
        _tell(rtnl, "add", ifindex, address)


def remove_own_ipv6(rtnl: Rtnl, ifindex: int) -> None:
    """Take those away that we have given an interface of ours: the flag `nodad` tells. Refused."""
    for address, flags in _listed(rtnl, ifindex, 6):
        if flags & IFA_F_NODAD:
            _tell(rtnl, "del", ifindex, address)


def _listed(rtnl: Rtnl, ifindex: int, version: int) -> list[tuple[Interface, int]]:
    """Addresses and their flags."""
    found: list[Any] = []
    with suppress_missing():
        request = body(message(ifaddrmsg, family=AF[version], index=ifindex))
        found = [unpack(ifaddrmsg, content) for content in rtnl.bulk.dump(RTM_GETADDR, request)]
    # A kernel without IPv6 lists what it has of other families.
    found = [each for each in found if each["family"] == AF[version]]
    # IPv6 has a "local" one only where the link has another end.
    pairs = ((each.get("local") or each.get("address"), each) for each in found)
    listed = [(ip_interface((ip, each["prefixlen"])), each["flags"]) for ip, each in pairs]
    return [pair for pair in listed if pair[0].version == 4 or not pair[0].is_link_local]


def _tell(rtnl: Rtnl, command: str, ifindex: int, address: Interface) -> None:
    ip, length = str(address.ip), address.network.prefixlen
    # Ours by the lease, and needed at once: nobody is asked whether another one has it.
    flags = {"flags": IFA_F_NODAD} if (address.version, command) == (6, "add") else {}
    rtnl.addr(
        command, family=AF[address.version], index=ifindex, address=ip, local=ip, prefixlen=length, **flags
    )
