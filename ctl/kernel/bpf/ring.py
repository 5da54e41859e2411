"""Reads a ring of the programs': what they dropped, sampled; packets, for a tracer.

Layout of a ring buffer map (kernel/bpf/ringbuf.c): a page with the consumer's position
(ours to write), a page with the producer's, then the data, mapped twice in a row so
that no record is ever cut.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

from ctl.core.errors import KernelError

_BUSY: Final = 1 << 31
_DISCARD: Final = 1 << 30
_HEADER: Final = 8

R = TypeVar("R")


class Ring(Generic[R]):
    """The consumer's end of the ring `fd`, of `size` data bytes. One reader at a time.

    `unpack` makes a record of its bytes, which may be followed by others. KernelError if it cannot be mapped.
    """

    def __init__(self, fd: int, size: int, unpack: Callable[[bytes], R]) -> None:
        page = mmap.PAGESIZE
        self._size, self._unpack = size, unpack
        try:
            self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._producer = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except OSError as error:
            raise KernelError(f"cannot map a ring buffer: {error.strerror}") from error

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()

    def clear(self) -> None:
        """Pass over what is there, unseen."""
        struct.pack_into("=Q", self._consumer, 0, self._word(self._producer))

    def drain(self) -> Iterator[R]:
        """What has come since the last call, oldest first."""
        position = self._word(self._consumer)
        while position < self._word(self._producer):
            start = mmap.PAGESIZE + position % self._size
            (header,) = struct.unpack_from("=I", self._producer, start)
            if header & _BUSY:
                return  # still being written; it is there next time
            length = header & ~(_BUSY | _DISCARD)
            if not header & _DISCARD:
                yield self._unpack(self._producer[start + _HEADER : start + _HEADER + length])
            position += (length + _HEADER + 7) & ~7
            struct.pack_into("=Q", self._consumer, 0, position)

    @staticmethod
    def _word(area: mmap.mmap) -> int:
        (value,) = struct.unpack_from("=Q", area, 0)
        return int(value)
