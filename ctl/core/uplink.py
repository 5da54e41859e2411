"""Which interface is the uplink, and which of its addresses is ours: one decision. Pure.

    found = decide_first(asked, host, kept)             at the start of the agent
    found = decide(asked, host, found.memory, now)      at every later look

The first row that applies counts:

| what the host looks like | what becomes of the uplink | Row |
|---|---|---|
| our own address is back, on an interface that is up | it is ours again | BACK |
| our address is where it was, and the interface is up, or no other would do | nothing | STAYS |
| it is on another interface, where it may be followed to | it is followed | MOVED |
| it is gone, and the same interface, which is up, has a new plain one | that one at once | SUCCESSOR |
| it is gone, or its interface is down, for less than HOLD_S | nothing yet, and that is said | WAITS |
| it has been for longer, and something else fits | that, until our own is back | SUBSTITUTE |
| it is gone, and nothing fits | nothing, and that is said | NOTHING |
| at the start: an earlier life's address is there still, for the same request | that one | KEPT |
| at the start: something fits | the best of it | FIRST |

So a newcomer never takes over from what works: not another default route, not an interface that a
pattern also finds, not a virtual address, not another way to the host that is to be reached.

"Our own" is the address of the first choice, or its successor. It may be followed to what the request
fits, to the master of its interface (a bridge or a bond has taken it in), and, unless the request
names an interface, to any other.

Which address of an interface is the best, and which is "plain", is told in ctl.core.candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Final

from ctl.core.candidates import Address, Host, Place, UplinkChoice, candidates
from ctl.core.host import OWNER, Link, Uplink

HOLD_S: Final = 5.0
"""How long an address that is gone is waited for: a DHCP client takes it away and puts it back."""


class Row(StrEnum):
    """Of the table above."""

    FIRST = "the best that fits"
    KEPT = "an earlier life's"
    STAYS = "still there"
    MOVED = "on another interface now"
    BACK = "our own again"
    SUCCESSOR = "in place of the old one"
    WAITS = "waited for"
    SUBSTITUTE = "until our own is back"
    NOTHING = "there is none"


@dataclass(frozen=True, slots=True)
class Memory:
    """What one look leaves to the next."""

    uplink: Uplink
    own: IPv4Address
    """The address that is ours by right: it need not be the uplink's at the moment."""
    guests: frozenset[IPv4Address] = frozenset()
    """Addresses that were seen beside ours and were not plain then: no successors."""
    gone_since: float | None = None
    """When our address was first missed, on the caller's clock; None: it is there."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a look has come to."""

    row: Row
    memory: Memory | None
    """None: there is no uplink, nor was there one before."""
    error: str = ""
    """Why nothing can be done now, one line."""
    wrong: str = ""
    """What the operator has to see to, one line."""
    newcomer: str = ""
    """What would be found by the request if nothing were in use, one line; empty: the same interface."""


@dataclass(frozen=True, slots=True)
class _Look:
    """One look, with what follows from request and host alone."""

    asked: UplinkChoice
    host: Host
    fits: list[Place]
    """What the request fits, the best first."""
    lacking: str
    """Why it fits nothing."""

    def place_of(self, ip: IPv4Address, near: Link | None) -> Place | None:
        """Where an address is, if it may be followed there. `near`: where it was; None: not known."""
        if self.asked.public_ip not in (None, ip) or self.asked.address not in (None, ip):
            return None
        where = [(link, each) for link in self.host.links.values() for each in self._at(link, ip)]
        here = near.ifindex if near else 0
        master = self.host.links[here].master if here in self.host.links else 0
        for link, each in where:
            if link.ifindex == here:
                return link, each
        fitting = [place for place in self.fits if place[1].ip == ip]
        taken_in = [place for place in where if place[0].ifindex == master != 0]
        tied = self.asked.by_name or self.asked.ipv6 is not None
        elsewhere = [] if tied else [place for place in where if place[0].name != "lo"]
        return next(iter([*fitting, *taken_in, *elsewhere]), None)

    def _at(self, link: Link, ip: IPv4Address) -> list[Address]:
        if link.alias == OWNER:
            return []
        return [each for each in self.host.addresses.get(link.ifindex, ()) if each.ip == ip]

    def other_than(self, link: Link) -> bool:
        """Whether an interface that is up, and not this one, would do."""
        return any(each.up and each.ifindex != link.ifindex for each, _ in self.fits)

    def best(self) -> Place:
        """Of what fits, on an interface that is up if one is."""
        return next((place for place in self.fits if place[0].up), self.fits[0])

    def guests(self, place: Place) -> frozenset[IPv4Address]:
        """The addresses beside this one that are not plain."""
        link, ours = place
        beside = self.host.addresses.get(link.ifindex, ())
        return frozenset(each.ip for each in beside if each.ip != ours.ip and not each.plain)


