"""ctl/core/abi.py and ctl/kernel/bpf/maps.py say the same as bpf/abi.h and bpf/maps.h.

The C side is asked of bcc, which makes a ctypes structure of every map's key and value;
that takes the distribution's interpreter and a process of its own.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from enum import IntEnum
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import pytest

from ctl.cli.map import READERS
from ctl.cli.rows import COLUMNS
from ctl.core import abi
from ctl.core.abi import (
    Direction,
    EndpointEntry,
    Event,
    FlowEntry,
    FlowKey,
    Hook,
    NodeEntry,
    NoteEntry,
    PeerEntry,
    PeerStats,
    Translation,
)
from ctl.core.model import Bypass, MacAddress
from ctl.core.reasons import REASONS, Verdict
from ctl.core.tracer import TRACE, TRACE_LONG, TRACE_SHORT, TRACERS, Trace, TracerEntry
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.maps import specs
from ctl.kernel.bpf.source import CALLS, CALLS_XDP, PROGRAMS, maps_of, source
from tests.datapath import STAGES
from tests.process import run

ROOT = Path(__file__).parents[2]
HEADER = (ROOT / "bpf" / "abi.h").read_text()

# What goes through a ring has no value type: these maps give it one.
RINGS = ("events", "traces")
TWINS = """
BPF_F_TABLE("hash", __u32, struct event, event_twin, 1, 0);
BPF_F_TABLE("hash", __u32, struct trace, trace_twin, 1, 0);
"""
ASK = """
import json, os, sys, tempfile, ctypes
from pathlib import Path
import bcc
from ctl.kernel.bpf.source import write_header_tree

def fields(kind):
    while issubclass(kind, ctypes.Array):  # of a per-CPU map
        kind = kind._type_
    if not issubclass(kind, ctypes.Structure):
        return []
    named = [field[0] for field in kind._fields_ if not field[0].startswith("__pad")]
    return [[name, getattr(kind, name).offset, getattr(kind, name).size] for name in named]

with tempfile.TemporaryDirectory() as tree:
    write_header_tree(Path(tree))
    os.environ["BCC_KERNEL_SOURCE"] = tree
    unit = bcc.BPF(text=sys.stdin.read())
answer = {}
for name in sys.argv[1:]:
    ident = bcc.lib.bpf_table_id(unit.module, name.encode())
    table = unit[name] if name not in ("events", "traces") else None
    answer[name] = {
        "kind": bcc.lib.bpf_table_type_id(unit.module, ident),
        "key_size": bcc.lib.bpf_table_key_size_id(unit.module, ident),
        "value_size": bcc.lib.bpf_table_leaf_size_id(unit.module, ident),
        "key": fields(table.Key) if table is not None else [],
        "value": fields(table.Leaf) if table is not None else [],
    }
