"""The vxlan backend looks at its own work: what it leaves to the kernel path has to come out of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from ctl.backend.vxlan.device import device_name
from ctl.core.host import Uplink
from ctl.core.losing import LOOK_S, Losing, Way, ways
from ctl.core.model import Network
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.netlink import link
from ctl.kernel.netlink.session import Netlink


class Losses:
    """Looks every so often, and remembers what it saw. One thread's.

    `interval`: seconds between two looks at everything, which is the longest between two of these;
    `steady`: seconds that only go up.
    """

    def __init__(
        self, netlink: Netlink, interval: float, *, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._netlink, self._steady = netlink, steady
        self._pause: Final = min(LOOK_S, interval)
        self._next = -math.inf
        self._losing = Losing()
        self._lost: Mapping[Way, int] = {}

    def look(self, device: int, opened: Maps[Any]) -> Mapping[Way, int]:
        """Where all packets are lost, and how many were. KernelError.

        `device`: ifindex of the vxlan device.
        """
        now = self._steady()
        if now >= self._next:
            self._next = now + self._pause
            with self._netlink.doing("ask what the vxlan device has counted"):
                counted = link.traffic(self._netlink.rtnl, device)
            self._lost = self._losing(ways(opened.counters(), counted))
        return self._lost


def line(way: Way, packets: int, network: Network, uplink: Uplink, version: int) -> str:
    """It in words, with where to look; `version`: of IP."""
    match way:
        case Way.OUT:
            where = (
                f"{packets} packets of containers for other nodes, and none came as far as "
                f"{device_name(network, version)}: rules of others (nft list ruleset, iptables-save, "
                "iptables-legacy-save) or a device that does not forward drop them"
            )
        case Way.IN:
            where = (
                f"{packets} packets of other nodes' containers came in by {uplink.link.name}, and none "
                "reached a container: rules of others (of INPUT, too), rp_filter or forwarding drop them"
            )
        case Way.ANSWERS:
            where = (
                f"{packets} packets that open connections went to other nodes, and nothing came back from "
                f"any: is UDP port {network.port} let through on the way, both ways?"
            )
    return f"packets are lost: {where}"
