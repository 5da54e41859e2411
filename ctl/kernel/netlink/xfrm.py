"""IPsec policies, which a packet that eBPF redirects would not meet."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

from ctl.core.errors import KernelError

_GETPOLICY: Final = 0x15
_NEWPOLICY: Final = 0x13
_DONE: Final = 3
"""NLMSG_DONE."""
_DUMP: Final = 0x301
"""NLM_F_REQUEST | NLM_F_DUMP."""


class Policies:
    """Asks for them, over one socket. One thread's."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def any(self) -> bool:
        """Whether this network namespace has any (XFRM_MSG_GETPOLICY); False without IPsec support."""
        try:
            found = self._ask(self._open())
        except OSError as error:
            self.close()
            if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
                return False
            raise KernelError(f"list IPsec policies: {error.strerror}") from error
        if found:
            self.close()  # there may be thousands more to come
        return found

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _open(self) -> socket.socket:
        if self._socket is None:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_XFRM)
        return self._socket

    @staticmethod
    def _ask(asked: socket.socket) -> bool:
        # struct xfrm_userpolicy_id, all zero.
        asked.send(struct.pack("=IHHII", 16 + 64, _GETPOLICY, _DUMP, 1, 0) + bytes(64))
        return is_policy(asked.recv(1 << 16))


def is_policy(answer: bytes) -> bool:
    """Whether the first message of a dump is a policy; False at its end. OSError if it is an error.

    NLMSG_ERROR and NLMSG_DONE both begin with an error number, which is 0 for the end of a dump
    that went well. What cannot be read must not count as "none": eBPF would carry what policies
    are to encrypt.
    """
    (kind,) = struct.unpack_from("=H", answer, 4)
    if kind == _NEWPOLICY:
        return True
    (code,) = struct.unpack_from("=i", answer, 16)
    if kind == _DONE and not code:
        return False
    code = -code or errno.EBADMSG
    raise OSError(code, os.strerror(code))
