"""Where a node stands: what a backend is given to reconcile by."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from ctl.core.host import Uplink
from ctl.core.model import Lease, Network


@dataclass(frozen=True, slots=True)
class Site:
    """Where a node stands at one moment."""

    network: Network
    """The network's config, as the store has it."""
    lease: Lease
    """This node's own lease."""
    uplink: Uplink
    """The underlay interface, and this node's address on it."""
    mtu: int
    """Largest inner IP packet, bytes."""
    bridge: int
    """ifindex of the containers' bridge; 0: it is not made yet."""
    sysctls: Path
    """The file that notes kernel settings as they were before us."""
    fenced: bool = False
    """Another host holds our subnet: eBPF carries nothing from or to it."""
    underlay: tuple[IPv4Network | IPv6Network, ...] = ()
    """The uplink's own networks: no peer's subnet may take their place."""

    @property
    def has_ipv6(self) -> bool:
        """Whether the network has IPv6, and this node a subnet and an address for it."""
        ours = self.lease.ipv6
        return self.network.ipv6 is not None and ours is not None and ours.host is not None
