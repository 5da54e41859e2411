"""What is shown is the same, whichever way is the quick one for it."""

from __future__ import annotations

import csv as library_csv
import json
from io import StringIO
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.cli import map as map_command
from ctl.cli import rows
from ctl.cli.output import Column, csv, dumps, table
from ctl.core.abi import Ip, PeerEntry
from ctl.core.model import MacAddress

plain = (
    st.none() | st.booleans() | st.integers() | st.text() | st.builds(IPv4Address, st.integers(0, 2**32 - 1))
)
parts = plain | st.lists(plain, max_size=2) | st.dictionaries(st.text(max_size=3), plain, max_size=2)
row = st.dictionaries(st.text(max_size=4), parts, max_size=4)


@given(
    st.lists(row | parts, max_size=4)
    | st.dictionaries(st.text(max_size=3), st.lists(row, max_size=3), max_size=2)
)
def test_json_is_as_the_library_indents_it(value: object) -> None:
    assert dumps(value) == json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"


@given(st.lists(st.dictionaries(st.sampled_from("abc"), parts), max_size=5))
def test_a_table_has_a_line_for_each_row_with_its_columns_below_one_another(
    found: list[dict[str, object]],
) -> None:
    columns = [Column("a"), Column("b", show=repr), Column("c")]
    cells = [["A", "B", "C"], *([column.show(each.get(column.key)) for column in columns] for each in found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    layout = "  ".join(f"{{:<{width}}}" for width in widths)
    assert table(found, columns) == "".join(layout.format(*line).rstrip() + "\n" for line in cells)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(allow_nan=False) | parts), max_size=5))
def test_csv_has_words_for_what_csv_has_none_for(found: list[dict[str, object]]) -> None:
    columns = [Column("a"), Column("b"), Column("c")]

    def word(value: object) -> str:
        if isinstance(value, (list, tuple)):
            return " ".join(map(str, value))
        return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)

    lines = list(library_csv.reader(StringIO(csv(found, columns), newline="")))
    assert lines == [["a", "b", "c"], *([word(each.get(column.key)) for column in columns] for each in found)]


addresses = st.one_of(
    st.tuples(*[st.integers(1, 2**32 - 1).map(IPv4Address)] * 3),
    st.tuples(*[st.integers(1, 2**128 - 1).map(IPv6Address)] * 3),
)


@given(addresses, st.booleans(), st.integers(0, 2), st.integers(0, 1))
def test_a_row_of_raw_bytes_says_what_the_entry_says(
    trio: tuple[Ip, Ip, Ip], through_fib: bool, ifindex: int, flags: int
) -> None:
    base, host, hop = trio
    entry = PeerEntry(
        host, MacAddress(b"\2peer."), 8472, 7, ifindex, None if through_fib else hop, flags, ttl=9
    )
    assert rows.peer(base.packed, entry.pack(), 24, "eth{}".format) == {
        "subnet": f"{base}/24",
        "host": str(host),
        "vtep_mac": "02:70:65:65:72:2e",
        "vni": 7,
        "port": 8472,
        "dev": f"eth{ifindex}" if ifindex else None,
        "next_hop": None if through_fib else str(hop),
        "ttl": 9,
        "flags": ["kernel-path"] if flags else [],
    }


def test_a_listing_asks_for_the_name_of_an_interface_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def name(ifindex: int) -> str:
        asked.append(ifindex)
        return f"eth{ifindex}"

    monkeypatch.setattr("socket.if_indextoname", name)
    entry = PeerEntry(IPv4Address("192.0.2.1"), MacAddress(b"\2peer."), 8472, 1, 3, None)
    names = map_command.device_names()
    found = rows.peers(((bytes((0, 0, block, 0)), entry.pack()) for block in (9, 8, 100)), None, names)
    assert [each["dev"] for each in found] == ["eth3"] * 3
    assert [each["subnet"] for each in found] == ["0.0.8.0/32", "0.0.9.0/32", "0.0.100.0/32"]
    assert asked == [3]
