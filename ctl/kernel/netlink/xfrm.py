"""IPsec policies, which a packet that eBPF redirects would not meet."""

from __future__ import annotations

import errno
import socket
from contextlib import closing
from typing import Final

from pyroute2.netlink import NETLINK_XFRM, NLMSG_DONE
from pyroute2.netlink.nlsocket import NetlinkSocket

from ctl.core.errors import KernelError
from ctl.kernel.netlink.socket import Bulk

_GETPOLICY: Final = 0x15
"""XFRM_MSG_GETPOLICY of linux/xfrm.h, which pyroute2 knows nothing of."""
_ALL: Final = bytes(64)
"""struct xfrm_userpolicy_id, all zero."""


def _supported() -> bool:
    """Whether the kernel has IPsec. OSError. Where it has not, pyroute2 would leave an event loop open."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM).close()
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            return False
        raise
    return True


class Policies:
    """Asks for them, over one socket. One thread's."""

    def __init__(self) -> None:
        self._socket: Bulk | None = None

    def any(self) -> bool:
        """Whether this network namespace has any; False without IPsec support. KernelError.

        What cannot be read must not count as "none": eBPF would carry what policies are to encrypt.
        """
        try:
            found = self._ask()
        except KernelError as error:
            self.close()
            raise KernelError(f"list IPsec policies: {error}") from error
        if found:
            self.close()  # there may be thousands more to come
        return found

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _ask(self) -> bool:
        try:
            if self._socket is None:
                if not _supported():
                    return False
                self._socket = Bulk(NetlinkSocket(family=NETLINK_XFRM))
        except OSError as error:
            raise KernelError(error.strerror) from error
        with closing(self._socket.dumping(_GETPOLICY, _ALL)) as answer:
            _, kind, _, _ = next(answer)
        return bool(kind != NLMSG_DONE)
