"""A packet generator and a sink, both of a few BPF instructions.

The generator is an XDP program that BPF_PROG_TEST_RUN runs on live frames
(Documentation/bpf/bpf_prog_run.rst), as a driver's NAPI would on those of its ring: it
writes each packet anew, because the pages are used again as the receiver left them, and goes
on in the XDP program of the device, if that has one. What passes becomes an skb that the
device has received.

The sink drops IPv4 at the ingress of a device, and the device's clsact counts what it drops.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.syscall import _bpf
from tests.namespace import Namespace

# Offsets in struct xdp_md and struct __sk_buff (linux/bpf.h).
_DATA, _DATA_END, _PROTOCOL = 0, 4, 16
_XDP_ABORTED, _XDP_PASS, _TC_SHOT = 0, 2, 2
_PRANDOM_U32, _TAIL_CALL = 7, 12
_MAP_TYPE_PROG_ARRAY: Final = 3

_LIVE_FRAMES: Final = 1 << 1
_FRAMES: Final = 1 << 17
"""A system call: some 100 ms, in which a signal waits."""

_IP: Final = 14
_CHECK, _DADDR = _IP + 10, _IP + 16


def command(number: int, attr: bytes) -> int:
    """bpf(2) with a command that no node needs."""
    return _bpf(number, attr)


def instruction(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """Struct bpf_insn."""
    return struct.pack("=BBhi", code, src << 4 | dst, off, imm)


def _load(size: int, dst: int, src: int, off: int) -> bytes:
    return instruction(0x61 if size == 4 else 0x79, dst, src, off)


def _constant(dst: int, value: int) -> bytes:
    """BPF_LD_IMM64."""
    low, high = struct.unpack("=ii", struct.pack("=Q", value))
    return instruction(0x18, dst, imm=low) + instruction(0, imm=high)


def _alu(op: int, dst: int, *, imm: int = 0, src: int | None = None) -> bytes:
    """64-bit arithmetic, `op` as in BPF_OP."""
    return instruction(op | 0x07, dst, imm=imm) if src is None else instruction(op | 0x0F, dst, src)


_ADD, _OR, _AND, _LSH, _RSH, _MOD, _XOR, _MOV = 0x00, 0x40, 0x50, 0x60, 0x70, 0x90, 0xA0, 0xB0
_EXIT: Final = instruction(0x95)


@dataclass(frozen=True, slots=True)
class Spread:
    """Random destinations: the address in the frame plus 0 to `count` - 1 times `step`."""

    count: int
    step: int


def generator(frame: bytes, spread: Spread | None = None, programs: int | None = None) -> bytes:
    """Instructions of a program that writes `frame` over each packet and passes it.

    `frame`: Ethernet with IPv4; with a `spread` the IP checksum follows the address. `programs`:
    file descriptor of a map, whose program at 0 goes on with the packet.
    """
    body = b"".join(_store(frame, at) for at in range(0, len(frame), 8))
    head = _alu(_MOV, 6, src=1)
    if spread:
        head += _destination(frame, spread)
        # r7: the address, r8: the checksum; both in network order.
        body += instruction(0x63, 2, 7, _DADDR) + instruction(0x6B, 2, 8, _CHECK)
    head += _load(4, 2, 6, _DATA) + _load(4, 3, 6, _DATA_END)
    head += _alu(_MOV, 4, src=2) + _alu(_ADD, 4, imm=len(frame))
    end = _alu(_MOV, 0, imm=_XDP_PASS) + _EXIT if programs is None else _go_on(programs)
    skip = (len(body) + len(end)) // 8
    too_short = instruction(0x2D, 4, 3, skip)  # if r4 > r3
    return head + too_short + body + end + _alu(_MOV, 0, imm=_XDP_ABORTED) + _EXIT


def _go_on(programs: int) -> bytes:
    """To the program at 0; behind this if there is none."""
    map_fd = instruction(0x18, 2, 1, imm=programs) + instruction(0)  # BPF_PSEUDO_MAP_FD
    return _alu(_MOV, 1, src=6) + map_fd + _alu(_MOV, 3, imm=0) + instruction(0x85, imm=_TAIL_CALL)


def _store(frame: bytes, at: int) -> bytes:
    """The up to 8 bytes at `at`; r2 is the packet."""
    part = frame[at : at + 8]
    if len(part) == 8:
        return _constant(5, int.from_bytes(part, "little")) + instruction(0x7B, 2, 5, at)
    return b"".join(instruction(0x72, 2, 0, at + i, byte) for i, byte in enumerate(part))


def _destination(frame: bytes, spread: Spread) -> bytes:
    """r7 and r8 of `generator`: a random address, and the header's checksum with it (RFC 1071)."""
    (base,) = struct.unpack_from("!I", frame, _DADDR)
    rest = struct.unpack("!10H", frame[_IP : _IP + 20])
    partial = sum(rest[:5]) + sum(rest[6:8])
    fold = _alu(_MOV, 9, src=8) + _alu(_RSH, 9, imm=16) + _alu(_AND, 8, imm=0xFFFF) + _alu(_ADD, 8, src=9)
    return (
        instruction(0x85, imm=_PRANDOM_U32)
        + _alu(_MOD, 0, imm=spread.count)
        + _alu(0x20, 0, imm=spread.step)  # BPF_MUL
        + _constant(7, base)
        + _alu(_ADD, 7, src=0)
        + _alu(_MOV, 8, src=7)
        + fold  # both halves of the address
        + _alu(_ADD, 8, imm=partial)
        + fold
        + fold
        + _alu(_XOR, 8, imm=0xFFFF)
        + instruction(0xDC, 8, imm=16)  # to network order
        + instruction(0xDC, 7, imm=32)
    )


