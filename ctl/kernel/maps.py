"""The pinned maps: creating, adopting, reading, and keeping them as desired.

Pins live in `<bpffs>/v<LAYOUT>/maps/`. A map is used only if type, sizes and capacity
are what this version wants: bpf(2) would let a program read another layout.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, Generic, Self, TypeVar

from ctl import abi
from ctl.abi import Counter, EndpointEntry, FlowEntry, FlowKey, Hook, NodeEntry, PeerEntry, PeerStats
from ctl.errors import AgentUnreachable, KernelError
from ctl.kernel import bpf
from ctl.plan import Delta

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Spec:
    """What a map has to be; sizes in bytes."""

    kind: str
    key: int
    value: int
    entries: int

    def matches(self, info: bpf.MapInfo) -> bool:
        return (info.type, info.key_size, info.value_size, info.max_entries) == (
            bpf.MAP_TYPES[self.kind],
            self.key,
            self.value,
            self.entries,
        )


RING_BYTES: Final = 1 << 16


def specs(peers: int, endpoints: int, flows: int) -> dict[str, Spec]:
    """The seven maps for these capacities (entries)."""
    return {
        "peers": Spec("hash", 4, abi.PEER.size, peers),
        "endpoints": Spec("hash", 4, abi.ENDPOINT.size, endpoints),
        "flows": Spec("lru_hash", abi.FLOW_KEY.size, abi.FLOW.size, flows),
        "node": Spec("array", 4, abi.NODE.size, 1),
        "counters": Spec("percpu_array", 4, abi.COUNTER.size, abi.HOOK_MAX * abi.REASON_MAX),
        "peer_stats": Spec("percpu_hash", 4, abi.PEER_STATS.size, peers),
        "events": Spec("ringbuf", 0, 0, RING_BYTES),
    }


def layout_dir(bpffs: str | Path) -> Path:
    """Where pins of this layout live."""
    return Path(bpffs) / f"v{abi.LAYOUT}"


def _index(number: int) -> bytes:
    return struct.pack("=I", number)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KernelError(f"map {name} cannot be read: {error.strerror}") from error


class MapTable(Generic[K, V]):
    """A map as a table for reconciling (ctl.ports.Table)."""

    def __init__(
        self,
        name: str,
        raw: bpf.Map,
        key: tuple[Callable[[K], bytes], Callable[[bytes], K]],
        value: tuple[Callable[[V], bytes], Callable[[bytes], V]],
        setting: str,
    ) -> None:
        self._name, self._raw, self._setting = name, raw, setting
        self._pack_key, self._unpack_key = key
        self._pack_value, self._unpack_value = value

    def read(self) -> Mapping[K, V]:
        with _reading(self._name):
            return {self._unpack_key(key): self._unpack_value(values[0]) for key, values in self._raw.items()}

    def apply(self, delta: Delta[K, V]) -> None:
        failed = 0
        reason = ""
        for gone in delta.removals:
            self._raw.delete(self._pack_key(gone))
        for key, value in delta.puts:
            try:
                self._raw.update(self._pack_key(key), self._pack_value(value))
            except OSError as error:
                failed += 1
                reason = self._why(error)
        if failed:
            raise KernelError(f"map {self._name}: {failed} entries not stored: {reason}")

    def _why(self, error: OSError) -> str:
        if error.errno == errno.E2BIG:
            return f"it is full with {self._raw.info.max_entries} entries, raise {self._setting}"
        return error.strerror or str(error)


_ADDRESS: Final = (lambda ip: ip.packed, IPv4Address)


class Maps:
    """The open maps of one node. Reading never changes anything."""

    def __init__(self, raw: dict[str, bpf.Map]) -> None:
        self._raw = raw
        self.peer_table: Final = MapTable[IPv4Address, PeerEntry](
            "peers", raw["peers"], _ADDRESS, (PeerEntry.pack, PeerEntry.unpack), "--peers-max"
        )
        self.endpoint_table: Final = MapTable[IPv4Address, EndpointEntry](
            "endpoints",
            raw["endpoints"],
            _ADDRESS,
            (EndpointEntry.pack, EndpointEntry.unpack),
            "--endpoints-max",
        )
        # Only which hosts are in it matters: the programs keep the numbers.
        self.vtep_table: Final = MapTable[IPv4Address, bool](
            "peer_stats",
            raw["peer_stats"],
            _ADDRESS,
            (lambda _: bytes(abi.PEER_STATS.size), lambda _: True),
            "--peers-max",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for raw in self._raw.values():
            raw.close()

    def fd(self, name: str) -> int:
        return self._raw[name].fd

    def peers(self) -> Mapping[IPv4Address, PeerEntry]:
        """By base address of the subnet; its prefix length is `node().subnet.prefixlen`."""
        return self.peer_table.read()

    def endpoints(self) -> Mapping[IPv4Address, EndpointEntry]:
        return self.endpoint_table.read()

    def flows(self) -> dict[FlowKey, FlowEntry]:
        return {FlowKey.unpack(key): FlowEntry.unpack(values[0]) for key, values in self._items("flows")}

    def flush_flows(self) -> int:
        """Withdraw every approval; returns how many there were."""
        keys = [key for key, _ in self._items("flows")]
        return sum(self._raw["flows"].delete(key) for key in keys)

    def lookup_peer(self, subnet: IPv4Address) -> PeerEntry | None:
        found = self._lookup("peers", subnet.packed)
        return PeerEntry.unpack(found[0]) if found else None

    def lookup_endpoint(self, address: IPv4Address) -> EndpointEntry | None:
        found = self._lookup("endpoints", address.packed)
        return EndpointEntry.unpack(found[0]) if found else None

    def node(self) -> NodeEntry | None:
        found = self._lookup("node", _index(0))
        return NodeEntry.unpack(found[0]) if found else None

    def write_node(self, entry: NodeEntry) -> None:
        self._raw["node"].update(_index(0), entry.pack())

    def counters(self) -> dict[tuple[Hook, int], Counter]:
        """By hook and number of the reason; only those that ever counted."""
        result = {}
        for hook in Hook:
            for number in range(abi.REASON_MAX):
                values = self._lookup("counters", _index(hook * abi.REASON_MAX + number))
                counter = Counter.unpack(values or [])
                if counter.packets:
                    result[hook, number] = counter
        return result

    def peer_stats(self) -> dict[IPv4Address, PeerStats]:
        return {IPv4Address(key): PeerStats.unpack(rows) for key, rows in self._items("peer_stats")}

    def fill(self) -> dict[str, tuple[int, int]]:
        """(entries, capacity) of each map that can fill up."""
        names = ("peers", "endpoints", "flows", "peer_stats")
        return {name: (len(self._items(name)), self._raw[name].info.max_entries) for name in names}

    def _items(self, name: str) -> list[tuple[bytes, list[bytes]]]:
        with _reading(name):
            return list(self._raw[name].items())

    def _lookup(self, name: str, key: bytes) -> list[bytes] | None:
        with _reading(name):
            return self._raw[name].lookup(key)


def open_maps(bpffs: str | Path) -> Maps:
    """The maps of a node, from its pins, for reading.

    AgentUnreachable if there are none, KernelError if they may not be opened.
    """
    directory = layout_dir(bpffs) / "maps"
    raw: dict[str, bpf.Map] = {}
    try:
        for name in specs(0, 0, 0):
            raw[name] = bpf.Map(bpf.obj_get(str(directory / name)))
    except FileNotFoundError as error:
        _close(raw)
        raise AgentUnreachable(
            f"no maps under {bpffs}: no agent has run here (or --bpffs is another)"
        ) from error
    except OSError as error:
        _close(raw)
        raise KernelError(
            f"cannot open the maps under {directory}: {error.strerror} (are you root?)"
        ) from error
    return Maps(raw)


def _close(raw: Mapping[str, bpf.Map]) -> None:
    for each in raw.values():
        each.close()


def mismatch(bpffs: str | Path, wanted: Mapping[str, Spec]) -> str | None:
    """Why the pinned maps cannot be adopted, in words; None if they can (or none are there)."""
    directory = layout_dir(bpffs) / "maps"
    if not directory.is_dir() or not any(directory.iterdir()):
        return None
    for name, spec in wanted.items():
        try:
            raw = bpf.Map(bpf.obj_get(str(directory / name)))
        except FileNotFoundError:
            return f"{name} is missing"
        with suppress(OSError):
            raw.close()
        if not spec.matches(raw.info):
            return f"{name} is {raw.info}, wanted {spec}"
    return None


def create_or_adopt(bpffs: str | Path, wanted: Mapping[str, Spec]) -> Maps:
    """Open every pinned map, make and pin those that are missing. KernelError."""
    directory = layout_dir(bpffs) / "maps"
    raw: dict[str, bpf.Map] = {}
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, spec in wanted.items():
            raw[name] = bpf.Map(_open_or_create(directory / name, name, spec))
    except OSError as error:
        _close(raw)
        raise KernelError(f"cannot create the maps under {directory}: {error.strerror}") from error
    return Maps(raw)


def _open_or_create(path: Path, name: str, spec: Spec) -> int:
    with suppress(FileNotFoundError):
        return bpf.obj_get(str(path))
    fd = bpf.map_create(spec.kind, name, spec.key, spec.value, spec.entries)
    bpf.obj_pin(fd, str(path))
    return fd


def unpin_all(bpffs: str | Path) -> bool:
    """Remove every pin of every layout below `bpffs`, deepest first. False if there was none."""
    removed = False
    for path in _deepest_first(Path(bpffs)):
        removed = True
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    return removed


def _deepest_first(root: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(root, topdown=False):
        yield from (Path(parent) / name for name in (*files, *folders))
    if root.is_dir():
        yield root
