"""Where a packet would go from here, hop by hop. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ctl.core.abi import PEER_F_KERNEL_PATH, Direction, NodeEntry, PeerEntry
from ctl.core.decision import Probe, View, arriving, leaving
from ctl.core.family import of_version
from ctl.core.reasons import Reason, Verdict, labelled


class Fate(StrEnum):
    """How it goes on from a hop."""

    ON = "on"
    UNKNOWN = "unknown"
    """It cannot be told from here."""
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Hop:
    """A line of the answer."""

    hop: str
    at: str
    by: str
    """ebpf or kernel, or empty."""
    fate: Fate
    reason: str
    """The program's, by its label."""
    seen: str


def hops(probe: Probe, view: View) -> Iterator[Hop]:
    """All hops that can be told, up to where it is lost."""
    for hop in _hops(probe, view):
        yield hop
        if hop.fate is Fate.LOST:
            return


def _hops(probe: Probe, view: View) -> Iterator[Hop]:
    node = view.node
    if probe.dst in node.subnet and probe.src in node.subnet:
        yield from _local(view)
    elif probe.dst in node.subnet:
        yield from _in(probe, view, node)
    else:
        yield from _out(probe, view, node)


def _local(view: View) -> Iterator[Hop]:
    yield Hop("bridge", "", "kernel", Fate.ON, "", "both are of this node: no overlay is between them")
    yield _container(view)


# --- From here -----------------------------------------------------------------


def _out(probe: Probe, view: View, node: NodeEntry) -> Iterator[Hop]:
    yield _sender(probe, view, node)
    if view.peer is None and probe.dst in node.network:
        yield Hop("peer", "", "", Fate.LOST, "not_overlay", f"no peer has leased the subnet of {probe.dst}")
    if probe.size > node.mtu and view.peer:
        yield _too_large(probe, node)
    port = view.name(view.source.ifindex) if view.source else ""
    why, watched = leaving(probe, view), (port, "ingress") in view.programs
    if watched:
        yield _program("from_container", port, why, _approved(probe, view, Direction.OUT))
    elif port:
        yield _without("from_container", port, "this port", probe)
    if not watched or why.verdict is not Verdict.BYPASS:
        yield from _kernel_path(probe, view, node)
    if view.peer:
        yield _wire(view, view.peer)
        yield _other_side(view, view.peer)


def _sender(probe: Probe, view: View, node: NodeEntry) -> Hop:
    if view.source:
        seen = f"behind {view.name(view.source.ifindex)}, MAC {view.source.mac}"
        return Hop("container", str(probe.src), "", Fate.ON, "", seen)
    if probe.src in node.subnet:
        return Hop(
            "container", str(probe.src), "", Fate.ON, "", "not seen on any port: eBPF leaves its packets be"
        )
    return Hop("sender", str(probe.src), "", Fate.UNKNOWN, "", f"not of this node's subnet {node.subnet}")


def _too_large(probe: Probe, node: NodeEntry) -> Hop:
    if probe.df or probe.src.version == 6:  # which no router cuts
        df = "" if probe.src.version == 6 else " with DF"
        return Hop(
            "size", "", "", Fate.LOST, "oversize",
            f"{probe.size} bytes{df}, the overlay carries {node.mtu}: ICMP tells the sender to send less",
        )  # fmt: skip
    return Hop("size", "", "kernel", Fate.ON, "oversize", f"cut to fragments: the overlay carries {node.mtu}")


def _kernel_path(probe: Probe, view: View, node: NodeEntry) -> Iterator[Hop]:
    if not view.route:
        yield Hop("route", "", "kernel", Fate.LOST, "", f"the kernel has no route to {probe.dst}")
    elif stolen_from := _stolen_from(view, node):
        seen = f"not to {stolen_from}: another route is more specific, or comes first in the rules"
        yield Hop("route", view.route, "kernel", Fate.LOST, "", seen)
    else:
        yield Hop("route", view.route, "kernel", Fate.ON, "", "by the kernel's table")
    yield from _netfilter(view)
    if view.peer:
        yield _tunnel(probe, view, node, view.peer)
    else:
        yield Hop(
            "peer", "", "kernel", Fate.UNKNOWN, "not_overlay",
            f"not for the overlay, which is {node.network}, unless netfilter translates it to there: how is"
            " known once a first packet has been answered",
        )  # fmt: skip


def _stolen_from(view: View, node: NodeEntry) -> str:
    """The vxlan device, where a packet for a peer whose tunnel it is has to go there and does not; or empty.

    Of a peer that eBPF leaves to the kernel it is not known: some are reached without a tunnel.
    """
    peer = view.peer
    if peer is None or peer.flags & PEER_F_KERNEL_PATH or not node.tunnel_ifindex:
        return ""
    tunnel = view.name(node.tunnel_ifindex)
    return tunnel if view.route != tunnel else ""


