"""A network namespace's connection tracking table: what is in it, and how to fill it up.

nf_conntrack_max holds for every namespace of the machine, each of which has a count of its own; only
the first one may change it. So it is left alone, and the namespace gets that many entries.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.namespace import Netns

NETLINK_NETFILTER: Final = 12
NEW: Final = 1 << 8
"""Subsystem and message type (linux/netfilter/nfnetlink_conntrack.h)."""
REQUEST_CREATE: Final = 0x401
NESTED: Final = 1 << 15
ORIG, REPLY, STATUS, TIMEOUT = 1, 2, 3, 7
IP, PROTO = 1, 2
SEEN_REPLY, ASSURED, CONFIRMED = 2, 4, 8
"""Nobody pushes assured entries out (early_drop() of nf_conntrack_core.c)."""
SERVER: Final = bytes([198, 51, 100, 1])
MARK: Final = b"\1\2\3\4"
FIRST: Final = 10 << 24
"""Clients are 10.0.0.0 and up."""
BATCH: Final = 400
"""Messages in one go; what the kernel takes at once."""


def attribute(kind: int, value: bytes) -> bytes:
    """Struct nlattr with its value, padded."""
    size = 4 + len(value)
    return (struct.pack("=HH", size, kind) + value).ljust((size + 3) & ~3, b"\0")


def _tuple(source: bytes, target: bytes, sport: int, dport: int) -> bytes:
    addresses = attribute(1, source) + attribute(2, target)
    ports = attribute(2, struct.pack("!H", sport)) + attribute(3, struct.pack("!H", dport))
    return attribute(NESTED | IP, addresses) + attribute(NESTED | PROTO, attribute(1, b"\x11") + ports)


def _entry(client: bytes) -> bytes:
    """UDP of a client that has been answered, and is good for an hour."""
    body = struct.pack("=BBH", socket.AF_INET, 0, 0)
    body += attribute(NESTED | ORIG, _tuple(client, SERVER, 1000, 2000))
    body += attribute(NESTED | REPLY, _tuple(SERVER, client, 2000, 1000))
    body += attribute(STATUS, struct.pack("!I", SEEN_REPLY | ASSURED | CONFIRMED))
    body += attribute(TIMEOUT, struct.pack("!I", 3600))
    return struct.pack("=IHHII", 16 + len(body), NEW, REQUEST_CREATE, 0, 0) + body


def _add(number: int) -> None:
    parts = _entry(MARK).split(MARK)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for start in range(FIRST, FIRST + number, BATCH):
            clients = range(start, min(start + BATCH, FIRST + number))
            sock.send(b"".join(client.to_bytes(4, "big").join(parts) for client in clients))


def count(place: Netns) -> int:
    """Entries that the namespace has."""
    return int(place.sysctl("net.netfilter.nf_conntrack_count"))


def assured(place: Netns, port: int) -> int:
    """Connections to the port that are long-lived in the eyes of conntrack."""
    found = place.run("conntrack", "-L", "-o", "extended").stdout
    return sum(f"dport={port} " in line and "[ASSURED]" in line for line in found.splitlines())


@contextmanager
def full_table(place: Netns) -> Iterator[None]:
    """For the length of the block there is no room for another connection; then it is empty."""
    most = int(place.sysctl("net.netfilter.nf_conntrack_max"))
    try:
        place.call(lambda: _add(most - count(place)))
        assert count(place) >= most, f"{count(place)} entries"
        yield
    finally:
        place.run("conntrack", "-F")
