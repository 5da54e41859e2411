"""Renaming a tunnel device that carries traffic."""

from __future__ import annotations

import errno
from contextlib import ExitStack

from ctl.core.host import OWNER, Link
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


def _rename_down(netlink: Netlink, link: Link, name: str) -> None:
    neighbours, table = VtepNeighbours(netlink.rtnl, link.ifindex), Routes(netlink.rtnl)
    macs = tuple(neighbours.read().items())
    routes = tuple((to, via) for to, via in table.read().items() if via.ifindex == link.ifindex)
    with ExitStack() as back:  # under whichever name, and each step whatever became of the others
        back.callback(table.apply, Delta(puts=routes))
        back.callback(neighbours.apply, Delta(puts=macs))
        back.callback(change, netlink.rtnl, link.ifindex, up=True)
        change(netlink.rtnl, link.ifindex, up=False)
        change(netlink.rtnl, link.ifindex, name=name)
