"""The child that has BCC: it compiles a C text and loads programs of it, on the maps that it is handed.

    python3 -c '...; main()' SOCKET SECONDS < overlay.c     as ctl.kernel.bpf.child does

The only module that imports bcc, and the reason why it is a process of its own: bcc and LLVM cost
120 MB that are never given back, change directory while they work and are not thread-safe.

Orders come over the socket (the number of a descriptor; SOCK_SEQPACKET). One is JSON, `[programs, maps]`,
two lists of names, with the descriptors of these maps. The answer is `null` with the
descriptors of the programs, or `[program, errno, the verifier's last lines]` of the first one that
the kernel refuses, and then nothing stays loaded.

Exit: 0 when the other end is closed, or has no order for SECONDS; 1 with the compiler's words on stderr;
LACKING with one line there that names what this host has not, and the remedy.

What BCC has no call for is done with bpf(2):
- Flags of a program. Its load_func passes none, so from_wire_xdp for frames in several pieces is
  loaded with BPF_F_XDP_HAS_FRAGS from the bytecode that BCC has made.
- The verifier's words. BCC prints them, and none of a program that is too large for the verifier;
  so what it cannot load is tried once more, by bpf(2), which tells why.
- A map by its pin. BPF_TABLE_PINNED opens it by its id, which takes CAP_SYS_ADMIN; the service does
  without. So each map is put in the place (the descriptor) of the one that BCC has made.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NoReturn

from ctl.core.errors import KernelError
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.source import XDP, XDP_FRAGS, write_header_tree

LACKING: Final = 3
"""The exit code where BCC, the headers or a place for them are missing."""
ORDER_BYTES: Final = 1 << 16
"""The size of the longest order or answer."""
_FDS_MAX: Final = 253
"""SCM_MAX_FD of include/net/scm.h: so many descriptors come with a message at most."""
_FLAGS: Final = ["-Wall", "-Werror", "-Wno-unused-function", "-Wno-address-of-packed-member"]
_LINES: Final = 40
_LINE_CHARACTERS: Final = 200
"""How much of the verifier's log is told: its end is what matters, and it can be megabytes."""


def main() -> int:
    """Compile stdin, then do what is ordered; returns 0, or exits with a message."""
    number, seconds = sys.argv[1:]
    unit = compiled(sys.stdin.read())
    with socket.socket(fileno=int(number)) as orders, suppress(TimeoutError):
        orders.settimeout(float(seconds))
        while obey(unit, orders):
            pass
    return 0


def compiled(text: str) -> Any:
    """The text as a bcc.BPF, with tables of its own. Exits with bcc's message if it refuses."""
    bcc = imported()
    with header_tree() as tree:
        os.environ["BCC_KERNEL_SOURCE"] = tree
        try:
            return bcc.BPF(text=text, cflags=_FLAGS)
        except Exception as error:  # noqa: BLE001  bcc raises bare Exception; its words went to stderr
            sys.exit(f"the datapath does not compile: {error}")


def imported() -> Any:
    """The module bcc. Exits if there is none for this Python, or another one of that name."""
    try:
        import bcc
    except Exception as error:  # noqa: BLE001  made for another Python, or without its library, it raises anything
        _lack(_unimportable(error))
    if not hasattr(bcc, "BPF"):
        place = getattr(bcc, "__file__", None) or ", ".join(bcc.__path__)
        _lack(f"{place} is not BCC's: remove it, and install python3-bpfcc")
    return bcc


def _unimportable(error: Exception) -> str:
    """Why there is no BCC, by what importing it has raised; one line."""
    ours = f"{sys.executable} (Python {platform.python_version()})"
    if isinstance(error, ModuleNotFoundError) and error.name == "bcc":
        return f"no BCC for {ours}: install python3-bpfcc"
    found = find_spec("bcc")
    words = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{found.origin if found else 'BCC'} does not work with {ours}: {words}: "
        "if it is not python3-bpfcc's remove it, and install that anew"
    )


@contextmanager
def header_tree() -> Iterator[str]:
    """A directory that bcc takes for a kernel tree. Exits if it cannot be made."""
    try:
        with tempfile.TemporaryDirectory(prefix="ovnet-headers-") as tree:
            write_header_tree(Path(tree))
            yield tree
    except KernelError as error:
        _lack(str(error))
    except OSError as error:
        _lack(f"cannot gather the headers: {error}: make room in TMPDIR, or reinstall linux-libc-dev")


def _lack(what: str) -> NoReturn:
    print(what, file=sys.stderr)
    sys.exit(LACKING)


def obey(unit: Any, orders: socket.socket) -> bool:
    """Carry out one order; False if there are no more. TimeoutError if none comes."""
    message, fds, _, _ = socket.recv_fds(orders, ORDER_BYTES, _FDS_MAX)
    if not message:
        return False
    programs, maps = json.loads(message)
    bind(unit, dict(zip(maps, fds, strict=True)))
    loaded: list[int] = []
    answer = None
    for name in programs:
        try:
            loaded.append(load(unit, name))
        except OSError as error:
            answer = [name, error.errno, _end(error.log) if isinstance(error, syscall.VerifierError) else []]
            break
    socket.send_fds(orders, [json.dumps(answer).encode()], [] if answer else loaded)
    for fd in loaded:
        os.close(fd)
    return True


def bind(unit: Any, maps: Mapping[str, int]) -> None:
    """Put these maps (descriptors, by name) in the places of the unit's own."""
    for name, fd in maps.items():
        os.dup2(fd, unit[name].map_fd, inheritable=False)
        os.close(fd)


def load(unit: Any, name: str) -> int:
    """Load a program on the maps that the unit has now; returns its descriptor.

    OSError if the kernel refuses it, VerifierError where the verifier does.
    """
    if name == XDP_FRAGS:
        return syscall.prog_load(unit.dump_func(name), XDP, syscall.PROG_TYPE_XDP, syscall.XDP_HAS_FRAGS)
    kind = syscall.PROG_TYPE_XDP if name.startswith(XDP) else syscall.PROG_TYPE_SCHED_CLS
    try:
        fd: int = unit.load_func(name, kind).fd
    except Exception:  # noqa: BLE001  bcc raises bare Exception
        return syscall.prog_load(unit.dump_func(name), name, kind)
    del unit.funcs[name.encode()]  # or the next order would be given the same one, on the maps of this one
    return fd


def _end(log: str) -> list[str]:
    return [line[:_LINE_CHARACTERS] for line in log.splitlines()[-_LINES:]]
