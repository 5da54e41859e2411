"""IPsec policies, which a packet that eBPF redirects would not meet."""

from __future__ import annotations

import socket
import struct
from typing import Final

from ctl.errors import KernelError

_GETPOLICY: Final = 0x15
_NEWPOLICY: Final = 0x13
_DONE: Final = 3
_DUMP: Final = 0x301
"""NLM_F_REQUEST | NLM_F_DUMP."""


def has_policies() -> bool:
    """Whether this network namespace has any (XFRM_MSG_GETPOLICY); False without IPsec support."""
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_XFRM
        ) as asked:
            # struct xfrm_userpolicy_id, all zero.
            asked.send(struct.pack("=IHHII", 16 + 64, _GETPOLICY, _DUMP, 1, 0) + bytes(64))
            (kind,) = struct.unpack_from("=H", asked.recv(1 << 16), 4)
    except OSError as error:
        if error.errno in (93, 97):  # EPROTONOSUPPORT, EAFNOSUPPORT
            return False
        raise KernelError(f"list IPsec policies: {error.strerror}") from error
    return bool(kind == _NEWPOLICY)