def _tunnel(probe: Probe, view: View, node: NodeEntry, peer: PeerEntry) -> Hop:
    if not node.tunnel_ifindex:
        return Hop("tunnel", view.route, "kernel", Fate.ON, "", "by the device: the tunnel gear is off")
    if peer.flags & PEER_F_KERNEL_PATH or peer.next_hop is None:
        label = "peer_kernel_path"
    elif probe.src.version == 6 and not probe.is_carried:  # the tunnel's checksum is made of the packet's own
        label = "outer_checksum"
    elif probe.size > node.mtu:
        label = "fragment"
    else:
        label = "no_neighbour" if peer.next_hop in view.unresolved else "tunnel_encap"
    why = labelled(label)
    by = "ebpf" if why.verdict is Verdict.TUNNEL else "kernel"
    return Hop("tunnel", view.name(node.tunnel_ifindex), by, Fate.ON, why.label, why.caption)


def _wire(view: View, peer: PeerEntry) -> Hop:
    device, hop = view.name(peer.ifindex) if peer.ifindex else "", peer.next_hop
    if hop in view.unresolved:
        asked = "ARP" if peer.host.version == 4 else "neighbour solicitations"
        return Hop("wire", device, "", Fate.LOST, "", f"next hop {hop} does not answer {asked}")
    via = f" by {hop}" if hop and hop != peer.host else ""
    return Hop("wire", device, "", Fate.ON, "", f"to {peer.host}{via}, UDP {peer.port}, VNI {peer.vni}")


def _other_side(view: View, peer: PeerEntry) -> Hop:
    fate, seen = _holder(view, peer)
    return Hop("peer", str(peer.host), "", fate, "", seen)


def _holder(view: View, peer: PeerEntry) -> tuple[Fate, str]:
    """What the store says of who is to get it."""
    lease = view.lease
    member = lease and of_version(peer.host.version).member(lease)
    if view.store:
        return Fate.UNKNOWN, f"the store was not asked: {view.store}"
    if lease is None or member is None:
        return Fate.LOST, "the store has no lease of that subnet (any more)"
    if member.host != peer.host:
        return Fate.LOST, f"the store says that {member.host} holds {member.subnet}"
    if lease.expired(view.time_s):
        return Fate.UNKNOWN, f"its lease of {member.subnet} has ended"
    return Fate.ON, f"{lease.node or 'it'} holds {member.subnet}: trace there goes on"


# --- To here -------------------------------------------------------------------


def _in(probe: Probe, view: View, node: NodeEntry) -> Iterator[Hop]:
    uplink = view.name(node.uplink_ifindex)
    why, watched = arriving(probe, view), (uplink, "ingress") in view.programs
    if watched:
        # XDP leaves to from_wire what has to be translated.
        by_xdp = (uplink, "xdp") in view.programs and why.verdict is Verdict.BYPASS
        by_xdp = by_xdp and view.translation(Direction.IN) is None
        name = "from_wire_xdp" if by_xdp else "from_wire"
        yield _program(name, uplink, why, _approved(probe, view, Direction.IN))
    else:
        yield _without("from_wire", uplink, "the uplink", probe)
    if not watched or why.verdict is Verdict.PASS:
        yield from _netfilter(view)
    yield _container(view)


def _container(view: View) -> Hop:
    if view.target is None:
        return Hop(
            "container", "", "", Fate.UNKNOWN, "", "no container with this address is known on any port"
        )
    return Hop("container", view.name(view.target.ifindex), "", Fate.ON, "", f"MAC {view.target.mac}")


# --- Either way ----------------------------------------------------------------


def _program(name: str, at: str, why: Reason, approved: str) -> Hop:
    by = "kernel" if why.verdict is Verdict.PASS else "ebpf"
    fate = Fate.LOST if why.verdict in (Verdict.DROP, Verdict.ABORT) else Fate.ON
    seen = f"{why.caption}: {approved}" if approved else why.caption
    return Hop("program", f"{name} {at}", by, fate, why.label, seen)


def _without(program: str, at: str, where: str, probe: Probe) -> Hop:
    family = "" if probe.src.version == 4 else " for IPv6"
    return Hop("program", at, "kernel", Fate.ON, "", f"{program}{family} is not on {where}")


def _approved(probe: Probe, view: View, direction: Direction) -> str:
    """Which of the flows that it may be of was approved, and when; empty: none."""
    found = view.approval(direction)
    if found is None:
        return ""
    key, flow = found
    name = f"echo {key.sport}" if probe.is_echo else f"ports {key.sport} > {key.dport}"
    other = f" as {flow.to.address}, ports {flow.to.sport} > {flow.to.dport}" if flow.to else ""
    return f"{name}, approved{other} {(view.now_ns - flow.approved_ns) / 1e9:.1f} s ago"


def _netfilter(view: View) -> Iterator[Hop]:
    for line in view.refusals:
        yield Hop("netfilter", "forward", "kernel", Fate.LOST, "", line)
    if not view.refusals:
        yield Hop(
            "netfilter", "forward", "kernel", Fate.UNKNOWN, "",
            "no chain refuses all that is forwarded; rules about single flows are not looked at",
        )  # fmt: skip
