"""Room in front of containers' packets for the headers that encapsulation puts there.

A container's UDP packet has 2 bytes free in front of its Ethernet header: each one was copied
to a larger buffer to be encapsulated (pskb_expand_head), by eBPF and by the vxlan device
alike. A bridge asks its ports for as much headroom as the neediest of them needs
(update_headroom in net/bridge/br_if.c), and a veth port passes that on to the container's end
(veth_set_rx_headroom). So one more port is enough, of a kind that needs what VXLAN needs.
It is never up: it opens no socket, and the bridge sends nothing to it.
"""

from __future__ import annotations

import errno
from typing import Final

from ctl.core.errors import KernelError
from ctl.core.host import OWNER, Link
from ctl.core.model import MacAddress
from ctl.kernel.netlink import link, taken
from ctl.kernel.netlink.session import Netlink, by_name
from ctl.kernel.netlink.socket import Refused

DEVICE: Final = "ovnet-room"
_VNI: Final = (1 << 24) - 1
_PORT: Final = 1
"""Never used. Only a vxlan device that has the same VNI and port would be in the way."""
_MAC: Final = MacAddress.parse("fe:ff:ff:ff:ff:ff")
"""The highest. A bridge that was given no address has the lowest of its ports', so another one could
become it, and would be lost when we go: its containers send to the address that they know."""


def ensure(netlink: Netlink, bridge: int, mtu: int, links: dict[int, Link]) -> None:
    """Have the bridge's ports leave room for VXLAN headers. KernelError. `mtu`: bytes, the bridge's."""
    found = by_name(links, DEVICE)
    if found and found.kind != "vxlan":
        raise KernelError(f"{DEVICE} exists and is not ours: remove it")
    if found and (found.master, found.mtu, found.alias) == (bridge, mtu, OWNER):
        return
    with netlink.doing(f"create {DEVICE}"):
        if found is None:
            _add(netlink, links)
        ifindex = link.one(netlink.rtnl, ifname=DEVICE).ifindex
        link.change(netlink.rtnl, ifindex, mtu=mtu, alias=OWNER, master=bridge)


def _add(netlink: Netlink, links: dict[int, Link]) -> None:
    try:
        link.add_bare_vxlan(netlink.rtnl, DEVICE, _VNI, _PORT, _MAC)
    except Refused as error:
        if error.code != errno.EEXIST:
            raise
        other = taken.by_vni(netlink.rtnl, _VNI, _PORT, links.values())
        raise KernelError(
            f"{other} has VNI {_VNI} on port {_PORT}, which {DEVICE} needs: remove it"
        ) from error
