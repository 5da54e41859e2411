"""The udp backend's table: lookups, its text, and every way the text can be wrong."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.backend.udp import stats
from ctl.backend.udp.client import ForwarderProcess
from ctl.backend.udp.files import device_name, directory
from ctl.backend.udp.table import Table, format_table, parse_table
from ctl.core.errors import ConfigError

OWN = "10.99.1.0/24"
NETWORKS = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: IPv4Network((pair[0] >> (32 - pair[1]) << (32 - pair[1]), pair[1]))
)
HOSTS = st.integers(1, 2**32 - 2).map(IPv4Address)


@given(st.dictionaries(NETWORKS, HOSTS, max_size=8), st.integers(0, 2**32 - 1))
def test_lookup_is_by_longest_prefix(routes: dict[IPv4Network, IPv4Address], address: int) -> None:
    table = Table(OWN, [(str(subnet), str(host)) for subnet, host in routes.items()])
    holding = [subnet for subnet in routes if IPv4Address(address) in subnet]
    expected = str(routes[max(holding, key=lambda subnet: subnet.prefixlen)]) if holding else None
    assert table.host(address) == expected
    assert table.hosts == {str(host) for host in routes.values()}
    assert len(table) == len(routes)


@given(st.dictionaries(NETWORKS, HOSTS, max_size=8), NETWORKS, st.integers(0, 2**63))
def test_text_gives_the_table_back(
    routes: dict[IPv4Network, IPv4Address], own: IPv4Network, generation: int
) -> None:
    pairs = [(str(subnet), str(host)) for subnet, host in routes.items()]
    table = parse_table(format_table(str(own), pairs, generation))
    assert (table.generation, table.base, len(table)) == (generation, int(own.network_address), len(routes))
    assert table.is_ours(int(own.broadcast_address))
    for subnet, host in routes.items():
        assert table.host(int(subnet.network_address)) is not None
        assert str(host) in table.hosts


GOOD = format_table(OWN, [("10.99.2.0/24", "192.168.77.12")], 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD.replace("ovnet-udp 1", "ovnet-udp 2"),
        GOOD.removesuffix("end\n"),
        GOOD[: len(GOOD) // 2],
        GOOD.replace("10.99.2.0/24", "10.99.2.1/24"),
        GOOD.replace("10.99.2.0/24", "10.99.2.0/33"),
        GOOD.replace("10.99.2.0/24", "10.99.2/24"),
        GOOD.replace("192.168.77.12", "192.168.77.256"),
        GOOD.replace("192.168.77.12", "host"),
        GOOD.replace("192.168.77.12", ""),
        GOOD.replace("generation 1", "generation x"),
        GOOD.replace("own ", ""),
    ],
)
def test_text_that_is_wrong_is_refused_and_named(text: str) -> None:
    with pytest.raises(ConfigError, match="^/run/table: "):
        parse_table(text, "/run/table")


def test_counters_are_read_while_they_count(tmp_path: Path) -> None:
    path = str(tmp_path / "stats")
    counters = stats.create(path)
    assert set(stats.read(path).values()) == {0}
    counters[stats.TX_PACKETS] += 3
    counters[stats.DROP_NOT_OURS] = 2**64 - 1
    assert stats.read(path)["tx_packets"] == 3
    assert stats.read(path)["drop_not_ours"] == 2**64 - 1
    assert list(stats.NAMES)[stats.DROP_SPOOFED] == "drop_spoofed"
    Path(path).write_bytes(b"short")
    with pytest.raises(ValueError, match="5 bytes"):
        stats.read(path)


def test_device_name_fits_an_interface() -> None:
    assert device_name(65535) == "ovnetu65535"
    assert len(device_name(65535)) <= 15


def test_a_forwarder_is_removed_with_what_killed_processes_left_half_written(tmp_path: Path) -> None:
    place = directory(tmp_path)
    place.mkdir()
    for name in ("table", "stats", "lock", ".table.1", ".stats.4194304"):
        (place / name).write_text("half")
    ForwarderProcess(tmp_path, IPv4Address("127.0.0.1"), 65000).stop(remove=True)
    assert not place.exists()
