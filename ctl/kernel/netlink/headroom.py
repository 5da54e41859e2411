"""Room in front of containers' packets for the headers that encapsulation puts there.

A container's UDP packet has 2 bytes free in front of its Ethernet header: each one was copied
to a larger buffer to be encapsulated (pskb_expand_head), by eBPF and by the vxlan device
alike. A bridge asks its ports for as much headroom as the neediest of them needs
(update_headroom in net/bridge/br_if.c), and a veth port passes that on to the container's end
(veth_set_rx_headroom). So one more port is enough, of a kind that needs what VXLAN needs.
It is never up: it opens no socket, and the bridge sends nothing to it. VXLAN over IPv6 needs 20 bytes
more, so on a node with both families the port is a device over IPv6.
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
_IPV6_MAC: Final = MacAddress.parse("fe:ff:ff:ff:ff:fe")
"""The one before it: by it a device over IPv6 is told from one over IPv4."""


def ensure(netlink: Netlink, bridge: int, mtu: int, links: dict[int, Link], *, ipv6: bool) -> None:
    """Have the bridge's ports leave room for VXLAN headers, over IPv6 too (`ipv6`). KernelError.

    `mtu`: bytes, the bridge's.
    """
    mac = _IPV6_MAC if ipv6 else _MAC
    found = by_name(links, DEVICE)
    if found and found.kind != "vxlan":
        raise KernelError(f"{DEVICE} exists and is not ours: remove it")
    if found and (found.master, found.mtu, found.alias, found.mac) == (bridge, mtu, OWNER, mac):
        return
    with netlink.doing(f"create {DEVICE}"):
        if found and found.mac != mac:
            link.delete(netlink.rtnl, found.ifindex)
            found = None
        if found is None:
            _add(netlink, links, mac)
        ifindex = link.one(netlink.rtnl, ifname=DEVICE).ifindex
        link.change(netlink.rtnl, ifindex, mtu=mtu, alias=OWNER, master=bridge)


def _add(netlink: Netlink, links: dict[int, Link], mac: MacAddress) -> None:
    try:
        link.add_bare_vxlan(netlink.rtnl, DEVICE, _VNI, _PORT, mac, ipv6=mac == _IPV6_MAC)
    except Refused as error:
        if error.code != errno.EEXIST:
            raise
        other = taken.by_vni(netlink.rtnl, _VNI, _PORT, links.values())
        raise KernelError(
            f"{other} has VNI {_VNI} on port {_PORT}, which {DEVICE} needs: remove it"
        ) from error
