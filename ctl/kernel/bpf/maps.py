"""The pinned maps: creating, adopting, reading, and keeping them as desired.

Pins live in `<root>/v<LAYOUT>/maps/`: a set for each family, the root of IPv4's is --bpffs, that of
IPv6's a directory in it. A map is used only if type, sizes and capacity
are what this version wants: bpf(2) would let a program read another layout. BCC does not make
them: it could not open them again by their pins (ctl.kernel.bpf.compile says why), and a node without
bypass has the maps and no BCC.
"""

from __future__ import annotations

import re
import struct
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final, Generic, Self, overload

from ctl.core import abi
from ctl.core.abi import (
    Counter,
    EndpointEntry,
    FlowEntry,
    FlowKey,
    Hook,
    Ip,
    NodeEntry,
    NoteEntry,
    PeerEntry,
    PeerStats,
    Translation,
)
from ctl.core.errors import AgentUnreachable, KernelError
from ctl.core.family import IPV4, Family
from ctl.core.model import A
from ctl.core.tracer import TRACERS, TracerEntry
from ctl.kernel.bpf import bpffs, syscall
from ctl.kernel.bpf.source import CALLS, CALLS_XDP, PROGRAMS, maps_of
from ctl.kernel.bpf.table import MapTable, refused


@dataclass(frozen=True, slots=True)
class Spec:
    """What a map has to be; sizes in bytes."""

    kind: str
    key: int
    value: int
    entries: int
    flags: int = 0

    def matches(self, info: syscall.MapInfo) -> bool:
        return (info.type, info.key_size, info.value_size, info.max_entries, info.flags) == (
            syscall.MAP_TYPES[self.kind],
            self.key,
            self.value,
            self.entries,
            self.flags,
        )


RING_BYTES: Final = 1 << 16
TRACE_RING_BYTES: Final = 1 << 20

NOTES: Final = 4096
"""Packets that can be in netfilter at once and have their translation learned."""
SERVICES: Final = 4096
"""Addresses of services that this node's containers use at a time."""

_VTEP_SLACK: Final = 1024
"""Known VTEPs beyond `peers`: each CPU of a hash map keeps some free entries to itself."""

_COUNT_S: Final = 1.0
"""Seconds for which a count of the flows is good: there may be a million of them."""


def specs(peers: int, endpoints: int, flows: int, version: int = 4) -> dict[str, Spec]:
    """The maps for these capacities (entries), of the programs for this IP version."""
    of = abi.STRUCTS[version]
    address, key = of.address, of.flow_key.size
    found = {
        "peers": Spec("hash", address, of.peer.size, peers),
        "endpoints": Spec("hash", address, abi.ENDPOINT.size, endpoints),
        "flows": Spec("lru_hash", key, of.flow.size, flows),
        "notes": Spec("lru_hash", 4, of.note.size, NOTES),
        "translations": Spec("lru_hash", key, of.translation.size, flows),
        "services": Spec("lru_hash", address, abi.SERVICE.size, SERVICES),
        "node": Spec("array", 4, of.node.size, 1),
        "counters": Spec("percpu_array", 4, abi.COUNTER.size, abi.HOOK_MAX * abi.REASON_MAX),
        "peer_stats": Spec("percpu_hash", address, abi.PEER_STATS.size, peers + _VTEP_SLACK),
        "events": Spec("ringbuf", 0, 0, RING_BYTES),
        "tracer": Spec("array", 4, TRACERS[version].size, 1, syscall.MMAPABLE),
        "traces": Spec("ringbuf", 0, 0, TRACE_RING_BYTES),
        CALLS: Spec("prog_array", 4, 4, abi.HOOK_MAX),
        CALLS_XDP: Spec("prog_array", 4, 4, abi.HOOK_MAX),
    }
    return {name: found[name] for name in maps_of(version)}


def family_root(bpffs: str | Path, family: Family[A, Any]) -> Path:
    """Where pins of this family live; `bpffs` is --bpffs."""
    return Path(bpffs) / _FAMILY_DIRS[family.version]


_FAMILY_DIRS: Final = {4: "", 6: "ipv6"}


def layout_dir(root: str | Path) -> Path:
    """Where pins of this layout live; `root` is a family's."""
    return Path(root) / f"v{abi.LAYOUT}"


def _index(number: int) -> bytes:
    return struct.pack("=I", number)


