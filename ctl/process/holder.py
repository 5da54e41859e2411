"""Who has what we want, by /proc: a port, a name of a socket, a TUN device; as far as it lets us look.

Asked when something was refused, to name its holder. Whose open files we may see depends on our user and
capabilities (ptrace(2), PTRACE_MODE_READ_FSCREDS): of others nothing but the user is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_LISTENING: Final = "0A"
"""TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp writes it."""


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket of a port."""

    inode: int
    user: int
    """Whose it is, by number."""


def process_with_port(port: int, proc: Path = PROC) -> str:
    """The process that has a UDP port for IPv4 for itself, in words; empty if none surely has.

    A socket of IPv6 may have it too, or may be for IPv6 only: /proc does not say. The kernel's own, of
    tunnels, are of no process.
    """
    found = sockets(_read(proc / "thread-self/net/udp"), port, "udp")
    return next((process for each in found for process in _with_socket(each.inode, proc)), "")


def of_port(protocol: str, port: int, proc: Path = PROC) -> str:
    """Who has a port of this network namespace, in words. `protocol`: udp, or tcp and then who listens."""
    found = [
        socket
        for family in ("", "6")  # a socket of IPv6 takes IPv4's port too, unless told otherwise
        for socket in sockets(_read(proc / f"thread-self/net/{protocol}{family}"), port, protocol)
    ]
    named = next((process for each in found for process in _with_socket(each.inode, proc)), "")
    return named or next((f"a socket of user {each.user} (see ss -lnp)" for each in found), "another socket")


def sockets(listing: str, port: int, protocol: str) -> Iterator[Socket]:
    """Those of a port in /proc/net/udp or /proc/net/tcp (proc_net_tcp.rst)."""
    for line in listing.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or int(fields[1].rpartition(":")[2], 16) != port:
            continue
        if protocol == "udp" or fields[3] == _LISTENING:
            yield Socket(int(fields[9]), int(fields[7]))


def of_name(name: str, proc: Path = PROC) -> str:
    """Who has an abstract name of a Unix socket, in words; empty if nobody shows."""
    for line in _read(proc / "thread-self/net/unix").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == f"@{name}":
            return next(_with_socket(int(fields[6]), proc), "")
    return ""


def of_tun(device: str, proc: Path = PROC) -> str:
    """Which process has a TUN device open, in words; empty if none shows."""
    wanted = f"iff:\t{device}"
    for process in _processes(proc):
        with suppress(OSError):
            for each in (process / "fdinfo").iterdir():
                if wanted in _read(each).splitlines():
                    return _process(process)
    return ""


def _with_socket(inode: int, proc: Path) -> Iterator[str]:
    """The processes that have it open, in words."""
    target = f"socket:[{inode}]"
    for process in _processes(proc):
        with suppress(OSError):
            if any(_target(each) == target for each in (process / "fd").iterdir()):
                yield _process(process)


def _processes(proc: Path) -> Iterator[Path]:
    return (each for each in proc.iterdir() if each.name.isdigit())


def _process(process: Path) -> str:
    return f"process {process.name} ({_read(process / 'comm').strip() or '?'})"


def _target(link: Path) -> str:
    with suppress(OSError):  # closed meanwhile
        return os.readlink(link)
    return ""


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""
