"""Python's twin of bpf/abi.h: the bytes of every map, in and out.

Addresses and ports travel in network byte order, the rest in the host's. Maps are about one family
of addresses, and what has an address in it is longer in those of IPv6: which family raw bytes are of is seen
by how many there are. tests/bpf/test_abi.py compares every field with the C.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from ctl.core.model import DEFAULT_TTL, Bypass, MacAddress

LAYOUT: Final = 7
"""OVNET_LAYOUT: part of the pin directory's name."""

REASON_MAX: Final = 64
HOOK_MAX: Final = 8
EVENT_BYTES: Final = 96


class Hook(IntEnum):
    """enum hook: the places where a program runs, and what is counted as one."""

    FROM_CONTAINER = 0
    TO_OVERLAY = 1
    FROM_WIRE = 2
    TO_CONTAINER = 3
    FROM_WIRE_XDP = 4
    TUNNEL_OUT = 5
    """The tunnel gear: second part of the program to_overlay."""
    TUNNEL_IN = 6
    """Second part of from_wire."""

    @property
    def label(self) -> str:
        """The program's name, and the value of the metrics' hook label."""
        return self.name.lower()


class Direction(IntEnum):
    """enum direction of a flow."""

    OUT = 0
    IN = 1


NO_MAC: Final = MacAddress(bytes(6))

PerCpu = tuple[bytes, ...]
"""A value of a per-CPU map: one a CPU."""

PEER_F_KERNEL_PATH: Final = 1 << 0
NODE_F_PEERS_INCOMPLETE: Final = 1 << 0
NODE_F_XDP: Final = 1 << 1
NODE_F_NO_ETHERNET: Final = 1 << 2
NODE_F_OTHERS_BEHIND: Final = 1 << 3
PEER_FLAGS: Final = {PEER_F_KERNEL_PATH: "kernel-path"}


def peer_flag_names(flags: int) -> list[str]:
    """Of a peer's entry, for people."""
    return [name for bit, name in PEER_FLAGS.items() if flags & bit]


BYPASS_CODE: Final = {Bypass.OFF: 0, Bypass.LEARNED: 1, Bypass.ALWAYS: 2, Bypass.TUNNEL: 3}
BYPASS_NAME: Final = {code: mode for mode, code in BYPASS_CODE.items()}

Ip = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Structs:
    """What has addresses of one family in it."""

    address: int
    """Bytes of each."""
    peer: struct.Struct
    flow_key: struct.Struct
    flow: struct.Struct
    translation: struct.Struct
    note: struct.Struct
    node: struct.Struct


def _structs(address: int, pad: int) -> Structs:
    """`pad`: FAMILY_PAD, what an odd number of these addresses leaves of eight bytes."""
    a, to, key = f"{address}s", address + 4, 2 * address + 12
    return Structs(
        address,
        peer=struct.Struct(f"={a}6s2sII{a}IB3x"),
        flow_key=struct.Struct(f"={a}{a}2s2sIBBBB"),
        flow=struct.Struct(f"=QQQII{to}sIB{3 + pad}x"),
        translation=struct.Struct(f"={a}2s2s"),
        note=struct.Struct(f"=QQ{key}s4x"),
        node=struct.Struct(f"=QQ{7 * a}III6s2sHHII6s{2 + pad}xIII"),
    )


STRUCTS: Final = {4: _structs(4, 0), 6: _structs(16, 4)}
"""By IP version."""

ENDPOINT: Final = struct.Struct("=I6s6s")
SERVICE: Final = struct.Struct("=Q")
COUNTER: Final = struct.Struct("=QQQ")
PEER_STATS: Final = struct.Struct("=QQQQ")
EVENT: Final = struct.Struct(f"=QIIHBB{EVENT_BYTES}sI")


def port_bytes(number: int) -> bytes:
    """A port in network byte order."""
    return number.to_bytes(2, "big")


def _family(raw: bytes, ipv6: struct.Struct) -> Structs:
    """Of what is as long as the one of IPv6, or not."""
    return STRUCTS[6 if len(raw) == ipv6.size else 4]


def address(raw: bytes) -> Ip:
    """Of either family, by how many bytes there are."""
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


RawPeer = tuple[bytes, bytes, bytes, int, int, bytes, int, int]
"""Host, VTEP MAC, port, VNI, ifindex, next hop (zeroes: none), flags and TTL."""


