"""The maps' entries as rows for people and programs. Pure: names and clock are arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from socket import inet_ntoa
from typing import Any, Final

from ctl.cli.output import Column, Row
from ctl.core.abi import (
    NODE_F_XDP,
    Counter,
    EndpointEntry,
    FlowEntry,
    FlowKey,
    Hook,
    Ip,
    NodeEntry,
    NoteEntry,
    PeerStats,
    Translation,
    peer_flag_names,
    split_peer,
)
from ctl.core.compare import DeviceName
from ctl.core.dissect import PROTOCOLS
from ctl.core.model import A, IPv6Address
from ctl.core.reasons import REASONS, reason


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}s"


def _translated(to: Mapping[str, Any] | None) -> str:
    return "-" if to is None else f"{to['address']} {to['sport']}->{to['dport']}"


FLOW: Final = ("src", "dst", "proto", "sport", "dport", Column("direction", "DIR"), "dev")

COLUMNS: Final[Mapping[str, tuple[Column | str, ...]]] = {
    "peers": (
        "subnet",
        "host",
        Column("vtep_mac", "VTEP MAC"),
        Column("vni", wide=True),
        Column("port", wide=True),
        "dev",
        Column("next_hop", "NEXT HOP", show=lambda hop: str(hop or "fib")),
        Column("ttl", "TTL", wide=True),
        "flags",
    ),
    "endpoints": (
        "ip",
        "dev",
        "mac",
        Column("bridge_mac", "BRIDGE MAC", wide=True),
        Column("ifindex", wide=True),
    ),
    "flows": (
        *FLOW,
        Column("age", show=_age),
        "state",
        "packets",
        Column("idle", wide=True, show=_age),
        Column("to", show=_translated),
    ),
    "notes": ("src", "dst", "proto", "sport", "dport", "dev", Column("age", show=_age)),
    "translations": (*FLOW, Column("to", show=_translated)),
    "services": ("ip", Column("age", show=_age)),
    "node": (
        "host",
        "subnet",
        "network",
        "uplink",
        "vni",
        "port",
        "mtu",
        Column("vtep_mac", "VTEP MAC"),
        "bypass",
        "hook",
        "tunnel",
        Column("approval_ttl", "APPROVAL TTL", show=_age),
        Column("source_ports", "SOURCE PORTS", wide=True),
        Column("routing_marks", "ROUTING MARKS", wide=True, show=hex),
    ),
    "counters": ("hook", "verdict", "reason", "packets", "bytes", "caption"),
    "peer_stats": (
        Column("peer"),
        Column("rx_packets", "RX PACKETS"),
        Column("rx_bytes", "RX BYTES"),
        Column("tx_packets", "TX PACKETS"),
        Column("tx_bytes", "TX BYTES"),
    ),
}
"""The columns of each map that can be shown, by the map's name."""


IN_BOTH: Final = ("node", "counters")
"""The maps of which there is one of each family, rather than entries of both: rows say which it is."""

FAMILY: Final = Column("family")


def of_family(row: Row, version: int) -> Row:
    """A row of such a map, of this IP version's, where there are both."""
    return {FAMILY.key: f"IPv{version}", **row}


def columns(name: str, *, both: bool) -> tuple[Column | str, ...]:
    """Those of a map that can be shown. `both`: whether there are maps of IPv6, too."""
    return (FAMILY, *COLUMNS[name]) if both and name in IN_BOTH else COLUMNS[name]


def prefixlen(node: NodeEntry | None, version: int) -> int:
    """That of every lease; an address's own as long as no agent has filled `node`."""
    return node.subnet.prefixlen if node else {4: 32, 6: 128}[version]


def _text(address: bytes) -> str:
    """As `str` writes it, of IPv4 in a tenth of the time: a dump may be of a hundred thousand."""
    return inet_ntoa(address) if len(address) == 4 else str(IPv6Address(address))


def peer(key: bytes, value: bytes, length: int, name: DeviceName) -> Row:
    """A row of `peers`, from what the map has; `length`: the subnet's prefix length."""
    host, mac, port, vni, ifindex, next_hop, flags, ttl = split_peer(value)
    return {
        "subnet": f"{_text(key)}/{length}",
        "host": _text(host),
        "vtep_mac": mac.hex(":"),
        "vni": vni,
        "port": int.from_bytes(port, "big"),
        "dev": name(ifindex) if ifindex else None,
        "next_hop": _text(next_hop) if any(next_hop) else None,
        "ttl": ttl,
        "flags": peer_flag_names(flags) if flags else [],
    }


def peers(
    entries: Iterable[tuple[bytes, bytes]], node: NodeEntry | None, name: DeviceName, version: int = 4
) -> list[Row]:
    """All of `peers` of this IP version, by subnet: bytes of addresses are in the order of addresses."""
    length = prefixlen(node, version)
    return [peer(key, value, length, name) for key, value in sorted(entries, key=_first)]


def endpoint(address: Ip, entry: EndpointEntry, name: DeviceName) -> Row:
    """A row of `endpoints`."""
    return {
        "ip": str(address),
        "dev": name(entry.ifindex),
        "ifindex": entry.ifindex,
        "mac": str(entry.mac),
        "bridge_mac": str(entry.bridge_mac),
    }


