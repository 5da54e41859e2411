"""`ovctl top` as its users have it, less what takes a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.cli.output import Row
from ctl.cli.top import places
from ctl.cli.views import VIEWS, Look, screen
from ctl.core.abi import Counter, EndpointEntry, Hook, Ip
from ctl.core.reasons import labelled
from ctl.core.traffic import Place, Reading, Span
from tests.datapath import INET, INET6, MAC, flow_out
from tests.unit.conftest import Ovctl, refuses

SECOND = 10**9
SPAN = Span(
    Reading(0, peers={IPv4Address("192.0.2.9"): (0, 0, 0, 0)}),
    Reading(
        2 * SECOND,
        counters={(Hook.FROM_CONTAINER, labelled("encap").number): Counter(2_000_000, 1_000_000_000)},
        peers={
            IPv4Address(f"192.0.2.{host}"): (host * 2_000_000, host * 10**9, 0, host) for host in range(7, 12)
        },
        flows={flow_out(sport=port).pack(): (port,) for port in (80, 443, 53)},
        containers={Place(IPv4Address("10.1.1.5"), flow_out().ifindex): (2, 3, 4, 5)},
    ),
)


def column(rows: list[Row], key: str) -> list[object]:
    return [row[key] for row in rows]


def test_what_sends_most_comes_first() -> None:
    assert column(Look("peers").rows(SPAN), "host") == [f"192.0.2.{host}" for host in (11, 10, 9, 8, 7)]
    assert Look("peers").rows(SPAN)[-1] == {
        "host": "192.0.2.7", "tx_pps": 7e6, "tx_bps": 28e9, "rx_pps": 0.0, "rx_bps": 28.0,
    }  # fmt: skip


@pytest.mark.parametrize("by", VIEWS)
def test_each_view_can_be_sorted_by_each_of_its_columns_and_has_them_all(by: str) -> None:
    for key in VIEWS[by].keys:
        found = column(Look(by, key).rows(SPAN), key)
        assert found, "there is something to sort"
        assert found == sorted(found, reverse=isinstance(found[0], (int, float)))  # type: ignore[type-var]
    for row in Look(by).rows(SPAN):
        assert set(VIEWS[by].keys) <= row.keys()


def test_keys_choose_a_view_and_go_through_its_columns() -> None:
    look = Look("peers")
    assert [look.after(key) for key in "pfcg"] == list(map(Look, ("peers", "flows", "containers", "gears")))
    assert look.after("x") == look
    seen = [look]
    while (after := seen[-1].after("s")).column != look.column:
        seen.append(after)
    assert sorted(each.column for each in seen) == sorted(VIEWS["peers"].keys)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [3, 8, 24])
def test_a_screen_fits_its_terminal(width: int, height: int) -> None:
    lines = screen(Look("peers"), SPAN, width, height).split("\n")
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)


def test_a_screen_says_who_carries_what_and_how_much_is_not_shown() -> None:
    shown = screen(Look("peers"), SPAN, 120, 12)
    assert "out  1M packets/s, 4Gb/s: bypass 100 %, tunnel 0 %, kernel 0 %" in shown
    assert "peers by tx_bps, of 2.0 s" in shown
    assert "192.0.2.11  11M" in shown
    assert "q quit" in shown
    assert "more" not in screen(Look("peers"), SPAN, 120, 40)
    assert ", 3 more" in screen(Look("peers"), SPAN, 120, 40, limit=2)


WRONG = {
    "top --by ports": "argument --by: invalid choice: 'ports'",
    "top --interval 0": "argument --interval: '0' is no time between 0.1 and 86400 seconds",
    "top --limit 0": "argument --limit: '0' is no number from 1 to 2147483647",
    "top --once --count 2": "argument --count: not allowed with argument --once",
    "top --sort speed": "top of peers has no column speed: it has host, tx_pps, tx_bps, rx_pps, rx_bps",
    "top --by gears --sort host": "top of gears has no column host: it has direction, gear, pps, bps, share",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_flag_is_one_line_and_code_2(ovctl: Ovctl, line: str) -> None:
    refuses(ovctl, line, WRONG[line])


def test_what_is_of_ipv6_stands_in_the_same_tables() -> None:
    out = INET6.flow_out()
    port = Place(INET6.local, out.ifindex)
    before = replace(SPAN.before, flows={out.pack(): (2,)}, containers={port: (0, 0, 0, 0)})
    after = replace(
        SPAN.after,
        peers={**SPAN.after.peers, INET6.peer.host: (2, 4, 6, 8)},
        flows={**SPAN.after.flows, out.pack(): (12,)},
        containers={**SPAN.after.containers, port: (2, 4, 6, 8)},
    )
    span = Span(before, after)
    assert "fd50::2" in column(Look("peers").rows(span), "host")
    (flow,) = (row for row in Look("flows").rows(span) if row["src"] == "fd10:0:0:1::5")
    assert (flow["dst"], flow["pps"]) == ("fd10:0:0:2::9", 5.0)
    assert column(Look("containers", "ip").rows(span), "ip") == ["10.1.1.5", "fd10:0:0:1::5"]


def test_a_container_with_addresses_of_both_families_is_counted_once() -> None:
    def maps_of(ports: Mapping[Ip, int]) -> Any:
        entries = {address: EndpointEntry(ifindex, MAC, MAC) for address, ifindex in ports.items()}
        return SimpleNamespace(endpoints=lambda: entries)

    both: Any = (maps_of({INET.local: 5, INET.other: 6}), maps_of({INET6.local: 5, INET6.other: 7}))
    assert places(both) == [Place(INET.local, 5), Place(INET.other, 6), Place(INET6.other, 7)]
