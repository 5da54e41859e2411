"""The forwarder's counters: a file that it maps and counts in, and that others read.

64-bit numbers in the machine's byte order, one for each of NAMES in order. They live as
long as the process; a reader sees each of them whole, but not all at one instant.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final

from ctl.process.statedir import write_atomically

NAMES: Final = {
    "generation": "of the table in use (a gauge)",
    "table_errors": "tables that could not be read",
    "tx_packets": "packets sent to peers",
    "tx_bytes": "bytes of these, without UDP and IP",
    "rx_packets": "packets received from peers and handed to the kernel",
    "rx_bytes": "bytes of these",
    "icmp_sent": "ICMP errors sent",
    "icmp_limited": "ICMP errors not sent: too many",
    "drop_not_ipv4": "not IPv4, or not a whole packet",
    "drop_no_route": "no peer has the destination",
    "drop_ttl": "TTL ran out",
    "drop_too_big": "larger than the path to the peer, and not to be fragmented",
    "drop_send": "the kernel did not take the datagram",
    "drop_tun": "the kernel did not take the packet",
    "drop_unknown_host": "datagram of a host that is no peer",
    "drop_spoofed": "inner source is not in the sending peer's subnet",
    "drop_not_ours": "inner destination is not in our subnet",
}
"""The counters in the order of the file; those that begin with `drop_` count lost packets by reason."""

(
    GENERATION, TABLE_ERRORS, TX_PACKETS, TX_BYTES, RX_PACKETS, RX_BYTES, ICMP_SENT, ICMP_LIMITED,
    DROP_NOT_IPV4, DROP_NO_ROUTE, DROP_TTL, DROP_TOO_BIG, DROP_SEND, DROP_TUN,
    DROP_UNKNOWN_HOST, DROP_SPOOFED, DROP_NOT_OURS,
) = range(len(NAMES))  # fmt: skip

_SIZE: Final = 8 * len(NAMES)


def create(path: str) -> memoryview:
    """A new file of zeros, mapped: counters by index, written through at once. OSError.

    New, so that whoever still reads the last forwarder's file does not see it change.
    """
    write_atomically(Path(path), bytes(_SIZE))
    with open(path, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), _SIZE)).cast("Q")


def read(path: str) -> dict[str, int]:
    """Counters by name. OSError without the file; ValueError if it is another version's."""
    with open(path, "rb") as file:
        content = file.read()
    if len(content) != _SIZE:
        raise ValueError(f"{path}: {len(content)} bytes, not {_SIZE}")
    return dict(zip(NAMES, struct.unpack(f"={len(NAMES)}Q", content), strict=True))
