"""ovctl on real pinned maps of both families, without any agent. Of IPv4 alone: test_ovctl_map.py."""

from __future__ import annotations

import csv
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ctl.cli.main import main
from ctl.core import abi
from ctl.core.abi import FlowEntry, Hook
from ctl.core.family import IPV4, IPV6
from ctl.core.reasons import labelled
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.families import AllMaps
from ctl.kernel.bpf.maps import Maps, create_or_adopt, family_root, specs, unpin_all
from tests.datapath import ENDPOINT, INET, INET6, MAC, Cast

Ovctl = Callable[..., tuple[int, str, str]]


def put(maps: Maps[Any], name: str, key: bytes, value: bytes) -> None:
    """Straight into the map, past all that ovctl has in common with the agent."""
    with closing(syscall.Map(os.dup(maps.fd(name)))) as raw:
        raw.update(key, value)


def furnish(maps: Maps[Any], cast: Cast) -> None:
    """A node, a peer, a container, a flow of it, and five packets on each processor that bypassed."""
    version = cast.version
    maps.write_node(cast.node)
    put(maps, "peers", cast.peer_subnet.network_address.packed, cast.peer.pack())
    put(maps, "peer_stats", cast.peer.host.packed, bytes(abi.PEER_STATS.size))
    put(maps, "endpoints", cast.local.packed, ENDPOINT.pack())
    put(maps, "flows", cast.flow_out().pack(), FlowEntry(time.monotonic_ns(), 0, 12).pack(version))
    index = struct.pack("=I", Hook.FROM_CONTAINER * abi.REASON_MAX + labelled("encap").number)
    put(maps, "counters", index, abi.COUNTER.pack(5, 500, 0))


@pytest.fixture
def maps(pins: Path) -> Iterator[AllMaps]:
    ipv6_pins = family_root(pins, IPV6)
    try:
        with AllMaps(
            create_or_adopt(pins, specs(4, 4, 64), IPV4),
            create_or_adopt(ipv6_pins, specs(4, 4, 64, 6), IPV6),
        ) as opened:
            for each, cast in zip(opened, (INET, INET6), strict=True):
                furnish(each, cast)
            yield opened
    finally:
        unpin_all(ipv6_pins)


