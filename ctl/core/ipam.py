"""Addresses that `host-local` has given to containers, and which of them no container has any more. Pure.

The plugin keeps a file for each address, named by it, below a directory named by the network; in it are
the container's id and the interface's name, on two lines (containernetworking/plugins, host-local's
backend/disk/backend.go). The file goes with the container's DEL. A runtime that forgets a container, as
after a power cut, never asks for that, and the address is lost to the subnet: it is leaked.

To free one that is in use gives it to two containers. So an address is leaked only if nothing speaks
against it, and whoever could have it has been looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import Final

Address = IPv4Address | IPv6Address

YOUNG_S: Final = 600.0
"""How long a container may take to be added. Runtimes give up after minutes (kubelet: 2 to 4)."""


class State(StrEnum):
    """What an address that was given out is now."""

    USED = "used"
    YOUNG = "young"
    """It was given out a moment ago: perhaps its container is still made."""
    UNCLEAR = "unclear"
    """Nobody is seen to have it, but not everybody was seen."""
    LEAKED = "leaked"


@dataclass(frozen=True, slots=True)
class Reservation:
    """An address that was given out."""

    address: Address
    container: str
    """The runtime's id of its sandbox; empty: the file was cut short."""
    ifname: str
    """Inside of the container; empty: host-local before 0.8 did not say."""
    since: float
    """When, seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What shows that containers are there."""

    addresses: Mapping[Address, str] = field(default_factory=dict)
    """By what each of these is seen to be alive."""
    sandboxes: frozenset[str] = frozenset()
    """Ids of those that a runtime has."""
    strangers: Sequence[str] = ()
    """Ports of the bridge behind which there is something, and it is not known which addresses it has."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an address, and by what that is told."""

    reservation: Reservation
    state: State
    why: str


def parse(name: str, text: str, since: float) -> Reservation | None:
    """A file of the directory; None if it is none of an address (`lock`, `last_reserved_ip.0`)."""
    try:
        address = ip_address(name)
    except ValueError:
        return None
    container, _, ifname = text.strip().partition("\n")
    return Reservation(address, container.strip(), ifname.strip(), since)


def judge(reservations: Iterable[Reservation], signs: Signs, now: float) -> list[Verdict]:
    """What each is, by address. `now`: seconds since the epoch."""
    together: dict[str, list[Reservation]] = {}
    for each in reservations:
        together.setdefault(each.container or str(each.address), []).append(each)
    found = [verdict for those in together.values() for verdict in _of_container(those, signs, now)]
    return sorted(found, key=lambda each: (each.reservation.address.version, int(each.reservation.address)))


def _of_container(those: Sequence[Reservation], signs: Signs, now: float) -> Iterator[Verdict]:
    """All addresses of one container: it is there with all of them, or with none."""
    state, why = _life(those, signs)
    youngest = max(each.since for each in those)
    if state is not State.USED and now - youngest < YOUNG_S:
        state, why = State.YOUNG, "its container may still be made"
    for each in those:
        yield Verdict(each, state, signs.addresses.get(each.address, why))


def _life(those: Sequence[Reservation], signs: Signs) -> tuple[State, str]:
    if those[0].container in signs.sandboxes:
        return State.USED, "a runtime has its sandbox"
    for each in those:
        if each.address in signs.addresses:
            return State.USED, f"its container has {each.address}"
    if signs.strangers:
        return State.UNCLEAR, f"perhaps it is behind {', '.join(signs.strangers[:3])}, which says nothing"
    if not any(each.address.version == 4 for each in those):
        return State.UNCLEAR, "only IPv4 addresses are asked for"
    return State.LEAKED, "no sandbox, no endpoint, no answer"


def capacity(subnet: IPv4Network) -> int:
    """How many addresses of it host-local has to give: all but the subnet's own, its gateway and the last."""
    return max(0, subnet.num_addresses - 3)
