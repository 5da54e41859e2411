"""The nouns of the overlay, as values that cannot be invalid or change."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeVar

__all__ = [
    "END_UNKNOWN",
    "Bypass",
    "IPv4Address",
    "IPv4Network",
    "IPv6Address",
    "IPv6Lease",
    "IPv6Network",
    "IPv6Range",
    "Lease",
    "MacAddress",
    "Network",
    "Snapshot",
    "Subnets",
]

Address = TypeVar("Address", IPv4Address, IPv6Address)

A = TypeVar("A", bound=IPv4Address | IPv6Address)
"""An address of one family, whichever it is."""
N = TypeVar("N", bound=IPv4Network | IPv6Network)
"""A network of the same family."""

VXLAN_OVERHEAD: Final = 50
"""Bytes that VXLAN adds to a packet in IPv4: IP 20, UDP 8, VXLAN 8, Ethernet 14."""
VXLAN_IPV6_OVERHEAD: Final = 70
"""The same in IPv6, whose header has 40."""

DEFAULT_TTL: Final = 64
"""Where neither route nor sysctl says another (IPDEFTTL)."""

BACKENDS: Final = {"vxlan": 8472, "host-gw": 0, "udp": 8285}
"""The backends that a node can run, each with its UDP port where the network names none; 0: it has none."""

MIN_MTU: Final = 576
"""Smallest inner MTU that we accept, bytes (RFC 791: every host takes 576)."""
MIN_IPV6_MTU: Final = 1280
"""The same with IPv6 (RFC 8200, section 5): an interface with less has no IPv6 at all."""


END_UNKNOWN: Final = math.inf
"""`expires_at` of a lease that will end, but the store alone knows when: another node's, in etcd.

Such a lease is live for as long as the store lists it."""


NO_HOSTS: Final = (IPv4Network("127.0.0.0/8"), IPv4Network("224.0.0.0/4"))
"""Loopback and multicast: nobody is reached at such an address."""

NO_IPV6_HOSTS: Final = (
    IPv6Network("::/96"),
    IPv6Network("::ffff:0:0/96"),
    IPv6Network("fe80::/10"),
    IPv6Network("ff00::/8"),
)
"""The same of IPv6 (RFC 4291, 2.4 and 2.5.5), and the addresses of a link, which others do not reach."""


def host_address(address: Address) -> Address:
    """`address`, if a host can have it and others reach it there. ValueError."""
    number = int(address)  # ten thousand leases are read like this
    if isinstance(address, IPv4Address):
        wrong = number >> 24 == 127 or number >> 28 == 14 or number in (0, 2**32 - 1)
    else:
        wrong = any(address in each for each in NO_IPV6_HOSTS)
    if wrong:
        raise ValueError(f"{address} is not a host's address")
    return address


_MAC: Final = re.compile("[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")


@dataclass(frozen=True, slots=True, order=True)
class MacAddress:
    """A 48-bit MAC address; `packed` is 6 bytes in wire order."""

    packed: bytes

    def __post_init__(self) -> None:
        if len(self.packed) != 6:
            raise ValueError(f"a MAC address has 6 bytes, not {len(self.packed)}")

    @classmethod
    def parse(cls, text: str) -> MacAddress:
        """From `aa:bb:cc:dd:ee:ff`, either case. ValueError if it is none."""
        if not _MAC.fullmatch(text):
            raise ValueError(f"{text!r} is not a MAC address")
        return cls(bytes.fromhex(text.replace(":", "")))

    @classmethod
    def local(cls, random: bytes) -> MacAddress:
        """A locally administered unicast address made of 6 random bytes (IEEE 802c)."""
        return cls(bytes([(random[0] & 0xFC) | 0x02]) + random[1:6])

    @property
    def is_unicast(self) -> bool:
        return not self.packed[0] & 1 and any(self.packed)

    def __str__(self) -> str:
        return self.packed.hex(":")


class Bypass(StrEnum):
    """Which packets eBPF may carry past the kernel path."""

    OFF = "off"
    TUNNEL = "tunnel"
    """None past it; eBPF only puts the tunnel header on and takes it off."""
    LEARNED = "learned"
    ALWAYS = "always"


class HookMode(StrEnum):
    """Where packets from the uplink are decapsulated."""

    TC = "tc"
    XDP = "xdp"
    """Before tc, where the driver lets us; else at tc."""
    AUTO = "auto"
    """As XDP on hardware, as TC on a veth."""


@dataclass(frozen=True, slots=True)
class IPv6Range:
    """What a dual-stack network has of IPv6, and how it is cut. The names are those of Network."""

    network: IPv6Network
    subnet_len: int
    subnet_min: IPv6Network
    subnet_max: IPv6Network

    @property
    def pool(self) -> tuple[IPv6Address, IPv6Address]:
        """First and last address that leases are handed out from."""
        return self.subnet_min.network_address, self.subnet_max.broadcast_address


@dataclass(frozen=True, slots=True)
class Network:
    """The big network and how it is cut. Made valid by `ctl.core.wire.parse_network`."""

    network: IPv4Network
    subnet_len: int
    subnet_min: IPv4Network
    subnet_max: IPv4Network
    backend: str = "vxlan"
    vni: int = 1
    port: int = 8472
    mtu: int | None = None
    """MTU of the underlay in bytes; None: that of each node's uplink."""
    direct_routing: bool = False
    """vxlan: peers on our own link are reached by plain routes."""
    ipv6: IPv6Range | None = None
    """None: the network has IPv4 only."""

    @property
    def pool(self) -> tuple[IPv4Address, IPv4Address]:
        """First and last address that leases are handed out from."""
        return self.subnet_min.network_address, self.subnet_max.broadcast_address


