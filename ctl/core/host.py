"""What a node sees of its own host, as values: links, neighbours, routes, and what may have changed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, Final, Generic

from ctl.core.model import DEFAULT_TTL, A, Lease, MacAddress, N

OWNER: str = "ovnet"
"""Alias of the devices that we made, and prefix of our filters' names: what may be removed."""


NO_QDISC: Final = "noqueue"
"""The root qdisc of a veth that nobody has given another."""


class Change(StrEnum):
    """A part of the node's state that may differ from the plan now."""

    DEVICES = "devices"
    """Links and addresses."""
    LEASES = "leases"
    """What the store says; it is the store's watch that tells."""
    HOPS = "hops"
    """How the kernel reaches other hosts."""
    PEERS = "peers"
    """Our own entries for the peers: routes, VTEP neighbours, FDB, maps."""
    PORTS = "ports"
    """Containers on the bridge."""
    FILTERS = "filters"
    """Programs on interfaces."""
    FIREWALL = "firewall"
    """Our rules."""
    MAPS = "maps"
    """The maps themselves: they are new, and empty."""


EVERYTHING: Final = frozenset(Change) - {Change.MAPS}
"""All that others may change without our hearing of it. That maps are new is our own doing."""


@dataclass(frozen=True, slots=True)
class IPv6Identity:
    """What it publishes of IPv6. The names are those of IPv6Lease."""

    host: IPv6Address
    vtep_mac: MacAddress | None = None
    vni: int | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node publishes of itself in its lease."""

    host: IPv4Address
    vtep_mac: MacAddress | None = None
    vni: int | None = None
    node: str = ""
    backend: str = "vxlan"
    ipv6: IPv6Identity | None = None
    """None: the network has IPv4 only."""

    def mark(self, lease: Lease) -> Lease:
        """`lease` as this node would have it; of IPv6, what belongs to the subnet that it has."""
        ipv6 = lease.ipv6
        if ipv6 is not None and self.ipv6 is not None:
            own = self.ipv6
            ipv6 = replace(ipv6, host=own.host, vtep_mac=own.vtep_mac, vni=own.vni)
        return replace(
            lease,
            host=self.host,
            vtep_mac=self.vtep_mac,
            vni=self.vni,
            node=self.node,
            backend=self.backend,
            ipv6=ipv6,
        )


@dataclass(frozen=True, slots=True)
class Devices:
    """Interfaces of this node that the kernel's events are about, by ifindex; 0: there is none."""

    tunnel: int = 0
    bridge: int = 0
    uplink: int = 0
    hops: frozenset[int] = field(default=frozenset(), compare=False)
    """Interfaces of the underlay through which peers are reached. They do not count when two Devices
    are compared: an interface that leads to a peer is no new device, on which all has to be made anew."""
    ipv6_tunnel: int = 0
    """Where IPv6 has one of its own."""

    @property
    def tunnels(self) -> tuple[int, ...]:
        """The tunnel devices that there are."""
        return tuple(filter(None, (self.tunnel, self.ipv6_tunnel)))


ETHERNET: Final = 1
"""ARPHRD_ETHER of linux/if_arp.h, like the others here."""
LOOPBACK: Final = 772
PPP, RAW_IP, NONE = 512, 519, 0xFFFE
"""Of PPP; of mobile modems; of WireGuard, TUN, xfrm and others."""


@dataclass(frozen=True, slots=True)
class FarEnd:
    """The other end of a veth that is in another network namespace."""

    netns: int
    """The number by which ours knows that namespace."""
    ifindex: int
    """There."""


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of this network namespace."""

    ifindex: int
    name: str
    kind: str
    """rtnetlink's kind (veth, bridge, vxlan), empty for hardware."""
    mac: MacAddress | None
    mtu: int
    up: bool
    master: int
    """ifindex of the bridge it is a port of; 0: none."""
    peer_elsewhere: bool
    """A veth whose other end is in another namespace: what redirect_peer needs."""
    alias: str
    xdp: int
    """Id of an XDP program on it; 0: none."""
    lower: int = 0
    """ifindex of what it is made on: a VLAN's interface, a veth's other end; 0: nothing here."""
    qdisc: str = NO_QDISC
    """Kind of its root qdisc: by which it holds back what it sends."""
    peer_xdp: bool = False
    """A veth whose other end has an XDP program in the driver."""
    type: int = ETHERNET
    """ARPHRD_*: which header is in front of its packets."""
    peer: FarEnd | None = None
    """A veth's other end, in another namespace."""

    @property
    def has_ethernet(self) -> bool:
        """Whether an Ethernet header is in front of all that it receives."""
        return self.type in (ETHERNET, LOOPBACK)


