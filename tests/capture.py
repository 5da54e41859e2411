"""What is on a wire: tcpdump into a file, and in what each packet of two containers travelled."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from tests import packets
from tests.namespace import Netns
from tests.packets import Ip, Tunnel
from tests.process import wait_until

UDP_PORT, VXLAN_PORT = 8285, 8472
_INNER_IP = {14: "plain", 14 + 20 + 8: "udp", 14 + 20 + 8 + 8 + 14: "vxlan"}
"""Where the inner IP header is, if a frame carries it so."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A packet between two containers."""

    by: str
    """`plain`, `udp`, `vxlan VNI`, or `unknown`."""
    inner: Ip


class Capture:
    """A running tcpdump on a device of a namespace."""

    def __init__(self, place: Netns, device: str, file: Path) -> None:
        self.file = file
        self._tcpdump = place.popen(
            "tcpdump", "-i", device, "-n", "-U", "--immediate-mode", "-B", "16384", "-w", str(file)
        )
        wait_until(lambda: "listening on" in self._tcpdump.log(), 10, "tcpdump listens")

    def frames(self) -> list[bytes]:
        """What was captured so far; a record that is not written yet is left out."""
        data, at, found = self.file.read_bytes(), 24, []
        while at + 16 <= len(data):
            (length,) = struct.unpack_from("=I", data, at + 8)
            if at + 16 + length > len(data):
                break
            found.append(data[at + 16 : at + 16 + length])
            at += 16 + length
        return found

    def between(self, one: str, other: str) -> list[Carried]:
        """The packets of two containers, in either direction, in whatever they travelled."""
        there, back = IPv4Address(one).packed, IPv4Address(other).packed
        ends = there + back, back + there
        return [found for frame in self.frames() for found in carried(frame, ends)]

    def stop(self) -> None:
        """End it; an AssertionError if the kernel could not give it everything."""
        self._tcpdump.stop()
        assert "\n0 packets dropped by kernel" in self._tcpdump.log(), self._tcpdump.log()


def carried(frame: bytes, ends: tuple[bytes, bytes]) -> list[Carried]:
    """What a frame carries of the two; nothing if their addresses stand side by side nowhere in it."""
    places = [at for each in ends if (at := frame.find(each)) >= 0]
    if not places:
        return []
    start = min(places) - 12
    by = _carrier(frame, start)
    found = [Carried(by, Ip.parse(frame[start:]))]
    if by == "udp":  # one that the NIC is to segment: a packet behind the other
        while (start := start + found[-1].inner.total) < len(frame):
            found.append(Carried(by, Ip.parse(frame[start:])))
    return found


def _carrier(frame: bytes, start: int) -> str:
    """By the place of the inner IP header, and by what stands before it."""
    kind = _INNER_IP.get(start, "unknown")
    outer = Ip.parse(frame[packets.ETH_LEN :])
    if kind == "plain":
        return kind
    if outer.proto != packets.UDP:
        return "unknown"
    (port,) = struct.unpack_from("!H", frame, packets.ETH_LEN + len(outer.head) + 2)
    if kind == "udp" and port == UDP_PORT:
        return kind
    if kind == "vxlan" and port == VXLAN_PORT:
        return f"vxlan {Tunnel.parse(frame).vni}"
    return "unknown"
