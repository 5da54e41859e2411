"""One family of addresses at a time: what the kernel path asks of a network and its nodes. Pure.

Routes, neighbours, FDB and rules of IPv4 and of IPv6 are planned by the same code. It is given a Family,
and sees a network and the leases in it through that: as a Space, and as Members of it. What IPv4 has of
them are Network and Lease themselves, which are about IPv6 too where there is any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Generic, Protocol, TypeVar

from ctl.core.host import Uplink
from ctl.core.model import (
    VXLAN_IPV6_OVERHEAD,
    VXLAN_OVERHEAD,
    A,
    IPv6Range,
    Lease,
    MacAddress,
    N,
    Network,
)

A_co = TypeVar("A_co", bound=IPv4Address | IPv6Address, covariant=True)
N_co = TypeVar("N_co", bound=IPv4Network | IPv6Network, covariant=True)


def lacks_ipv6(network: Network) -> str:
    """Why the network's backend cannot serve it, as it has IPv6, one line; empty if it can."""
    if network.ipv6 is None or network.backend != "udp":
        return ""
    return "backend udp carries IPv4 only: EnableIPv6 must be false, or the backend vxlan or host-gw"


NAMED: Final = 5
"""So many nodes are named in a line."""


def without_ipv6(leases: Iterable[Lease], own: Lease) -> str:
    """Which other nodes of a network with IPv6 have none, one line; empty if all have it."""
    found = [lease.node or str(lease.host) for lease in leases if lease.ipv6 is None and lease.key != own.key]
    if not found:
        return ""
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"nodes without IPv6, reached by IPv4 only: {', '.join(found[:NAMED])}{more}"


class Space(Protocol[N_co]):
    """What a network has of one family."""

    @property
    def network(self) -> N_co:
        """All of it."""

    @property
    def subnet_len(self) -> int:
        """Length of the prefix of what a node gets."""

    @property
    def subnet_min(self) -> N_co:
        """The first that is handed out."""

    @property
    def subnet_max(self) -> N_co:
        """The last."""

    @property
    def pool(self) -> tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]:
        """First and last address that leases are handed out from."""


class Member(Protocol[A_co, N_co]):
    """What a node has of one family."""

    @property
    def key(self) -> IPv4Network:
        """Of its lease: the IPv4 subnet, which no other lease has."""

    @property
    def subnet(self) -> N_co:
        """Where its containers are."""

    @property
    def host(self) -> A_co:
        """Where it is on the underlay; 0.0.0.0 or ::: nobody has said it."""

    @property
    def vtep_mac(self) -> MacAddress | None:
        """Of its vxlan device; None: it has none, or nobody has said it."""

    @property
    def vni(self) -> int | None:
        """Of its vxlan device, too."""

    @property
    def backend(self) -> str: ...

    @property
    def node(self) -> str:
        """Its name, for people."""

    @property
    def gateway(self) -> A_co:
        """The bridge's address: the first of the subnet."""

    @property
    def vtep_ip(self) -> A_co:
        """The subnet's base address, which the vxlan device carries alone."""

    @property
    def overlay_hop(self) -> A_co:
        """What other nodes route the subnet to, on their vxlan device."""


@dataclass(frozen=True, slots=True)
class IPv6Member:
    """What a node with a lease of both families has of IPv6."""

    key: IPv4Network
    subnet: IPv6Network
    host: IPv6Address
    vtep_mac: MacAddress | None
    vni: int | None
    backend: str
    node: str

    @property
    def gateway(self) -> IPv6Address:
        return self.subnet.network_address + 1

    @property
    def vtep_ip(self) -> IPv6Address:
        return self.subnet.network_address

    @property
    def overlay_hop(self) -> IPv6Address:
        """The link-local address that a device has by its MAC (RFC 4291, appendix A).

        Not the subnet's base address: the kernel takes no gateway that it would look for behind
        another interface, not even as onlink. So it would refuse to route a peer by the tunnel
        as long as a plain route leads there, and each peer where any route to all of the network does.
        """
        mac = self.vtep_mac.packed if self.vtep_mac else bytes(6)
        return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:])


@dataclass(frozen=True, slots=True)
class Family(Generic[A, N]):
    """IPv4 or IPv6."""

    version: int
    """4 or 6."""
    address: type[A]
    network: type[N]
    vxlan_overhead: int
    """Bytes that VXLAN adds to a packet in this family."""
    space: Callable[[Network], Space[N] | None]
    """What a network has of it; None: nothing."""
    member: Callable[[Lease], Member[A, N] | None]
    """What the holder of a lease has of it; None: nothing."""
    source: Callable[[Uplink, Lease], A]
    """Our address on the underlay, where this is our uplink and our lease; :: if there is none."""

    def __str__(self) -> str:
        return f"IPv{self.version}"


def _ipv6_space(network: Network) -> IPv6Range | None:
    return network.ipv6


def _ipv6_member(lease: Lease) -> IPv6Member | None:
    part = lease.ipv6
    if part is None:
        return None
    host = part.host or IPv6Address(0)
    return IPv6Member(lease.key, part.subnet, host, part.vtep_mac, part.vni, lease.backend, lease.node)


def _ipv6_source(_uplink: Uplink, lease: Lease) -> IPv6Address:
    return (lease.ipv6.host if lease.ipv6 else None) or IPv6Address(0)


IPV4: Final = Family(
    4,
    IPv4Address,
    IPv4Network,
    VXLAN_OVERHEAD,
    space=lambda network: network,
    member=lambda lease: lease,
    source=lambda uplink, _: uplink.address,
)
IPV6: Final = Family(
    6,
    IPv6Address,
    IPv6Network,
    VXLAN_IPV6_OVERHEAD,
    space=_ipv6_space,
    member=_ipv6_member,
    source=_ipv6_source,
)


def of_version(version: int) -> Family[Any, Any]:
    """IPv4 or IPv6, by its number."""
    return IPV4 if version == 4 else IPV6
