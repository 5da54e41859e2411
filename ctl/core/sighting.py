"""What is said of a packet that a hook has told of: a line, an object, a comment. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from typing import Any, Final

from ctl.core.abi import Hook, Ip
from ctl.core.dissect import PROTOCOLS, TCP, UDP, Headers, Packet, dissect
from ctl.core.reasons import Reason, Verdict, reason
from ctl.core.tracer import Block, Selection, Trace

INBOUND: Final = frozenset({Hook.FROM_CONTAINER, Hook.FROM_WIRE, Hook.FROM_WIRE_XDP, Hook.TUNNEL_IN})
"""Hooks that see what their interface receives; the others see what it sends."""

_BRACKETS: Final = re.compile(r"\[([^]]*)\](?::(.*))?")
_NUMBERS: Final = {name: number for number, name in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet at a hook."""

    trace: Trace
    time_ns: int
    """Since the epoch."""
    dev: str
    packet: Packet

    @property
    def why(self) -> Reason:
        return reason(self.trace.reason)

    @property
    def comment(self) -> str:
        """Hook and verdict, in words."""
        return f"{self.trace.hook.label}: {self.why.verdict.value}: {self.why.label}: {self.why.caption}"


def sighting(trace: Trace, offset_ns: int, dev: Callable[[int], str], port: int) -> Sighting:
    """`offset_ns`: from the programs' clock to the epoch; `port`: VXLAN's."""
    return Sighting(trace, trace.time_ns + offset_ns, dev(trace.ifindex), dissect(trace.data, port))


def comes_again(seen: Sighting) -> bool:
    """Whether the next hook is sure to tell of it, too: from_wire delivers what XDP has decapsulated."""
    return seen.trace.hook is Hook.FROM_WIRE_XDP and seen.why.verdict is Verdict.BYPASS


def line(seen: Sighting) -> str:
    """As tcpdump has it, with the hook, and what it made of the packet. Times are local."""
    return worded(_shown(seen))


def worded(told: Mapping[str, Any]) -> str:
    """The same of what `as_json` has told."""
    second, nanosecond = divmod(told["time_ns"], 10**9)
    clock = f"{datetime.fromtimestamp(second):%H:%M:%S}.{nanosecond:09}"
    came, left = told["came_bytes"], told["bytes"]
    size = f"{came}>{left}" if came != left else str(left)
    what = " ".join(told[key] for key in ("hook", "dev", "verdict", "reason"))
    return f"{clock} {what} {size}: {told['packet']}"


def as_json(seen: Sighting) -> dict[str, Any]:
    """The contract of JSON lines: keys stay, new ones may come."""
    packet = seen.packet
    return {
        **_shown(seen),
        "cpu": seen.trace.cpu,
        "vni": packet.vni if packet.outer else None,
        "outer": _headers(packet.outer),
        "inner": _headers(packet.inner),
        "other": packet.other or None,
    }


SHOWN: Final = {
    "time_ns": int, "hook": str, "dev": str, "verdict": str, "reason": str, "caption": str,
    "came_bytes": int, "bytes": int, "packet": str,
}  # fmt: skip
"""What of `as_json` is for a line, and of which type."""


def _shown(seen: Sighting) -> dict[str, Any]:
    trace, why = seen.trace, seen.why
    words = (trace.hook.label, seen.dev, why.verdict.value, why.label, why.caption)
    told = (seen.time_ns, *words, trace.came_len, trace.packet_len, str(seen.packet))
    return dict(zip(SHOWN, told, strict=True))


def _headers(headers: Headers | None) -> dict[str, Any] | None:
    if headers is None:
        return None
    return {
        "src": str(headers.src),
        "dst": str(headers.dst),
        "proto": PROTOCOLS.get(headers.proto, str(headers.proto)),
        "sport": headers.sport,
        "dport": headers.dport,
        "length": headers.length,
        "ttl": headers.ttl,
        "df": headers.df,
        "info": headers.words,
    }


# --- What is asked for ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flow:
    """Packets between two ends, in both directions."""

    ends: tuple[Block | None, Block | None]
    """None: anywhere."""
    ports: tuple[int, int]
    """0: any."""
    proto: int
    """0: any."""

    def __post_init__(self) -> None:
        """ValueError for ports of a protocol that has none, and for ends of two families."""
        if any(self.ports) and self.proto not in (0, TCP, UDP):
            raise ValueError(f"{PROTOCOLS.get(self.proto, self.proto)} has no ports")
        self.selected()

    def selected(self, host: Ip | None = None) -> Selection:
        """Its packets, to and from this host. ValueError where that is of another family than they are."""
        return Selection(self.ends, self.ports, host, self.proto)


def parse_flow(text: str) -> Flow:
    """From `10.77.1.2,10.77.2.3:80,tcp`; an address may be a subnet, or `any`. ValueError.

    An IPv6 address that a port follows is in brackets: `[fd00:77::3]:80`.
    """
    parts = text.split(",")
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"{text!r} is no flow such as 10.77.1.2,10.77.2.3:80,tcp")
    proto = parse_proto(parts[2]) if len(parts) == 3 else 0
    one, port = _parse_end(parts[0])
    other, other_port = _parse_end(parts[1]) if len(parts) > 1 else _parse_end("any")
    return Flow((one, other), (port, other_port), proto)


def parse_proto(text: str) -> int:
    """A protocol by its name or IANA's number. ValueError."""
    if text in _NUMBERS:
        return _NUMBERS[text]
    if text.isascii() and text.isdigit() and 0 < int(text) < 256:
        return int(text)
    raise ValueError(f"{text!r} is no protocol: {', '.join(sorted(_NUMBERS))}, or a number up to 255")


def _parse_end(text: str) -> tuple[Block | None, int]:
    address, port = _apart(text)
    try:
        network = None if address == "any" else ip_network(address, strict=False)
    except ValueError:
        raise ValueError(f"{address!r} is no IP address or subnet") from None
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is no port")
    return network, int(port or 0)


def _apart(text: str) -> tuple[str, str]:
    """Address and port, which is empty if there is none."""
    if found := _BRACKETS.fullmatch(text):
        return found[1], found[2] or ""
    address, _, port = text.partition(":")
    return (text, "") if ":" in port else (address, port)
