"""What a running node follows of a network config that has changed. Pure.

What hosts agree on by it (the tunnel, its port, whose the addresses are) they would have to change at one
moment, and a node's devices and lease are named after it: that takes a restart. The rest is each node's own
matter, and followed while packets flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ctl.core.model import IPv6Range, Network

KEYS: Final[Mapping[str, str]] = {
    "network": "Network",
    "subnet_len": "SubnetLen",
    "subnet_min": "SubnetMin",
    "subnet_max": "SubnetMax",
    "backend": "Backend.Type",
    "vni": "Backend.VNI",
    "port": "Backend.Port",
    "mtu": "Backend.MTU",
    "direct_routing": "Backend.DirectRouting",
    "ipv6": "EnableIPv6, IPv6Network",
}
"""The config's keys, as flannel has them, by the fields of a Network."""


def followed(running: Network, stored: Network) -> Network:
    """`running`, with all of `stored` that needs no restart.

    A pool that grows is followed, for peers come from all of it; where it shrinks, leases that are outside
    of it still count.
    """
    live = replace(running, mtu=stored.mtu, direct_routing=stored.direct_routing)
    same = (running.network, running.subnet_len) == (stored.network, stored.subnet_len)
    if same and stored.subnet_min <= running.subnet_min and running.subnet_max <= stored.subnet_max:
        live = replace(live, subnet_min=stored.subnet_min, subnet_max=stored.subnet_max)
    return live


def unfollowed(running: Network, stored: Network) -> str:
    """What of `stored` takes a restart, by the config's keys; empty: nothing does."""
    return changes(followed(running, stored), stored)


def changes(before: Network, after: Network) -> str:
    """The keys that differ, with both values; empty: none does."""
    differing = [name for name in KEYS if getattr(before, name) != getattr(after, name)]
    return ", ".join(
        f"{KEYS[name]} {_shown(getattr(before, name))} -> {_shown(getattr(after, name))}"
        for name in differing
    )


def _shown(value: object) -> str:
    """As the config would have it; what it has not is a dash."""
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case IPv6Range():
            return f"{value.network}, /{value.subnet_len} each"
    return str(value)
