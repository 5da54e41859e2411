"""A map as a table for reconciling, and the words for what the kernel refuses."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from ctl.core.errors import KernelError, Unapplied
from ctl.core.plan import Delta
from ctl.kernel.bpf import syscall

K = TypeVar("K")
V = TypeVar("V")


@contextmanager
def refused(what: str) -> Iterator[None]:
    """An OSError of the block as KernelError: `what`, and why."""
    try:
        yield
    except OSError as error:
        raise KernelError(f"{what}: {error.strerror or error}") from error


class MapTable(Generic[K, V]):
    """A map as a table for reconciling (ctl.core.ports.Table)."""

    def __init__(
        self,
        name: str,
        raw: syscall.Map,
        key: tuple[Callable[[K], bytes], Callable[[bytes], K]],
        value: tuple[Callable[[V], bytes], Callable[[bytes], V]],
        setting: str,
    ) -> None:
        self._name, self._raw, self._setting = name, raw, setting
        self._pack_key, self._unpack_key = key
        self._pack_value, self._unpack_value = value

    def read(self) -> Mapping[K, V]:
        with refused(f"map {self._name} cannot be read"):
            return {self._unpack_key(key): self._unpack_value(values[0]) for key, values in self._raw.items()}

    def apply(self, delta: Delta[K, V]) -> None:
        """Removals first, for the room they make; the rest is tried after a failure.

        Unapplied; or KernelError where the map is full: then entries are in it that nobody counted on.
        """
        kept = {gone: error for gone in delta.removals if (error := self._delete(gone))}
        errors = self._raw.update_all(
            (self._pack_key(key), self._pack_value(value)) for key, value in delta.puts
        )
        lost = {key: error for (key, _), error in zip(delta.puts, errors, strict=True) if error}
        if not kept and not lost:
            return
        what, last = ("stored", [*lost.values()][-1]) if lost else ("removed", [*kept.values()][-1])
        why = f"map {self._name}: {len(lost or kept)} entries not {what}: {self._why(last)}"
        if any(error.errno == errno.E2BIG for error in lost.values()):
            raise KernelError(why)
        raise Unapplied(why, [*kept, *lost])

    def _delete(self, key: K) -> OSError | None:
        try:
            self._raw.delete(self._pack_key(key))
        except OSError as error:
            return error
        return None

    def _why(self, error: OSError) -> str:
        if error.errno == errno.E2BIG:
            return f"it is full with {self._raw.info.max_entries} entries, raise {self._setting}"
        return error.strerror or str(error)
