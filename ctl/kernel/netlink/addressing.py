"""The addresses of one interface: read, and made what they have to be. Of IPv6 but those of the link."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address, IPv6Interface, ip_interface
from typing import Any, Final

from pyroute2.netlink.rtnl import RTM_GETADDR
from pyroute2.netlink.rtnl.ifaddrmsg import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_NODAD,
    IFA_F_TEMPORARY,
    IFA_F_TENTATIVE,
    ifaddrmsg,
)

from ctl.core.bridge import Interface
from ctl.core.uplink_ipv6 import Fault, UplinkIPv6
from ctl.kernel.netlink.message import body, message, unpack
from ctl.kernel.netlink.socket import Rtnl, suppress_missing
from ctl.kernel.netlink.tables import AF


def of(rtnl: Rtnl, ifindex: int, version: int) -> Sequence[Interface]:
    """Those of that IP version, in the kernel's order (primary first). Refused."""
    return [address for address, _ in _beyond_the_link(rtnl, ifindex, version)]


def with_interfaces(rtnl: Rtnl, ifindex: int, version: int) -> list[tuple[int, Interface]]:
    """(ifindex, address) of an interface's, or (0) of all. Refused."""
    found = _dumped(rtnl, ifindex, version)
    return [(each["index"], ip_interface((_own(each), each["prefixlen"]))) for each in found]


def judged_ipv6(rtnl: Rtnl, ifindex: int) -> list[UplinkIPv6]:
    """All of IPv6, those of the link too, and what is wrong with each, in the kernel's order. Refused."""
    return [
        UplinkIPv6(address.ip, _fault(address, flags))
        for address, flags in _listed(rtnl, ifindex, 6)
        if isinstance(address, IPv6Interface)
    ]


_FAULTS: Final = {
    IFA_F_DADFAILED: Fault.DUPLICATE,  # which is tentative, too
    IFA_F_TENTATIVE: Fault.TENTATIVE,
    IFA_F_DEPRECATED: Fault.DEPRECATED,
    IFA_F_TEMPORARY: Fault.TEMPORARY,
}


def _fault(address: IPv6Interface, flags: int) -> Fault | None:
    if address.is_link_local:
        return Fault.LINK_LOCAL
    return next((fault for flag, fault in _FAULTS.items() if flags & flag), None)


def holder_of(rtnl: Rtnl, address: IPv6Address) -> int:
    """The ifindex of the first interface that has this address; 0: none has it. Refused."""
    return next((ifindex for ifindex, has in with_interfaces(rtnl, 0, 6) if has.ip == address), 0)


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
    for address, flags in _beyond_the_link(rtnl, ifindex, 6):
        if flags & IFA_F_NODAD:
            _tell(rtnl, "del", ifindex, address)


def _beyond_the_link(rtnl: Rtnl, ifindex: int, version: int) -> list[tuple[Interface, int]]:
    """Addresses and their flags; of IPv6 not those of the link alone."""
    listed = _listed(rtnl, ifindex, version)
    return [pair for pair in listed if pair[0].version == 4 or not pair[0].is_link_local]


def _listed(rtnl: Rtnl, ifindex: int, version: int) -> list[tuple[Interface, int]]:
    """Addresses and their flags."""
    found = _dumped(rtnl, ifindex, version)
    return [(ip_interface((_own(each), each["prefixlen"])), each["flags"]) for each in found]


def _dumped(rtnl: Rtnl, ifindex: int, version: int) -> list[Any]:
    """The kernel's messages about an interface's addresses; of all interfaces where ifindex is 0."""
    found: list[Any] = []
    with suppress_missing():
        request = body(message(ifaddrmsg, family=AF[version], index=ifindex))
        found = [unpack(ifaddrmsg, content) for content in rtnl.bulk.dump(RTM_GETADDR, request)]
    # A kernel without IPv6 lists what it has of other families.
    return [each for each in found if each["family"] == AF[version]]


def _own(found: Any) -> str:
    """Our end's address: IPv6 has a "local" one only where the link has another end."""
    return str(found.get("local") or found.get("address"))


def _tell(rtnl: Rtnl, command: str, ifindex: int, address: Interface) -> None:
    ip, length = str(address.ip), address.network.prefixlen
    # Ours by the lease, and needed at once: nobody is asked whether another one has it.
    flags = {"flags": IFA_F_NODAD} if (address.version, command) == (6, "add") else {}
    rtnl.addr(
        command, family=AF[address.version], index=ifindex, address=ip, local=ip, prefixlen=length, **flags
    )
