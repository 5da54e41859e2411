"""bpf(2) by ctypes: what BCC has no call for, or none that a process of 30 MB could afford.

BCC compiles and loads the programs, in a child that ends (ctl.kernel.bpf.compile). With bpf(2) the agent
and `ovctl` make, read and fill maps, for which BCC would have to stay in memory (70 MB); open and make
pins, ask what a program or map is, and attach at tcx, for which BCC has no calls. Programs are loaded
from here only where BCC cannot: see ctl.kernel.bpf.compile, and the probes of ctl.kernel.bpf.probe.

Each function raises OSError with the kernel's errno; callers turn that into words.
Attribute layouts: union bpf_attr in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

_SYSCALL: Final = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280}
_libc = ctypes.CDLL(None, use_errno=True)

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE = 0, 1, 2, 3
PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_TEST_RUN = 5, 6, 7, 10
PROG_BY_ID, OBJ_INFO, PROG_QUERY = 13, 15, 16
MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = 24, 26, 27
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34

PROG_TYPE_SCHED_CLS: Final = 3
PROG_TYPE_XDP: Final = 6
PROG_NAME_LEN: Final = 16
XDP_HAS_FRAGS: Final = 1 << 5
"""BPF_F_XDP_HAS_FRAGS, from Linux 5.18 on."""

TCX_INGRESS: Final = 46
TCX_EGRESS: Final = 47
"""enum bpf_attach_type, from Linux 6.6 on."""
_LINK_TYPE_TCX: Final = 11

MAP_TYPES: Final = {
    "hash": 1, "array": 2, "prog_array": 3, "percpu_hash": 5, "percpu_array": 6, "lru_hash": 9,
    "ringbuf": 27,
}  # fmt: skip
MMAPABLE: Final = 1 << 10
"""BPF_F_MMAPABLE: an array that user space may have in its memory."""
PER_CPU: Final = frozenset({MAP_TYPES["percpu_hash"], MAP_TYPES["percpu_array"]})

_ATTR_SIZE: Final = 128
_BATCH: Final = 4096
_BATCH_MIN: Final = 256
"""Entries; what hashes to one bucket has to fit in a batch."""
_BATCH_BYTES: Final = 1 << 18
_BATCH_COUNT: Final = 32
"""Offset in union bpf_attr of how many entries a batch has, or had (batch.count)."""
_LOG_BYTES: Final = 1 << 22
"""Room for the verifier's words about a program that it refuses."""

_Buffer: TypeAlias = "ctypes.Array[ctypes.c_char]"


def _bpf(command: int, attr: bytes | _Buffer) -> int:
    buffer = ctypes.create_string_buffer(bytes(attr).ljust(_ATTR_SIZE, b"\0"), _ATTR_SIZE)
    return _call(command, buffer)


