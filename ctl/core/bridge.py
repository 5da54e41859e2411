"""Whether a bridge that is there can be the containers'. Pure.

We have the ports of the containers' bridge leave room for VXLAN headers: by a port of ours with the inner
MTU, of which the bridge takes the least. So it must be none that carries the uplink's own packets: the
uplink's MTU would follow the bridge's, the inner one the uplink's, and so on, down to the least there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from ctl.core.host import OWNER, BridgeDevice, Link

Interface = IPv4Interface | IPv6Interface

_CONTAINERS: Final = frozenset({"veth", "tun", "vxlan"})
"""Kinds of a bridge's ports behind which are containers, virtual machines, or an overlay."""


def why_not(name: str, uplink: Link, links: Mapping[int, Link]) -> str:
    """Why the interface of that name cannot be the containers' bridge; empty if it can, or is not there yet.

    `links`: all of this host, by ifindex.
    """
    found = next((link for link in links.values() if link.name == name), None)
    if found is None:
        return ""
    if found.kind != "bridge":
        return f"{name} is no bridge but {found.kind or 'hardware'}: choose another --bridge"
    if found.ifindex == uplink.ifindex:
        return f"--bridge {name} is the uplink itself: {_REMEDY}"
    carrying = {link.ifindex for link in carriers(uplink, links)}
    if found.ifindex in carrying:
        return f"--bridge {name} carries the uplink {uplink.name}: {_REMEDY}"
    return ""


_REMEDY: Final = "the overlay would lower its MTU; choose another --bridge (one that is not there is made)"


def carriers(uplink: Link, links: Mapping[int, Link]) -> Iterator[Link]:
    """The interfaces that carry the uplink's packets: itself, whose port it is, and what these are made of.

    A bridge or a bond is made of its ports, a VLAN or a macvlan of its interface. An uplink that is one
    end of a veth is carried by the bridge that has the other end.
    """
    ends = _at(uplink.lower, links) if uplink.kind == "veth" else ()
    todo = [
        uplink,
        *_at(uplink.master, links),
        *(bridge for end in ends for bridge in _at(end.master, links)),
    ]
    seen: set[int] = set()
    while todo:
        link = todo.pop()
        if link.ifindex in seen:
            continue
        seen.add(link.ifindex)
        yield link
        if link.kind != "veth":  # its other end has an MTU of its own
            todo += _at(link.lower, links)
        todo += (port for port in links.values() if port.master == link.ifindex)


def _at(ifindex: int, links: Mapping[int, Link]) -> Iterator[Link]:
    if ifindex in links:
        yield links[ifindex]


def lowered(bridge: Link, mtu: int, links: Mapping[int, Link]) -> str:
    """What an adopted bridge's own network loses to the overlay, a line; empty if nothing.

    `mtu`: of containers, bytes. A bridge of ours has no network of its own.
    """
    ports = sorted(
        (link for link in links.values() if link.master == bridge.ifindex and link.kind not in _CONTAINERS),
        key=lambda link: link.name,
    )
    wider = [port for port in ports if port.mtu > mtu]
    if bridge.alias == OWNER or not wider:
        return ""
    named = ", ".join(f"{port.name} (MTU {port.mtu})" for port in wider)
    return (
        f"bridge {bridge.name} has {named} beside the containers: its own MTU is {mtu} as long as the overlay"
        " is on it, so this host sends no larger packets there; --bridge may name one for containers only"
    )


def ports(bridge: int, links: Mapping[int, Link]) -> list[Link]:
    """What is plugged into the bridge of that ifindex, but for what we have put there ourselves."""
    return [link for link in links.values() if link.master == bridge and link.alias != OWNER]


def in_the_way(
    present: Sequence[Interface], wanted: Interface, *, ours: bool, by_cni: bool
) -> Sequence[Interface]:
    """Addresses of a bridge, of one family and in the kernel's order, that may not stay beside `wanted`.

    `ours`: we have made it. `by_cni`: the plugin `bridge` looks at them for each container, and adds none
    once it comes to another one before ours; of IPv6 it lets those be that do not overlap (ensureAddr in
    containernetworking/plugins, bridge.go).
    """
    before = present[: present.index(wanted)] if wanted in present else present
    if by_cni and not ours:
        return [each for each in before if wanted.version == 4 or each.network.overlaps(wanted.network)]
    return () if wanted in present else before


def misplaced(want: BridgeDevice, wanted: Interface, other: Interface, plugged: int) -> str:
    """A line about a bridge that has `other`, and is not ours to change.

    What to do is behind the first colon. `plugged`: how many ports it has.
    """
    has = f"bridge {want.name} has {other}, not {wanted}"
    if want.by_cni:
        return (
            f"{has}, and {plugged} {'port' if plugged == 1 else 'ports'}: move its containers away (kubectl"
            " drain); once no port is left it gets that address"
        )
    options = f"--bip={wanted} --mtu={want.mtu}"
    if wanted.version == 6:
        options = f"--ipv6 --fixed-cidr-v6={wanted.network}"
    return f"{has}: restart its owner with that address (dockerd: {options})"
