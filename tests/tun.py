"""A TUN or TAP device in a namespace, with this process at its other end."""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Interface
from typing import Final, Self

from ctl.core.abi import Ip
from ctl.core.host import NONE
from tests import packets
from tests.namespace import Netns

TUNSETIFF, TUNSETLINK = 0x400454CA, 0x400454CD
IFF_TUN, IFF_TAP, IFF_NO_PI = 1, 2, 0x1000
"""linux/if_tun.h"""
LARGEST: Final = 1 << 16
MTU: Final = 1420
"""WireGuard's."""


class Tun:
    """The device is up; what the host sends through it is read here, what it shall receive written.

    `type`: ARPHRD_* that it says it is of. `tap`: with an Ethernet header in front, whatever it says.
    """

    def __init__(
        self, place: Netns, name: str, address: IPv4Interface, *, type: int = NONE, tap: bool = False
    ) -> None:
        self.name, self.address, self._tap = name, address.ip, tap
        self.fd = place.call(lambda: _opened(name, IFF_TAP if tap else IFF_TUN))
        self._header = b""
        if tap:  # read before the type says that there is none
            (link,) = json.loads(place.run("ip", "-j", "link", "show", "dev", name).stdout)
            self._header = bytes.fromhex(link["address"].replace(":", "")) + bytes([2, 3, 0, 0, 0, 2, 8, 0])
        fcntl.ioctl(self.fd, TUNSETLINK, type)
        place.ip("addr", "add", str(address), "dev", name)
        place.ip("link", "set", "dev", name, "mtu", str(MTU), "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def put(self, packet: bytes) -> None:
        """Have the host receive an IPv4 packet. The device takes none of a few bytes."""
        with suppress(OSError):
            os.write(self.fd, self._header + packet)

    def sent(self) -> list[bytes]:
        """IPv4 packets that the host has sent since the last look."""
        found = []
        with suppress(BlockingIOError):
            while True:
                packet = os.read(self.fd, LARGEST)[len(self._header) :]
                if packet[:1] and packet[0] >> 4 == 4:
                    found.append(packet)
        return found


def _opened(name: str, mode: int) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", name.encode(), mode | IFF_NO_PI))
    return fd


class Relay:
    """What one host sends through its TUN reaches the one whose address it is for, while a `with` lasts."""

    def __init__(self, *ends: Tun) -> None:
        self._ends: Mapping[Ip, Tun] = {end.address: end for end in ends}
        self._stop, self._told = os.pipe()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._told)
        self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        waiting = {end.fd: end for end in self._ends.values()}
        while True:
            readable, _, _ = select.select([self._stop, *waiting], [], [])
            if self._stop in readable:
                return
            for packet in (each for fd in readable for each in waiting[fd].sent()):
                if to := self._ends.get(packets.Ip.parse(packet).dst):
                    to.put(packet)