@pytest.fixture
def ovctl(pins: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ovctl:
    """Runs ovctl on the test's pins: (exit code, stdout, stderr)."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # main() sets its own
    for name in [name for name in os.environ if name.startswith("OVNET_")]:
        monkeypatch.delenv(name)

    def run(*argv: str) -> tuple[int, str, str]:
        code = main([*argv, f"--bpffs={pins}"])
        return code, *capsys.readouterr()

    return run


def rows(ovctl: Ovctl, *argv: str) -> list[dict[str, Any]]:
    code, out, err = ovctl(*argv, "-o", "json")
    assert (code, err) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("peers", "subnet", ["10.1.2.0/24", "fd10:0:0:2::/64"]),
        ("endpoints", "ip", ["10.1.1.5", "fd10:0:0:1::5"]),
        ("flows", "dst", ["10.1.2.9", "fd10:0:0:2::9"]),
        ("peer_stats", "peer", ["192.168.50.2", "fd50::2"]),
    ],
)
def test_entries_of_both_families_are_rows_of_one_table(
    ovctl: Ovctl, maps: AllMaps, name: str, key: str, values: list[str]
) -> None:
    found = rows(ovctl, "map", "dump", name)
    assert [row[key] for row in found] == values
    assert found[0].keys() == found[1].keys() and "family" not in found[0]


@pytest.mark.parametrize("name", ["node", "counters"])
def test_what_each_family_has_one_of_says_which_it_is(ovctl: Ovctl, maps: AllMaps, name: str) -> None:
    assert [row["family"] for row in rows(ovctl, "map", "dump", name)] == ["IPv4", "IPv6"]
    _, out, _ = ovctl("map", "dump", name)
    assert [line.split()[0] for line in out.splitlines()] == ["FAMILY", "IPv4", "IPv6"]
    _, out, _ = ovctl("map", "dump")
    assert f"{name}:\nFAMILY" in out


def test_conditions_and_csv_are_about_both_families(ovctl: Ovctl, maps: AllMaps) -> None:
    (peer,) = rows(ovctl, "map", "dump", "peers", "--where", "host=fd50::2")
    assert peer["subnet"] == "fd10:0:0:2::/64"
    (counter,) = rows(ovctl, "map", "dump", "counters", "--where", "family=IPv6")
    assert counter["packets"] == 5 * syscall.possible_cpus()
    _, out, _ = ovctl("map", "dump", "counters", "-o", "csv")
    heading, *lines = csv.reader(out.splitlines())
    assert heading[0] == "family" and [line[0] for line in lines] == ["IPv4", "IPv6"]


def test_a_map_that_is_not_furnished_yet_shows_subnets_as_addresses(ovctl: Ovctl, maps: AllMaps) -> None:
    for each in maps:
        put(each, "node", bytes(4), bytes(abi.STRUCTS[each.family.version].node.size))
    assert [row["subnet"] for row in rows(ovctl, "map", "dump", "peers")] == [
        "10.1.2.0/32",
        "fd10:0:0:2::/128",
    ]


def test_where_an_address_of_ipv6_leads_is_found(ovctl: Ovctl, maps: AllMaps) -> None:
    code, out, _ = ovctl("map", "get", "fd10:0:0:2:0::77", "-o", "json")
    found = json.loads(out)
    assert (code, found["ip"], found["peer"]["host"]) == (0, "fd10:0:0:2::77", "fd50::2")
    _, out, _ = ovctl("map", "get", "fd10:0:0:1::5", "-o", "json")
    assert json.loads(out)["endpoint"]["mac"] == str(MAC)
    assert ovctl("map", "get", "fd10:0:0:9::1")[0] == 3


def test_a_flush_takes_the_approvals_of_both_back(ovctl: Ovctl, maps: AllMaps) -> None:
    assert ovctl("flow", "flush") == (0, "", "ovctl: flushed 2 flows\n")
    assert not any(each.flows() for each in maps)


def test_status_adds_up_what_is_counted_and_names_the_maps_of_each(
    ovctl: Ovctl, maps: AllMaps, tmp_path: Path
) -> None:
    _, out, _ = ovctl("status", f"--state-dir={tmp_path}", "-o", "json")
    found = json.loads(out)["datapath"]
    assert found["gears"]["out"]["bypass"]["packets"] == 10 * syscall.possible_cpus()
    assert found["maps"]["peers"] == found["maps"]["ipv6_peers"] == {"entries": 1, "capacity": 4}
    _, out, _ = ovctl("status", f"--state-dir={tmp_path}")
    assert "ipv6_flows 1/64" in out


def test_top_shows_peers_and_flows_of_both(ovctl: Ovctl, maps: AllMaps) -> None:
    argv = ("--once", "--interval", "0.1")
    hosts = {row["host"] for row in rows(ovctl, "top", *argv)}
    assert hosts == {"192.168.50.2", "fd50::2"}
    (container,) = rows(ovctl, "top", "--by", "containers", *argv)
    assert container["ip"] == "10.1.1.5", "its port is counted, whatever goes through it"


def test_where_a_packet_of_ipv6_would_go_is_told_of_its_own_maps(
    ovctl: Ovctl, maps: AllMaps, tmp_path: Path
) -> None:
    own = (f"--state-dir={tmp_path}", f"--store=sqlite://{tmp_path}/store.db")
    _, out, err = ovctl("trace", str(INET6.local), str(INET6.remote), *own, "-o", "json")
    assert err == ""
    first, program, route, *_ = json.loads(out)
    assert (first["hop"], first["at"]) == ("container", "fd10:0:0:1::5")
    assert program["seen"] == "from_container for IPv6 is not on this port"
    assert route["hop"] == "route", "by the kernel path, as nothing is handed to programs for IPv6"


@pytest.mark.parametrize(
    "argv",
    [
        ("map", "get", "fd10:0:0:2::1"),
        ("trace", "fd10:0:0:1::5", "fd10:0:0:2::1"),
        ("monitor", "--container", "fd10:0:0:1::5"),
    ],
)
def test_where_ebpf_carries_no_ipv6_it_is_said_and_how_to_go_on(
    ovctl: Ovctl, pins: Path, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    with create_or_adopt(pins, specs(4, 4, 64)) as alone:
        alone.write_node(INET.node)
        state = () if argv[0] == "map" else (f"--state-dir={tmp_path}",)
        code, out, err = ovctl(*argv, *state)
    assert (code, out) == (3, "")
    assert err == "ovctl: error: eBPF carries no IPv6 on this node: see ip -6 route get ADDRESS\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("trace", "10.1.1.5", "fd10:0:0:2::1"), "10.1.1.5 and fd10:0:0:2::1 are of different families"),
        (
            ("monitor", "--container", "10.1.1.5", "--peer", "fd50::2"),
            "--peer fd50::2: no packet has addresses of IPv4 and of IPv6",
        ),
    ],
)
def test_addresses_that_no_packet_has_all_of_are_refused(
    ovctl: Ovctl, argv: tuple[str, ...], words: str
) -> None:
    code, out, err = ovctl(*argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"ovctl: error: {words}")