def endpoints(entries: Mapping[A, EndpointEntry], name: DeviceName) -> list[Row]:
    """All of `endpoints`, by address."""
    return [endpoint(address, entry, name) for address, entry in sorted(entries.items(), key=_address)]


def flows(
    entries: Mapping[FlowKey, FlowEntry], node: NodeEntry | None, now_ns: int, name: DeviceName
) -> list[Row]:
    """All of `flows`, by 5-tuple; `now_ns` is CLOCK_MONOTONIC in nanoseconds."""
    ttl_ns = node.approval_ttl_ns if node else 0
    ordered = sorted(entries.items(), key=lambda item: five_tuple(item[0]))
    return [_flow(key, entry, ttl_ns, now_ns, name) for key, entry in ordered]


def five_tuple(key: FlowKey) -> tuple[Any, ...]:
    """Sorts flows: by bytes, which Python compares in a fraction of the time of addresses."""
    return (key.saddr.packed, key.daddr.packed, key.proto, key.sport, key.dport, key.direction, key.ifindex)


def flow(key: FlowKey, name: DeviceName) -> dict[str, Any]:
    """What a row about a flow begins with: the columns FLOW."""
    return {
        "src": str(key.saddr),
        "dst": str(key.daddr),
        "proto": PROTOCOLS.get(key.proto, str(key.proto)),
        "sport": key.sport,
        "dport": key.dport,
        "direction": key.direction.name.lower(),
        "dev": name(key.ifindex),
    }


def _to(to: Translation | None) -> Row | None:
    return {"address": str(to.address), "sport": to.sport, "dport": to.dport} if to else None


def notes(entries: Mapping[int, NoteEntry], now_ns: int, name: DeviceName) -> list[Row]:
    """All of `notes`, by 5-tuple; one that has been used has no age."""
    ordered = sorted(entries.values(), key=lambda entry: five_tuple(entry.key))
    return [flow(entry.key, name) | {"age": _seconds_since(entry.noted_ns, now_ns)} for entry in ordered]


def translations(entries: Mapping[FlowKey, Translation], name: DeviceName) -> list[Row]:
    """All of `translations`, by 5-tuple."""
    ordered = sorted(entries.items(), key=lambda item: five_tuple(item[0]))
    return [flow(key, name) | {"to": _to(to)} for key, to in ordered]


def services(entries: Mapping[A, int], now_ns: int) -> list[Row]:
    """All of `services`, by address."""
    return [
        {"ip": str(ip), "age": _seconds_since(at_ns, now_ns)}
        for ip, at_ns in sorted(entries.items(), key=_address)
    ]


def _seconds_since(then_ns: int, now_ns: int) -> float | None:
    """None: never."""
    return round(max(0, now_ns - then_ns) / 1e9, 3) if then_ns else None


def _flow(key: FlowKey, entry: FlowEntry, ttl_ns: int, now_ns: int, name: DeviceName) -> Row:
    age_ns = max(0, now_ns - entry.approved_ns)
    return flow(key, name) | {
        "age": round(age_ns / 1e9, 3),
        "state": "approved" if age_ns < ttl_ns else "expired",
        "packets": entry.packets,
        "idle": _seconds_since(entry.last_seen_ns, now_ns),
        "to": _to(entry.to),
    }


def node_rows(node: NodeEntry | None, name: DeviceName) -> list[Row]:
    """`node`: one row, or none before an agent has filled the map."""
    if node is None:
        return []
    row = {
        "host": str(node.host),
        "network": str(node.network),
        "subnet": str(node.subnet),
        "vni": node.vni,
        "port": node.port,
        "mtu": node.mtu,
        "uplink": name(node.uplink_ifindex),
        "vtep_mac": str(node.vtep_mac),
        "source_ports": list(node.source_ports),
        "bypass": node.bypass.value,
        "hook": "xdp" if node.flags & NODE_F_XDP else "tc",
        "tunnel": name(node.tunnel_ifindex) if node.tunnel_ifindex else None,
        "approval_ttl": node.approval_ttl_ns / 1e9,
        "routing_marks": node.routing_marks,
    }
    return [row]


def counters(entries: Mapping[tuple[Hook, int], Counter], *, every: bool = False) -> list[Row]:
    """`counters` by hook and reason: those that counted, or `every` one that could."""
    filled = dict.fromkeys(((hook, number) for hook in Hook for number in REASONS), Counter(0, 0))
    shown = {**filled, **entries} if every else entries
    return [_counter(hook, number, value) for (hook, number), value in sorted(shown.items(), key=_first)]


def _counter(hook: Hook, number: int, value: Counter) -> Row:
    row = reason(number)
    return {
        "hook": hook.label,
        "verdict": row.verdict.value,
        "reason": row.label,
        "packets": value.packets,
        "bytes": value.bytes,
        "caption": row.caption,
    }


def peer_stats(entries: Mapping[A, PeerStats]) -> list[Row]:
    """All of `peer_stats`, by host."""
    return [
        {
            "peer": str(host),
            "rx_packets": stats.rx_packets,
            "rx_bytes": stats.rx_bytes,
            "tx_packets": stats.tx_packets,
            "tx_bytes": stats.tx_bytes,
        }
        for host, stats in sorted(entries.items(), key=_address)
    ]


def _address(item: tuple[Ip, Any]) -> int:
    """As _first of an address, which Python compares a third as fast as numbers."""
    return int(item[0])


def _first(item: tuple[Any, Any]) -> Any:
    return item[0]
