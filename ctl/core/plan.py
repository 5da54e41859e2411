"""Desired state of a node, and what to change to get there. Pure.

    desired = plan_*(...)           what this node's kernel and maps should hold
    delta = diff(desired, actual)   per table; printable, ordered, applied in one place

Reconciling: read a table whole, diff it, apply the delta; if that fails, do the same
again from a fresh read. Whole values are compared, not keys, so an entry whose value
changed behind our back is mended like one that is missing. Tables that hold an entry for
each peer are followed change by change instead (ctl.core.tracker, ctl.core.peers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ctl.core.abi import EndpointEntry
from ctl.core.host import NO_QDISC, NONE, PPP, RAW_IP, Filter, FilterKey, Link, Neighbours
from ctl.core.model import A, HookMode, N

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Delta(Generic[K, V]):
    """Changes to one table: puts (create or replace) and removals."""

    puts: tuple[tuple[K, V], ...] = ()
    removals: tuple[K, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.puts or self.removals)

    def __len__(self) -> int:
        return len(self.puts) + len(self.removals)


def diff(desired: Mapping[K, V], actual: Mapping[K, V]) -> Delta[K, V]:
    """What turns `actual` into `desired`, in the order of each mapping."""
    return Delta(
        puts=tuple((key, value) for key, value in desired.items() if actual.get(key) != value),
        removals=tuple(key for key in actual if key not in desired),
    )


def plan_endpoints(
    seen: Neighbours[A], ports: Mapping[int, Link], bridge: Link, subnet: N
) -> dict[A, EndpointEntry]:
    """Containers of ours whose address, MAC and port the kernel knows.

    `ports`: by ifindex, those that carry our programs.
    """
    assert bridge.mac is not None
    found = {}
    for address, mac in seen.macs.items():
        port = seen.ports.get(mac)
        if port is not None and port in ports and address in subnet:
            found[address] = EndpointEntry(port, mac, bridge.mac)
    return found


def why_kernel_path(port: Link) -> str:
    """Why a port is not bypassed by what it is itself, in words; empty if it may be.

    redirect_peer delivers behind the port's end: nothing that hangs there in the direction of
    the container has a part in it (what hangs there beside qdiscs: ctl.kernel.hooks.filters).
    """
    if port.kind != "veth":
        return f"a {port.kind or 'hardware'} interface: only veth ports can be bypassed"
    if not port.peer_elsewhere:
        return "its other end is in this network namespace"
    if port.qdisc not in _NOTHING_HELD_BACK:
        return f"its qdisc {port.qdisc} would not see what our program delivers"
    if port.peer_xdp:
        return "the container's own XDP program would not see what ours delivers"
    return ""


_NOTHING_HELD_BACK: Final = frozenset({NO_QDISC, "noop", ""})
"""Root qdiscs that have no queue; noop is that of an interface that has never been up."""


def plan_questions(seen: Neighbours[A], subnet: N) -> list[A]:
    """Containers of ours to ask for by ARP or NDP: the bridge does not know where their MAC is.

    So it is after a container took the address, and so the MAC, of one that is gone, and
    only listens: the kernel believes the old answer for a minute, and the bridge floods.
    """
    return sorted((a for a in seen.unasked if a in subnet and seen.macs.get(a) not in seen.ports), key=int)


def plan_filters(
    programs: Mapping[str, int],
    uplink: int,
    devices: Iterable[int],
    ports: Iterable[int],
    *,
    first: bool = False,
) -> dict[FilterKey, Filter]:
    """Which program (by name -> id) hangs where. No programs: nothing hangs anywhere.

    `devices`: ifindexes of the vxlan devices. `first`: from_wire before those of others.
    """
    if not programs:
        return {}
    places = {FilterKey(device, False): "to_overlay" for device in devices}
    for port in ports:
        places[FilterKey(port, True)] = "from_container"
        places[FilterKey(port, False)] = "to_container"
    # Last: until everything else is in place, what arrives takes the kernel path.
    places[FilterKey(uplink, True)] = "from_wire"
    return {
        key: Filter(name, programs[name], first=first and name == "from_wire") for key, name in places.items()
    }


def plan_bridge_mtu(bridge: Link, wanted: int, links: Iterable[Link]) -> int:
    """`wanted`, but no more than the bridge has as long as containers run that were made for that.

    What is too large for them a larger bridge would drop at their ports without a word. Where
    the bridge is as small, the host says so to whom it is from.
    """
    ports = (link for link in links if link.master == bridge.ifindex and link.kind == "veth")
    return min(bridge.mtu, wanted) if any(port.mtu == bridge.mtu for port in ports) else wanted


def wants_xdp(mode: HookMode, uplink: Link) -> bool:
    """Whether to try XDP on this uplink.

    On a veth it costs more than it saves: the peer loses its segmentation offload, and
    packets are copied. So `auto` leaves those to tc. XDP is for frames: where there are none, a TUN
    takes a program all the same, and breaks every packet that it changes (do_xdp_generic).
    """
    wanted = mode is HookMode.XDP or (mode is HookMode.AUTO and uplink.kind != "veth")
    return wanted and uplink.has_ethernet


def unreadable(uplink: Link) -> str:
    """Why the programs cannot tell what comes from this uplink; empty: they can.

    They would take all of it for somebody else's, a stranger's VXLAN too.
    """
    if uplink.has_ethernet or uplink.type in (NONE, PPP, RAW_IP):
        return ""
    return (
        f"uplink {uplink.name} is of link type {uplink.type} (linux/if_arp.h), "
        "whose packets eBPF cannot read: choose another --iface, or run with --bypass=off"
    )