@dataclass(frozen=True, slots=True)
class Injected:
    """What one core did: frames sent, and its seconds spent on them."""

    frames: int
    cpu_s: float


def inject(
    place: Namespace, device: str, frame: bytes, seconds: float, cpu: int, spread: Spread | None = None
) -> Injected:
    """Have `device` receive `frame` as often as `cpu` can make it and see it to its end.

    CPU time, because each system call ends with a wait for RCU that is no work.
    """
    link = json.loads(place.ip("-j", "-d", "link", "show", "dev", device))[0]
    softirqd = _ksoftirqd(cpu)

    def generate() -> Injected:
        os.sched_setaffinity(0, {cpu})  # of this thread
        with loaded(frame, spread, link.get("xdp", {}).get("prog", {}).get("id")) as fd:
            before = time.thread_time() + ran(softirqd)
            sent, end = 0, before + seconds
            while time.thread_time() + ran(softirqd) < end:
                _run_live(fd, frame, link["ifindex"])
                sent += _FRAMES
            return Injected(sent, time.thread_time() + ran(softirqd) - before)

    return place.call(generate)


@contextmanager
def loaded(frame: bytes, spread: Spread | None, then: int | None) -> Iterator[int]:
    """The generator, in front of the XDP program with the id `then`; a file descriptor."""
    with ExitStack() as kept:
        programs = None if then is None else _program_array(then, kept)
        flags = 0 if programs is None else syscall.XDP_HAS_FRAGS  # as the program that it calls
        fd = syscall.prog_load(generator(frame, spread, programs), "generate", syscall.PROG_TYPE_XDP, flags)
        kept.callback(os.close, fd)
        yield fd


def _program_array(ident: int, kept: ExitStack) -> int:
    """A map of one program, for a tail call; a file descriptor that `kept` closes."""
    array = command(syscall.MAP_CREATE, struct.pack("=IIII", _MAP_TYPE_PROG_ARRAY, 4, 4, 1))
    kept.callback(os.close, array)
    program = syscall.prog_get(ident)
    kept.callback(os.close, program)
    key, value = (ctypes.create_string_buffer(struct.pack("=I", number), 4) for number in (0, program))
    entry = struct.pack("=IIQQQ", array, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
    command(syscall.MAP_UPDATE, entry)
    return array


def ran(pid: int) -> float:
    """CPU seconds that a thread has had, to the ns (Documentation/scheduler/sched-stats.rst)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _ksoftirqd(cpu: int) -> int:
    """Takes over where packets come faster than they can be received."""
    named = (path.parent for path in Path("/proc").glob("[0-9]*/comm") if _comm(path) == f"ksoftirqd/{cpu}")
    return int(next(named).name)


def _comm(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _run_live(fd: int, frame: bytes, ifindex: int) -> None:
    """BPF_PROG_TEST_RUN on live frames; they count as received on the device."""
    packet = ctypes.create_string_buffer(frame, len(frame))
    context = ctypes.create_string_buffer(struct.pack("=6I", 0, len(frame), 0, ifindex, 0, 0), 24)
    attr = struct.pack("=IIIIQQIIIIQQIII", fd, 0, len(frame), 0, ctypes.addressof(packet), 0, _FRAMES, 0,
                       len(context), 0, ctypes.addressof(context), 0, _LIVE_FRAMES, 0, 0)  # fmt: skip
    command(syscall.PROG_TEST_RUN, attr)


def sink_program() -> bytes:
    """Drops IPv4, leaves the rest to others."""
    return (
        _alu(_MOV, 0, imm=-1)
        + _load(4, 2, 1, _PROTOCOL)
        + instruction(0x55, 2, 0, 1, 0x0008)  # if not htons(ETH_P_IP)
        + _alu(_MOV, 0, imm=_TC_SHOT)
        + _EXIT
    )


class Sink:
    """Drops and counts all IPv4 that comes in on a device."""

    def __init__(self, place: Namespace, device: str, pin: Path) -> None:
        """`pin`: a path in bpffs, used in between only."""
        self._place, self._device = place, device
        fd = syscall.prog_load(sink_program(), "sink")
        try:
            syscall.obj_pin(fd, str(pin))
            place.run("tc", "qdisc", "replace", "dev", device, "clsact")
            place.run("tc", "filter", "replace", "dev", device, "ingress", "prio", "1", "handle", "1",
                      "bpf", "direct-action", "object-pinned", str(pin))  # fmt: skip
        finally:
            pin.unlink(missing_ok=True)
            os.close(fd)

    def count(self) -> int:
        """Packets dropped so far."""
        found = json.loads(self._place.run("tc", "-s", "-j", "qdisc", "show", "dev", self._device).stdout)
        return sum(int(each["drops"]) for each in found if each["kind"] == "clsact")