def decide_first(asked: UplinkChoice, host: Host, kept: IPv4Address | None = None) -> Decision:
    """The uplink at the start. `kept`: the own address of an earlier life with the same request."""
    look = _Look(asked, host, *candidates(asked, host))
    at = look.place_of(kept, None) if kept else None
    if at and kept and (at[0].up or not look.other_than(at[0])):
        return _settled(look, Row.KEPT, at, kept)
    if not look.fits:
        return Decision(Row.NOTHING, None, error=look.lacking)
    best = look.best()
    return _settled(look, Row.FIRST, best, kept if at and kept else best[1].ip)


def decide(asked: UplinkChoice, host: Host, memory: Memory, now: float) -> Decision:
    """The uplink at a later look. `now`: seconds on a clock that only goes up."""
    look, before = _Look(asked, host, *candidates(asked, host)), memory.uplink
    if memory.own != before.address:
        own = look.place_of(memory.own, before.link)
        if own and own[0].up:
            return _settled(look, Row.BACK, own, memory.own)
    at = look.place_of(before.address, before.link)
    if at and (at[0].up or not look.other_than(at[0])):
        row = Row.STAYS if at[0].ifindex == before.link.ifindex else Row.MOVED
        return _settled(look, row, at, memory.own)
    since = now if memory.gone_since is None else memory.gone_since
    if not look.fits:
        return Decision(Row.NOTHING, replace(memory, gone_since=since), error=look.lacking)
    return _replace(look, memory, since, now)


def _replace(look: _Look, memory: Memory, since: float, now: float) -> Decision:
    """Our address has been gone `since` then, or its interface is down, and something else fits."""
    before = memory.uplink
    for link, address in look.fits:
        same = link.up and link.ifindex == before.link.ifindex
        if same and address.plain and address.ip not in memory.guests:
            return _settled(look, Row.SUCCESSOR, (link, address), address.ip)
    if now - since < HOLD_S:
        text = f"uplink {before.link.name}: {before.address} is gone, or its interface is down: waited for"
        return Decision(Row.WAITS, replace(memory, gone_since=since), error=text)
    return _settled(look, Row.SUBSTITUTE, look.best(), memory.own)


def _settled(look: _Look, row: Row, place: Place, own: IPv4Address) -> Decision:
    link, address = place
    memory = Memory(Uplink(link, address.ip), own, look.guests(place))
    return Decision(row, memory, wrong=_wrong(look, place, own), newcomer=_newcomer(look, place))


def _wrong(look: _Look, place: Place, own: IPv4Address) -> str:
    link, address = place
    if look.asked.by_name and link.name != look.asked.iface:
        return (
            f"{look.lacking or f'uplink {look.asked.iface} is another interface now'}; "
            f"{link.name} has {address.ip}, and is used until a restart"
        )
    if address.ip != own:
        return (
            f"uplink is {link.name} with {address.ip} for now: our own address {own} is gone, or its "
            "interface is down; restart the agent if it is not to come back"
        )
    return ""


def _newcomer(look: _Look, place: Place) -> str:
    link, address = place
    if look.asked.by_name or look.asked.address or look.asked.ipv6:
        return ""
    if not look.fits:
        return f"uplink stays {link.name} with {address.ip}: {look.lacking}"
    best, other = look.best()
    if best.ifindex == link.ifindex or not best.up:
        return ""
    return f"uplink stays {link.name} with {address.ip}: {best.name} with {other.ip} would be found now"
