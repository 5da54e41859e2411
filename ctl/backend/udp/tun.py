"""The TUN device: packets that the kernel routes to it are read, what is written it receives."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Final

from ctl.core.errors import KernelError
from ctl.process import holder

QUEUE_LEN: Final = 2000
"""How many packets the device keeps for us to read: what a few large TCP segments are cut into."""

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_SIOCSIFTXQLEN: Final = 0x8943
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFREQ: Final = struct.Struct("16si20x")


def open_device(name: str) -> int:
    """Make the device, or take the one that is there, and keep it when we end.

    A non-blocking descriptor of whole IP packets. Address, MTU and routes are the agent's.
    KernelError says why not.
    """
    if not os.path.exists("/dev/net/tun"):
        raise KernelError("/dev/net/tun is missing: the udp backend needs the kernel's tun driver")
    fd = _attach(name)
    try:
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFTXQLEN, _IFREQ.pack(name.encode(), QUEUE_LEN))
    except OSError as error:
        os.close(fd)
        raise KernelError(f"TUN device {name}: {error.strerror}") from error
    return fd


def _attach(name: str) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"/dev/net/tun: {error.strerror}") from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        os.close(fd)
        raise KernelError(f"TUN device {name}: {_why(error, name)}") from error
    return fd


def _why(error: OSError, name: str) -> str:
    if error.errno == errno.EBUSY:
        return f"{holder.of_tun(name) or 'another process'} has it: end that one, or choose another port"
    if error.errno == errno.EINVAL:
        return f"a device of another kind has this name: remove it ({error.strerror})"
    return error.strerror or str(error)


def remove_device(name: str) -> None:
    """Delete the device, with its routes, if there is one. KernelError, as where it is in use."""
    if name not in _names():
        return
    fd = _attach(name)
    try:
        fcntl.ioctl(fd, _TUNSETPERSIST, 0)
    except OSError as error:
        raise KernelError(f"TUN device {name}: {error.strerror}") from error
    finally:
        os.close(fd)


def _names() -> set[str]:
    """Of all interfaces of this network namespace."""
    return {name for _, name in socket.if_nameindex()}
