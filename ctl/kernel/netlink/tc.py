"""tc's qdiscs and filters as rtnetlink has them: messages to values and back.

Formats: struct tcmsg of linux/rtnetlink.h, TCA_BPF_* of linux/pkt_cls.h.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

from ctl.kernel.netlink.socket import attribute, attributes, number, text, to_number

INGRESS: Final = 0xFFFFFFF2
EGRESS: Final = 0xFFFFFFF3
"""The two sides of clsact, as parents of filters (TC_H_MIN_INGRESS, TC_H_MIN_EGRESS)."""

_TCMSG: Final = struct.Struct("=BxxxiIII")
"""struct tcmsg: family, ifindex, handle, parent, info (priority and protocol of a filter)."""
_CLSACT_HANDLE: Final = 0xFFFF0000
_CLSACT_PARENT: Final = 0xFFFFFFF1
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION: Final = 1
_ETH_P_ALL: Final = 0x0003


@dataclass(frozen=True, slots=True)
class Attached:
    """A filter as the kernel lists it."""

    kind: str
    priority: int
    name: str
    """Of a bpf filter; empty if it has none."""
    program: int = 0
    """Id of a bpf filter's program, if that is eBPF."""


def clsact(ifindex: int) -> bytes:
    """The qdisc that filters hang on."""
    return _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT_PARENT, 0) + attribute(_KIND, b"clsact\0")


def place(ifindex: int, parent: int, priority: int = 0, handle: int = 0) -> bytes:
    """One filter's place, for all protocols; without priority and handle, all of that side."""
    info = priority << 16 | socket.htons(_ETH_P_ALL) if priority else 0
    head = _TCMSG.pack(0, ifindex, handle, parent, info)
    return head + attribute(_KIND, b"bpf\0") if priority else head


def program(fd: int, name: str) -> bytes:
    """What follows `place`: a bpf program whose verdict is the filter's."""
    return attribute(
        _OPTIONS,
        attribute(_BPF_FD, number(fd))
        + attribute(_BPF_NAME, name.encode() + b"\0")
        + attribute(_BPF_FLAGS, number(_DIRECT_ACTION)),
    )


def parse(body: bytes) -> Attached | None:
    """A filter by its message; None for the head of a chain, which is none."""
    _, _, handle, _, info = _TCMSG.unpack_from(body)
    found = attributes(body, _TCMSG.size)
    if not handle or _OPTIONS not in found:
        return None
    kind = text(found.get(_KIND, b""))
    if kind != "bpf":
        return Attached(kind, info >> 16, "")
    options = attributes(found[_OPTIONS])
    name, ident = text(options.get(_BPF_NAME, b"")), to_number(options.get(_BPF_ID, b""))
    return Attached(kind, info >> 16, name, ident)
