"""One packet with all that its fate depends on, as one line of text: what fails can be replayed."""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Final, Self

from ctl.core.abi import (
    NODE_F_NO_ETHERNET,
    NODE_F_PEERS_INCOMPLETE,
    PEER_F_KERNEL_PATH,
    Direction,
    FlowKey,
)
from ctl.core.model import Bypass
from tests import packets
from tests.datapath import INET, INET6, LO, UPLINK, Cast, Datapath, Result, flow_hash

PORTS: Final = (1000, 2000, 20000)
DSCPS: Final = (0, 46)
CASTS: Final = {cast.version: cast for cast in (INET, INET6)}
FOREVER: Final = 1 << 62
MARK: Final = 7
"""That the kernel path has given each flow that it has approved."""


@dataclass(frozen=True, slots=True)
class World:
    """What a node is told, as far as it differs between trials."""

    bypass: Bypass = Bypass.LEARNED
    incomplete: int = 0
    """1: not all peers fit the map."""
    kernel_path: int = 0
    """1: only the kernel may send to PEER."""
    no_ethernet: int = 0
    """1: the uplink is no Ethernet. A test run's packets have the header all the same."""
    tunnel: int = 0
    """1: there is a vxlan device, and so the tunnel gear."""
    version: int = 4
    """Of the IP that its programs are for."""

    @property
    def cast(self) -> Cast:
        return CASTS[self.version]

    def furnish(self, datapath: Datapath) -> None:
        """The usual node in this world, with every flow of `approved_flows` approved."""
        flags = NODE_F_PEERS_INCOMPLETE if self.incomplete else 0
        flags |= NODE_F_NO_ETHERNET if self.no_ethernet else 0
        device = LO if self.tunnel else 0
        datapath.furnish(approval_ttl_ns=FOREVER, bypass=self.bypass, flags=flags, tunnel_ifindex=device)
        peer = replace(self.cast.peer, ifindex=UPLINK, flags=PEER_F_KERNEL_PATH if self.kernel_path else 0)
        datapath.peer(self.cast.peer_subnet, peer)
        for key in APPROVED[self.version]:
            datapath.approve(key, mark=MARK)


def approved_flows(cast: Cast) -> list[FlowKey]:
    """Both directions between `local` and `remote`, of all PORTS and DSCPS. Of TCP, which has one DSCP
    for each flow, those with the higher source port have the second one. Of ping, questions of code 0.
    """
    found = []
    makes = (cast.flow_out, cast.flow_in)
    proto, question, _ = cast.ping
    for make, ports in product(makes, product(PORTS, repeat=2)):
        found += [make(packets.TCP, *ports, dscp=DSCPS[ports[0] > ports[1]])]
    for dscp in DSCPS:
        for make, ports in product(makes, product(PORTS, repeat=2)):
            found += [make(packets.UDP, *ports, dscp=dscp)]
        found += [make(proto, port, question << 8, dscp=dscp) for make in makes for port in PORTS]
    return found


APPROVED: Final = {version: tuple(approved_flows(cast)) for version, cast in CASTS.items()}
"""By version of IP, in an order that is always the same."""
DIRECTIONS: Final = {
    "from_container": Direction.OUT,
    "to_overlay": Direction.OUT,
    "from_wire": Direction.IN,
    "to_container": Direction.IN,
    "from_wire_xdp": Direction.IN,
}


def signature(program: str, frame: bytes) -> int:
    """Of the flow that a frame says it is of. ValueError if it is too short for one."""
    return flow_hash(flow_of(program, frame))


def flow_of(program: str, frame: bytes) -> FlowKey:
    """The flow that a frame says it is of. ValueError if it is too short for one."""
    ip = packets.Ip.parse(frame[packets.ETH_LEN :])
    cast = CASTS[ip.src.version]
    l4 = frame[packets.ETH_LEN + cast.ip_len :]
    if len(l4) < 8:
        raise ValueError(f"no ports: {frame.hex()}")
    sport, dport, third = struct.unpack_from("!HHH", l4)
    if ip.proto == cast.ping[0]:
        sport, dport = third, sport
    make = cast.flow_out if DIRECTIONS[program] is Direction.OUT else cast.flow_in
    key = make(ip.proto, sport, dport, dscp=ip.tos >> 2)
    return replace(key, saddr=ip.src, daddr=ip.dst)


@dataclass(frozen=True, slots=True)
class Trial:
    """A program, a packet for it, and what stands beside the packet's bytes."""

    program: str
    frame: bytes
    world: World = World()
    hash: int = 0
    """Signature that it carries, 0: none."""
    vlan: int = 0
    """Tag beside the data, 0: none."""
    gso_size: int = 0
    gso_segs: int = 0
    note: bytes = b""
    """Metadata in front of it, as if XDP had left them."""

    def run(self, datapath: Datapath) -> Result:
        """Through the program."""
        if self.program == "from_wire_xdp":
            return datapath.xdp(self.frame)
        if self.note:
            return datapath.deliver(self.frame, self.note, vlan=self.vlan)
        return datapath.run(
            self.program,
            self.frame,
            hash=self.hash,
            vlan=self.vlan,
            gso_size=self.gso_size,
            gso_segs=self.gso_segs,
        )

    @property
    def segments(self) -> int:
        """Packets that it counts as."""
        return max(self.gso_segs, 1)

    def __str__(self) -> str:
        """`parse` reads it."""
        world = [f"{each.name}={getattr(self.world, each.name)}" for each in fields(World)]
        beside = [f"{name}={getattr(self, name)}" for name in BESIDE if getattr(self, name)]
        note = [f"note={self.note.hex()}"] if self.note else []
        return " ".join([f"program={self.program}", *world, *beside, *note, f"frame={self.frame.hex()}"])

    @classmethod
    def parse(cls, line: str) -> Self:
        """ValueError for a line that is none."""
        words = dict(word.split("=", 1) for word in line.split())
        try:
            names = ("incomplete", "kernel_path", "no_ethernet")
            known = {name: int(words.pop(name)) for name in names}
            known |= {name: int(words.pop(name, default)) for name, default in LATER.items()}
            world = World(Bypass(words.pop("bypass")), **known)
            program, frame = words.pop("program"), bytes.fromhex(words.pop("frame"))
            note = bytes.fromhex(words.pop("note", ""))
        except KeyError as error:
            raise ValueError(f"no {error} in: {line}") from None
        if unknown := words.keys() - set(BESIDE):
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        return cls(program, frame, world, note=note, **{name: int(value) for name, value in words.items()})


LATER: Final = {"tunnel": "0", "version": "4"}
"""What a line need not say: it may be older."""
BESIDE: Final = ("hash", "vlan", "gso_size", "gso_segs")
