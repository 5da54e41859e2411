"""Whether devices forward: of IPv4 the kernel asks it of the device by which a packet comes in.

A new device begins as net.ipv4.conf.default.forwarding says, which hardened hosts set to 0 beside an
ip_forward of 1 (CIS): then our devices would take packets and forward none. Ours are set, and
others' are named: whether these forward is their owner's to say.

IPv6 is forwarded by the whole host or not at all. One that does is a router, to which router
advertisements mean nothing (accept_ra=1): the default route that it has by them goes at once. So an
interface that has heeded them is told before to go on with it (accept_ra=2).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ctl.core.family import IPV6
from ctl.kernel import sysctl
from ctl.kernel.netlink.fib import interfaces
from ctl.kernel.netlink.session import Netlink, names
from ctl.kernel.netlink.tables import RTPROT_RA, main_routes


def ensure(ours: Iterable[str], saved: Path) -> None:
    """Have devices of ours (names) forward; what they did before is noted in `saved`. KernelError."""
    sysctl.ensure({sysctl.forwarding(name): "1" for name in ours}, saved)


def ensure_ipv6(netlink: Netlink, uplink: str, saved: Path) -> None:
    """Have this host forward IPv6, and keep what it has by router advertisements. KernelError.

    `uplink`: its name. What was before is noted in `saved`.
    """
    (forwards,) = sysctl.IPV6_FORWARDING
    heeding = {sysctl.accept_ra(name) for name in {uplink, *names(_by_advertisement(netlink))}}
    # Where somebody else has made it a router, that is as he wants it.
    if sysctl.read(forwards) == "0" or sysctl.before(saved, forwards) == "0":
        sysctl.ensure({name: "2" for name in heeding if sysctl.read(name) == "1"}, saved)
    sysctl.ensure(sysctl.IPV6_FORWARDING, saved)


def _by_advertisement(netlink: Netlink) -> set[int]:
    """Interfaces (ifindexes) with routes that a router has advertised."""
    with netlink.doing("list IPv6 routes"):
        found = list(main_routes(netlink.rtnl, IPV6, RTPROT_RA))
    return {ifindex for content in found for ifindex in interfaces(content)}


def lacking(others: Iterable[str]) -> tuple[str, ...]:
    """A line for each of these devices (names) that does not forward. One that is gone is none."""
    closed = [name for name in sorted(set(others)) if sysctl.read(sysctl.forwarding(name)) == "0"]
    return tuple(_line(name) for name in closed)


def _line(name: str) -> str:
    setting = sysctl.dotted(sysctl.forwarding(name))
    return (
        f"{name} does not forward: packets to containers and from them that come in by it are lost "
        f"({setting} is 0: sysctl -w {setting}=1)"
    )
