"""Verdicts on packets from user space: a queue of netfilter's (linux/netfilter/nfnetlink_queue.h)."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tests.namespace import Netns

SUBSYSTEM: Final = 3 << 8
"""NFNL_SUBSYS_QUEUE"""
PACKET, VERDICT, CONFIG = 0, 1, 2
"""Messages: NFQNL_MSG_*."""
BIND, COPY_PACKET = 1, 2
CFG_CMD, CFG_PARAMS = 1, 2
PACKET_HDR, VERDICT_HDR, PAYLOAD, CONNECTION = 1, 2, 10, 11 | 1 << 15
"""Attributes: NFQA_*; the last one is nested."""
LABELS, LABELS_MASK = 22, 23
"""Attributes in it: CTA_*."""
DROP, ACCEPT = 0, 1
HEADERS: Final = 128
"""Bytes that are wanted of a packet."""
PATIENCE_S: Final = 0.1


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[length + -length % 4 :]
    return found


class Queue:
    """The queue `number` of a network namespace. What `allows` says yes to gets a label, and goes on."""

    def __init__(self, place: Netns, number: int, label: int, allows: Callable[[bytes], bool]) -> None:
        """`label`: a bit of the connection's, 0 to 127. `allows`: of a packet from its IP header on."""
        self._number, self._allows = number, allows
        bit = (1 << label).to_bytes(16, "little")
        self._mark = _attribute(CONNECTION, _attribute(LABELS, bit) + _attribute(LABELS_MASK, bit))
        self._socket = place.call(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
        self._socket.settimeout(PATIENCE_S)
        self._send(CONFIG, _attribute(CFG_CMD, struct.pack("!BxH", BIND, socket.AF_INET)))
        self._send(CONFIG, _attribute(CFG_PARAMS, struct.pack("!IB", HEADERS, COPY_PACKET)))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._judge)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _judge(self) -> None:
        while not self._over.is_set():
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            if struct.unpack_from("=H", data, 4)[0] == SUBSYSTEM | PACKET:
                found = _attributes(data[20:])
                allowed = self._allows(found[PAYLOAD])
                head = struct.pack("!I", ACCEPT if allowed else DROP) + found[PACKET_HDR][:4]
                self._send(VERDICT, _attribute(VERDICT_HDR, head) + (self._mark if allowed else b""))

    def _send(self, kind: int, body: bytes) -> None:
        header = struct.pack("=IHHII", 20 + len(body), SUBSYSTEM | kind, 1, 0, 0)  # NLM_F_REQUEST
        self._socket.send(header + struct.pack("!BBH", socket.AF_UNSPEC, 0, self._number) + body)


@contextmanager
def queue(place: Netns, number: int, label: int, allows: Callable[[bytes], bool]) -> Iterator[None]:
    """A `Queue` meanwhile."""
    made = Queue(place, number, label, allows)
    try:
        yield
    finally:
        made.close()