@dataclass(frozen=True, slots=True)
class Uplink:
    """The underlay interface and our address on it."""

    link: Link
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Ground:
    """A network that this host has, or reaches, by an interface that is none of the overlay's."""

    network: IPv4Network | IPv6Network
    device: str
    """The interface's name; empty: packets to it go nowhere (a blackhole), or by several interfaces."""
    address: IPv4Address | IPv6Address | None = None
    """Our own address in it; None: only a route leads there."""

    def __str__(self) -> str:
        if self.address is not None:
            return f"{self.device} has {self.address}/{self.network.prefixlen}"
        return f"there is a route to {self.network}" + (f" by {self.device}" if self.device else "")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of the overlay's families this host uses beside it."""

    underlay: tuple[Ground, ...] = ()
    """The uplink's own networks: other hosts are there, and are reached by it."""
    others: tuple[Ground, ...] = ()

    @property
    def links(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The underlay's networks."""
        return tuple(ground.network for ground in self.underlay)

    def of(self, version: int) -> Surroundings:
        """Those of one family."""
        return Surroundings(
            tuple(ground for ground in self.underlay if ground.network.version == version),
            tuple(ground for ground in self.others if ground.network.version == version),
        )


@dataclass(frozen=True, slots=True)
class Hop(Generic[A]):
    """How the FIB reaches a host."""

    ifindex: int
    next_hop: A | None
    """The neighbour to send to; None: not known, ask the FIB for each packet."""
    mtu: int = 0
    """The route's own, if it is smaller than what we send; 0: it is not."""
    ttl: int = DEFAULT_TTL
    """Of packets that go there: the route's hoplimit, or the host's."""


@dataclass(frozen=True, slots=True)
class Route(Generic[A]):
    """Where a peer's subnet is routed to."""

    via: A
    """0.0.0.0 or ::: no gateway, the interface takes the packets itself."""
    ifindex: int
    onlink: bool = False
    """`via` is taken to be on the link although no address of ours says so."""
    mtu: int = 0
    """The largest packet that may take it, bytes; 0: the interface says."""


METRICS: Final = {4: tuple(range(100, 600)), 6: tuple(range(100, 256))}
"""Of our routes, by IP version: never 0, and below those of others, which a route of the same metric would
replace. 256 is the kernel's for IPv6 addresses (IP6_RT_PRIO_ADDRCONF), 600 and 1024 are those of DHCP."""


@dataclass(frozen=True, slots=True)
class RouteKey(Generic[N]):
    """What tells a route of ours from others to the same subnet."""

    subnet: N
    metric: int

    @classmethod
    def of(cls, subnet: N) -> RouteKey[N]:
        """The key that we give a subnet's route.

        The metrics differ because the kernel keeps what routes lead to (fib_info_hashfn) by
        metric and interface, not by gateway: those of one metric are one chain, and 100,000 with
        156 metrics take it 3.6 s on a busy machine, with 500 of them 1.4 s. For IPv6 it keeps none.
        """
        number = int(subnet.network_address) >> (subnet.max_prefixlen - subnet.prefixlen)
        metrics = METRICS[subnet.version]
        return cls(subnet, metrics[number % len(metrics)])


@dataclass(frozen=True, slots=True)
class Sender:
    """A host that our rules let in."""

    host: IPv4Address | IPv6Address


Removed = RouteKey[Any] | IPv4Address | IPv6Address | MacAddress | Sender
"""What the kernel says is no more: a route of ours, a neighbour or an FDB entry of our device, or a
host that our rules let in."""


@dataclass(frozen=True, slots=True)
class Neighbours(Generic[A]):
    """What the kernel knows of containers: addresses of one family on the bridge, MACs on its ports."""

    macs: dict[A, MacAddress]
    ports: dict[MacAddress, int]
    """Port's ifindex by MAC, from the bridge's forwarding database."""
    unasked: frozenset[A] = frozenset()
    """The addresses in `macs` whose MAC the kernel takes for granted for now: reachable or stale."""


@dataclass(frozen=True, slots=True)
class VxlanDevice:
    """The vxlan device as it has to be."""

    name: str
    vni: int
    port: int
    local: IPv4Address | IPv6Address
    """Source of the packets that it sends; their family is that of the tunnel."""
    uplink: int
    mac: MacAddress
    mtu: int
    address: IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class BridgeDevice:
    """The bridge as it has to be, where we make it."""

    name: str
    mac: MacAddress
    mtu: int
    address: IPv4Interface
    ipv6: IPv6Interface | None = None
    """None: it needs no IPv6 address."""
    by_cni: bool = False
    """Whether a CNI configuration of ours has containers plugged in there, by the plugin `bridge`."""


@dataclass(frozen=True, slots=True, order=True)
class FilterKey:
    """A place for one tc program."""

    ifindex: int
    ingress: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """A program of ours in such a place."""

    program: str
    program_id: int
    first: bool = False
    """Before those of others, not behind them."""
