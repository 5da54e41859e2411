"""What a node has found of itself while reconciling, for its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ctl.core.host import Surroundings, Uplink
from ctl.core.losing import Way
from ctl.core.model import HookMode
from ctl.core.report import KernelPort


class Concern(StrEnum):
    """What lines about something wrong are about. New lines of a concern take the place of the old ones."""

    UPLINK = "uplink"
    """The interface of the underlay is not the one that was asked for."""
    UPLINK_IPV6 = "uplink IPv6"
    """It has no IPv6 address to be reached at (any more)."""
    NETWORK = "network"
    """The network in the store has changed, or is gone."""
    MASS_REMOVAL = "mass removal"
    """Many leases are gone at once."""
    LEASES = "leases"
    """Leases that are not used, or in doubt."""
    IPV6_LEASES = "IPv6 leases"
    """The same, as far as IPv6 goes."""
    IPV4_ONLY = "IPv4 only"
    """Nodes of a network with IPv6 that have none."""
    IPV6_PROGRAMS = "IPv6 programs"
    """There are none: the kernel path carries all IPv6."""
    POLICY = "policy"
    """Rules of policy routing keep packets or peers on the kernel path."""
    IPV6_POLICY = "IPv6 policy"
    """The same, as far as IPv6 goes."""
    NEWCOMER = "newcomer"
    """Another uplink would be found now than the one that is used."""
    ARP = "arp"
    """Another interface may answer ARP for our address."""
    IPSEC = "ipsec"
    """IPsec policies keep peers on the kernel path."""
    BRIDGE = "bridge"
    """The bridge is another one's, and not as containers need it: the node is not ready."""
    BRIDGE_MTU = "bridge MTU"
    """The bridge is another one's, and its own network has a smaller MTU for our sake."""
    CLASH = "clash"
    """What else is on this host takes packets of the overlay, or changes their addresses."""
    OVERLAP = "overlap"
    """Addresses and routes of this host in the overlay's network, where they harm nobody yet."""
    FORWARDING = "forwarding"
    """Interfaces of others' do not forward what comes in by them."""
    FORWARD = "forward"
    """Chains of others' drop what is forwarded."""
    LEGACY = "legacy iptables"
    """There are rules that cannot be looked at: perhaps they do."""
    FLANNELD = "flanneld"
    """A flanneld runs beside this agent, on the same network."""
    PINS = "pins"
    """A newer version's pins are in the way."""
    PEERS = "peers"
    """The maps have no room for all peers."""
    IPV6_PEERS = "IPv6 peers"
    """The same, as far as IPv6 goes."""
    ENDPOINTS = "endpoints"
    """The maps have no room for all containers."""
    IPV6_ENDPOINTS = "IPv6 endpoints"
    """The same, as far as IPv6 goes."""
    XDP = "xdp"
    """Someone else's XDP program is on the uplink."""
    CNI = "cni"
    """Container runtimes cannot be told of this node, or are told something else."""
    DROPS = "drops"
    """Samples of dropped packets cannot be read."""
    COUNTING = "counting"
    """What is counted cannot be read, so that nobody sees whether packets are lost."""
    WATCHING = "watching"
    """What ends without an event cannot be asked for."""
    RULES = "rules"
    """Our rules drop what strangers and containers send."""
    ASTRAY = "astray"
    """Our rules drop what may be packets of peers."""
    SILENT = "silent"
    """Peers that packets go to do not answer: they may be gone, and this node be well."""
    BLIND = "blind"
    """A program of ours does not see the packets that pass where it hangs."""
    OTHERS = "others"
    """A program of ours is before those of others, and leaves all to them."""

    def of(self, version: int) -> Concern:
        """Its like for that IP version: each family has lines of its own."""
        return self if version == 4 else Concern(f"IPv6 {self}")


IPSEC_LINE: Final = "IPsec policies are set: all peers by the kernel path, which meets them"
"""The line of Concern.IPSEC."""

UNHEALTHY: Final = frozenset({Concern.CNI, Concern.CLASH, Concern.FORWARD, Concern.ASTRAY, Concern.BLIND})
"""Where lines of these concerns are, containers do not start or do not reach each other as they should, or
are not guarded: the node may be ready, and is not healthy."""

WARNINGS: Final = frozenset(
    {
        Concern.BRIDGE_MTU,
        Concern.OVERLAP,
        Concern.POLICY,
        Concern.IPV6_POLICY,
        Concern.NEWCOMER,
        Concern.ARP,
        Concern.RULES,
        Concern.IPV4_ONLY,
    }
)
"""Concerns whose lines are worth knowing, and no fault."""


Problems = dict[Concern, tuple[str, ...]]
"""Lines for people about what is wrong now. A concern without lines is well."""


@dataclass(slots=True)
class Findings:
    """What the last reconciles found. One thread's."""

    uplink: Uplink | None = None
    """The interface of the underlay, and our address on it; None: not looked for yet."""
    mtu: int = 0
    """Size of the largest packet that containers may send, bytes; 0: not known yet."""
    problems: Problems = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    """How many entries have been put or removed since the start, by the name of the table."""
    peers_ebpf: int = 0
    """Peers' subnets that eBPF carries packets to."""
    peers_kernel_path: int = 0
    """Peers' subnets that only the kernel path leads to."""
    peers_ipv6: int | None = None
    """Peers' IPv6 subnets that packets are routed to; None: this node has no IPv6."""
    peers_ipv6_ebpf: int | None = None
    """Those of them that eBPF carries packets to; None: it carries no IPv6."""
    peers_silent: int = 0
    """Peers that packets go to and nothing comes back from."""
    ports: tuple[str, ...] = ()
    """Names of the bridge's ports that have our programs, sorted."""
    kernel_ports: tuple[KernelPort, ...] = ()
    """The bridge's other ports, each with the reason why it has none."""
    program: str = ""
    """Digest of the programs that are loaded; empty: none are."""
    hook: HookMode = HookMode.TC
    """Where packets from the uplink meet our programs first."""
    hook_refused: str = ""
    """Why XDP that was asked for is not; empty if it is, or was not asked for."""
    blind: tuple[str, ...] = ()
    """Names of our programs that do not see the packets that pass where they hang."""
    losing: Mapping[Way, str] = field(default_factory=dict)
    """Where all packets are lost at present, a line each."""
    surroundings: Surroundings = field(default_factory=Surroundings)
    """What else is on this host, as it was looked at last."""

    def say(self, concern: Concern, version: int, text: str) -> None:
        """One line about that IP version in place of the one before; empty: all is well."""
        line = text if version == 4 else f"IPv{version}: {text}"
        self.problems[concern.of(version)] = (line,) if text else ()

    def count(self, table: str, operations: int) -> None:
        self.operations[table] = self.operations.get(table, 0) + operations
