"""The way to one peer, and the one cause why it does not answer. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ctl.core.diagnosis.finding import Finding, failure, warning
from ctl.core.family import Member
from ctl.core.model import VXLAN_IPV6_OVERHEAD, VXLAN_OVERHEAD

_ASKING: Final = {4: "ARP", 6: "neighbour solicitation"}
"""How MAC addresses are asked for, by IP version."""
_OVERHEAD: Final = {4: VXLAN_OVERHEAD, 6: VXLAN_IPV6_OVERHEAD}


@dataclass(frozen=True, slots=True)
class Way:
    """What was seen of the way to one peer."""

    lease: Member[Any, Any]
    device: str
    """The interface that its subnet is routed to; empty: there is no route."""
    neighbour: str
    """The next hop to its host, if nobody tells its MAC; empty: it is known."""
    wanted: str
    """The interface that its subnet has to be routed to."""
    uplink: str = ""
    """The interface that its host is routed to."""
    underlay: bool = True
    """Whether the peer's host answers echoes on the underlay."""
    answered: bool = True
    """Whether its overlay address answers small echoes."""
    largest: int = 0
    """The largest packet that it answers, bytes; 0: it was not asked."""
    strict: str = ""
    """The uplink, if it takes only what the FIB would send back by it (rp_filter 1), and the FIB leads to the
    peer's host elsewhere."""
    closed: bool = False
    """Whether its host says by ICMP that nothing listens on the tunnel's port."""
    spoilt: bool = False
    """Whether it gets datagrams whose checksums are whole, and none whose checksum a device has to finish."""
    underlay_mtu: int = 0
    """The largest echo without fragments that its host answers, bytes; 0: all that are sent, or none."""

    @property
    def overhead(self) -> int:
        """Bytes that the tunnel adds to a packet."""
        return _OVERHEAD[self.lease.subnet.version]

    def echoes_cut_short(self) -> bool:
        """Whether large echoes are filtered: packets of the tunnel pass where echoes of their size do not."""
        return 0 < self.underlay_mtu < self.largest + self.overhead


def of_way(way: Way, mtu: int, port: int) -> Iterator[Finding]:
    """The one cause why a peer cannot be reached, or only by small packets. `port`: UDP, of the tunnel."""
    lease, version = way.lease, way.lease.subnet.version
    who = f"{lease.node or lease.host} ({lease.subnet})"
    if way.device != way.wanted:
        yield failure(
            "peer",
            f"{who} is routed to {way.device or 'nothing'}, not to {way.wanted}",
            "another route is more specific, or comes first in the rules",
            f"ip route get {lease.gateway}; ip route show table all; ip rule",
        )
    elif not way.answered and way.strict:
        yield failure(
            "peer",
            f"{who} answers nothing: its packets come in by {way.strict}, and the route back is another",
            f"rp_filter of {way.strict} is strict, and drops them",
            f"sysctl -w net.ipv4.conf.{way.strict}.rp_filter=2 (and conf.all, if that is 1)",
        )
    elif way.neighbour and not way.answered:
        yield failure(
            "peer",
            f"{who} answers nothing, and the next hop to it ({way.neighbour}) no {_ASKING[version]}",
            "the host is down, or cable, VLAN or a security group keep it apart",
            f"ip neigh; arping the next hop; ping {lease.host}",
        )
    elif not way.answered:
        yield _silent(who, way, port)
    elif way.spoilt:
        yield failure(
            "peer",
            f"{who} answers datagrams whose checksums are whole, and none whose checksums a device finishes",
            "a device or its driver breaks checksums that it is to finish: pings pass, TCP and UDP do not",
            f"ethtool -K {way.uplink} tx off, on both hosts; is there a newer driver?",
        )
    elif way.largest and way.largest < mtu and not way.echoes_cut_short():
        yield failure(
            "peer",
            f"{who} answers packets up to {way.largest} bytes, not {mtu}",
            f"the underlay loses what is larger than {way.largest + way.overhead} bytes",
            _smaller(way.largest + way.overhead),
        )
    elif way.underlay_mtu and way.underlay_mtu < mtu + way.overhead:
        yield warning(
            "peer",
            f"{who} is reached; its host {lease.host} answers whole echoes up to {way.underlay_mtu} bytes,"
            f" not {mtu + way.overhead}",
            "the path fragments the tunnel's packets, which is slow, or somebody filters large echoes",
            f"tracepath -n {lease.host}; where the path is smaller, {_smaller(way.underlay_mtu)}",
        )


def _smaller(underlay: int) -> str:
    """The remedy for a path that takes packets of so many bytes."""
    return f"raise the underlay's MTU, or lower ours: ovctl network init --mtu {underlay} --force"


def _silent(who: str, way: Way, port: int) -> Finding:
    host = way.lease.host
    if way.closed:
        return failure(
            "peer",
            f"{who} answers nothing: nothing listens on UDP {port} of its host {host}",
            "no agent has made a tunnel there, or one on another port",
            f"on {host}: ovctl status; ovctl agent, with the same network (Port) in the store",
        )
    if way.underlay:
        return failure(
            "peer",
            f"{who} answers nothing, its host {host} does",
            f"the underlay or a firewall stops UDP {port}, or no agent runs there",
            f"on both hosts: tcpdump -ni any udp port {port}; there: ovctl doctor; open UDP {port} both ways",
        )
    return failure(
        "peer",
        f"{who} answers nothing, nor does its host {host}",
        "the host is down, or the underlay leads nowhere",
        f"ping {host}; ip route get {host}",
    )
