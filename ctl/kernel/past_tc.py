"""IPv4 packets to the vxlan device itself, past what hangs at its egress: the kernel puts the tunnel on.

A packet socket with PACKET_QDISC_BYPASS hands its frames to the driver (packet_direct_xmit), without qdiscs
and tc. Routing and netfilter do not see the inner packet; they see the outer one, as of all that the device
sends.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Final, Self

from ctl.core.errors import AgentError, KernelError
from ctl.core.model import DEFAULT_TTL, MacAddress
from ctl.kernel.echo import checksum

_ETH_P_IP: Final = 0x0800
_PACKET_QDISC_BYPASS: Final = 20
"""linux/if_packet.h."""
_SOL_PACKET: Final = 263
_DF: Final = 0x4000
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
"""Version and length of the header, TOS, total length, identification, flags, TTL, protocol, checksum,
source, destination (RFC 791)."""


class PastTc:
    """Sends from `source` by the device `name`, which has `mac`.

    `macs`: of the peers' VTEPs, by overlay address.
    AgentError without CAP_NET_RAW; KernelError.
    """

    def __init__(
        self, name: str, mac: MacAddress, source: IPv4Address, macs: Mapping[IPv4Address, MacAddress]
    ) -> None:
        self._mac, self._source, self._macs = mac, source, macs
        try:
            # Protocol 0: it takes nothing in.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            self._socket.bind((name, 0))
        except PermissionError:
            raise AgentError("needs root, or CAP_NET_RAW, to send by the kernel path") from None
        except OSError as error:
            raise KernelError(f"cannot send past tc on {name}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, target: IPv4Address, message: bytes) -> None:
        """An ICMP message, with DF. OSError, as for one that is larger than the device's MTU."""
        frame = self._macs[target].packed + self._mac.packed + _ETH_P_IP.to_bytes(2)
        self._socket.send(frame + header(self._source, target, len(message)) + message)


def header(source: IPv4Address, target: IPv4Address, length: int) -> bytes:
    """That of an IPv4 packet with DF and `length` bytes of ICMP."""

    def packed(check: int) -> bytes:
        total = _IPV4.size + length
        ends = source.packed, target.packed
        return _IPV4.pack(0x45, 0, total, 0, _DF, DEFAULT_TTL, socket.IPPROTO_ICMP, check, *ends)

    return packed(checksum(packed(0)))
