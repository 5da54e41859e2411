"""What a table should hold, beside what it holds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from ctl.core.abi import PeerEntry, peer_flag_names
from ctl.core.host import Route, RouteKey

K = TypeVar("K")
V = TypeVar("V")

DeviceName = Callable[[int], str]
"""Gives the name of the interface with this ifindex."""


class State(StrEnum):
    """How an entry differs."""

    MISSING = "missing"
    """It is wanted, and not there."""
    STALE = "stale"
    """It is there, and nobody wants it."""
    DIFFERENT = "different"
    """It is there with another value than is wanted."""


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """An entry of a table that is not as the leases ask."""

    table: str
    key: str
    state: State
    wanted: str = ""
    """The value that is wanted; empty for one that is stale."""
    found: str = ""
    """The value that is there; empty for one that is missing."""


def compare(
    table: str, desired: Mapping[K, V], actual: Mapping[K, V], name: DeviceName
) -> Iterator[Difference]:
    """Each entry that differs, in no order."""
    for key in desired.keys() | actual.keys():
        wanted, found = desired.get(key), actual.get(key)
        if wanted == found:
            continue
        state = State.MISSING if found is None else State.STALE if wanted is None else State.DIFFERENT
        yield Difference(table, _key(key), state, _value(wanted, name), _value(found, name))


def lasting(before: list[Difference], now: list[Difference]) -> list[Difference]:
    """Those that two looks have in common, sorted: what an agent was about to mend is not among them."""
    return sorted(set(before) & set(now))


def _key(key: Any) -> str:
    return f"{key.subnet} metric {key.metric}" if isinstance(key, RouteKey) else str(key)


def _value(value: Any, name: DeviceName) -> str:
    """As the tools show it that are used to mend it: ip(8), bridge(8)."""
    if value is None:
        return ""
    if isinstance(value, Route):
        return _route(value, name)
    if isinstance(value, PeerEntry):
        return _peer(value, name)
    return "known" if value is True else str(value)


def _route(route: Route[Any], name: DeviceName) -> str:
    if not route.ifindex:
        return "several routes"
    words = [f"via {route.via}", f"dev {name(route.ifindex)}"]
    words += ["onlink"] if route.onlink else []
    return " ".join([*words, f"mtu {route.mtu}"] if route.mtu else words)


def _peer(entry: PeerEntry, name: DeviceName) -> str:
    way = f"dev {name(entry.ifindex)}" if entry.ifindex else "no device"
    hop = f"via {entry.next_hop}" if entry.next_hop else "via fib"
    words = [str(entry.host), str(entry.vtep_mac), f"vni {entry.vni}", f"port {entry.port}", hop, way]
    return " ".join([*words, f"ttl {entry.ttl}", *peer_flag_names(entry.flags)])