class Maps(Generic[A]):
    """The open maps of one node and family. Reading never changes anything.

    `clock`: seconds, monotonic.
    """

    def __init__(
        self,
        raw: dict[str, syscall.Map],
        family: Family[A, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.family: Final = family
        self._raw, self._clock = raw, clock
        address = _packed, family.address
        self._flows_counted: tuple[float, int] | None = None
        """When the flows were counted last, and how many there were; None: never."""
        self.peer_table: Final = MapTable[A, PeerEntry](
            "peers", raw["peers"], address, (PeerEntry.pack, PeerEntry.unpack), "--peers-max"
        )
        self.endpoint_table: Final = MapTable[A, EndpointEntry](
            "endpoints",
            raw["endpoints"],
            address,
            (EndpointEntry.pack, EndpointEntry.unpack),
            "--endpoints-max",
        )
        # Only which hosts are in it matters: the programs keep the numbers.
        self.vtep_table: Final = MapTable[A, bool](
            "peer_stats",
            raw["peer_stats"],
            address,
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

    def ids(self) -> frozenset[int]:
        """The kernel's ids: a program that uses another is not ours to adopt."""
        return frozenset(raw.info.id for raw in self._raw.values())

    def repin(self, root: str | Path) -> bool:
        """Pin again what is not pinned below `root` any more; True if something was. KernelError."""
        return bpffs.pin_missing(layout_dir(root) / "maps", {name: raw.fd for name, raw in self._raw.items()})

    def peers(self) -> Mapping[A, PeerEntry]:
        """By base address of the subnet; its prefix length is `node().subnet.prefixlen`."""
        return self.peer_table.read()

    def raw_peers(self) -> list[tuple[bytes, bytes]]:
        """The same as the map has it, in no order and a sixth of the time."""
        return [(key, value) for key, (value,) in self._items("peers")]

    def endpoints(self) -> Mapping[A, EndpointEntry]:
        return self.endpoint_table.read()

    def flows(self) -> dict[FlowKey, FlowEntry]:
        return {FlowKey.unpack(key): FlowEntry.unpack(values[0]) for key, values in self._items("flows")}

    def flow_packets(self) -> dict[bytes, int]:
        """Packets that have bypassed, by packed key: of all flows, in a tenth of the time of `flows`."""
        flow = abi.STRUCTS[self.family.version].flow
        return {key: flow.unpack(values[0])[2] for key, values in self._items("flows")}

    def notes(self) -> dict[int, NoteEntry]:
        """By signature."""
        return {
            int.from_bytes(key, sys.byteorder): NoteEntry.unpack(values[0])
            for key, values in self._items("notes")
        }

    def translations(self) -> dict[FlowKey, Translation]:
        """By flow as it enters netfilter, without DSCP."""
        found = (
            (FlowKey.unpack(key), Translation.unpack(rows[0])) for key, rows in self._items("translations")
        )
        return {key: to for key, to in found if to}

    def services(self) -> dict[A, int]:
        """When each was found to be one, in ns of CLOCK_MONOTONIC (coarse)."""
        found = self._items("services")
        return {self.family.address(key): abi.SERVICE.unpack(rows[0])[0] for key, rows in found}

    def flush_flows(self) -> int:
        """Withdraw every approval; returns how many there were."""
        keys = [key for key, _ in self._items("flows")]
        with refused("map flows cannot be emptied"):
            return sum(self._raw["flows"].delete(key) for key in keys)

    def lookup_peer(self, subnet: Ip) -> PeerEntry | None:
        found = self._lookup("peers", subnet.packed)
        return PeerEntry.unpack(found[0]) if found else None

    def lookup_endpoint(self, address: Ip) -> EndpointEntry | None:
        found = self._lookup("endpoints", address.packed)
        return EndpointEntry.unpack(found[0]) if found else None

    def node(self) -> NodeEntry | None:
        found = self._lookup("node", _index(0))
        return NodeEntry.unpack(found[0]) if found else None

    def configured(self) -> NodeEntry:
        """As `node`; AgentUnreachable before an agent has filled it."""
        node = self.node()
        if node is None:
            raise AgentUnreachable("no agent has configured the programs here yet: ovctl status says why")
        return node

    def write_node(self, entry: NodeEntry) -> None:
        with refused("map node cannot be written"):
            self._raw["node"].update(_index(0), entry.pack())

    def tracer(self) -> TracerEntry:
        """Of which packets `traces` tells, and how many it had no room for."""
        return TracerEntry.unpack(next(iter(self._lookup("tracer", _index(0)) or ())))

    def write_tracer(self, entry: TracerEntry) -> None:
        with refused("map tracer cannot be written"):
            self._raw["tracer"].update(_index(0), entry.pack())

    def counters(self) -> dict[tuple[Hook, int], Counter]:
        """By hook and number of the reason; only those that ever counted."""
        never, found = bytes(abi.COUNTER.size), {}
        for key, rows in self._items("counters"):
            if rows.count(never) < len(rows):
                hook, number = divmod(int.from_bytes(key, sys.byteorder), abi.REASON_MAX)
                found[Hook(hook), number] = Counter.unpack(rows)
        return found

    def peer_stats(self) -> dict[A, PeerStats]:
        return {self.family.address(key): PeerStats.unpack(rows) for key, rows in self._items("peer_stats")}

    def hand_over(self, hook: Hook, program: int | None) -> None:
        """Have IPv4's program at `hook` hand packets of IPv6 to this one (a descriptor); None: to none.

        What is in place already is not touched. KernelError: then none is in place.
        """
        name, place = _calls(hook), _index(hook)
        calls = self._raw[name]
        with refused(f"map {name} cannot be written"):
            if program is None:
                calls.delete(place)
                return
            try:
                if calls.lookup(place) != (_index(syscall.prog_info(program).id),):
                    calls.update(place, _index(program))
            except OSError:
                calls.delete(place)
                raise

    def handed_over(self) -> dict[Hook, int]:
        """The ids of the programs that those for IPv4 hand packets of IPv6 to."""
        found = {hook: self._lookup(_calls(hook), _index(hook)) for hook in _HANDING}
        return {hook: int.from_bytes(ids[0], sys.byteorder) for hook, ids in found.items() if ids}

    def busy_peers(self) -> dict[A, PeerStats]:
        """Those of `peer_stats` that have counted anything: of many mostly few, in a third of the time."""
        idle = bytes(abi.PEER_STATS.size)
        busy = ((key, rows) for key, rows in self._items("peer_stats") if rows.count(idle) < len(rows))
        return {self.family.address(key): PeerStats.unpack(rows) for key, rows in busy}

    def fill(self) -> dict[str, tuple[int, int]]:
        """(entries, capacity) of each map that can fill up; that of the flows may be a second old."""
        counts = {name: self._count(name) for name in ("peers", "endpoints")}
        counts |= {"flows": self._count_flows(), "peer_stats": self._count("peer_stats")}
        return {name: (count, self._raw[name].info.max_entries) for name, count in counts.items()}

    def _count_flows(self) -> int:
        now = self._clock()
        if self._flows_counted is None or now - self._flows_counted[0] >= _COUNT_S:
            self._flows_counted = now, self._count("flows")
        return self._flows_counted[1]

    def _count(self, name: str) -> int:
        with refused(f"map {name} cannot be read"):
            return self._raw[name].count()

    def _items(self, name: str) -> list[tuple[bytes, syscall.Values]]:
        with refused(f"map {name} cannot be read"):
            return list(self._raw[name].items())

    def _lookup(self, name: str, key: bytes) -> syscall.Values | None:
        with refused(f"map {name} cannot be read"):
            return self._raw[name].lookup(key)


_HANDING: Final = tuple(Hook[name.upper()] for name in PROGRAMS)
"""The hooks where programs hang."""


def _calls(hook: Hook) -> str:
    """The map of what IPv4's program at `hook` calls."""
    return CALLS_XDP if hook is Hook.FROM_WIRE_XDP else CALLS


def _packed(address: IPv4Address | IPv6Address) -> bytes:
    return address.packed


@overload
def open_maps(bpffs: str | Path) -> Maps[IPv4Address]: ...


@overload
def open_maps(bpffs: str | Path, family: Family[A, Any]) -> Maps[A]: ...


def open_maps(bpffs: str | Path, family: Family[Any, Any] = IPV4) -> Maps[Any]:
    """The maps of a node, from its pins below --bpffs, for reading.

    AgentUnreachable if there are none, KernelError if they may not be opened.
    """
    root = family_root(bpffs, family)
    directory = layout_dir(root) / "maps"
    raw: dict[str, syscall.Map] = {}
    try:
        for name in maps_of(family.version):
            raw[name] = syscall.Map(syscall.obj_get(str(directory / name)))
    except FileNotFoundError as error:
        _close(raw)
        raise AgentUnreachable(
            f"no maps under {root}: no agent has run here (or --bpffs is another)"
        ) from error
    except OSError as error:
        _close(raw)
        raise KernelError(
            f"cannot open the maps under {directory}: {error.strerror} (are you root?)"
        ) from error
    return Maps(raw, family)


def _close(raw: Mapping[str, syscall.Map]) -> None:
    for each in raw.values():
        each.close()


def mismatch(root: str | Path, wanted: Mapping[str, Spec]) -> str | None:
    """Why what is pinned cannot be adopted, in words; None if it can (or nothing is there).

    KernelError if it may not be looked at.
    """
    layout = layout_dir(root)
    with refused(f"cannot look at {layout}"):
        missing = [name for name in wanted if not (layout / "maps" / name).exists()]
        programs = any(layout.glob("progs-*"))
    if missing and programs:
        # They would go on with maps that nobody fills any more.
        return f"programs without maps: {missing[0]} is missing"
    if len(missing) == len(wanted):
        return None
    differ = (_difference(layout / "maps" / name, spec) for name, spec in wanted.items())
    return next((why for why in differ if why), None)


def _difference(path: Path, spec: Spec) -> str | None:
    try:
        with closing(syscall.Map(syscall.obj_get(str(path)))) as raw:
            return None if spec.matches(raw.info) else f"{path.name} is {raw.info}, wanted {spec}"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except PermissionError as error:
        raise KernelError(f"cannot open {path}: {error.strerror}") from error
    except OSError as error:
        return f"{path.name} cannot be opened: {error.strerror}"


def pinned_seed(root: str | Path, version: int = 4) -> int:
    """The flow_seed of the pinned map `node`; 0 if there is none that this layout can read."""
    path = layout_dir(root) / "maps" / "node"
    with suppress(OSError), closing(syscall.Map(syscall.obj_get(str(path)))) as raw:
        if specs(0, 0, 0, version)["node"].matches(raw.info):
            entry = NodeEntry.unpack(next(iter(raw.lookup(_index(0)) or [b""])))
            return entry.flow_seed if entry else 0
    return 0


@overload
def create_or_adopt(root: str | Path, wanted: Mapping[str, Spec]) -> Maps[IPv4Address]: ...


@overload
def create_or_adopt(root: str | Path, wanted: Mapping[str, Spec], family: Family[A, Any]) -> Maps[A]: ...


def create_or_adopt(
    root: str | Path, wanted: Mapping[str, Spec], family: Family[Any, Any] = IPV4
) -> Maps[Any]:
    """Open every pinned map, make and pin those that are missing. KernelError.

    `root`, `wanted`: the family's.
    """
    directory = layout_dir(root) / "maps"
    raw: dict[str, syscall.Map] = {}
    try:
        bpffs.make_private(directory)
        for name, spec in wanted.items():
            raw[name] = syscall.Map(_open_or_create(directory / name, name, spec))
    except OSError as error:
        _close(raw)
        raise KernelError(f"cannot create the maps under {directory}: {error.strerror}") from error
    return Maps(raw, family)


def _open_or_create(path: Path, name: str, spec: Spec) -> int:
    with suppress(FileNotFoundError):
        return syscall.obj_get(str(path))
    with syscall.passed_on(
        syscall.map_create(spec.kind, name, spec.key, spec.value, spec.entries, spec.flags)
    ) as fd:
        syscall.obj_pin(fd, str(path))
        return fd


def unpin_all(root: str | Path) -> bool:
    """Remove the pins of every layout below `root`, and the directories that this leaves empty.

    Those of IPv6, too, where it is --bpffs: without IPv4's, nobody calls them. Only what we make:
    of this layout by name, of others whatever is in the directories for pins; and nothing outside
    of a bpffs. False if nothing was removed. KernelError.
    """
    top = Path(root)
    if not top.is_dir() or not bpffs.holds(top):
        return False
    with refused(f"cannot remove the pins under {top}"):
        removed = [_unpin_layout(path) for _, path in _layouts(top)]
        removed += [unpin_all(root) for root in _roots_in(top)]
        return bpffs.remove_empty(top) or any(removed)


def unpin_older_layouts(root: str | Path) -> None:
    """Remove what earlier versions have pinned below `root`: last, when nobody uses it. KernelError.

    Those of IPv6, too, where it is --bpffs, as `unpin_all`.
    """
    with refused(f"cannot remove the pins under {root}"):
        for number, path in _layouts(Path(root)):
            if number < abi.LAYOUT:
                _unpin_layout(path)
        for each in _roots_in(Path(root)):
            unpin_older_layouts(each)


def newer_layout(root: str | Path) -> int | None:
    """The highest layout that is pinned below `root` and that this version does not know. KernelError."""
    with refused(f"cannot look at {root}"):
        pinned = (number for number, path in _layouts(Path(root)) if any(path.glob("*/*")))
        highest = max(pinned, default=abi.LAYOUT)
    return highest if highest > abi.LAYOUT else None


def _layouts(root: Path) -> list[tuple[int, Path]]:
    """Numbers and directories of the layouts that are there."""
    if not root.is_dir():
        return []
    return [
        (int(path.name[1:]), path)
        for path in root.iterdir()
        if _LAYOUT.fullmatch(path.name) and _is_own_dir(path)
    ]


_LAYOUT: Final = re.compile(r"v[0-9]+")


def _roots_in(root: Path) -> list[Path]:
    """The roots of other families, if this is --bpffs."""
    return [root / name for name in _FAMILY_DIRS.values() if name and _is_own_dir(root / name)]


def _unpin_layout(layout: Path) -> bool:
    ours = layout.name == f"v{abi.LAYOUT}"
    removed = [
        bpffs.unpin(home, (maps_of(4) if home.name == "maps" else PROGRAMS) if ours else None)
        for home in (layout / "maps", *layout.glob("progs-*"))
        if _is_own_dir(home)
    ]
    return bpffs.remove_empty(layout) or any(removed)


def _is_own_dir(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
