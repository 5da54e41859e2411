"""Renaming a tunnel device that carries traffic."""

from __future__ import annotations

import errno
from contextlib import ExitStack

from ctl.core.family import IPV4, IPV6, Family
from ctl.core.host import OWNER, Link
from ctl.core.model import A, N
from ctl.core.plan import Delta
from ctl.kernel.netlink.link import change
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.socket import Refused
from ctl.kernel.netlink.tables import Routes, VtepNeighbours


def rename(netlink: Netlink, link: Link, name: str, *, ours: bool, live: bool = True) -> None:
    """Give a vxlan device another name, and our mark or none. KernelError.

    Since Linux 6.2 that works while it is up, and no packet notices. Before (and if not
    `live`) it has to go down for a moment, which costs its routes and its neighbours: these
    are put back at once, also if the name is refused; FDB entries that are permanent stay.
    """
    with netlink.doing(f"rename {link.name} to {name}"):
        if not (live and _renamed(netlink, link, name)):
            _rename_down(netlink, link, name)
        # An empty alias takes it away.
        change(netlink.rtnl, link.ifindex, alias=OWNER if ours else "")


def _renamed(netlink: Netlink, link: Link, name: str) -> bool:
    try:
        change(netlink.rtnl, link.ifindex, name=name)
    except Refused as error:
        if error.code != errno.EBUSY:
            raise
        return False
    return True


def _put_back(back: ExitStack, netlink: Netlink, family: Family[A, N], ifindex: int) -> None:
    """In the end the device has the routes and neighbours of this family that it has now."""
    neighbours = VtepNeighbours(netlink.rtnl, family, ifindex)
    table = Routes(netlink.rtnl, family)
    routes = tuple((to, via) for to, via in table.read().items() if via.ifindex == ifindex)
    back.callback(table.apply, Delta(puts=routes))
    back.callback(neighbours.apply, Delta(puts=tuple(neighbours.read().items())))


def _rename_down(netlink: Netlink, link: Link, name: str) -> None:
    with ExitStack() as back:  # under whichever name, and each step whatever became of the others
        _put_back(back, netlink, IPV4, link.ifindex)
        _put_back(back, netlink, IPV6, link.ifindex)
        back.callback(change, netlink.rtnl, link.ifindex, up=True)
        change(netlink.rtnl, link.ifindex, up=False)
        change(netlink.rtnl, link.ifindex, name=name)
