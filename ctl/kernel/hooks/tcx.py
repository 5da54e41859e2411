"""Our programs on tcx hooks: links, kept alive by their pins (Linux 6.6 on).

A link needs no qdisc. The first clsact of an interface stops its sending for some
milliseconds (qdisc_graft calls dev_deactivate), so a container would lose the packets of its
first moments; and a link's program is exchanged between two packets, seen by nobody.
Programs at tcx run before all filters of clsact.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ctl.core.host import FilterKey
from ctl.kernel.bpf import bpffs, syscall
from ctl.kernel.netlink.socket import Refused

DIRECTORY: Final = "links"
"""Where links are pinned: beside the layouts, for a link goes from one to the next with its program
exchanged."""

_LOOPBACK: Final = 1


def supported() -> bool:
    """Whether this kernel has tcx. True where it will not say: attaching will."""
    try:
        syscall.attached(_LOOPBACK, syscall.TCX_INGRESS)
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def programs(key: FilterKey) -> list[int]:
    """Ids of all programs in a place, in the order in which they run. Refused.

    Empty if the interface is gone, or the kernel has no such place.
    """
    with _doing(f"ask what runs on interface {key.ifindex}"):
        try:
            return syscall.attached(key.ifindex, _attach_type(key.ingress))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):
                return []
            raise


def pinned(root: Path) -> Mapping[FilterKey, int]:
    """Program ids by place, of our links that are pinned below `root` and attached. Changes nothing."""
    found = {}
    for key, pin in pins(root).items():
        with suppress(OSError):  # one that goes just now
            fd = syscall.obj_get(str(pin))
            try:
                info = syscall.link_info(fd)
            finally:
                os.close(fd)
            if info.ifindex:
                found[key] = info.program
    return found


def pins(root: Path) -> dict[FilterKey, Path]:
    """What is pinned below `root`, by place, attached or not."""
    directory = root / DIRECTORY
    if not directory.is_dir():
        return {}
    return {key: pin for pin in directory.iterdir() if (key := _key(pin.name))}


def name_of(ident: int) -> str:
    """What a program is called; empty if the kernel does not tell, for it takes CAP_SYS_ADMIN to ask."""
    try:
        fd = syscall.prog_get(ident)
    except OSError:
        return ""
    try:
        return syscall.prog_info(fd).name
    finally:
        os.close(fd)


class Links:
    """Our links by place, pinned as `<root>/links/<ifindex>-<side>`. One thread's."""

    def __init__(self, root: Path) -> None:
        self._root, self._directory = root, root / DIRECTORY
        self._open: dict[FilterKey, int] = {}
        """File descriptors: with them the links outlive the loss of their pins."""

    def read(self) -> Mapping[FilterKey, int]:
        """Program ids by place: of the links that are attached. The pins of others are removed.

        Refused if pins cannot be read. What else is pinned by such a name is not ours: it stays.
        """
        for key, pin in pins(self._root).items():
            if key not in self._open and (fd := _open(pin)) is not None:
                self._open[key] = fd
        infos = {key: _info(fd) for key, fd in self._open.items()}
        for key, info in infos.items():
            if not info.ifindex:
                self._drop(key)
        return {key: info.program for key, info in infos.items() if info.ifindex}

    def program(self, key: FilterKey) -> int:
        """Id of ours in a place; 0: there is none. Refused."""
        if key not in self._open:
            pin = self._directory / _name(key)
            fd = _open(pin) if pin.exists() else None
            if fd is None:
                return 0
            self._open[key] = fd
        info = _info(self._open[key])
        return info.program if info.ifindex else 0

    def put(self, key: FilterKey, program: int, *, first: bool = False) -> None:
        """Have an open program run last, or first, in its place, in exchange for ours there. Refused."""
        fd = self._open.get(key)
        with _doing(f"attach to interface {key.ifindex}"):
            if fd is not None and self._stands(key, fd, first):
                syscall.link_update(fd, program)
                return
            self.remove(key)  # first, or the kernel takes the program for one that is there already
            self._open[key] = syscall.link_create(
                program, key.ifindex, _attach_type(key.ingress), first=first
            )
        self.pin()

    def remove(self, key: FilterKey) -> None:
        """Take ours away. Refused."""
        fd = self._open.get(key)
        if fd is not None:
            with _doing(f"detach from interface {key.ifindex}"):
                syscall.link_detach(fd)
            self._drop(key)

    def detached(self, interfaces: Collection[int]) -> bool:
        """Whether one of these is off; those that went with their interface are not. Refused."""
        asked = [(key.ifindex, fd) for key, fd in self._open.items() if key.ifindex in interfaces]
        return any(_exists(ifindex) for ifindex, fd in asked if not _info(fd).ifindex)

    def forget(self, key: FilterKey) -> None:
        """Its interface is gone, and took the program along."""
        if key in self._open:
            self._drop(key)

    def pin(self) -> bool:
        """Pin what is not pinned, or not any more; True if there was any. KernelError."""
        return bpffs.pin_missing(self._directory, {_name(key): fd for key, fd in self._open.items()})

    def close(self) -> None:
        """Let go of the links; those that are pinned stay attached."""
        while self._open:
            os.close(self._open.popitem()[1])
        bpffs.remove_empty(self._directory)

    def _stands(self, key: FilterKey, fd: int, first: bool) -> bool:
        """Whether a link of ours is the first there, or the last."""
        info, there = syscall.link_info(fd), programs(key)
        return bool(info.ifindex) and (there[:1] if first else there[-1:]) == [info.program]

    def _drop(self, key: FilterKey) -> None:
        os.close(self._open.pop(key))
        (self._directory / _name(key)).unlink(missing_ok=True)


@contextmanager
def _doing(what: str) -> Iterator[None]:
    """An OSError of the block as Refused, for who can live with an interface that has just gone."""
    try:
        yield
    except OSError as error:
        raise Refused(error.errno or 0, f"cannot {what}: {error.strerror}") from error


def _open(pin: Path) -> int | None:
    """A file descriptor of the link that is pinned there; None if it is no link at tcx. Refused."""
    with _doing(f"open {pin}"), syscall.passed_on(syscall.obj_get(str(pin))) as fd:
        try:
            syscall.link_info(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.close(fd)
            return None
        return fd


def _info(link: int) -> syscall.LinkInfo:
    """What the kernel says of a link of ours. Refused."""
    with _doing("look at a link"):
        return syscall.link_info(link)


def _exists(ifindex: int) -> bool:
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True


def _attach_type(ingress: bool) -> int:
    return syscall.TCX_INGRESS if ingress else syscall.TCX_EGRESS


def _name(key: FilterKey) -> str:
    return f"{key.ifindex}-{'ingress' if key.ingress else 'egress'}"


def _key(name: str) -> FilterKey | None:
    """The inverse; None for a file that is not ours."""
    ifindex, _, side = name.partition("-")
    if not ifindex.isdigit() or side not in ("ingress", "egress"):
        return None
    return FilterKey(int(ifindex), side == "ingress")
