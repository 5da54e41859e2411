"""Python's twin of bpf/reason.h: each reason's verdict and caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ctl.core.abi import Counter, Hook


class Verdict(StrEnum):
    """What became of the packet."""

    BYPASS = "bypass"
    """Carried by eBPF."""
    TUNNEL = "tunnel"
    """Carried by the kernel path but for the tunnel header, which is eBPF's."""
    PASS = "pass"
    """Left to the kernel path."""
    DROP = "drop"
    """Refused."""
    ABORT = "abort"
    """Dropped because of a bug, or because the kernel refused half-way."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A row of the table; `label` is the metrics' reason label."""

    number: int
    label: str
    verdict: Verdict
    caption: str


_BYPASS, _PASS, _DROP = Verdict.BYPASS, Verdict.PASS, Verdict.DROP

_TABLE: Final = (
    Reason(1, "encap", _BYPASS, "encapsulated and sent to the uplink"),
    Reason(2, "decap", _BYPASS, "decapsulated and delivered to the container"),
    Reason(3, "learned", _PASS, "carried by the kernel path unchanged: flow approved"),
    Reason(4, "not_ipv4", _PASS, "not IPv4 (ARP, IPv6 and others)"),
    Reason(5, "not_overlay", _PASS, "not overlay traffic"),
    Reason(6, "ip_options", _PASS, "IPv4 options, or extension headers"),
    Reason(7, "fragment", _PASS, "fragment of a container's packet"),
    Reason(8, "ttl", _PASS, "TTL runs out at this node"),
    Reason(9, "oversize", _PASS, "larger than the overlay's MTU"),
    Reason(10, "tcp_control", _PASS, "TCP SYN, FIN or RST, or no ACK"),
    Reason(11, "flow_unknown", _PASS, "flow not approved yet"),
    Reason(12, "flow_expired", _PASS, "approval expired: one packet renews it"),
    Reason(13, "no_endpoint", _PASS, "container address not known on any port"),
    Reason(14, "changed", _PASS, "translated by netfilter, or not a container's: not learned"),
    Reason(15, "peer_kernel_path", _PASS, "peer has no route that eBPF may use"),
    Reason(16, "bypass_off", _PASS, "bypass is off"),
    Reason(17, "not_routed", _PASS, "frame not addressed to the gateway"),
    Reason(18, "truncated", _PASS, "length is not what its headers say"),
    Reason(19, "protocol", _PASS, "not TCP, UDP or ICMP echo"),
    Reason(20, "vxlan_header", _PASS, "VXLAN flags or VNI not ours"),
    Reason(21, "inner_mac", _PASS, "inner MAC addresses not of this VTEP"),
    Reason(22, "ecn", _PASS, "congestion mark on a packet that cannot carry it"),
    Reason(23, "flows_full", _PASS, "flow could not be stored"),
    Reason(24, "no_room", _PASS, "no room for the tunnel header"),
    Reason(25, "vlan", _PASS, "VLAN-tagged frame"),
    Reason(26, "not_configured", _PASS, "no agent has configured this node yet"),
    Reason(27, "foreign_source", _PASS, "from a peer, but its source is no container's"),
    Reason(
        28, "outer_checksum", _PASS, "outer checksum is wrong, or only the kernel can verify or compute it"
    ),
    Reason(29, "udp_gso", _PASS, "UDP segments in one packet, which decap cannot unpack"),
    Reason(30, "peers_incomplete", _PASS, "from nobody known, but not all peers fit the map"),
    Reason(31, "inner_checksum", _PASS, "header checksum of a container's packet is wrong"),
    Reason(32, "delivered", _BYPASS, "decapsulated by XDP before, delivered to the container"),
    Reason(33, "outer_length", _PASS, "segments that are longer in the tunnel than its headers can say"),
    Reason(34, "tunnel_encap", Verdict.TUNNEL, "left netfilter, got its tunnel header, sent to the uplink"),
    Reason(35, "tunnel_decap", Verdict.TUNNEL, "rid of its tunnel header, gone into netfilter"),
    Reason(36, "not_local", _PASS, "not for this node's subnet: the device takes the tunnel off"),
    Reason(37, "policy_routed", _PASS, "its mark may lead it another way (ip rule fwmark)"),
    Reason(38, "no_neighbour", _PASS, "next hop's MAC address is not known yet: the device asks"),
    Reason(39, "super_packet", _PASS, "segments in one packet, or TCP data in order with them: the device's"),
    Reason(40, "unknown_vtep", _DROP, "VXLAN from a host that is no peer"),
    Reason(41, "spoofed_source", _DROP, "inner source address is not the sending peer's"),
    Reason(42, "outer_fragment", _DROP, "fragmented VXLAN (RFC 7348: VTEPs must not fragment)"),
    Reason(43, "outer_options", _DROP, "VXLAN with IP options outside: no VTEP sends any"),
    Reason(44, "tagged", _DROP, "VXLAN for us with a tag inside, or several outside"),
    Reason(45, "unreadable", _DROP, "perhaps VXLAN for us, but it could not be looked at"),
    Reason(46, "no_device", _PASS, "the vxlan device is not there"),
    Reason(47, "learned_translated", _PASS, "carried by the kernel path translated: flow approved so"),
    Reason(48, "translated", _PASS, "approved with a translation: from_wire does it"),
    Reason(49, "not_ipv6", _PASS, "not IPv6, where the programs for IPv6 look"),
    Reason(60, "aborted", Verdict.ABORT, "the kernel refused a change half-way: a bug"),
)

REASONS: Final[dict[int, Reason]] = {reason.number: reason for reason in _TABLE}
"""Every reason by number."""


def reason(number: int) -> Reason:
    """The row of a number; one from a newer datapath is shown, not hidden."""
    return REASONS.get(number) or Reason(number, f"reason_{number}", Verdict.PASS, "unknown to this version")


_BY_LABEL: Final = {reason.label: reason for reason in _TABLE}


def labelled(label: str) -> Reason:
    """The row of a label. KeyError for one that there is not."""
    return _BY_LABEL[label]


def total(
    counters: Mapping[tuple[Hook, int], Counter], where: Hook, wanted: Callable[[Reason], bool]
) -> Counter:
    """The sum of a hook's counters, by hook and number of the reason, over the reasons that are wanted."""
    found = [
        counter for (hook, number), counter in counters.items() if hook is where and wanted(reason(number))
    ]
    return Counter(sum(each.packets for each in found), sum(each.bytes for each in found))
