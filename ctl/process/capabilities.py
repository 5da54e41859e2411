"""What the kernel lets this process do (capabilities(7))."""

from __future__ import annotations

from typing import Final

NET_ADMIN: Final = 12
NET_RAW: Final = 13
SYS_ADMIN: Final = 21
BPF: Final = 39
"""Bits, from include/uapi/linux/capability.h."""


def effective() -> int:
    """Those that count now, as bits."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


def may_bpf() -> bool:
    """Whether they allow maps and programs: SYS_ADMIN has BPF in it."""
    return effective() & (1 << BPF | 1 << SYS_ADMIN) != 0
