"""What the backends without eBPF share: nothing to load, and an earlier life to clear away."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from ctl.backend.site import Site
from ctl.backend.udp.client import ForwarderProcess
from ctl.backend.udp.files import device_port
from ctl.core.findings import Findings
from ctl.core.host import OWNER, Change, Devices, Link, Uplink
from ctl.core.losing import Way
from ctl.core.model import MacAddress, Network
from ctl.core.plan import diff
from ctl.core.report import KernelPort
from ctl.kernel.bpf import maps
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.hooks import xdp
from ctl.kernel.hooks.filters import Filters
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings


def remove_tunnels(
    netlink: Netlink, links: Iterable[Link], state_dir: Path, keep: Collection[str] = ()
) -> list[str]:
    """Remove the tunnel devices of ours but `keep`, with what serves them; returns their names."""
    removed = []
    for link in links:
        if link.name in keep:
            continue
        if link.kind == "vxlan" and link.alias == OWNER:
            netlink.remove(link)
            removed.append(link.name)
        elif link.kind == "tun" and (port := device_port(link.name)):
            ForwarderProcess(state_dir, IPv4Address(0), port).stop(remove=True)
            removed.append(link.name)
    return removed


class ProgramlessBackend:
    """Base of the backends that leave every packet to the kernel or to user space."""

    device = 0
    """ifindex of the tunnel device; 0: there is none."""
    maps: Maps[IPv4Address] | None = None
    ipv6_maps: Maps[IPv6Address] | None = None

    def __init__(self, settings: Settings, netlink: Netlink, findings: Findings) -> None:
        self._settings, self._netlink, self._findings = settings, netlink, findings
        self._clean = False
        """Whether nothing is left of an earlier life with programs."""

    @staticmethod
    def identity(_host: IPv4Address | IPv6Address, _network: Network) -> tuple[MacAddress | None, int | None]:
        """Nothing to publish but the host's address."""
        return None, None

    def preflight(self, _network: Network, _uplink: Uplink) -> None:
        """Nothing on the uplink is in the way."""

    @staticmethod
    def tunnel(_network: Network, _uplink: Uplink) -> None:
        """No VXLAN is taken."""

    @staticmethod
    def ipv6_tunnel(_site: Site) -> None:
        """No VXLAN is taken."""

    def ensure_ipv6_device(self, _site: Site, _links: dict[int, Link]) -> None:
        """There is none."""

    def lost(self) -> frozenset[Change]:
        """Nothing ends without an event."""
        return frozenset()

    @staticmethod
    def look_in() -> float:
        """Nothing is looked for between two turns."""
        return math.inf

    @staticmethod
    def losing(_network: Network, _uplink: Uplink) -> Mapping[Way, str]:
        """Nothing counts packets where they come in."""
        return {}

    def devices(self) -> Devices:
        """The tunnel device; peers are behind the uplink, unless a backend knows better."""
        return Devices(self.device)

    def load(self, _site: Site) -> frozenset[Change]:
        """Take the programs and pins of an earlier life away."""
        if not self._clean:
            links = self._netlink.links()
            xdp.remove_all(self._netlink, links, self._settings.bpffs)
            with closing(Filters(self._netlink.rtnl, self._settings.bpffs)) as filters:
                filters.apply(diff({}, filters.read_on(links)))
            maps.unpin_all(self._settings.bpffs)
            self._clean = True
        return frozenset()

    def reconcile_ports(self, site: Site, _changes: frozenset[Change]) -> None:
        """Ports need nothing; they are noted for the report."""
        links = self._netlink.links().values()
        names = sorted(link.name for link in links if site.bridge and link.master == site.bridge)
        why = f"backend {site.network.backend}"
        self._findings.kernel_ports = tuple(KernelPort(name, why) for name in names)
