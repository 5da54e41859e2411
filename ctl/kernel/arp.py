"""Who answers ARP (RFC 826) on one interface, whatever the neighbour table says: nothing in it changes.

No rule of a container's own filters that, and whoever is only paused or has no process still has a kernel
that answers.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Collection
from contextlib import closing
from ipaddress import IPv4Address
from typing import Final

from ctl.core.errors import AgentError, KernelError
from ctl.core.model import MacAddress

_ETH_P_ARP: Final = 0x0806
_FRAME: Final = struct.Struct("!6s6sHHHBBH6s4s6s4s")
"""Ethernet header and ARP packet for IPv4."""
_REQUEST, _REPLY = 1, 2
_BROADCAST: Final = b"\xff" * 6
_PACE_S: Final = 0.0002


def answers(
    device: str, mac: MacAddress, own: IPv4Address, targets: Collection[IPv4Address], patience: float
) -> dict[IPv4Address, MacAddress]:
    """The MACs of those that answer within `patience` seconds after each of three requests.

    `device`: the interface, with `mac` and the address `own`. AgentError without CAP_NET_RAW; KernelError.
    """
    try:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    except PermissionError:
        raise AgentError("needs root, or CAP_NET_RAW, to ask for addresses by ARP") from None
    found: dict[IPv4Address, MacAddress] = {}
    # As a probe (RFC 5227) first, which no container's rp_filter stops; some answer only who has an address.
    with closing(opened):
        try:
            opened.bind((device, _ETH_P_ARP))
            for asker in (IPv4Address(0), own, IPv4Address(0)):
                _ask(opened, mac, asker, [each for each in targets if each not in found], found, patience)
        except OSError as error:
            raise KernelError(f"cannot ask by ARP on {device}: {error.strerror}") from error
    return found


def _ask(
    opened: socket.socket,
    mac: MacAddress,
    asker: IPv4Address,
    targets: Collection[IPv4Address],
    found: dict[IPv4Address, MacAddress],
    patience: float,
) -> None:
    """Ask for each; what is answered goes into `found`. OSError."""
    for target in targets:
        opened.send(request(mac, asker, target))
        _take(opened, found, _PACE_S)
    end = time.monotonic() + patience
    while any(each not in found for each in targets) and (left := end - time.monotonic()) > 0:
        _take(opened, found, left)


def _take(opened: socket.socket, found: dict[IPv4Address, MacAddress], patience: float) -> None:
    """What has come within that time at most. OSError."""
    opened.settimeout(patience)
    try:
        pair = answer(opened.recv(2048))
    except TimeoutError:
        return
    if pair:
        found.setdefault(*pair)


def request(mac: MacAddress, asker: IPv4Address, target: IPv4Address) -> bytes:
    """The frame that asks everybody who has `target`."""
    return _FRAME.pack(
        _BROADCAST, mac.packed, _ETH_P_ARP, 1, 0x0800, 6, 4, _REQUEST,
        mac.packed, asker.packed, bytes(6), target.packed,
    )  # fmt: skip


def answer(frame: bytes) -> tuple[IPv4Address, MacAddress] | None:
    """Who says that it has which address; None if it is another frame."""
    if len(frame) < _FRAME.size:
        return None
    _, _, kind, *form, operation, mac, address, _, _ = _FRAME.unpack_from(frame)
    if (kind, *form, operation) != (_ETH_P_ARP, 1, 0x0800, 6, 4, _REPLY):
        return None
    return IPv4Address(address), MacAddress(mac)
