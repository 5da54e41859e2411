"""Which containers are there: by runtimes, namespaces, maps, neighbours and ARP. Nothing is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from ctl.core.bridge import ports
from ctl.core.cni import NETWORK_NAME
from ctl.core.errors import AgentError, OvnetError
from ctl.core.family import IPV4, IPV6
from ctl.core.host import Link
from ctl.core.ipam import Address, Reservation, Signs, Verdict, judge
from ctl.kernel import arp
from ctl.kernel.bpf.maps import open_maps
from ctl.kernel.netlink.inside import addresses_inside, look_inside
from ctl.kernel.netlink.session import Netlink, by_name
from ctl.node.host_local import reservations
from ctl.settings.config import Settings

PATIENCE_S: Final = 0.5
"""How long an answer to a request of ARP is waited for."""
_ANYWHERE: Final = IPv4Address("192.0.2.1")
"""Where a container's route leads does not matter here."""
_SANDBOXES: Final = (
    "run/containerd/io.containerd.runtime.v2.task/*/*",
    "run/containers/storage/overlay-containers/*",
    "run/docker/runtime-runc/moby/*",
)
"""Directories of running sandboxes, by their ids: containerd's, CRI-O's, Docker's."""


def judged(settings: Settings, netlink: Netlink, bridge: str, now: float) -> list[Verdict]:
    """What each address that is given out is. `bridge`: the containers'; `now`: seconds since the epoch.

    NotFound where none was ever given out; AgentError; KernelError.
    """
    reserved = reservations(directory(settings))
    return judge(reserved, signs_of_life(netlink, bridge, str(settings.bpffs), reserved), now)


def directory(settings: Settings) -> Path:
    """Where the addresses of our network are kept."""
    return settings.cni_data_dir / NETWORK_NAME


def signs_of_life(netlink: Netlink, bridge: str, bpffs: str, reserved: Collection[Reservation]) -> Signs:
    """What is seen of who may have these addresses.

    AgentError without such a bridge: who asks on another one takes all for dead. KernelError.
    """
    links = netlink.links()
    found = by_name(links, bridge)
    if found is None or found.mac is None:
        raise AgentError(f"no bridge {bridge} here, so nobody can be asked: systemctl start ovnet")
    own = next((each.ip for each in netlink.addresses(found.ifindex)), IPv4Address(0))
    targets = {each.address for each in reserved if isinstance(each.address, IPv4Address)}
    answers = arp.answers(bridge, found.mac, own, targets, PATIENCE_S)
    known = netlink.neighbours(found.ifindex, IPV4)
    behind = {address: known.ports[mac] for address, mac in known.macs.items() if mac in known.ports}
    near: list[Address] = [*netlink.resolved(IPV4), *netlink.resolved(IPV6)]
    signs: Sequence[tuple[Iterable[Address], str]] = (
        (near, "a neighbour that was heard of just now"),
        (behind, "a port leads to its MAC"),
        (_endpoints(bpffs), "an endpoint of eBPF"),
        (addresses_inside(), "a network namespace has it"),
        (answers, "answers ARP"),
    )
    addresses = {address: why for seen, why in signs for address in seen}
    return Signs(
        {each.address: addresses[each.address] for each in reserved if each.address in addresses},
        sandboxes(),
        _strangers(
            netlink,
            ports(found.ifindex, links),
            {*behind.values(), *(known.ports.get(mac) for mac in answers.values())},
        ),
    )


def sandboxes(root: Path = Path("/")) -> frozenset[str]:
    """Ids of the sandboxes that runtimes have, as far as this process sees their directories."""
    return frozenset(path.name for pattern in _SANDBOXES for path in root.glob(pattern))


def _endpoints(bpffs: str) -> list[IPv4Address]:
    with suppress(OvnetError), open_maps(bpffs) as maps:
        return list(maps.endpoints())
    return []


def _strangers(netlink: Netlink, plugged: Collection[Link], heard: Collection[int | None]) -> list[str]:
    """Ports of the bridge of which nothing tells which addresses are behind them, by name.

    `plugged`: those from before anybody was asked. One that has come since is of a container that is still
    made, whose address is young; one that has gone was of a container that could not be made. `heard`: of
    those that lead to an address that is known, the ifindex.
    """
    present = netlink.links()
    left = [link for link in plugged if link.ifindex in present and link.ifindex not in heard]
    seen: set[str] = set()
    if left:
        with suppress(OvnetError):  # may not look into them
            seen = {each.port for each in look_inside(netlink, left, _ANYWHERE) if each.addresses}
    return sorted(link.name for link in left if link.name not in seen)
