"""What else is on the host, looked at for what clashes with the overlay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ctl.backend.udp.files import device_port
from ctl.core.base_chains import Chain
from ctl.core.clash import Clashes, clashes
from ctl.core.family import IPV4, IPV6, Family
from ctl.core.host import OWNER, Ground, Link, Surroundings, Uplink
from ctl.core.lease import rank
from ctl.core.model import Lease, Network
from ctl.core.nat import probes
from ctl.kernel import nat
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.surroundings import look_around, look_at_underlay

_FLANNELS: Final = re.compile(r"flannel(0|\.\d+)")
"""Names of flannel's devices, which are of the overlay too: we take them over."""


def surroundings(netlink: Netlink, network: Network, uplink: Uplink, bridge: str) -> Surroundings:
    """Addresses and routes beside the overlay's, of the network's families. KernelError.

    `bridge`: the name of the containers'.
    """
    links = netlink.links()
    return look_around(netlink, families(network), uplink.link.ifindex, _ours(links, bridge), links)


def underlay(netlink: Netlink, network: Network, uplink: Uplink) -> tuple[Ground, ...]:
    """The uplink's own networks, of the network's families. KernelError."""
    return look_at_underlay(netlink, families(network), uplink.link)


def families(network: Network) -> Sequence[Family[Any, Any]]:
    """Those that a network has."""
    return [IPV4, IPV6] if network.ipv6 else [IPV4]


def _ours(links: Mapping[int, Link], bridge: str) -> frozenset[int]:
    """Ifindexes of the overlay's devices, by whatever version of us they were made, or by flannel."""
    return frozenset(
        link.ifindex
        for link in links.values()
        if link.alias == OWNER
        or link.name == bridge
        or (link.kind == "tun" and device_port(link.name))
        or (link.kind in ("vxlan", "tun") and _FLANNELS.fullmatch(link.name))
    )


def look_for_clashes(
    network: Network,
    own: Lease,
    leases: Sequence[Lease],
    around: Surroundings,
    chains: Sequence[Chain],
    ways: Sequence[str],
    bridge: str,
) -> Clashes:
    """What clashes now in each family, others' rules included. KernelError.

    `chains`: this host's base chains of nftables; `ways`: names of the interfaces by which packets
    go to other nodes; `bridge`: of the one to ours.
    """
    problems: list[str] = []
    warnings: list[str] = []
    for family in families(network):
        space, member = family.space(network), family.member(own)
        if space is None or member is None:
            continue
        others = sorted(filter(None, map(family.member, leases)), key=rank)
        found = clashes(space, member.subnet, others, around.of(family.version))
        peers = (each.subnet for each in others[:_PEERS_ASKED])
        rules = nat.complaints(family.version, chains, probes(space, member.subnet, peers, ways, bridge))
        problems += (*found.problems, *rules)
        warnings += found.warnings
    return Clashes(tuple(problems), tuple(warnings))


_PEERS_ASKED: Final = 10
"""For so many nodes others' rules are asked, beside the first and the last subnet that there can be."""
