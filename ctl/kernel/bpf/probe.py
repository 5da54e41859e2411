"""Whether this kernel has what the programs at tc need, asked before anything is changed.

Asked of the kernel itself, not by its version: distributions carry features back. XDP is not
asked for here: a kernel that refuses that program costs no more than it (ctl.kernel.bpf.loader).
The probes are a few instructions each, loaded with bpf(2): BCC would have to be started for them.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ctl.core.errors import KernelError
from ctl.kernel.bpf import syscall
from ctl.process import capabilities


@dataclass(frozen=True, slots=True)
class Feature:
    """A helper by its number in enum bpf_func_id, or flags of bpf_skb_adjust_room."""

    name: str
    since: tuple[int, int]
    """The Linux that brought it."""
    helper: int = 0
    flags: int = 0


ENCAP_FLAGS: Final = 0x73 | 14 << 56
"""FIXED_GSO, ENCAP_L3_IPV4, ENCAP_L4_UDP, NO_CSUM_RESET, ENCAP_L2_ETH, 14 bytes of it: bpf/encap.h."""

FEATURES: Final = (
    Feature("BPF ring buffers", (5, 8), helper=131),
    Feature("bpf_csum_level", (5, 8), helper=135),
    Feature("bpf_redirect_neigh", (5, 10), helper=152),
    Feature("bpf_redirect_peer", (5, 10), helper=155),
    Feature("bpf_ktime_get_coarse_ns", (5, 11), helper=160),
    Feature("bpf_check_mtu", (5, 12), helper=163),
    Feature("BPF_F_ADJ_ROOM_ENCAP_L2_ETH", (5, 13), flags=ENCAP_FLAGS),
)

_UID_MAP: Final = Path("/proc/self/uid_map")
_FIRST_UIDS: Final = ["0", "0", "4294967295"]
"""What is in there in the first user namespace."""

_NO_SUCH: Final = ("invalid func", "unknown func", "cannot use helper")
"""The verifier's words for a helper that is not there, or not for classifiers."""

_CALL, _EXIT, _MOV_IMM, _LD_IMM64 = 0x85, 0x95, 0xB7, 0x18
_ADJUST_ROOM, _ROOM_MAC, _TUNNEL = 50, 1, 50
_PACKET: Final = (
    bytes(12) + b"\x08\0" + struct.pack("!BBHHHBBHII", 0x45, 0, 28, 0, 0, 64, 17, 0, 1, 2) + bytes(60)
)
"""An IPv4 packet, with room to spare."""


def check() -> None:
    """KernelError that names what this kernel lacks, or forbids, and what to do."""
    if why := forbidden():
        raise KernelError(f"{why}, or run with --bypass=off")
    if lacking := missing(has):
        words = ", ".join(f"{each.name} (Linux {_dotted(each.since)})" for each in lacking)
        raise KernelError(
            f"this kernel ({platform.release()}) lacks {words}: eBPF needs Linux {_dotted(OLDEST)} or newer; "
            "run a newer one, or with --bypass=off"
        )


def forbidden() -> str:
    """Why bpf(2) may not be used at all, and what to do; empty if it may.

    Who has the capability has it in a user namespace only, or it is a seccomp profile (Docker's, before
    23, allows it to CAP_SYS_ADMIN only), or a security module.
    """
    try:
        _map()
    except OSError as error:
        if error.errno == errno.EPERM and _UID_MAP.read_text().split() != _FIRST_UIDS:
            return (
                "bpf(2) is forbidden in a user namespace (a rootless container): run outside of it, as root"
            )
        if error.errno == errno.EPERM and not capabilities.may_bpf():
            return "bpf(2) takes CAP_BPF, or CAP_SYS_ADMIN, and there is neither"
        if error.errno == errno.EPERM:
            return (
                "bpf(2) is forbidden here, whatever the capabilities: allow it in the seccomp profile "
                "(Docker before 23: --cap-add SYS_ADMIN, or --security-opt seccomp=unconfined)"
            )
        if error.errno == errno.ENOSYS:
            return f"this kernel ({platform.release()}) has no bpf(2): run one with CONFIG_BPF_SYSCALL"
    return ""


def _map() -> None:
    """The least that can be asked of bpf(2) with CAP_BPF."""
    os.close(syscall.map_create("array", "probe", 4, 4, 1))


def missing(present: Callable[[Feature], bool]) -> tuple[Feature, ...]:
    """What of FEATURES is not `present`."""
    return tuple(feature for feature in FEATURES if not present(feature))


OLDEST: Final = max(feature.since for feature in FEATURES)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def has(feature: Feature) -> bool:
    """Whether the kernel has it. Where it will not say, loading the programs will."""
    try:
        return _has_helper(feature.helper) if feature.helper else _takes(feature.flags)
    except OSError:
        return True


def _insn(code: int, register: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhI", code, register, 0, immediate & 0xFFFFFFFF)


def _has_helper(number: int) -> bool:
    """Its arguments are missing, which the verifier sees after it has looked for the helper."""
    try:
        os.close(syscall.prog_load(_insn(_CALL, 0, number) + _insn(_MOV_IMM) + _insn(_EXIT), "probe"))
    except syscall.VerifierError as error:
        return not any(words in error.log for words in _NO_SUCH)
    return True


def _takes(flags: int) -> bool:
    """Flags are looked at when the helper runs."""
    code = (
        _insn(_MOV_IMM, 2, _TUNNEL),
        _insn(_MOV_IMM, 3, _ROOM_MAC),
        _insn(_LD_IMM64, 4, flags) + _insn(0, 0, flags >> 32),
        _insn(_CALL, 0, _ADJUST_ROOM),
        _insn(_EXIT),
    )
    fd = syscall.prog_load(b"".join(code), "probe")
    try:
        result = syscall.prog_test_run(fd, _PACKET)[0]
    finally:
        os.close(fd)
    return result != -errno.EINVAL & 0xFFFFFFFF
