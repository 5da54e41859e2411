"""Python's twin of what bpf/abi.h has for tracers: what one asks for, and a packet as it is told of.

Byte orders are those of ctl.core.abi; tests/bpf/test_abi.py compares every field with the C.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from ctl.core.abi import STRUCTS, Hook, Ip, address, network, port_bytes
from ctl.core.dissect import in_family
from ctl.core.reasons import Verdict

TRACE_SHORT, TRACE_LONG = 128, 2016
"""Bytes of a packet that a trace has room for, the one or the other."""

TRACERS: Final = {
    4: struct.Struct("=QQ4s4s4s4s2s2s4sBBHB3x"),
    6: struct.Struct("=QQ16s16s16s16s2s2s16sBBHB7x"),
}
"""By IP version."""
TRACE: Final = struct.Struct("=QIIIHHHB5x")

VERDICT_BITS: Final = {verdict: 1 << number for number, verdict in enumerate(
    (Verdict.PASS, Verdict.BYPASS, Verdict.TUNNEL, Verdict.DROP, Verdict.ABORT)
)}  # fmt: skip
"""Of TracerEntry.verdicts: in the order of enum verdict (bpf/reason.h)."""

Block = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class TracerEntry:
    """The one value of `tracer`: of which packets `traces` tells."""

    until_ns: int
    """Of CLOCK_MONOTONIC; 0, or passed: of none."""
    ends: tuple[Block, Block]
    """Where the inner addresses lie, whichever is the source."""
    ports: tuple[int, int]
    """Of the one end and of the other; 0: any."""
    host: Ip
    """At the other end of the tunnel; 0.0.0.0 or ::: any."""
    proto: int = 0
    """0: any."""
    verdicts: frozenset[Verdict] = frozenset(Verdict)
    snaplen: int = TRACE_SHORT
    """Most bytes of each packet."""
    skipped: int = 0
    """Packets for which there was no room."""

    @property
    def narrow(self) -> bool:
        """Whether packets have to be looked at."""
        ends = (end.prefixlen for end in self.ends)
        return any((*ends, *self.ports, int(self.host), self.proto))

    def pack(self) -> bytes:
        return TRACERS[self.host.version].pack(
            self.until_ns,
            self.skipped,
            *(end.network_address.packed for end in self.ends),
            *(end.netmask.packed for end in self.ends),
            *map(port_bytes, self.ports),
            self.host.packed,
            self.proto,
            sum(VERDICT_BITS[verdict] for verdict in self.verdicts),
            self.snaplen,
            self.narrow,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> TracerEntry:
        (until, skipped, one, other, mask, other_mask, port, other_port, host, proto, verdicts, snaplen,
         _) = TRACERS[6 if len(raw) == TRACERS[6].size else 4].unpack(raw)  # fmt: skip
        return cls(
            until,
            (network(one, mask), network(other, other_mask)),
            (int.from_bytes(port, "big"), int.from_bytes(other_port, "big")),
            address(host),
            proto,
            frozenset(verdict for verdict, bit in VERDICT_BITS.items() if verdicts & bit),
            snaplen,
            skipped,
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which packets are asked for, of whichever family they are."""

    ends: tuple[Block | None, Block | None] = (None, None)
    """Where the inner addresses lie, whichever is the source; None: anywhere."""
    ports: tuple[int, int] = (0, 0)
    """Of the one end and of the other; 0: any."""
    host: Ip | None = None
    """At the other end of the tunnel; None: any."""
    proto: int = 0
    """0: any."""
    verdicts: frozenset[Verdict] = frozenset(Verdict)
    snaplen: int = TRACE_SHORT
    """Most bytes of each packet."""

    def __post_init__(self) -> None:
        """ValueError for addresses that no packet has all of."""
        if len(self._named) > 1:
            raise ValueError("no packet has addresses of IPv4 and of IPv6")

    @property
    def versions(self) -> frozenset[int]:
        """Of which IP versions such packets are."""
        return self._named or frozenset(TRACERS)

    @property
    def _named(self) -> frozenset[int]:
        return frozenset(each.version for each in (*self.ends, self.host) if each is not None)

    def entry(self, version: int) -> TracerEntry:
        """What asks the programs for this IP version, which is one of `versions`, for them."""
        nothing = bytes(STRUCTS[version].address)
        anywhere = network(nothing, nothing)
        one, other = (end or anywhere for end in self.ends)
        return TracerEntry(
            0,
            (one, other),
            self.ports,
            self.host or address(nothing),
            in_family(self.proto, version),
            self.verdicts,
            self.snaplen,
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """A packet as it left a hook, from `traces`."""

    time_ns: int
    """Of CLOCK_MONOTONIC."""
    ifindex: int
    came_len: int
    """Bytes of the packet when it came to the hook."""
    packet_len: int
    """And when it left."""
    reason: int
    cpu: int
    hook: Hook
    data: bytes

    @classmethod
    def unpack(cls, raw: bytes) -> Trace:
        time_ns, ifindex, came, length, captured, reason, cpu, hook = TRACE.unpack_from(raw)
        return cls(
            time_ns, ifindex, came, length, reason, cpu, Hook(hook), raw[TRACE.size : TRACE.size + captured]
        )