def split_peer(raw: bytes) -> RawPeer:
    """A value of `peers` as the map has it: of a hundred thousand, in a tenth of the time of PeerEntry."""
    return _family(raw, STRUCTS[6].peer).peer.unpack(raw)


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """Value of `peers`; the key is the subnet's address."""

    host: Ip
    vtep_mac: MacAddress
    port: int
    vni: int
    ifindex: int
    next_hop: Ip | None
    """Neighbour on the interface; None: the FIB is asked for each packet."""
    flags: int = 0
    ttl: int = DEFAULT_TTL
    """Of the outer header."""

    def pack(self) -> bytes:
        structs = STRUCTS[self.host.version]
        hop = self.next_hop.packed if self.next_hop else bytes(structs.address)
        return structs.peer.pack(
            self.host.packed,
            self.vtep_mac.packed,
            port_bytes(self.port),
            self.vni,
            self.ifindex,
            hop,
            self.flags,
            self.ttl,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> PeerEntry:
        host, mac, port, vni, ifindex, hop, flags, ttl = split_peer(raw)
        return cls(
            address(host),
            MacAddress(mac),
            int.from_bytes(port, "big"),
            vni,
            ifindex,
            address(hop) if any(hop) else None,
            flags,
            ttl,
        )


@dataclass(frozen=True, slots=True)
class EndpointEntry:
    """Value of `endpoints`; the key is the container's IP."""

    ifindex: int
    mac: MacAddress
    bridge_mac: MacAddress

    def pack(self) -> bytes:
        return ENDPOINT.pack(self.ifindex, self.mac.packed, self.bridge_mac.packed)

    @classmethod
    def unpack(cls, raw: bytes) -> EndpointEntry:
        ifindex, mac, bridge_mac = ENDPOINT.unpack(raw)
        return cls(ifindex, MacAddress(mac), MacAddress(bridge_mac))


@dataclass(frozen=True, slots=True)
class FlowKey:
    """Key of `flows`: a 5-tuple in one direction through one port."""

    saddr: Ip
    daddr: Ip
    sport: int
    dport: int
    ifindex: int
    proto: int
    direction: Direction
    dscp: int = 0
    """The packets' DSCP; 0 for TCP, whose entry has it."""

    def pack(self) -> bytes:
        return STRUCTS[self.saddr.version].flow_key.pack(
            self.saddr.packed,
            self.daddr.packed,
            port_bytes(self.sport),
            port_bytes(self.dport),
            self.ifindex,
            self.proto,
            self.direction,
            self.dscp,
            0,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> FlowKey:
        structs = _family(raw, STRUCTS[6].flow_key)
        saddr, daddr, sport, dport, ifindex, proto, direction, dscp, _ = structs.flow_key.unpack(raw)
        return cls(
            address(saddr),
            address(daddr),
            int.from_bytes(sport, "big"),
            int.from_bytes(dport, "big"),
            ifindex,
            proto,
            Direction(direction),
            dscp,
        )


@dataclass(frozen=True, slots=True)
class Translation:
    """What netfilter makes of a flow's packets: the other end's address, and both ports."""

    address: Ip
    sport: int
    dport: int

    def pack(self) -> bytes:
        return STRUCTS[self.address.version].translation.pack(
            self.address.packed, port_bytes(self.sport), port_bytes(self.dport)
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Translation | None:
        """None for zeroes: there is none."""
        structs = _family(raw, STRUCTS[6].translation)
        addr, sport, dport = structs.translation.unpack(raw)
        ports = (int.from_bytes(port, "big") for port in (sport, dport))
        return cls(address(addr), *ports) if any(addr) else None


@dataclass(frozen=True, slots=True)
class NoteEntry:
    """Value of `notes`; the key is the signature. Times in ns of CLOCK_MONOTONIC (coarse)."""

    noted_ns: int
    fingerprint: int
    key: FlowKey

    def pack(self) -> bytes:
        structs = STRUCTS[self.key.saddr.version]
        return structs.note.pack(self.noted_ns, self.fingerprint, self.key.pack())

    @classmethod
    def unpack(cls, raw: bytes) -> NoteEntry:
        structs = _family(raw, STRUCTS[6].note)
        noted_ns, fingerprint, key = structs.note.unpack(raw)
        return cls(noted_ns, fingerprint, FlowKey.unpack(key))


@dataclass(frozen=True, slots=True)
class FlowEntry:
    """Value of `flows`; times in ns of CLOCK_MONOTONIC."""

    approved_ns: int
    last_seen_ns: int
    packets: int
    mark: int = 0
    priority: int = 0
    dscp: int = 0
    to: Translation | None = None
    seal: int = 0
    """Of key and translation: the programs go by no entry without the right one."""

    def pack(self, version: int = 4) -> bytes:
        """`version`: of the map, which an entry without a translation does not tell."""
        structs = STRUCTS[version]
        to = self.to.pack() if self.to else bytes(structs.translation.size)
        return structs.flow.pack(
            self.approved_ns,
            self.last_seen_ns,
            self.packets,
            self.mark,
            self.priority,
            to,
            self.seal,
            self.dscp,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> FlowEntry:
        structs = _family(raw, STRUCTS[6].flow)
        approved_ns, seen_ns, packets, mark, priority, to, seal, dscp = structs.flow.unpack(raw)
        return cls(approved_ns, seen_ns, packets, mark, priority, dscp, Translation.unpack(to), seal)


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """The one value of `node`."""

    host: Ip
    network: IPv4Network | IPv6Network
    subnet: IPv4Network | IPv6Network
    pool: tuple[Ip, Ip]
    """First and last address that leases are handed out from."""
    vni: int
    uplink_ifindex: int
    mtu: int
    vtep_mac: MacAddress
    port: int
    source_ports: tuple[int, int]
    bypass: Bypass
    approval_ttl_ns: int
    flow_seed: int
    flags: int = 0
    uplink_mac: MacAddress = NO_MAC
    """Frames to another one are none of XDP's business."""
    routing_marks: int = 0
    """Packets with one of these bits in their mark may be led elsewhere than `peers` says."""
    tunnel_ifindex: int = 0
    """The vxlan device; 0: the tunnel gear is off."""
    overlay_ifindex: int = 0
    """The vxlan device, whatever the gear."""

    def pack(self) -> bytes:
        return STRUCTS[self.host.version].node.pack(
            self.approval_ttl_ns,
            self.flow_seed,
            self.host.packed,
            self.network.network_address.packed,
            self.network.netmask.packed,
            self.subnet.network_address.packed,
            self.subnet.netmask.packed,
            *(address.packed for address in self.pool),
            self.vni,
            self.uplink_ifindex,
            self.mtu,
            self.vtep_mac.packed,
            port_bytes(self.port),
            *self.source_ports,
            BYPASS_CODE[self.bypass],
            self.flags,
            self.uplink_mac.packed,
            self.routing_marks,
            self.tunnel_ifindex,
            self.overlay_ifindex,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> NodeEntry | None:
        """None for the zeroes of a map that no agent has filled yet."""
        structs = _family(raw, STRUCTS[6].node)
        (
            ttl,
            seed,
            host,
            net,
            mask,
            sub,
            sub_mask,
            first,
            last,
            vni,
            uplink,
            mtu,
            mac,
            port,
            low,
            high,
            bypass,
            flags,
            uplink_mac,
            marks,
            tunnel_ifindex,
            overlay_ifindex,
        ) = structs.node.unpack(raw)
        if not any(host):
            return None
        return cls(
            address(host),
            network(net, mask),
            network(sub, sub_mask),
            (address(first), address(last)),
            vni,
            uplink,
            mtu,
            MacAddress(mac),
            int.from_bytes(port, "big"),
            (low, high),
            BYPASS_NAME[bypass],
            ttl,
            seed,
            flags,
            MacAddress(uplink_mac),
            marks,
            tunnel_ifindex,
            overlay_ifindex,
        )


def network(base: bytes, mask: bytes) -> IPv4Network | IPv6Network:
    """Of an address and its mask, both in network byte order."""
    length = int.from_bytes(mask, "big").bit_count()
    return IPv4Network((base, length)) if len(base) == 4 else IPv6Network((base, length))


@dataclass(frozen=True, slots=True)
class Counter:
    """Value of `counters`, summed over CPUs."""

    packets: int
    bytes: int

    @classmethod
    def unpack(cls, per_cpu: PerCpu) -> Counter:
        rows = [COUNTER.unpack(raw) for raw in per_cpu]
        return cls(sum(r[0] for r in rows), sum(r[1] for r in rows))


@dataclass(frozen=True, slots=True)
class PeerStats:
    """Value of `peer_stats`, summed over CPUs: packets that eBPF carried, whole or but for netfilter."""

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0

    @classmethod
    def unpack(cls, per_cpu: PerCpu) -> PeerStats:
        return cls(*(sum(column) for column in zip(*map(PEER_STATS.unpack, per_cpu), strict=True)))


@dataclass(frozen=True, slots=True)
class Event:
    """One sampled drop from `events`."""

    time_ns: int
    ifindex: int
    packet_len: int
    reason: int
    hook: Hook
    data: bytes

    @classmethod
    def unpack(cls, raw: bytes) -> Event:
        time_ns, ifindex, length, reason, hook, captured, data, _ = EVENT.unpack(raw[: EVENT.size])
        return cls(time_ns, ifindex, length, reason, Hook(hook), data[:captured])
