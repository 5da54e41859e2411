"""What else is on the host, looked at for what clashes with the overlay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ctl.backend.udp.files import device_port
from ctl.core.base_chains import Chain
from ctl.core.clash import Clashes, clashes
from ctl.core.host import OWNER, Link, Surroundings, Uplink
from ctl.core.model import IPv4Network, Lease, Network
from ctl.core.nat import probes
from ctl.kernel import nat
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.surroundings import look_around

_FLANNELS: Final = re.compile(r"flannel(0|\.\d+)")
"""Names of flannel's devices, which are of the overlay too: we take them over."""


def surroundings(netlink: Netlink, uplink: Uplink, bridge: str) -> Surroundings:
    """Addresses and routes beside the overlay's. `bridge`: the name of the containers'. KernelError."""
    links = netlink.links()
    return look_around(netlink, uplink.link.ifindex, _ours(links, bridge), links)


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
    own: IPv4Network,
    leases: Sequence[Lease],
    around: Surroundings,
    chains: Iterable[Chain],
    ways: Iterable[str],
    bridge: str,
) -> Clashes:
    """What clashes now, others' rules included. KernelError.

    `chains`: this host's base chains of nftables; `ways`: names of the interfaces by which packets
    go to other nodes; `bridge`: of the one to ours.
    """
    found = clashes(network, own, leases, around)
    peers = (lease.subnet for lease in leases[:_PEERS_ASKED])
    rules = tuple(nat.complaints(chains, probes(network, own, peers, ways, bridge)))
    return replace(found, problems=(*found.problems, *rules))


_PEERS_ASKED: Final = 10
"""For so many nodes others' rules are asked, beside the first and the last subnet that there can be."""
