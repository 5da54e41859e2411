"""Who of the other nodes answers on the overlay, how soon, and how large a packet: by echoes.

Packets have DF set, and what the kernel has learned of the path (IP_MTU) is not asked: it knows nothing where
no ICMP comes back, and too little once the path is better again. So the largest one is found by trying, many
sizes at once, in two rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, Generic

from ctl.backend.site import Site
from ctl.backend.vxlan.device import device_name
from ctl.core.errors import AgentUnreachable, KernelError
from ctl.core.family import IPV4, IPV6, Family, Member
from ctl.core.model import A, Bypass, Lease, MacAddress, N, Network
from ctl.core.probing import Carrier, Counted, Probed, carried, carriers
from ctl.core.roster import Roster
from ctl.kernel.bpf.maps import open_maps
from ctl.kernel.echo import SMALL, Answers, Echo
from ctl.kernel.netlink.session import Netlink, by_name
from ctl.kernel.past_tc import PastTc

PATIENCE_S: Final = 0.6
"""How long an answer is waited for."""
AGAIN: Final = 3
"""How many more echoes have to be missing before a node, or a size, is believed not to answer."""


def answering(
    echo: Echo[A],
    targets: Collection[A],
    size: int,
    enough: Callable[[], bool] = lambda: False,
    step: Callable[[], None] = lambda: None,
) -> dict[A, float]:
    """The first round trip, seconds, of each that answers packets of `size` bytes; some are asked again.

    `enough`: whether to end early; `step` is called after each request.
    """
    found: dict[A, float] = {}
    for count in (1, AGAIN):
        waiting = [target for target in targets if target not in found]
        answers = echo.ask(waiting, size, count, PATIENCE_S, step, enough)
        found |= {target: each.round_trips[0] for target, each in answers.items() if each.round_trips}
    return found


def largest(
    echo: Echo[A],
    there: Collection[A],
    mtu: int,
    enough: Callable[[], bool] = lambda: False,
    step: Callable[[], None] = lambda: None,
) -> dict[A, int]:
    """The largest packet that each answers, bytes, at most `mtu`; `there`: those that answer small ones.

    `enough` and `step`: as for `answering`.
    """
    whole = dict.fromkeys(answering(echo, there, mtu, enough, step), mtu)
    tight = [] if enough() else [target for target in there if target not in whole]
    return whole | echo.largest(tight, SMALL, mtu, PATIENCE_S)


def overlay_address(network: Network, lease: Member[A, N]) -> A:
    """The one at which a node speaks to the others and answers them, whether it has containers or not.

    Of IPv6 it is the bridge's: the base address of a router's subnet stands for all routers there
    (RFC 4291, 2.6.1), and nobody answers from it.
    """
    by_vtep = network.backend == "vxlan" and lease.subnet.version == 4
    return lease.vtep_ip if by_vtep else lease.gateway


def own_address(family: Family[A, N], site: Site) -> A:
    """The one at which we are answered on the overlay, in a family that we have."""
    own = family.member(site.lease)
    assert own is not None, f"we have no {family}"
    return overlay_address(site.network, own)


def usable(site: Site, leases: Sequence[Lease]) -> list[Lease]:
    """Those of the leases that are peers' and are used."""
    roster = Roster(IPV4, site.lease, site.network, site.underlay)
    roster.update(leases)
    return [lease for lease in leases if lease.key in roster.usable]


def addressed(family: Family[A, N], site: Site, peers: Iterable[Lease]) -> dict[A, Member[A, N]]:
    """Those of the peers that have the family, by the address at which each answers on the overlay."""
    members = (each for each in map(family.member, peers) if each and int(each.host))
    return {overlay_address(site.network, each): each for each in members}


# --- By each carrier -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane(Generic[A]):
    """Peers of one family, and what carries the echoes to them."""

    carrier: Carrier
    version: int
    """Of IP."""
    source: A
    members: Mapping[A, Member[A, Any]]
    """By overlay address."""
    device: str = ""
    """The vxlan device that is sent to past tc; empty: they go where packets of the host go."""


