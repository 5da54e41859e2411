"""Our XDP program on interfaces, and whose program one is that is found there.

XDP has no names as tc filters have, so ours are known by their pins: those of this build
and of the one before. Nobody else's is ever replaced or removed, the kernel sees to that
(XDP_FLAGS_REPLACE with the program that is expected, XDP_FLAGS_UPDATE_IF_NOEXIST).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from ctl.core.host import Link
from ctl.kernel.bpf import bpffs, syscall
from ctl.kernel.bpf.loader import Program
from ctl.kernel.bpf.maps import layout_dir
from ctl.kernel.bpf.source import XDP
from ctl.kernel.netlink.link import set_xdp
from ctl.kernel.netlink.session import Netlink

PROGRAM: Final = XDP


class Xdp:
    """XDP on interfaces. `root` is where our programs are pinned.

    Only ever in the driver: in the stack's own (generic) mode XDP comes after the skb, costs more
    than tc and has no view of super-packets.
    """

    def __init__(self, netlink: Netlink, root: Path) -> None:
        self._netlink, self._root = netlink, root
        self._fds: dict[int, int] = {}
        """Descriptors of programs that were found to be ours, by id: they stay ours when their pins go."""

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def is_ours(self, ident: int) -> bool:
        """Whether a program (by id, not 0) is ours, of whichever build."""
        return self._find(ident) is not None

    def keep(self) -> None:
        """Pin again what was found to be ours: the next agent may have to replace it. KernelError."""
        for ident, fd in self._fds.items():
            bpffs.pin_missing(layout_dir(self._root) / f"progs-{ident}", {PROGRAM: fd})

    def put(self, link: Link, program: Program) -> None:
        """Attach, or replace the one of ours that `link` has. KernelError with the driver's words."""
        self._set(link, program.fd)

    def remove(self, link: Link) -> None:
        """Take the one that `link` has away, which is ours. KernelError."""
        self._set(link, -1)

    def _set(self, link: Link, fd: int) -> None:
        before = self._find(link.xdp) if link.xdp else None
        with self._netlink.doing(f"{link.name}: XDP"):
            set_xdp(self._netlink.rtnl, link.ifindex, fd, before)

    def _find(self, ident: int) -> int | None:
        """A file descriptor of a program of ours, by id; None if it is none of ours."""
        if ident not in self._fds:
            found = self._pinned(ident)
            found = self._named(ident) if found is None else found
            if found is not None:
                self._fds[ident] = found
        return self._fds.get(ident)

    def _pinned(self, ident: int) -> int | None:
        for pin in self._root.glob(f"v*/progs-*/{PROGRAM}"):
            with suppress(OSError):  # a build that goes just now
                found = _kept(syscall.obj_get(str(pin)), lambda info: info.id == ident)
                if found is not None:
                    return found
        return None

    def _named(self, ident: int) -> int | None:
        """One whose pin is lost: the kernel tells its name, to whom it lets ask (CAP_SYS_ADMIN)."""
        with suppress(OSError):
            return _kept(
                syscall.prog_get(ident),
                lambda info: (info.name, info.type) == (PROGRAM, syscall.PROG_TYPE_XDP),
            )
        return None


def _kept(fd: int, wanted: Callable[[syscall.ProgInfo], bool]) -> int | None:
    """The descriptor, if its program is the wanted one; else None, and it is closed. OSError: closed too."""
    keep = False
    try:
        keep = wanted(syscall.prog_info(fd))
    finally:
        if not keep:
            os.close(fd)
    return fd if keep else None


def remove_all(netlink: Netlink, links: Mapping[int, Link], root: Path) -> list[str]:
    """Take our XDP program off every interface; returns their names. KernelError."""
    with closing(Xdp(netlink, root)) as xdp:
        found = [link for link in links.values() if link.xdp and xdp.is_ours(link.xdp)]
        for link in found:
            xdp.remove(link)
    return sorted(link.name for link in found)
