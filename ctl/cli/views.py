"""What `ovctl top` shows of two readings: a table for each view, and a screen of it. Pure but for names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ctl.cli import rows
from ctl.cli.map import device_names
from ctl.cli.output import Column, Row, table
from ctl.core.abi import Direction, FlowKey, Ip
from ctl.core.traffic import Rates, Span, short


def _rate(key: str) -> Column:
    return Column(key, key.replace("_", " ").upper(), show=short)


_BOTH_WAYS: Final = ("tx_pps", "tx_bps", "rx_pps", "rx_bps")
_RATES: Final = tuple(map(_rate, _BOTH_WAYS))


def _both_ways(rates: Rates) -> dict[str, float]:
    sent, sent_bytes, received, received_bytes = rates
    values = (sent, sent_bytes * 8, received, received_bytes * 8)
    return {key: round(value, 1) for key, value in zip(_BOTH_WAYS, values, strict=True)}


def _place(item: tuple[Ip, object]) -> tuple[int, int]:
    """Sorts by addresses of both families."""
    return item[0].version, int(item[0])


def _peers(span: Span) -> list[Row]:
    return [{"host": str(host), **_both_ways(each)} for host, each in sorted(span.peers.items(), key=_place)]


def _flows(span: Span) -> list[Row]:
    ordered = sorted(
        ((FlowKey.unpack(raw), rate) for raw, rate in span.flows.items()),
        key=lambda item: (item[0].saddr.version, *rows.five_tuple(item[0])),
    )
    name = device_names()
    return [rows.flow(key, name) | {"pps": round(rate, 1)} for key, rate in ordered]


def _containers(span: Span) -> list[Row]:
    name = device_names()
    ordered = sorted(span.containers.items(), key=lambda item: _place((item[0].address, item)))
    return [
        {"ip": str(place.address), "dev": name(place.ifindex), **_both_ways(tuple(each))}
        | {"bypass_pps": round(bypassing, 1)}
        for place, (*each, bypassing) in ordered
    ]


def _gears(span: Span) -> list[Row]:
    return [
        {
            "direction": way.name.lower(),
            "gear": gear,
            "pps": round(packets, 1),
            "bps": round(size * 8, 1),
            "share": round(share, 1),
        }
        for (way, gear), (packets, size, share) in span.gears.items()
    ]


@dataclass(frozen=True, slots=True)
class View:
    """One of the tables."""

    columns: tuple[Column | str, ...]
    rows: Callable[[Span], list[Row]]
    reads: frozenset[str]
    """Which parts of a Reading it is made of."""
    sort: str
    """The column that it is sorted by unless told otherwise."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(each if isinstance(each, str) else each.key for each in self.columns)


VIEWS: Final[Mapping[str, View]] = {
    "peers": View(("host", *_RATES), _peers, frozenset({"peers"}), "tx_bps"),
    "flows": View((*rows.FLOW, _rate("pps")), _flows, frozenset({"flows"}), "pps"),
    "containers": View(
        ("ip", "dev", *_RATES, _rate("bypass_pps")),
        _containers,
        frozenset({"flows", "containers"}),
        "tx_bps",
    ),
    "gears": View(
        (Column("direction", "DIR"), "gear", _rate("pps"), _rate("bps"), Column("share", "SHARE %")),
        _gears,
        frozenset({"counters"}),
        "direction",
    ),
}
"""What `--by` takes."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is looked at, and sorted by which column; "": the view's own."""

    by: str
    sort: str = ""

    @property
    def column(self) -> str:
        return self.sort or VIEWS[self.by].sort

    def after(self, key: str) -> Look:
        """What a key of the keyboard makes of it; the same for one that means nothing."""
        for name in VIEWS:
            if key == name[0]:
                return Look(name)
        if key == "s":
            keys = VIEWS[self.by].keys
            return replace(self, sort=keys[(keys.index(self.column) + 1) % len(keys)])
        return self

    def rows(self, span: Span) -> list[Row]:
        """In order: numbers from the largest, words from A."""

        def place(row: Row) -> tuple[float, str]:
            value = row[self.column]
            return (-value, "") if isinstance(value, (int, float)) else (0, str(value))

        return sorted(VIEWS[self.by].rows(span), key=place)


_KEYS: Final = "p peers  f flows  c containers  g gears  s sort  q quit"


def screen(look: Look, span: Span, width: int, height: int, limit: int | None = None) -> str:
    """What fits a terminal of so many columns and lines: who carries what, the table, the keys."""
    head = [f"{way.name.lower():<3}  {_carried(span, way)}" for way in Direction]
    title = f"{look.by} by {look.column}, of {span.seconds:.1f} s"
    room = max(1, height - len(head) - 5)
    listed = look.rows(span)
    view = VIEWS[look.by]
    columns = [Column(each) if isinstance(each, str) else each for each in view.columns]
    body = table(listed[: min(limit or room, room)], columns).splitlines()
    left = len(listed) - (len(body) - 1)
    lines = [*head, f"{title}, {left} more" if left else title, "", *body, "", _KEYS]
    return "\n".join(line[:width] for line in lines[:height])


def _carried(span: Span, way: Direction) -> str:
    found = {gear: each for (where, gear), each in span.gears.items() if where is way}
    packets, size = (sum(each[kind] for each in found.values()) for kind in (0, 1))
    shares = ", ".join(f"{gear} {share:.0f} %" for gear, (*_, share) in found.items())
    return f"{short(packets)} packets/s, {short(size * 8)}b/s: {shares}"