def lanes(bpffs: Path, bypass: Bypass, site: Site, peers: Sequence[Lease]) -> Iterator[Lane[Any]]:
    """All that lead to these peers. KernelError."""
    by_ebpf = _by_ebpf(bpffs, site) if bypass is not Bypass.OFF else {}
    yield from _lanes(IPV4, site, peers, by_ebpf)
    if site.has_ipv6:
        yield from _lanes(IPV6, site, peers, {})


def _lanes(
    family: Family[A, N], site: Site, peers: Sequence[Lease], by_ebpf: Mapping[Any, tuple[Carrier, ...]]
) -> Iterator[Lane[A]]:
    found: dict[tuple[Carrier, bool], dict[A, Member[A, N]]] = {}
    plainly = carriers(site.network.backend, None, gear=False)
    for address, member in addressed(family, site, peers).items():
        for turn, carrier in enumerate(by_ebpf.get(member.vtep_ip, plainly)):
            found.setdefault((carrier, turn > 0), {})[address] = member
    for (carrier, past), members in found.items():
        device = device_name(site.network, family.version) if past else ""
        yield Lane(carrier, family.version, own_address(family, site), members, device)


def _by_ebpf(bpffs: Path, site: Site) -> dict[IPv4Address, tuple[Carrier, ...]]:
    """By what each block of `peers` is reached; empty without maps."""
    if site.network.backend != "vxlan":
        return {}
    try:
        with open_maps(str(bpffs)) as maps:
            node = maps.node()
            gear = node is not None and node.tunnel_ifindex != 0
            return {base: carriers("vxlan", entry, gear=gear) for base, entry in maps.peers().items()}
    except AgentUnreachable:
        return {}


class Probe:
    """A look at other nodes: `count` echoes of `size` bytes for each; `enough`: whether to end early."""

    def __init__(
        self,
        bpffs: Path,
        netlink: Netlink,
        mtu: int,
        count: int,
        size: int,
        step: Callable[[], None],
        enough: Callable[[], bool],
    ) -> None:
        self._bpffs, self._netlink, self._mtu = bpffs, netlink, mtu
        self._count, self._size, self._step, self._enough = count, size, step, enough

    def look(self, lane: Lane[A]) -> dict[A, Probed]:
        """What each has shown that was asked. AgentError or KernelError if nobody can be."""
        with self._echo(lane) as echo:
            before = self._counted()
            asked = echo.ask(lane.members, self._size, self._count, PATIENCE_S, self._step, self._enough)
            after = self._counted()
            sizes = self._sizes(echo, asked)
        return {
            target: Probed(
                each.sent,
                each.round_trips,
                sizes.get(target, 0),
                carried(before, after, lane.members[target].host),
            )
            for target, each in asked.items()
            if each.sent
        }

    def _sizes(self, echo: Echo[A], asked: Mapping[A, Answers]) -> dict[A, int]:
        """The largest packet of each; who does not answer what was asked may answer small ones."""
        there = {target for target, each in asked.items() if each.round_trips}
        if self._size > SMALL:
            there |= answering(echo, asked.keys() - there, SMALL, self._enough).keys()
        return {} if self._enough() else largest(echo, there, self._mtu, self._enough)

    @contextmanager
    def _echo(self, lane: Lane[Any]) -> Iterator[Echo[Any]]:
        if not lane.device:
            with Echo(lane.source) as echo:
                yield echo
            return
        link = by_name(self._netlink.links(), lane.device)
        if link is None or link.mac is None:
            raise KernelError(f"the vxlan device {lane.device} is not here any more: ovctl doctor says more")
        macs = dict(_macs(lane.members.items()))
        with PastTc(link.name, link.mac, lane.source, macs) as past, Echo(lane.source, past.send) as echo:
            yield echo

    def _counted(self) -> Counted | None:
        """What eBPF has carried until now; None where it carries nothing. KernelError."""
        try:
            with open_maps(str(self._bpffs)) as maps:
                node = maps.node()
                return maps.peer_stats() if node is not None and node.tunnel_ifindex else None
        except AgentUnreachable:
            return None


def _macs(members: Iterable[tuple[Any, Member[Any, Any]]]) -> Iterator[tuple[Any, MacAddress]]:
    for address, member in members:
        assert member.vtep_mac is not None, "a Roster lets no other through"
        yield address, member.vtep_mac