json.dump(answer, sys.stdout)
"""

MAC = MacAddress(bytes(range(0xA0, 0xA6)))
OTHER_MAC = MacAddress(bytes(range(0xB0, 0xB6)))


@cache
def in_c(version: int = 4) -> dict[str, Any]:
    """Each map as the C declares it for this IP version."""
    argv = ["/usr/bin/python3", "-c", ASK, *maps_of(version), "event_twin", "trace_twin"]
    text = f"{source(version)}\n{TWINS}\n"
    env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run(argv, stdin=text, env=env, cwd=ROOT)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def host(size: int, number: int) -> bytes:
    return struct.pack({2: "=H", 4: "=I", 8: "=Q"}[size], number)


class Examples:
    """Every field of every struct with a value of its own, and as the C would see it, in one family."""

    def __init__(self, version: int) -> None:
        self.version, self.of, pad = version, abi.STRUCTS[version], 0 if version == 4 else 4
        one, other, third = (self.host(*parts) for parts in ((1, 2, 3, 4), (5, 6, 7, 8), (9, 8, 7, 6)))
        networks = [self.net(*parts) for parts in ((8, 10, 0, 0, 0), (24, 10, 9, 8, 0))]
        first, last = self.host(10, 5, 6, 0), self.host(10, 7, 8, 255)
        self.peer = PeerEntry(one, MAC, 0x1122, 0x334455, 66, third, 0x99, 77)
        self.peer_fields = {
            "host": one.packed, "vtep_mac": MAC.packed, "port": b"\x11\x22", "vni": host(4, 0x334455),
            "ifindex": host(4, 66), "next_hop": third.packed, "flags": host(4, 0x99),
            "ttl": b"\x4d", "pad": bytes(3),
        }  # fmt: skip
        self.flow_key = FlowKey(one, other, 0x1122, 0x3344, 0x55, 17, Direction.IN, 46)
        self.flow_key_fields = {
            "saddr": one.packed, "daddr": other.packed, "sport": b"\x11\x22", "dport": b"\x33\x44",
            "ifindex": host(4, 0x55), "proto": b"\x11", "direction": b"\x01", "dscp": b"\x2e",
            "pad": bytes(1),
        }  # fmt: skip
        self.to = Translation(third, 0x1122, 0x3344)
        self.to_fields = {"addr": third.packed, "sport": b"\x11\x22", "dport": b"\x33\x44"}
        self.flow = FlowEntry(1, 2, 3, 4, 5, 46, self.to, 0x55667788)
        self.flow_fields = {
            "approved_ns": host(8, 1), "last_seen_ns": host(8, 2), "packets": host(8, 3), "mark": host(4, 4),
            "priority": host(4, 5), "to": b"".join(self.to_fields.values()), "seal": host(4, 0x55667788),
            "dscp": b"\x2e", "pad": bytes(3 + pad),
        }  # fmt: skip
        self.note = NoteEntry(1, 1 << 40, self.flow_key)
        self.note_fields = {
            "noted_ns": host(8, 1), "fingerprint": host(8, 1 << 40), "key": self.flow_key.pack(),
            "pad": bytes(4),
        }  # fmt: skip
        self.node = NodeEntry(
            one, networks[0], networks[1], (first, last), 0x112233, 44, 1450, MAC, 8472, (1000, 2000),
            Bypass.ALWAYS, 1 << 40, 0xDEADBEEF00112233, 1, OTHER_MAC, 0x00FF0000, 77, 78,
        )  # fmt: skip
        self.node_fields = {
            "approval_ttl_ns": host(8, 1 << 40), "flow_seed": host(8, 0xDEADBEEF00112233), "host": one.packed,
            "network": networks[0].network_address.packed, "network_mask": networks[0].netmask.packed,
            "subnet": networks[1].network_address.packed, "subnet_mask": networks[1].netmask.packed,
            "pool_first": first.packed, "pool_last": last.packed, "vni": host(4, 0x112233),
            "uplink_ifindex": host(4, 44), "mtu": host(4, 1450), "vtep_mac": MAC.packed,
            "port": (8472).to_bytes(2, "big"), "source_port_min": host(2, 1000),
            "source_port_max": host(2, 2000), "bypass": host(4, 2), "flags": host(4, 1),
            "uplink_mac": OTHER_MAC.packed, "pad": bytes(2 + pad), "routing_marks": host(4, 0x00FF0000),
            "tunnel_ifindex": host(4, 77), "overlay_ifindex": host(4, 78),
        }  # fmt: skip
        self.tracer = TracerEntry(
            1, (networks[0], networks[1]), (0x1122, 0x3344), one, 17,
            frozenset({Verdict.DROP, Verdict.ABORT}), 0x0155, 2,
        )  # fmt: skip
        self.tracer_fields = {
            "until_ns": host(8, 1), "skipped": host(8, 2),
            "addr": b"".join(each.network_address.packed for each in networks),
            "mask": b"".join(each.netmask.packed for each in networks), "port": b"\x11\x22\x33\x44",
            "host": one.packed, "proto": b"\x11", "verdicts": b"\x18", "snaplen": host(2, 0x0155),
            "narrow": b"\x01", "pad": bytes(3 + pad),
        }  # fmt: skip

    def host(self, *parts: int) -> abi.Ip:
        """An address of these four bytes, over and over."""
        return abi.address(bytes(parts) * (self.of.address // 4))

    def net(self, length: int, *parts: int) -> IPv4Network | IPv6Network:
        return ip_network((bytes(parts) + bytes(self.of.address - 4), length))

    def table(self) -> list[tuple[str, str, struct.Struct, bytes, dict[str, bytes]]]:
        """Map, side, layout, what Python packs, what C is to see."""
        of = self.of
        return [
            ("peers", "value", of.peer, self.peer.pack(), self.peer_fields),
            ("endpoints", "value", abi.ENDPOINT, ENDPOINT.pack(), ENDPOINT_FIELDS),
            ("flows", "key", of.flow_key, self.flow_key.pack(), self.flow_key_fields),
            ("flows", "value", of.flow, self.flow.pack(self.version), self.flow_fields),
            ("notes", "value", of.note, self.note.pack(), self.note_fields),
            ("translations", "value", of.translation, self.to.pack(), self.to_fields),
            ("node", "value", of.node, self.node.pack(), self.node_fields),
            ("tracer", "value", TRACERS[self.version], self.tracer.pack(), self.tracer_fields),
        ]

    def entries(self) -> list[Any]:
        return [self.peer, ENDPOINT, self.flow_key, self.flow, self.to, self.note, self.node, self.tracer]


ENDPOINT = EndpointEntry(0x01020304, MAC, OTHER_MAC)
ENDPOINT_FIELDS = {"ifindex": host(4, 0x01020304), "mac": MAC.packed, "bridge_mac": OTHER_MAC.packed}
EXAMPLES = {version: Examples(version) for version in abi.STRUCTS}
CASES = [(version, *row) for version, examples in EXAMPLES.items() for row in examples.table()]


@pytest.mark.parametrize(
    ("version", "name", "side", "layout", "packed", "fields"),
    CASES,
    ids=[f"IPv{version} {name} {side}" for version, name, side, *_ in CASES],
)
def test_what_python_packs_c_reads(
    version: int, name: str, side: str, layout: struct.Struct, packed: bytes, fields: dict[str, bytes]
) -> None:
    declared = in_c(version)[name][side]
    assert [field for field, _, _ in declared] == list(fields)
    assert {field: packed[at : at + size] for field, at, size in declared} == fields
    assert in_c(version)[name][f"{side}_size"] == layout.size == len(packed)


@pytest.mark.parametrize("version", EXAMPLES)
def test_python_reads_what_it_packs(version: int) -> None:
    for entry in EXAMPLES[version].entries():
        raw = entry.pack(version) if isinstance(entry, FlowEntry) else entry.pack()
        assert type(entry).unpack(raw) == entry


def numbers(declared: list[list[Any]], size: int) -> bytes:
    """A struct of which every field holds its place in the order, from 1 on."""
    raw = bytearray(size)
    for number, (_, at, width) in enumerate(declared, start=1):
        raw[at : at + width] = number.to_bytes(width, sys.byteorder)
    return bytes(raw)


def test_python_reads_counters_of_c() -> None:
    declared = in_c()["counters"]["value"]
    assert [name for name, _, _ in declared] == ["packets", "bytes", "sampled_ns"]
    raw = numbers(declared, in_c()["counters"]["value_size"])
    assert abi.COUNTER.size == len(raw)
    assert abi.Counter.unpack((raw, raw)) == abi.Counter(packets=2, bytes=4)


def test_python_reads_peer_stats_of_c() -> None:
    declared = in_c()["peer_stats"]["value"]
    assert [name for name, _, _ in declared] == ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"]
    raw = numbers(declared, in_c()["peer_stats"]["value_size"])
    assert abi.PEER_STATS.size == len(raw)
    assert PeerStats.unpack((raw,)) == PeerStats(rx_packets=1, rx_bytes=2, tx_packets=3, tx_bytes=4)


def test_python_reads_events_of_c() -> None:
    declared = in_c()["event_twin"]["value"]
    names = ["time_ns", "ifindex", "packet_len", "reason", "hook", "captured_len", "data", "pad"]
    assert [name for name, _, _ in declared] == names
    raw = bytearray(numbers(declared, in_c()["event_twin"]["value_size"]))
    assert abi.EVENT.size == len(raw)
    at = next(at for name, at, _ in declared if name == "data")
    raw[at : at + abi.EVENT_BYTES] = bytes(range(abi.EVENT_BYTES))
    for name, at, _ in declared:
        if name == "hook":
            raw[at] = Hook.FROM_WIRE
    assert Event.unpack(bytes(raw)) == Event(1, 2, 3, 4, Hook.FROM_WIRE, bytes(range(6)))


def test_python_reads_traces_of_c() -> None:
    declared = in_c()["trace_twin"]["value"]
    names = [
        "time_ns", "ifindex", "came_len", "packet_len", "captured_len", "reason", "cpu", "hook", "pad",
    ]  # fmt: skip
    assert [name for name, _, _ in declared if name != "data"] == names
    raw = bytearray(numbers(declared, in_c()["trace_twin"]["value_size"]))
    assert [at for name, at, _ in declared if name == "data"] == [TRACE.size]
    raw[next(at for name, at, _ in declared if name == "hook")] = Hook.FROM_WIRE
    assert Trace.unpack(bytes(raw)[: TRACE.size] + b"12345678") == Trace(
        1, 2, 3, 4, 6, 7, Hook.FROM_WIRE, b"12345"
    )


@pytest.mark.parametrize(("version", "name"), [(each, name) for each in EXAMPLES for name in maps_of(each)])
def test_map_specs_are_those_of_the_c(version: int, name: str) -> None:
    spec, declared = specs(1, 1, 1, version)[name], in_c(version)[name]
    assert declared["kind"] == syscall.MAP_TYPES[spec.kind]
    if name not in RINGS:  # which have neither
        assert (declared["key_size"], declared["value_size"]) == (spec.key, spec.value)


def test_no_map_is_forgotten() -> None:
    text = (ROOT / "bpf" / "maps.h").read_text()
    tables = re.findall(r'^BPF_F_TABLE\("\w+", [^,]+, [^,]+, (\w+),', text, re.MULTILINE)
    rings = re.findall(r"^BPF_RINGBUF_OUTPUT\((\w+),", text, re.MULTILINE)
    assert {*tables, *rings} == set(maps_of(4)) == set(specs(1, 1, 1))
    assert set(maps_of(4)) - {CALLS, CALLS_XDP} == set(maps_of(6)) == set(specs(1, 1, 1, 6))


def test_every_map_is_shown_and_documented() -> None:
    # Of these others there are commands, and `status`.
    assert set(READERS) == set(COLUMNS) == set(maps_of(4)) - {*RINGS, "tracer", CALLS, CALLS_XDP}
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    table = text.partition("\n## Maps\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(maps_of(4))


def enum(name: str) -> dict[str, int]:
    """An enum of bpf/abi.h: name -> number."""
    body = re.search(rf"^enum {name} {{(.*?)^}};", HEADER, re.MULTILINE | re.DOTALL)
    assert body
    return {
        label: int(number) for label, number in re.findall(r"^\t(\w+)\s*=\s*(\d+)", body[1], re.MULTILINE)
    }


def mirrored(prefix: str, members: type[IntEnum]) -> dict[str, int]:
    return {f"{prefix}_{member.name}": member.value for member in members}


def test_enums_are_the_same() -> None:
    assert enum("hook") == {**mirrored("HOOK", Hook), "HOOK_MAX": abi.HOOK_MAX}
    assert enum("direction") == mirrored("DIR", Direction)
    assert enum("bypass_mode") == {f"BYPASS_{mode.name}": code for mode, code in abi.BYPASS_CODE.items()}
    assert set(abi.BYPASS_CODE) == set(Bypass)


def test_hooks_are_named_as_their_programs() -> None:
    """But for those that are the second part of one."""
    assert tuple(hook.label for hook in Hook if hook not in STAGES.values()) == PROGRAMS
    assert list(STAGES.values()) == [Hook.TUNNEL_OUT, Hook.TUNNEL_IN]


def test_constants_are_the_same() -> None:
    defined = dict(re.findall(r"^#define (\w+)\s+(\S.*?)(?:\s*/\*.*)?$", HEADER, re.MULTILINE))
    assert int(defined["OVNET_LAYOUT"]) == abi.LAYOUT
    assert int(defined["EVENT_BYTES"]) == abi.EVENT_BYTES
    assert (int(defined["TRACE_SHORT"]), int(defined["TRACE_LONG"])) == (TRACE_SHORT, TRACE_LONG)
    flags = {name: value for name, value in defined.items() if name.startswith("PEER_F_")}
    assert flags == {"PEER_F_KERNEL_PATH": "(1U << 0)"}
    assert set(abi.PEER_FLAGS) == {abi.PEER_F_KERNEL_PATH} == {1}
    flags = {name: value for name, value in defined.items() if name.startswith("NODE_F_")}
    assert flags == {
        "NODE_F_PEERS_INCOMPLETE": "(1U << 0)",
        "NODE_F_XDP": "(1U << 1)",
        "NODE_F_NO_ETHERNET": "(1U << 2)",
        "NODE_F_OTHERS_BEHIND": "(1U << 3)",
    }
    assert (abi.NODE_F_PEERS_INCOMPLETE, abi.NODE_F_XDP, abi.NODE_F_NO_ETHERNET) == (1, 2, 4)
    assert abi.NODE_F_OTHERS_BEHIND == 8
    assert max(REASONS) < abi.REASON_MAX