def _call(command: int, buffer: _Buffer) -> int:
    result: int = _libc.syscall(_SYSCALL[platform.machine()], command, buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _buffer(data: bytes) -> tuple[_Buffer, int]:
    buffer = ctypes.create_string_buffer(data, len(data))
    return buffer, ctypes.addressof(buffer)


def _room(size: int) -> tuple[_Buffer, int]:
    buffer = ctypes.create_string_buffer(size)
    return buffer, ctypes.addressof(buffer)


def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    with open("/sys/devices/system/cpu/possible") as file:
        return count_cpus(file.read())


def count_cpus(cpulist: str) -> int:
    """How many are in a list of the kernel's ("0-3,8-11"): it gives no room to those in the gaps."""
    ranges = (each.partition("-") for each in cpulist.strip().split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


@contextmanager
def passed_on(fd: int) -> Iterator[int]:
    """A file descriptor that the block hands to somebody who will close it: closed here if it fails."""
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise


def map_create(kind: str, name: str, key: int, value: int, entries: int, flags: int = 0) -> int:
    """A new map (sizes in bytes); returns its file descriptor."""
    label = name.encode()[: PROG_NAME_LEN - 1]
    return _bpf(
        MAP_CREATE, struct.pack("=IIIIIII16s", MAP_TYPES[kind], key, value, entries, flags, 0, 0, label)
    )


def obj_pin(fd: int, path: str) -> None:
    """Give a map or program a name in bpffs, which keeps it alive."""
    buffer, address = _buffer(path.encode() + b"\0")
    _bpf(OBJ_PIN, struct.pack("=QII", address, fd, 0))
    del buffer


def obj_get(path: str) -> int:
    """Open what is pinned at `path`; returns a file descriptor."""
    buffer, address = _buffer(path.encode() + b"\0")
    try:
        return _bpf(OBJ_GET, struct.pack("=QII", address, 0, 0))
    finally:
        del buffer


def prog_get(ident: int) -> int:
    """Open a loaded program by its id; returns a file descriptor. EPERM without CAP_SYS_ADMIN."""
    return _bpf(PROG_BY_ID, struct.pack("=III", ident, 0, 0))


@dataclass(frozen=True, slots=True)
class MapInfo:
    """struct bpf_map_info, as far as we compare it."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgInfo:
    """struct bpf_prog_info, as far as we need it."""

    type: int
    id: int
    name: str
    map_ids: frozenset[int]
    """The ids of the maps that it uses."""


def _info(fd: int, size: int) -> bytes:
    buffer, address = _room(size)
    _bpf(OBJ_INFO, struct.pack("=IIQ", fd, size, address))
    return buffer.raw


def map_info(fd: int) -> MapInfo:
    """What the kernel says of an open map."""
    kind, ident, key, value, entries, flags, name = struct.unpack_from("=IIIIII16s", _info(fd, 80))
    return MapInfo(kind, ident, key, value, entries, flags, name.rstrip(b"\0").decode())


def prog_info(fd: int) -> ProgInfo:
    """What the kernel says of a loaded program."""
    raw = _info(fd, 128)
    kind, ident = struct.unpack_from("=II", raw)
    maps, _, name = struct.unpack_from("=IQ16s", raw, _NR_MAP_IDS)
    return ProgInfo(kind, ident, name.rstrip(b"\0").decode(), _map_ids(fd, maps))


_NR_MAP_IDS: Final = 52
"""Offset in struct bpf_prog_info; the address for the ids and the name follow."""


def _map_ids(fd: int, count: int) -> frozenset[int]:
    # The first call told how many, the second one is given room for them.
    ids, ids_address = _room(max(count, 1) * 4)
    info, info_address = _room(128)
    struct.pack_into("=IQ", info, _NR_MAP_IDS, count, ids_address)
    _bpf(OBJ_INFO, struct.pack("=IIQ", fd, len(info), info_address))
    return frozenset(struct.unpack_from(f"={count}I", ids))


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """struct bpf_link_info of a link at tcx; `ifindex` is 0 once it is detached or its device gone."""

    program: int
    """Its id."""
    ifindex: int


F_BEFORE: Final = 1 << 3
"""BPF_F_BEFORE of linux/bpf.h: before what is named, or before all."""


def link_create(program: int, ifindex: int, attach_type: int, *, first: bool = False) -> int:
    """Attach an open program behind, or before, all that are there; returns the link's file descriptor.

    It stays attached while that is open or pinned. ENODEV: no such interface in this namespace.
    """
    return _bpf(LINK_CREATE, struct.pack("=IIII", program, ifindex, attach_type, F_BEFORE if first else 0))


def link_update(link: int, program: int) -> None:
    """Put another open program in the place of the link's, between two packets. ENOLINK: it is detached."""
    _bpf(LINK_UPDATE, struct.pack("=III", link, program, 0))


def link_detach(link: int) -> None:
    """Take the link's program off its device at once, whoever holds the link. Nothing if it is off."""
    _bpf(LINK_DETACH, struct.pack("=I", link))


def link_info(link: int) -> LinkInfo:
    """What the kernel says of an open link at tcx. EINVAL for another thing."""
    kind, _, program, ifindex = struct.unpack_from("=IIIxxxxI", _info(link, 64))
    if kind != _LINK_TYPE_TCX:
        raise OSError(errno.EINVAL, "it is no link at tcx")
    return LinkInfo(program, ifindex)


def attached(ifindex: int, attach_type: int) -> list[int]:
    """Ids of the programs on an interface's tcx hook, in the order in which they run.

    EINVAL: this kernel has no such hook. ENODEV: no such interface in this namespace.
    """
    ids, address = _room(_ATTACHED_MAX * 4)
    attr = ctypes.create_string_buffer(_ATTR_SIZE)
    struct.pack_into("=IIIIQI", attr, 0, ifindex, attach_type, 0, 0, address, _ATTACHED_MAX)
    try:
        _call(PROG_QUERY, attr)
    except OSError as error:
        if error.errno != errno.ENOENT:  # nothing was ever attached
            raise
        return []
    (count,) = struct.unpack_from("=I", attr, 24)
    return list(struct.unpack_from(f"={count}I", ids))


_ATTACHED_MAX: Final = 64
"""BPF_MPROG_MAX of include/linux/bpf_mprog.h."""


class VerifierError(OSError):
    """The verifier refused a program; `log` has its reasons."""

    log: str = ""


_LOG_ALL: Final = 1
"""BPF_LOG_LEVEL1 of include/linux/bpf_verifier.h: each instruction, and why it is refused."""
_LOG_ERRORS: Final = 4
"""BPF_LOG_STATS: why it is refused, and statistics."""


def prog_load(insns: bytes, name: str, kind: int = PROG_TYPE_SCHED_CLS, flags: int = 0) -> int:
    """Load a program; returns its file descriptor. VerifierError with the log if refused."""
    code, code_address = _buffer(insns)
    license_, license_address = _buffer(b"GPL\0")

    def attempt(level: int, size: int, address: int) -> int:
        head = struct.pack("=IIQQIIQII", kind, len(insns) // 8, code_address, license_address, level, size,
                           address, 0, flags)  # fmt: skip
        return _bpf(PROG_LOAD, head + name.encode()[: PROG_NAME_LEN - 1].ljust(PROG_NAME_LEN, b"\0"))

    try:
        return attempt(0, 0, 0)
    except OSError as first:
        if first.errno == errno.EPERM:
            raise
        # Once more, for the words. Not for its error: before Linux 6.4 a log too long for the
        # buffer is ENOSPC, whatever the program's fault, and keeps its beginning; later ones keep
        # their end. Where that is lacking, it is asked for without the way to it.
        refused = VerifierError(first.errno, first.strerror)
        for level in (_LOG_ALL, _LOG_ERRORS):
            log, log_address = _room(_LOG_BYTES)
            try:
                return attempt(level, len(log), log_address)
            except OSError:
                words = log.value.decode(errors="replace")
            if words not in refused.log:
                refused.log += words
            if len(words) < len(log) - 1:
                break
        raise refused from first
    finally:
        del code, license_


def prog_test_run(
    fd: int, packet: bytes, *, repeat: int = 1, ctx: bytes = b""
) -> tuple[int, bytes, bytes, int]:
    """Run a program on a packet: (return value, packet out, context out, ns a run)."""
    data_in, in_address = _buffer(packet)
    data_out, out_address = _room(len(packet) + 512)
    ctx_in, ctx_address = _buffer(ctx or b"\0")
    ctx_out, ctx_out_address = _room(max(len(ctx), 1))
    attr = ctypes.create_string_buffer(_ATTR_SIZE)
    struct.pack_into("=IIIIQQIIIIQQ", attr, 0, fd, 0, len(packet), len(data_out), in_address, out_address,
                     repeat, 0, len(ctx), len(ctx), ctx_address if ctx else 0,
                     ctx_out_address if ctx else 0)  # fmt: skip
    _call(PROG_TEST_RUN, attr)
    _, result, _, size_out, _, _, _, duration = struct.unpack_from("=IIIIQQII", attr, 0)
    del data_in, ctx_in
    return result, data_out.raw[:size_out], ctx_out.raw if ctx else b"", duration


Values = tuple[bytes, ...]
"""What a key of a map has: one value, or one a CPU."""


class Map:
    """An open map. Keys and values are bytes; a per-CPU value is several, one per CPU."""

    def __init__(self, fd: int) -> None:
        """Takes `fd` over: it is closed with the map, and at once if the kernel does not describe it."""
        with passed_on(fd):
            self.fd = fd
            self.info = map_info(fd)
            size, per_cpu = self.info.value_size, self.info.type in PER_CPU
            self._copies = possible_cpus() if per_cpu else 1
            # The kernel rounds each CPU's value up to 8 bytes.
            padding = -size % 8 if per_cpu else 0
            self._key = struct.Struct(f"{self.info.key_size}s")
            self._values = struct.Struct(f"{size}s{padding}x" * self._copies)

    def close(self) -> None:
        os.close(self.fd)

    @property
    def _batch(self) -> int:
        """Entries of a full batch, which with many CPUs would be megabytes."""
        return max(_BATCH_MIN, min(_BATCH, _BATCH_BYTES // self._values.size))

    def lookup(self, key: bytes) -> Values | None:
        """The values of one key (one, or one a CPU); None if it is absent."""
        key_buffer, key_address = _buffer(key)
        value, value_address = _room(self._values.size)
        try:
            _bpf(MAP_LOOKUP, struct.pack("=IIQQQ", self.fd, 0, key_address, value_address, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        del key_buffer
        return self._values.unpack(value.raw)

    def update(self, key: bytes, value: bytes) -> None:
        """Create or replace; a per-CPU map gets `value` on every CPU. E2BIG if full."""
        key_buffer, key_address = _buffer(key)
        value_buffer, value_address = _buffer(self._spread(value))
        _bpf(MAP_UPDATE, struct.pack("=IIQQQ", self.fd, 0, key_address, value_address, 0))
        del key_buffer, value_buffer

    def update_all(self, entries: Iterable[tuple[bytes, bytes]]) -> list[OSError | None]:
        """Create or replace these keys and values, in batches; why not, for each, None where it did.

        A failing one does not keep the others out.
        """
        results: list[OSError | None] = []
        rest = iter(entries)
        while batch := list(islice(rest, self._batch)):
            done = self._update_batch(batch)
            results += [None] * done
            # One by one the kernel says what is wrong with which.
            results += [self._try_update(*entry) for entry in batch[done:]]
        return results

    def _update_batch(self, entries: Sequence[tuple[bytes, bytes]]) -> int:
        """How many of them are in, from the first on: the kernel stops at one that it refuses."""
        keys, keys_address = _buffer(b"".join(key for key, _ in entries))
        values, values_address = _buffer(b"".join(self._spread(value) for _, value in entries))
        attr = ctypes.create_string_buffer(_ATTR_SIZE)
        struct.pack_into(
            "=QQQQIIQQ", attr, 0, 0, 0, keys_address, values_address, len(entries), self.fd, 0, 0
        )
        try:
            _call(MAP_UPDATE_BATCH, attr)
        except OSError:
            (count,) = struct.unpack_from("=I", attr, _BATCH_COUNT)
            # One that cannot begin leaves the number as it was.
            return count if count < len(entries) else 0
        finally:
            del keys, values
        return len(entries)

    def _try_update(self, key: bytes, value: bytes) -> OSError | None:
        try:
            self.update(key, value)
        except OSError as error:
            return error
        return None

    def delete(self, key: bytes) -> bool:
        """False if it was not there."""
        key_buffer, key_address = _buffer(key)
        try:
            _bpf(MAP_DELETE, struct.pack("=IIQQQ", self.fd, 0, key_address, 0, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        finally:
            del key_buffer
        return True

    def items(self) -> Iterator[tuple[bytes, Values]]:
        """Every entry, in batches: 0.02 s for 60,000, a twentieth of walking the keys."""
        for count, keys, values in self._batches():
            found = self._key.iter_unpack(keys.raw[: count * self._key.size])
            rows = self._values.iter_unpack(values.raw[: count * self._values.size])
            yield from zip((key for (key,) in found), rows, strict=True)

    def count(self) -> int:
        """How many entries there are, without a Python object for any."""
        return sum(count for count, _, _ in self._batches())

    def _batches(self) -> Iterator[tuple[int, _Buffer, _Buffer]]:
        """(entries, their keys, their values), until there are no more."""
        key_size, size = self.info.key_size, self._batch
        cursor, cursor_address = _room(max(key_size, 8))
        keys, keys_address = _room(key_size * size)
        values, values_address = _room(self._values.size * size)
        first = True
        while True:
            attr = ctypes.create_string_buffer(_ATTR_SIZE)
            struct.pack_into("=QQQQIIQQ", attr, 0, 0 if first else cursor_address, cursor_address,
                             keys_address, values_address, size, self.fd, 0, 0)  # fmt: skip
            done = False
            try:
                _call(MAP_LOOKUP_BATCH, attr)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                done = True
            (count,) = struct.unpack_from("=I", attr, _BATCH_COUNT)
            yield count, keys, values
            if done:
                return
            first = False

    def _spread(self, value: bytes) -> bytes:
        return self._values.pack(*(value,) * self._copies)
