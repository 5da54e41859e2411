"""ctl.kernel.bpf.syscall and ctl.kernel.bpf.maps against the kernel's own maps."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

import pytest

from ctl.core import abi
from ctl.core.abi import Counter, FlowEntry, Hook, PeerStats
from ctl.core.errors import AgentUnreachable, KernelError, Unapplied
from ctl.core.family import IPV4
from ctl.core.plan import Delta
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.maps import Maps, create_or_adopt, layout_dir, mismatch, open_maps, specs
from ctl.kernel.bpf.table import MapTable
from metrics.snapshot import read_datapath
from tests.datapath import ENDPOINT, LOCAL, NODE, PEER, PEER_SUBNET, flow_out

V = TypeVar("V")

MANY = 10_000
SPECS = specs(64, 64, 64)


@pytest.fixture
def maps(pins: Path) -> Iterator[Maps[IPv4Address]]:
    with create_or_adopt(pins, SPECS) as opened:
        yield opened


def number(value: int) -> bytes:
    return struct.pack("=I", value)


@pytest.mark.parametrize("kind", ["hash", "lru_hash", "array", "percpu_hash", "percpu_array"])
def test_ten_thousand_entries_come_back_in_batches(kind: str) -> None:
    # An LRU has spare room for each CPU; without it, it evicts before it is full.
    entries = MANY * 2 if kind == "lru_hash" else MANY
    with closing(syscall.Map(syscall.map_create(kind, "many", 4, 12, entries))) as table:
        for i in range(MANY):
            table.update(number(i), struct.pack("=III", i, ~i & 0xFFFFFFFF, 7))
        found = dict(table.items())
        assert len(found) == MANY
        copies = syscall.possible_cpus() if "percpu" in kind else 1
        for i in range(MANY):
            assert found[number(i)] == (struct.pack("=III", i, ~i & 0xFFFFFFFF, 7),) * copies


def test_lookup_update_delete() -> None:
    with closing(syscall.Map(syscall.map_create("hash", "some", 4, 8, 2))) as table:
        assert table.lookup(b"aaaa") is None
        assert table.delete(b"aaaa") is False
        table.update(b"aaaa", b"12345678")
        table.update(b"aaaa", b"abcdefgh")
        assert table.lookup(b"aaaa") == (b"abcdefgh",)
        table.update(b"bbbb", bytes(8))
        with pytest.raises(OSError) as caught:
            table.update(b"cccc", bytes(8))
        assert caught.value.errno == errno.E2BIG
        assert table.delete(b"aaaa") is True
        assert dict(table.items()) == {b"bbbb": (bytes(8),)}


@pytest.mark.parametrize("kind", ["hash", "percpu_hash"])
def test_ten_thousand_entries_go_in_in_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(syscall.Map(syscall.map_create(kind, "many", 4, 12, MANY))) as table:
        monkeypatch.setattr(syscall.Map, "update", None)
        entries = [(number(i), struct.pack("=III", i, ~i & 0xFFFFFFFF, 7)) for i in range(MANY)]
        assert table.update_all(entries) == [None] * MANY
        copies = syscall.possible_cpus() if "percpu" in kind else 1
        assert dict(table.items()) == {key: (value,) * copies for key, value in entries}


def test_what_a_batch_has_no_room_for_is_told_and_keeps_nothing_else_out() -> None:
    with closing(syscall.Map(syscall.map_create("hash", "small", 4, 4, 2))) as table:
        table.update(number(4), bytes(4))
        errors = table.update_all([(number(i), number(i)) for i in range(5)])
        full = errno.E2BIG
        assert [error and error.errno for error in errors] == [None, full, full, full, None]
        assert dict(table.items()) == {number(0): (number(0),), number(4): (number(4),)}


def test_a_batch_that_cannot_begin_is_put_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscall, "MAP_UPDATE_BATCH", 9999)
    with closing(syscall.Map(syscall.map_create("hash", "some", 4, 4, 8))) as table:
        assert table.update_all([(number(i), number(i)) for i in range(3)]) == [None] * 3
        assert dict(table.items()) == {number(i): (number(i),) for i in range(3)}


def test_an_empty_map_has_no_items() -> None:
    with closing(syscall.Map(syscall.map_create("hash", "none", 4, 4, 8))) as table:
        assert list(table.items()) == []


def test_the_kernel_knows_what_we_made() -> None:
    with closing(syscall.Map(syscall.map_create("lru_hash", "a_name_that_is_too_long", 20, 24, 32))) as table:
        info = table.info
        assert (info.type, info.key_size, info.value_size, info.max_entries) == (9, 20, 24, 32)
        assert info.name == "a_name_that_is_"


def test_nothing_pinned_is_no_file() -> None:
    with pytest.raises(FileNotFoundError):
        syscall.obj_get("/sys/fs/bpf/ovnet-no-such-pin")


def test_per_cpu_values_are_summed(maps: Maps[IPv4Address]) -> None:
    cpus = syscall.possible_cpus()
    index = Hook.FROM_WIRE * abi.REASON_MAX + 2
    with closing(syscall.Map(os.dup(maps.fd("counters")))) as raw:
        raw.update(number(index), abi.COUNTER.pack(5, 500, 9))
    assert maps.counters() == {(Hook.FROM_WIRE, 2): Counter(5 * cpus, 500 * cpus)}
    with closing(syscall.Map(os.dup(maps.fd("peer_stats")))) as raw:
        raw.update(PEER.host.packed, abi.PEER_STATS.pack(1, 2, 3, 4))
    assert maps.peer_stats() == {PEER.host: PeerStats(cpus, 2 * cpus, 3 * cpus, 4 * cpus)}


def test_peers_are_busy_that_any_cpu_has_counted_for(maps: Maps[IPv4Address]) -> None:
    idle, busy = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
    with closing(syscall.Map(os.dup(maps.fd("peer_stats")))) as raw:
        raw.update(idle.packed, bytes(abi.PEER_STATS.size))
        raw.update(busy.packed, abi.PEER_STATS.pack(0, 0, 0, 9))
    assert maps.busy_peers().keys() == {busy}
    assert maps.peer_stats().keys() == {idle, busy}


def test_a_delta_is_applied(maps: Maps[IPv4Address]) -> None:
    table = maps.peer_table
    moved = replace(PEER, host=IPv4Address("192.168.50.7"))
    base = PEER_SUBNET.network_address
    table.apply(Delta(puts=((base, PEER), (base + 256, PEER)), removals=()))
    table.apply(Delta(puts=((base, moved),), removals=(base + 256, base + 512)))
    assert table.read() == maps.peers() == {base: moved}
    assert maps.lookup_peer(base) == moved
    assert maps.lookup_peer(base + 256) is None


def overfill(table: MapTable[IPv4Address, V], value: V, entries: int = 64) -> str:
    puts = tuple((LOCAL + i, value) for i in range(entries + 3))
    with pytest.raises(KernelError) as caught:
        table.apply(Delta(puts=puts, removals=()))
    return str(caught.value)


def test_a_full_map_names_the_setting_and_keeps_what_it_has(maps: Maps[IPv4Address]) -> None:
    vteps = SPECS["peer_stats"].entries
    assert vteps >= 64 + 1000, "a hash map refuses before it is full: each CPU keeps free entries to itself"
    words = "3 entries not stored: it is full with 64 entries, raise"
    assert overfill(maps.peer_table, PEER) == f"map peers: {words} --peers-max"
    assert overfill(maps.endpoint_table, ENDPOINT) == f"map endpoints: {words} --endpoints-max"
    words = words.replace("64", str(vteps))
    assert overfill(maps.vtep_table, True, vteps) == f"map peer_stats: {words} --peers-max"
    full = {"peers": (64, 64), "endpoints": (64, 64), "flows": (0, 64), "peer_stats": (vteps, vteps)}
    assert maps.fill() == full


def test_entries_that_are_refused_are_named_unless_the_map_is_full(maps: Maps[IPv4Address]) -> None:
    """A full map holds what nobody has counted on, so that it has to be read again."""
    with pytest.raises(KernelError) as full:
        maps.peer_table.apply(Delta(tuple((LOCAL + i, PEER) for i in range(70)), ()))
    assert not isinstance(full.value, Unapplied)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, maps.fd("peers"))  # EINVAL for all that is asked of it
    os.close(null)
    with pytest.raises(Unapplied) as refused:
        maps.peer_table.apply(Delta(((LOCAL, PEER),), (LOCAL + 1,)))
    assert refused.value.keys == {LOCAL, LOCAL + 1}


@pytest.mark.parametrize("kind", ["hash", "lru_hash", "percpu_hash"])
def test_counting_makes_no_object_of_an_entry(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(syscall.Map(syscall.map_create(kind, "many", 4, 12, MANY * 2))) as table:
        assert table.count() == 0
        for i in range(MANY):
            table.update(number(i), bytes(12))
        monkeypatch.setattr(syscall.Map, "items", None)
        assert table.count() == MANY


def test_flows_are_counted_once_a_second(pins: Path) -> None:
    now = 5.0
    create_or_adopt(pins, SPECS).close()
    with open_maps(pins) as pinned:
        raw = {name: syscall.Map(os.dup(pinned.fd(name))) for name in SPECS}
    with Maps(raw, IPV4, clock=lambda: now) as maps:
        assert maps.fill()["flows"] == (0, 64)
        raw["flows"].update(flow_out(sport=1).pack(), FlowEntry(1, 2, 3).pack())
        now = 5.9
        assert maps.fill()["flows"] == (0, 64)
        now = 6.0
        assert maps.fill()["flows"] == (1, 64)


def test_what_the_kernel_refuses_is_one_line(maps: Maps[IPv4Address]) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    for name in SPECS:
        os.dup2(null, maps.fd(name))  # EINVAL for all that is asked of them
    os.close(null)
    attempts: dict[str, Callable[[], object]] = {
        "peers: 2 entries not removed": lambda: maps.peer_table.apply(Delta((), (LOCAL, LOCAL + 1))),
        "peers: 1 entries not stored": lambda: maps.peer_table.apply(Delta(((LOCAL, PEER),), (LOCAL,))),
        "peers cannot be read": maps.peers,
        "node cannot be written": lambda: maps.write_node(NODE),
        "flows cannot be read": maps.flush_flows,
        "peers cannot be read: ": maps.fill,
    }
    for words, attempt in attempts.items():
        with pytest.raises(KernelError, match=f"^map {words}"):
            attempt()


def test_node_and_flows(maps: Maps[IPv4Address]) -> None:
    assert maps.node() is None
    maps.write_node(NODE)
    assert maps.node() == NODE
    with closing(syscall.Map(os.dup(maps.fd("flows")))) as raw:
        for i in range(5):
            raw.update(flow_out(sport=i).pack(), FlowEntry(i, 2, 3).pack())
    assert maps.flows()[flow_out(sport=4)] == FlowEntry(4, 2, 3)
    assert maps.flush_flows() == 5
    assert maps.flows() == {}


def test_maps_outlive_who_made_them(pins: Path) -> None:
    with create_or_adopt(pins, SPECS) as first:
        first.write_node(NODE)
        first.endpoint_table.apply(Delta(puts=((LOCAL, ENDPOINT),), removals=()))
    assert mismatch(pins, SPECS) is None
    with create_or_adopt(pins, SPECS) as second, open_maps(pins) as reader:
        assert second.node() == reader.node() == NODE
        assert reader.lookup_endpoint(LOCAL) == ENDPOINT


def test_a_lost_pin_is_made_anew_and_the_others_stay(pins: Path) -> None:
    with create_or_adopt(pins, SPECS) as first:
        first.write_node(NODE)
    (layout_dir(pins) / "maps" / "flows").unlink()
    assert mismatch(pins, SPECS) == "flows is missing"
    with pytest.raises(AgentUnreachable):
        open_maps(pins)
    with create_or_adopt(pins, SPECS) as second:
        assert second.node() == NODE
        assert second.flows() == {}


def test_another_capacity_is_a_mismatch(pins: Path) -> None:
    assert mismatch(pins, SPECS) is None, "nothing pinned yet"
    create_or_adopt(pins, SPECS).close()
    why = mismatch(pins, specs(65, 64, 64))
    assert why is not None
    assert why.startswith("peers is ")


@pytest.mark.parametrize("changed", [{"kind": "lru_hash"}, {"key": 8}, {"value": 12}, {"entries": 63}])
def test_any_difference_is_a_mismatch(pins: Path, changed: dict[str, object]) -> None:
    create_or_adopt(pins, {**SPECS, "endpoints": replace(SPECS["endpoints"], **changed)}).close()  # type: ignore[arg-type]
    why = mismatch(pins, SPECS)
    assert why is not None
    assert why.startswith("endpoints is ")


def test_maps_closed_by_the_agent_meanwhile_are_an_error_in_words(pins: Path) -> None:
    with create_or_adopt(pins, SPECS) as closed:
        pass
    with pytest.raises(KernelError, match=r"map .* cannot be read: Bad file descriptor"):
        read_datapath(closed)
