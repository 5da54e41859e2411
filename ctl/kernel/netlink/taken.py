"""Which of this host's tunnels has what another one needs."""

from __future__ import annotations

from collections.abc import Iterable

from ctl.core.host import Link
from ctl.kernel.netlink import link
from ctl.kernel.netlink.socket import Rtnl, suppress_missing
from ctl.process import holder


def by_port(rtnl: Rtnl, port: int, links: Iterable[Link], but: str) -> str:
    """Who has a UDP port, in words. `but`: the name of the device that wants it. Refused."""
    named = [
        each.name for each in links if each.name != but and each.up and link.udp_port(rtnl, each) == port
    ]
    if named:
        return f"the tunnel device {', '.join(named)}"
    return holder.of_port("udp", port)


def surely_by(rtnl: Rtnl, port: int, links: Iterable[Link]) -> str:
    """Who has a UDP port that no vxlan device can share with it, in words; empty: nobody surely has. Refused.

    Vxlan devices share a port's socket, but not with one that takes all VNIs (`external`), or whose
    packets have another form (net/ipv4/udp_tunnel, VXLAN_F_RCV_FLAGS).
    """
    for each in links:
        if (
            each.kind == "vxlan"
            and each.up
            and link.udp_port(rtnl, each) == port
            and link.is_alone(rtnl, each)
        ):
            return f"the tunnel device {each.name}"
    return holder.process_with_port(port)


def by_vni(rtnl: Rtnl, vni: int, port: int, links: Iterable[Link]) -> str:
    """The vxlan device that has a VNI on a port, in words. Refused."""
    for each in links:
        if each.kind != "vxlan":
            continue
        with suppress_missing():
            found = link.tunnel(rtnl, each.ifindex)
            if (found.vni, found.port) == (vni, port):
                return each.name
    return "another vxlan device"
