"""What the uplink can be: interfaces and addresses that fit what was asked for. Pure.

Of several addresses of an interface the best is the first in the kernel's order that is neither
link-local or of a narrow scope, nor deprecated or tentative, nor secondary, nor a /32 (as virtual
addresses are), where the first of these counts most. One that is none of these is "plain".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from ctl.core.host import OWNER, Link, Uplink
from ctl.core.model import Addresses


@dataclass(frozen=True, slots=True)
class UplinkChoice:
    """How the uplink is asked for: by the first of these that is given, else it is the default route's."""

    iface: str = ""
    """Its name, or an address of it."""
    pattern: str = ""
    """A regular expression that an address of it contains, else its name."""
    can_reach: IPv4Address | IPv6Address | None = None
    """A host that the kernel sends to through it."""
    public_ip: IPv4Address | None = None
    """The address to publish; None: the one that named it, else the best."""

    @property
    def address(self) -> IPv4Address | None:
        """The IPv4 address that `iface` is; None: it is none."""
        try:
            return IPv4Address(self.iface)
        except ValueError:
            return None

    @property
    def ipv6(self) -> IPv6Address | None:
        """The IPv6 address that `iface` is; None: it is none."""
        return IPv6Address(self.iface) if ":" in self.iface else None

    @property
    def by_name(self) -> bool:
        """Whether one interface was named: no other will do."""
        return bool(self.iface) and self.address is None and self.ipv6 is None


def standing_at(asked: UplinkChoice, addresses: Addresses) -> UplinkChoice:
    """The request of a node that has these addresses in any case: they name its interface if nothing does."""
    named = addresses.ipv4 or addresses.ipv6
    if named and not (asked.iface or asked.pattern or asked.can_reach):
        asked = replace(asked, iface=str(named))
    return replace(asked, public_ip=addresses.ipv4 or asked.public_ip)


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address of an interface."""

    ip: IPv4Address
    length: int
    """Of its prefix."""
    narrow: bool = False
    """Its scope is the link or the host."""
    secondary: bool = False
    """Another one of its subnet came first."""
    fading: bool = False
    """Deprecated, or tentative."""

    @property
    def faults(self) -> tuple[bool, bool, bool, bool]:
        """What is against it; the smaller the better."""
        return self.narrow or self.ip.is_link_local, self.fading, self.secondary, self.length == 32

    @property
    def plain(self) -> bool:
        """Whether nothing is."""
        return not any(self.faults)


Place = tuple[Link, Address]
"""An interface, and an address of it."""


@dataclass(frozen=True, slots=True)
class Host:
    """What is asked of the kernel for the decision."""

    links: Mapping[int, Link]
    """All interfaces by ifindex, in the kernel's order."""
    addresses: Mapping[int, tuple[Address, ...]]
    """Of each interface that has any, in the kernel's order."""
    defaults: tuple[int, ...] = ()
    """Ifindexes of the default routes' interfaces, the least metric first."""
    reached: tuple[int, IPv4Address | IPv6Address] | None = None
    """Interface and source address of the way to `can_reach`; None: there is none."""
    unreached: str = ""
    """Why there is none, if the kernel said."""
    holder: int = 0
    """Ifindex of the interface that has the IPv6 address which `iface` is; 0: none has it."""

    def usable(self, link: Link) -> list[Place]:
        """Its addresses that other hosts can send to, the best first. Our own devices are no uplinks."""
        if link.alias == OWNER:
            return []
        found = (each for each in self.addresses.get(link.ifindex, ()) if not each.ip.is_loopback)
        return [(link, each) for each in sorted(found, key=lambda each: each.faults)]


def rivals(host: Host, uplink: Uplink) -> list[Link]:
    """Interfaces on the same network as the uplink, where the kernel answers ARP for our address too."""
    ours = [each for each in host.addresses.get(uplink.link.ifindex, ()) if each.ip == uplink.address]
    networks = [IPv4Network((each.ip, each.length), strict=False) for each in ours if each.length < 32]
    others = [link for link in host.links.values() if link.up and link.alias != OWNER]
    return [
        link
        for link in others
        if link.ifindex != uplink.link.ifindex
        and link.master != uplink.link.ifindex
        and any(each.ip in network for each in host.addresses.get(link.ifindex, ()) for network in networks)
    ]


def candidates(asked: UplinkChoice, host: Host) -> tuple[list[Place], str]:
    """What the request fits, the best first; if that is nothing, one line says why."""
    if asked.iface:
        found, lacking = _by_iface(asked, host)
    elif asked.pattern:
        found, lacking = _by_pattern(asked.pattern, host)
    elif asked.can_reach:
        found, lacking = _by_route(asked.can_reach, host)
    else:
        found, lacking = _by_default(host)
    if not found:
        return [], lacking
    if asked.public_ip is None:
        return found, ""
    links = list(dict.fromkeys(link.ifindex for link, _ in found))
    named = [place for each in links for place in host.usable(host.links[each])]
    public = [place for place in named if place[1].ip == asked.public_ip]
    name = found[0][0].name
    lacking = f"uplink {name} does not have {asked.public_ip}: see --public-ip and --iface"
    return public, "" if public else lacking


def _no_address(link: Link) -> str:
    return f"uplink {link.name} has no IPv4 address: give it one, or choose another --iface"


def _by_iface(asked: UplinkChoice, host: Host) -> tuple[list[Place], str]:
    for link in host.links.values():
        if link.name == asked.iface:
            return host.usable(link), _no_address(link)
    if asked.ipv6 and host.holder in host.links:
        link = host.links[host.holder]
        return host.usable(link), _no_address(link)
    if asked.ipv6:
        return [], f"no interface has address {asked.ipv6}: see --iface"
    if asked.address is None:
        return [], f"uplink {asked.iface} does not exist: see --iface"
    places = [place for link in host.links.values() for place in host.usable(link)]
    found = [place for place in places if place[1].ip == asked.address]
    return found, f"no interface has address {asked.address}: see --iface"


def _by_pattern(pattern: str, host: Host) -> tuple[list[Place], str]:
    """Addresses first, as flannel looks. Loopback is no uplink."""
    links = [link for link in host.links.values() if link.alias != OWNER and link.name != "lo"]
    places = [place for link in links for place in host.usable(link)]
    if found := [place for place in places if re.search(pattern, str(place[1].ip))]:
        return found, ""
    named = [link for link in links if re.search(pattern, link.name)]
    if named:
        return [place for link in named for place in host.usable(link)], _no_address(named[0])
    seen = (" ".join([link.name, *(str(each.ip) for _, each in host.usable(link))]) for link in links)
    text = f"no interface matches {pattern!r}: there are {', '.join(seen) or 'none'}; see --iface-regex"
    return [], text


def _by_route(target: IPv4Address | IPv6Address, host: Host) -> tuple[list[Place], str]:
    ifindex, source = host.reached or (0, IPv4Address(0))
    link = host.links.get(ifindex)
    if link is None or link.alias == OWNER:
        return [], f"{host.unreached or f'no interface leads to {target}'}: see --iface-can-reach"
    if isinstance(source, IPv6Address):
        return host.usable(link), _no_address(link)
    named = next((each for _, each in host.usable(link) if each.ip == source), Address(source, 32))
    return [(link, named)], ""


def _by_default(host: Host) -> tuple[list[Place], str]:
    links = [host.links[each] for each in host.defaults if each in host.links]
    if not links:
        return [], "no default route to find the uplink by: name it with --iface"
    return [place for link in links for place in host.usable(link)], _no_address(links[0])
