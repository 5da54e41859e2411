"""What the programs would make of a packet, by what was read of maps and kernel. Pure.

`leaving` and `arriving` say why a program would leave a packet as bpf/encap.h and bpf/decap.h do, in
the same order; tests/bpf/test_path.py compares them with the programs. The programs themselves are not
asked (BPF_PROG_TEST_RUN): a run signs, counts, and takes approvals back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ctl.core.abi import (
    NODE_F_OTHERS_BEHIND,
    PEER_F_KERNEL_PATH,
    Direction,
    EndpointEntry,
    FlowEntry,
    FlowKey,
    Ip,
    NodeEntry,
    PeerEntry,
    Translation,
)
from ctl.core.dissect import TCP, UDP, icmp_of
from ctl.core.model import Bypass, Lease
from ctl.core.reasons import Reason, labelled


@dataclass(frozen=True, slots=True)
class Probe:
    """The packet in question; one in the middle of its flow, so no SYN, FIN or RST."""

    src: Ip
    dst: Ip
    proto: int = TCP
    sport: int = 0
    """Of an echo, its identifier; 0: any."""
    dport: int = 0
    """0: any; of an echo, it has none."""
    size: int = 100
    """Bytes of the IP packet."""
    df: bool = False

    @property
    def is_echo(self) -> bool:
        """As far as the protocol tells."""
        return self.proto == icmp_of(self.src.version)

    @property
    def is_carried(self) -> bool:
        """Whether its protocol is one that the programs carry."""
        return self.proto in (TCP, UDP) or self.is_echo

    def is_of(self, key: FlowKey) -> bool:
        """Whether it may be one of this flow, whatever its DSCP."""
        return (
            (self.src, self.dst, self.proto) == (key.saddr, key.daddr, key.proto)
            and self.sport in (0, key.sport)
            and (self.is_echo or self.dport in (0, key.dport))
        )


@dataclass(frozen=True, slots=True)
class View:
    """What was read of this node, as far as it has to do with the packet."""

    node: NodeEntry
    source: EndpointEntry | None = None
    """The container of this node that it is from."""
    target: EndpointEntry | None = None
    """And the one it is for."""
    origin: PeerEntry | None = None
    """The peer that it is from."""
    peer: PeerEntry | None = None
    """And the one it is for, translated if its flow is."""
    flows: Mapping[FlowKey, FlowEntry] = field(default_factory=dict)
    """Approvals of the flows that it may be of."""
    now_ns: int = 0
    """Of the programs' clock."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Of interfaces."""
    programs: frozenset[tuple[str, str]] = frozenset()
    """(interface, `ingress`, `egress` or `xdp`) where one of ours runs."""
    route: str = ""
    """The interface of the kernel's route to the target; empty: there is none."""
    refusals: tuple[str, ...] = ()
    """Chains that drop what is forwarded, as far as it can be told, a line each."""
    unresolved: frozenset[Ip] = frozenset()
    """Neighbours that do not answer."""
    lease: Lease | None = None
    """Of the subnet that it is for."""
    store: str = ""
    """Why the store could not be asked; empty if it was."""
    time_s: float = 0
    """Since the epoch."""

    def name(self, ifindex: int) -> str:
        """Of an interface."""
        return self.names.get(ifindex, f"if{ifindex}")

    def approval(self, direction: Direction) -> tuple[FlowKey, FlowEntry] | None:
        """The newest of this direction, through the port of the container that the packet is from or for."""
        end = self.source if direction is Direction.OUT else self.target
        found = [
            (key, flow)
            for key, flow in self.flows.items()
            if end and (key.direction, key.ifindex) == (direction, end.ifindex)
        ]
        return max(found, key=lambda each: each[1].approved_ns, default=None)

    def translation(self, direction: Direction) -> Translation | None:
        """What netfilter makes of the flow that `approval` finds; None: nothing, or there is none."""
        found = self.approval(direction)
        return found[1].to if found else None


def leaving(probe: Probe, view: View) -> Reason:
    """Why from_container would leave the packet."""
    node, peer, source = view.node, view.peer, view.source
    if peer is None:
        return labelled("not_overlay")
    if not _bypasses(node) or source is None:
        return labelled("no_endpoint" if _bypasses(node) else "bypass_off")
    if not probe.is_carried:
        return labelled("protocol")
    if peer.flags & PEER_F_KERNEL_PATH or probe.size > node.mtu:
        return labelled("peer_kernel_path" if peer.flags & PEER_F_KERNEL_PATH else "oversize")
    approval = view.approval(Direction.OUT)
    why = _obstacle(node, approval, view.now_ns)
    if not why and approval and approval[1].mark & node.routing_marks:
        why = "policy_routed"
    return labelled(why or "encap")


def arriving(probe: Probe, view: View) -> Reason:
    """Why from_wire would leave it, if the peer sends it as it should, and a NIC has verified its tunnel."""
    node, peer, target = view.node, view.origin, view.target
    if peer is None:
        return labelled("unknown_vtep")
    if peer.flags & PEER_F_KERNEL_PATH:
        return labelled("peer_kernel_path")
    if not _bypasses(node) or node.flags & NODE_F_OTHERS_BEHIND:
        return labelled("bypass_off")
    if target is None:
        return labelled("no_endpoint")
    if not probe.is_carried or probe.size > node.mtu:
        return labelled("oversize" if probe.is_carried else "protocol")
    return labelled(_obstacle(node, view.approval(Direction.IN), view.now_ns) or "decap")


def _bypasses(node: NodeEntry) -> bool:
    return node.bypass in (Bypass.LEARNED, Bypass.ALWAYS)


def _obstacle(node: NodeEntry, approval: tuple[FlowKey, FlowEntry] | None, now_ns: int) -> str:
    """As may_bypass() of bpf/flow.h; empty: it may."""
    if node.bypass is Bypass.ALWAYS:
        return ""
    if approval is None:
        return "flow_unknown"
    return "flow_expired" if now_ns - approval[1].approved_ns > node.approval_ttl_ns else ""
