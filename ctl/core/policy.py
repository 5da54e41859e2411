"""Policy routing of the packets between hosts (`ip rule`): how to ask for their way. Pure.

The kernel's vxlan device asks the FIB for each packet by all that rules can match on: addresses,
protocol, ports, mark, TOS 0, user 0, no interface. So the agent asks it in the same words, and
whatever rules there are, the answer is the kernel path's. Two things differ from packet to packet
and cannot be asked for beforehand:

| a rule matches on | then |
|---|---|
| the mark | packets with a bit that rules look at take the kernel path; the answer is for the others |
| source ports | one of each class is asked for; where answers differ, the peer takes the kernel path |

A rule that none of our packets can match otherwise (another protocol, port, source, interface,
TOS, user) does not count. One that is inverted (`not`) always does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

UDP: Final = 17
EVERYONE: Final = IPv4Network("0.0.0.0/0")
MAX_CLASSES: Final = 8
"""So many times a way is asked for at the most; with more classes the kernel path takes all."""

Span = tuple[int, int]
"""First and last of a range of ports or users."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the kernel, as far as it says which packets it is for."""

    source: IPv4Network | IPv6Network = EVERYONE
    iif: str = ""
    """Interface that the packet came in by; "lo": it is the host's own."""
    bound: bool = False
    """For packets that are bound to an interface: an outgoing one, a VRF, or a tunnel's number."""
    mask: int = 0
    """Bits of the packet's mark that it looks at."""
    tos: int = 0
    """TOS or DSCP; 0: any."""
    protocol: int = 0
    """IP protocol; 0: any."""
    sports: Span | None = None
    dports: Span | None = None
    users: Span | None = None
    sport_bits: bool = False
    """It looks at some bits of the source port."""
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class Outer:
    """The packets that we send to other hosts."""

    host: IPv4Address | IPv6Address
    """Their source address."""
    port: int
    """Their UDP destination port."""
    sports: Span
    """The range of their source ports."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How the FIB is to be asked for the way of our packets."""

    marks: int = 0
    """Bits of a packet's mark that rules look at."""
    sports: tuple[int, ...] = (0,)
    """A source port of each class to ask for; empty: there are too many."""


def plan_policy(rules: Iterable[Rule], outer: Outer) -> Policy:
    """How to ask, where these are the rules."""
    ours = [rule for rule in rules if rule.inverted or may_match(rule, outer)]
    marks = 0
    for rule in ours:
        marks |= rule.mask
    if any(rule.sport_bits for rule in ours):
        return Policy(marks, ())
    first, last = outer.sports
    cuts = {cut for rule in ours if rule.sports for cut in (rule.sports[0], rule.sports[1] + 1)}
    classes = (first, *sorted(cut for cut in cuts if first < cut <= last))
    return Policy(marks, classes if len(classes) <= MAX_CLASSES else ())


def may_match(rule: Rule, outer: Outer) -> bool:
    """Whether a packet of ours can be one of a rule's that is not inverted, by some mark and source port."""
    return (
        outer.host in rule.source
        and rule.iif in ("", "lo")
        and not rule.bound
        and not rule.tos
        and rule.protocol in (0, UDP)
        and _within(outer.port, rule.dports)
        and _within(0, rule.users)
    )


def describe(policy: Policy) -> str:
    """What an operator may want to know, one line; empty if rules make no difference between packets."""
    parts = []
    if policy.marks:
        parts.append(f"marks ({policy.marks:#x}): packets with such a bit take the kernel path")
    if not policy.sports:
        parts.append(f"source ports, in more than {MAX_CLASSES} classes: all peers take the kernel path")
    elif len(policy.sports) > 1:
        parts.append("source ports: peers that these lead to on several ways take the kernel path")
    return f"ip rules look at {'; at '.join(parts)}" if parts else ""


def _within(value: int, span: Span | None) -> bool:
    return span is None or span[0] <= value <= span[1]