@dataclass(frozen=True, slots=True)
class Subnets:
    """What a node is to have, or has had, of both families."""

    ipv4: IPv4Network
    ipv6: IPv6Network | None = None
    """None: it has IPv4 only."""

    def __str__(self) -> str:
        return " and ".join(map(str, filter(None, (self.ipv4, self.ipv6))))


@dataclass(frozen=True, slots=True)
class Addresses:
    """By which of its host's addresses a node is to be reached; None: it finds out for itself."""

    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None

    def __str__(self) -> str:
        return " and ".join(map(str, filter(None, (self.ipv4, self.ipv6))))


FOUND_OUT: Final = Addresses()
"""Of a node that finds out for itself."""


@dataclass(frozen=True, slots=True)
class IPv6Lease:
    """What a node's lease says of IPv6. The names are those of Lease."""

    subnet: IPv6Network
    host: IPv6Address | None = None
    """Flannel's PublicIPv6; None: nobody has said it yet."""
    vtep_mac: MacAddress | None = None
    vni: int | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The subnets held by a node, as the store has them: they are acquired, kept and lost as one.

    The IPv4 one is what tells a lease from others.
    """

    subnet: IPv4Network
    host: IPv4Address
    """Underlay address of the node: its VTEP address, flannel's PublicIP."""
    vtep_mac: MacAddress | None = None
    vni: int | None = None
    backend: str = "vxlan"
    node: str = ""
    """Name of the node, for people."""
    expires_at: float | None = None
    """Seconds since the epoch; None: a reservation, which does not expire; or END_UNKNOWN."""
    revision: int = field(default=0, compare=False)
    """The store's version of this entry, for compare-and-swap; 0: not stored yet."""
    ipv6: IPv6Lease | None = None
    """None: the node has IPv4 only."""
    renew_at: float | None = field(default=None, compare=False)
    """When its holder means to renew it, seconds since the epoch; None: the store does not say."""

    @property
    def key(self) -> IPv4Network:
        """What tells it from other leases."""
        return self.subnet

    @property
    def gateway(self) -> IPv4Address:
        """The bridge's address: the first of the subnet."""
        return self.subnet.network_address + 1

    @property
    def vtep_ip(self) -> IPv4Address:
        """The subnet's base address, which the vxlan device carries as a /32."""
        return self.subnet.network_address

    @property
    def overlay_hop(self) -> IPv4Address:
        """What other nodes route the subnet to, on their vxlan device."""
        return self.vtep_ip

    def expired(self, now: float) -> bool:
        """`now` in seconds since the epoch."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The store's leases at one revision, sorted by their IPv4 subnets."""

    leases: tuple[Lease, ...]
    revision: int
    problems: tuple[str, ...] = ()
    """Entries that could not be parsed, a line each; they harm no other entry."""
