"""Where the overlay's network clashes with what else is on a host. Pure.

The kernel takes the most specific route, whoever made it. So an address or a route of somebody else's
takes packets from the overlay where it lies within a node's subnet: containers there are not reached
from this host. One that lies around subnets loses what is in them, which may be nothing.

What counts is what the network hands out, from SubnetMin to SubnetMax: hosts may have addresses in
the rest of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from ctl.core.family import Member, Space
from ctl.core.host import Ground, Surroundings
from ctl.core.lease import KEEP_CLEAR, holder, in_words, inside, span
from ctl.core.model import Network

Members = Sequence[Member[Any, Any]]


@dataclass(frozen=True, slots=True)
class Clashes:
    """What is wrong, and what is only to be known; a line each."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def handed_out(cut: Space[Any]) -> tuple[int, int]:
    """First and last address that a node's subnet may have, as numbers."""
    return span(cut.subnet_min)[0], span(cut.subnet_max)[1]


def _meets(ground: Ground, cut: Space[Any]) -> bool:
    """Both of one family."""
    first, last = handed_out(cut)
    start, end = span(ground.network)
    return start <= last and first <= end


def over_the_underlay(network: Network, underlay: Iterable[Ground]) -> str:
    """Why a network must not be handed out on hosts of this link, one line; empty if it may."""
    for ground in underlay:
        cut = network if ground.network.version == 4 else network.ipv6
        if cut is not None and _meets(ground, cut):
            return (
                f"{cut.network} hands out {cut.subnet_min} to {cut.subnet_max}, and the hosts'"
                f" own link lies in it ({ground} here): choose another network, or {KEEP_CLEAR}"
            )
    return ""


def clashes(
    cut: Space[Any], own: IPv4Network | IPv6Network, members: Members, around: Surroundings
) -> Clashes:
    """What of a host's surroundings clashes with what the network has of a family now.

    `own`: this node's subnet; `members`: all nodes, in the order of ctl.core.lease.rank; all of that family.
    """
    problems = [
        f"{ground}, which is the underlay, and our subnet {own} covers it: {KEEP_CLEAR}"
        for ground in around.underlay
        if ground.network.overlaps(own)
    ]
    warnings = []
    for ground in around.others:
        if not _meets(ground, cut) or _leads_to_a_container(ground, own):
            continue
        if taken := _taken(ground, own, members):
            problems.append(
                f"{ground}, within {taken}: containers there are not reached from this host; {_MOVE}"
            )
        elif not _around_everything(ground, cut):
            warnings.append(f"{ground}, which overlaps what {cut.network} hands out: {_MAY_BE_LOST}; {_MOVE}")
    return Clashes(tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(warnings)))


_MOVE = "give it, or the overlay, another range"
_MAY_BE_LOST = "what is there and has an address of a node's subnet is not reached"


def _leads_to_a_container(ground: Ground, own: IPv4Network | IPv6Network) -> bool:
    """A route to one address of ours: so some runtimes reach a container that is on no bridge."""
    return ground.network.prefixlen == own.max_prefixlen and inside(span(ground.network), span(own))


def _taken(ground: Ground, own: IPv4Network | IPv6Network, members: Members) -> str:
    """Whose subnet it lies in, in words; empty if in nobody's."""
    if inside(span(ground.network), span(own)):
        return f"our own subnet {own}"
    member = holder(members, ground.network)
    if member is not None and member.subnet != own and inside(span(ground.network), span(member.subnet)):
        return in_words(member)
    return ""


def _around_everything(ground: Ground, cut: Space[Any]) -> bool:
    """A route that is wider than all of the network, as the default route is: it is for the rest."""
    first, last = handed_out(cut)
    start, end = span(ground.network)
    return ground.address is None and start <= first and last <= end
