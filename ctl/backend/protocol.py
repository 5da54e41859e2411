"""What a backend is to the node: a way for packets to get to other nodes.

A node's loop asks a backend in this order, each part as often as something it depends on has
changed; `ensure_device` and `load` with every look at the devices:

    preflight        once, before anything is changed
    ensure_device    the tunnel device; then, where there is IPv6, ensure_ipv6_device
    reconcile_peers  the ways to the other nodes
    tunnel           for the firewall, whose rules come next
    load             maps and programs, if the backend has any
    reconcile_peers  again where the maps are new ones, with {MAPS}
    reconcile_ports  containers, and programs on the interfaces

So the kernel path is whole before the shortcut is made, and the maps are filled before a program
that goes by them is attached. Whatever fails raises KernelError, the next part has its turn all the
same, and everything is tried again later: each part can be asked at any time, and does nothing
where nothing is to be done. All is one thread's but for `wants`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from ctl.backend.site import Site
from ctl.core.host import Change, Devices, Link, Removed, Uplink
from ctl.core.losing import Way
from ctl.core.model import Lease, MacAddress, Network
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.firewall import Tunnel


class Encapsulation(Protocol):
    """How packets look on the underlay. Nothing of it changes while a node runs."""

    def overhead(self, network: Network, /) -> int:
        """Bytes that it adds to a packet of this network at the most."""

    def identity(
        self, host: IPv4Address | IPv6Address, network: Network, /
    ) -> tuple[MacAddress | None, int | None]:
        """The VTEP's MAC and the VNI that the lease of a node with this address says; None: it has none.

        Each family has its own: the address says which.
        """

    def tunnel(self, network: Network, uplink: Uplink, /) -> Tunnel | None:
        """What the firewall has to guard of IPv4; None: nothing."""

    def ipv6_tunnel(self, site: Site, /) -> Tunnel | None:
        """The same of IPv6."""


class Watched(Protocol):
    """What is to be heard of in the kernel."""

    def devices(self) -> Devices:
        """The tunnel device, and the interfaces behind which peers are. Both may change with any part."""

    def wants(self, entry: Removed, /) -> bool:
        """Whether an entry that has gone from the kernel should be there. Any thread may ask."""

    def lost(self) -> frozenset[Change]:
        """What has ended or come off without an event. Asked every few seconds: it must be cheap."""

    def look_in(self) -> float:
        """Seconds until `lost` has to be asked again, if that is before the next turn; inf: it is not."""

    def losing(self, network: Network, uplink: Uplink, /) -> Mapping[Way, str]:
        """Where all packets are lost at present, a line each. Asked as often."""


class Backend(Encapsulation, Watched, Protocol):
    """A backend at work on one node. Raises KernelError."""

    @property
    def maps(self) -> Maps[IPv4Address] | None:
        """The maps of IPv4 that are open; None: there are none yet, or the backend has none."""

    @property
    def ipv6_maps(self) -> Maps[IPv6Address] | None:
        """The same of IPv6."""

    def preflight(self, network: Network, uplink: Uplink, /) -> None:
        """Refuse what can be refused before anything is changed."""

    def ensure_device(self, site: Site, links: dict[int, Link], /) -> None:
        """Make or mend the tunnel device, and remove those of an earlier life. `links` by ifindex."""

    def ensure_ipv6_device(self, site: Site, links: dict[int, Link], /) -> None:
        """The same of IPv6, where it has a device of its own; only where the site has IPv6."""

    def reconcile_peers(self, site: Site, leases: Sequence[Lease], changes: frozenset[Change], /) -> None:
        """Routes to the nodes that have these leases, and the maps if they are open.

        A peer is in the maps before it is routed to: what it answers must not come from a stranger.
        `changes` of LEASES, HOPS, PEERS and MAPS, whichever there are: HOPS to ask again how each
        host is reached, PEERS to read the tables again, MAPS for maps that are new and empty.
        """

    def load(self, site: Site, /) -> frozenset[Change]:
        """Open or make the maps, load the programs; {MAPS} if the maps are others than before."""

    def reconcile_ports(self, site: Site, changes: frozenset[Change], /) -> None:
        """Containers on the bridge, and programs on its ports, the uplink and the tunnel.

        `changes` of DEVICES, PORTS and FILTERS: with FILTERS somebody has touched programs, so that
        nothing remembered of them holds.
        """
