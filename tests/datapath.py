"""The programs in the kernel, on maps of their own: a packet in, a verdict and a packet out.

Nothing is attached or pinned (BPF_PROG_TEST_RUN); root is needed.
"""

from __future__ import annotations

import atexit
import mmap
import os
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Final, Self

from ctl.core import abi
from ctl.core.abi import (
    Direction,
    EndpointEntry,
    FlowEntry,
    FlowKey,
    Hook,
    Ip,
    NodeEntry,
    PeerEntry,
    PeerStats,
    Translation,
)
from ctl.core.family import IPV4, IPV6, Family
from ctl.core.model import Bypass, MacAddress
from ctl.core.reasons import REASONS
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.child import Bcc
from ctl.kernel.bpf.maps import Maps, Spec, specs
from ctl.kernel.bpf.ring import Ring
from ctl.kernel.bpf.source import CALLS_XDP, XDP, XDP_FRAGS, source
from tests import packets
from tests.lab import Lab
from tests.namespace import Namespace

STAGES: Final = {Hook.TO_OVERLAY: Hook.TUNNEL_OUT, Hook.FROM_WIRE: Hook.TUNNEL_IN}
"""Where the second part of a program counts."""
PROBES: Final = Path(__file__).parent / "bpf" / "probes.c"
EXTRA: Final = ("probe_aborted", "probe_unpulled")
"""Probes of from_wire in a state that no test run can bring about."""

FAMILIES: Final[Mapping[int, Family[Any, Any]]] = {4: IPV4, 6: IPV6}

LO: Final = 1
"""The ifindex that a packet of a test run has unless told otherwise."""
ELSEWHERE: Final = 99
"""Port of the endpoint OTHER."""

NODE: Final = NodeEntry(
    host=IPv4Address("192.168.50.1"),
    network=IPv4Network("10.1.0.0/16"),
    subnet=IPv4Network("10.1.1.0/24"),
    pool=(IPv4Address("10.1.1.0"), IPv4Address("10.1.255.255")),
    vni=0x123456,
    uplink_ifindex=LO,
    mtu=1450,
    vtep_mac=MacAddress.parse("02:01:00:00:00:01"),
    port=8472,
    source_ports=(32768, 60999),
    bypass=Bypass.LEARNED,
    approval_ttl_ns=5 * 10**9,
    flow_seed=0x5EEDC0DE,
    overlay_ifindex=90,
)
PEER_MAC: Final = MacAddress.parse("02:01:00:00:00:02")
PEER: Final = PeerEntry(
    IPv4Address("192.168.50.2"), PEER_MAC, NODE.port, NODE.vni, LO, IPv4Address("192.168.50.2")
)
PEER_SUBNET: Final = IPv4Network("10.1.2.0/24")
UPLINK: Final = 78
"""Ifindex of an interface by which PEER is reached, in the namespace of `underlay`."""
THIRD: Final = replace(PEER, host=IPv4Address("192.168.50.3"), next_hop=None)
THIRD_SUBNET: Final = IPv4Network("10.1.3.0/24")
NOBODY: Final = IPv4Address("10.1.77.1")
"""In the network, leased to no one."""
FOREIGN: Final = IPv4Address("203.0.113.9")
"""Outside of the network."""
SERVICE: Final = IPv4Address("10.1.0.1")
"""In the network, but not where leases are handed out: those begin with its second subnet."""

LOCAL: Final = IPv4Address("10.1.1.5")
OTHER: Final = IPv4Address("10.1.1.6")
REMOTE: Final = IPv4Address("10.1.2.9")
UPLINK_MAC: Final = MacAddress(bytes(6))
"""A test run takes a frame for its device's own if it has the MAC address of `lo`."""
MAC: Final = MacAddress.parse("02:02:00:00:00:05")
BRIDGE_MAC: Final = MacAddress.parse("02:02:00:00:00:01")
ENDPOINT: Final = EndpointEntry(LO, MAC, BRIDGE_MAC)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who is who, in one family: as the constants above are for IPv4."""

    node: NodeEntry
    peer: PeerEntry
    peer_subnet: IPv4Network | IPv6Network
    third: PeerEntry
    third_subnet: IPv4Network | IPv6Network
    nobody: Ip
    foreign: Ip
    service: Ip
    local: Ip
    other: Ip
    remote: Ip

    def __str__(self) -> str:
        return f"IPv{self.version}"

    @property
    def version(self) -> int:
        return self.node.host.version

    @property
    def kind(self) -> int:
        """What Ethernet calls the family."""
        return packets.IPV4 if self.version == 4 else packets.IPV6

    @property
    def ip_len(self) -> int:
        """Bytes of a header without options."""
        return packets.IP_LEN if self.version == 4 else packets.IPV6_LEN

    @property
    def outer_len(self) -> int:
        """All that stands before the inner frame of one from the wire, without options."""
        return packets.ETH_LEN + self.ip_len + 8 + 8

    @property
    def addresses(self) -> tuple[slice, slice]:
        """Where source and destination stand in an IP header."""
        at, size = (12, 4) if self.version == 4 else (8, 16)
        return slice(at, at + size), slice(at + size, at + 2 * size)

    @property
    def ping(self) -> tuple[int, int, int]:
        """Protocol of ping, types of question and answer."""
        return (packets.ICMP, 8, 0) if self.version == 4 else (packets.ICMPV6, 128, 129)

    def flow_out(
        self, proto: int = packets.UDP, sport: int = 1000, dport: int = 2000, **changes: Any
    ) -> FlowKey:
        """The flow from `local` to `remote`."""
        return replace(FlowKey(self.local, self.remote, sport, dport, LO, proto, Direction.OUT), **changes)

    def flow_in(
        self, proto: int = packets.UDP, sport: int = 2000, dport: int = 1000, **changes: Any
    ) -> FlowKey:
        """The flow from `remote` to `local`."""
        return replace(FlowKey(self.remote, self.local, sport, dport, LO, proto, Direction.IN), **changes)

    def sent(
        self,
        l4: bytes = b"",
        proto: int = packets.UDP,
        *,
        src: Ip | None = None,
        dst: Ip | None = None,
        **ip: Any,
    ) -> bytes:
        """A frame as the container sends it to its gateway; without `l4`, UDP 1000 to 2000."""
        body = l4 or packets.udp(b"payload!", 1000, 2000)
        packet = packets.ip(body, src or self.local, dst or self.remote, proto, **ip)
        return packets.ether(packet, MAC, BRIDGE_MAC, self.kind)

    def received(
        self,
        l4: bytes = b"",
        proto: int = packets.UDP,
        *,
        src: Ip | None = None,
        dst: Ip | None = None,
        **ip: Any,
    ) -> bytes:
        """The inner frame as the peer sends it; without `l4`, UDP 2000 to 1000."""
        body = l4 or packets.udp(b"payload!", 2000, 1000)
        packet = packets.ip(body, src or self.remote, dst or self.local, proto, **ip)
        return packets.ether(packet, PEER_MAC, self.node.vtep_mac, self.kind)

    def wire(
        self,
        frame: bytes,
        *,
        host: Ip | None = None,
        to: Ip | None = None,
        port: int = NODE.port,
        vni: int = NODE.vni,
        flags: int = packets.VXLAN_I,
        udp_len: int | None = None,
        dst_mac: MacAddress | None = None,
        **ip: Any,
    ) -> bytes:
        """A frame in VXLAN as it comes from the uplink; of IPv6 with the checksum outside."""
        datagram = packets.udp(packets.vxlan(frame, vni, flags=flags), 40000, port, length=udp_len)
        plain = {"fragment": 0} if self.version == 4 else {}
        outer = packets.ip(
            datagram, host or self.peer.host, to or self.node.host, packets.UDP, **{**plain, **ip}
        )
        return packets.ether(outer, MacAddress.parse("02:03:00:00:00:02"), dst_mac or UPLINK_MAC, self.kind)


INET: Final = Cast(
    NODE, PEER, PEER_SUBNET, THIRD, THIRD_SUBNET, NOBODY, FOREIGN, SERVICE, LOCAL, OTHER, REMOTE
)
_PEER6: Final = replace(PEER, host=IPv6Address("fd50::2"), next_hop=IPv6Address("fd50::2"))
INET6: Final = Cast(
    node=replace(
        NODE,
        host=IPv6Address("fd50::1"),
        network=IPv6Network("fd10::/48"),
        subnet=IPv6Network("fd10:0:0:1::/64"),
        pool=(IPv6Address("fd10:0:0:1::"), IPv6Address("fd10::ffff:ffff:ffff:ffff:ffff")),
        mtu=1430,
    ),
    peer=_PEER6,
    peer_subnet=IPv6Network("fd10:0:0:2::/64"),
    third=replace(_PEER6, host=IPv6Address("fd50::3"), next_hop=None),
    third_subnet=IPv6Network("fd10:0:0:3::/64"),
    nobody=IPv6Address("fd10:0:0:77::1"),
    foreign=IPv6Address("2001:db8::9"),
    service=IPv6Address("fd10::1"),
    local=IPv6Address("fd10:0:0:1::5"),
    other=IPv6Address("fd10:0:0:1::6"),
    remote=IPv6Address("fd10:0:0:2::9"),
)
"""The same places in the same order, so that a test may be of both."""


def underlay(lab: Lab) -> Namespace:
    """A namespace in which the FIB has the peers as the maps say, and the next hops' MAC addresses."""
    made = lab.namespace("underlay")
    made.sysctl("net.ipv4.ip_forward", "1")
    made.ip("link", "set", "lo", "up")
    made.ip("link", "add", "name", "uplink", "index", str(UPLINK), "type", "bridge")
    made.ip("address", "add", f"{NODE.host}/24", "dev", "uplink")
    made.ip("link", "set", "uplink", "up")
    made.ip("neigh", "add", str(PEER.next_hop), "lladdr", "02:03:00:00:00:02", "dev", "uplink")
    made.sysctl("net.ipv6.conf.all.forwarding", "1")
    made.sysctl("net.ipv6.conf.uplink.disable_ipv6", "0")
    made.ip("address", "add", f"{INET6.node.host}/64", "dev", "uplink", "nodad")
    made.ip("neigh", "add", str(INET6.peer.next_hop), "lladdr", "02:03:00:00:00:02", "dev", "uplink")
    return made


class Action(IntEnum):
    """What tc shall do (linux/pkt_cls.h)."""

    UNSPEC = 0xFFFFFFFF
    SHOT = 2
    REDIRECT = 7


class XdpAction(IntEnum):
    """What XDP shall do (linux/bpf.h)."""

    ABORTED = 0
    DROP = 1
    PASS = 2


@dataclass(frozen=True, slots=True)
class Result:
    """What a program made of a packet."""

    action: Action | XdpAction
    reason: str
    packet: bytes
    counted: tuple[int, int]
    """Packets and bytes that its counter rose by."""
    hash: int
    """skb->hash afterwards; only of a probe."""
    mark: int = 0
    priority: int = 0
    """skb->mark and skb->priority afterwards; not of XDP."""
    note: bytes = b""
    """Metadata in front of the packet; only of XDP."""
    gear: str = ""
    """What the tunnel gear said of it then; empty: it was not asked."""

    @property
    def tunnel(self) -> packets.Tunnel:
        """The packet as VXLAN."""
        return packets.Tunnel.parse(self.packet)


@cache
def bcc(version: int = 4) -> Bcc:
    """Programs and probes of one family, compiled once for a run of pytest."""
    text = f'{source(version)}\n#line 1 "{PROBES.name}"\n{PROBES.read_text()}'
    child = Bcc(text, patience_s=24 * 3600)
    atexit.register(child.close)
    # What comes first waits for the compiler, which may take longer than an approval lasts.
    with Maps(_created(_specs(1, 1, 1, version)), FAMILIES[version]) as maps:
        os.close(child.load(("from_wire",), maps)["from_wire"])
    return child


class Datapath:
    """Programs and maps of one node, which a `with` closes.

    `counters` is a plain array that is mapped into this process, where a node has one
    of each CPU: what a packet counted is then seen without a system call.
    """

    def __init__(
        self,
        *,
        peers: int = 16,
        endpoints: int = 512,
        flows: int = 1024,
        other: Mapping[str, Spec] | None = None,
        cast: Cast = INET,
    ) -> None:
        """Capacities in entries; `other`: maps to be something else than a node's; `cast`: of its family."""
        self.cast = cast
        bcc(cast.version)
        self._specs = _specs(peers, endpoints, flows, cast.version) | dict(other or {})
        self._raw = _created(self._specs)
        family = FAMILIES[cast.version]
        self.maps: Maps[Any] = Maps(self._raw, family)
        # Such an array is of programs for frames in one piece, or in several; a node has one of the two.
        self._others = _created({name: each for name, each in self._specs.items() if name == CALLS_XDP})
        self.maps_of_frags: Maps[Any] = Maps(self._raw | self._others, family)
        self._fds: dict[str, int] = {}
        size = self._specs["counters"].entries * abi.COUNTER.size
        self._counters = mmap.mmap(self._raw["counters"].fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._counters.close()
        for raw in (*self._raw.values(), *self._others.values()):
            raw.close()
        for fd in self._fds.values():
            os.close(fd)

    def clear(self) -> Self:
        """Empty every map. The programs stay loaded: the verifier takes longer with one than a test with
        all that it does.
        """
        for name, raw in (*self._raw.items(), *self._others.items()):
            _clear(raw, self._specs[name])
        return self

    def furnish(self, **node: Any) -> Self:
        """The usual: NODE (with changes), two peers, two endpoints."""
        cast = self.cast
        self.node(**node)
        self.peer(cast.peer_subnet, cast.peer)
        self.peer(cast.third_subnet, cast.third)
        self.endpoint(cast.local, ENDPOINT)
        self.endpoint(cast.other, replace(ENDPOINT, ifindex=ELSEWHERE))
        return self

    def node(self, **changes: Any) -> None:
        self.maps.write_node(replace(self.cast.node, **changes))

    def peer(self, subnet: IPv4Network | IPv6Network, entry: PeerEntry, *, vtep: bool = True) -> None:
        self._raw["peers"].update(subnet.network_address.packed, entry.pack())
        if vtep:
            self.vtep(entry.host)

    def vtep(self, host: Ip) -> None:
        self._raw["peer_stats"].update(host.packed, bytes(abi.PEER_STATS.size))

    def endpoint(self, address: Ip, entry: EndpointEntry) -> None:
        self._raw["endpoints"].update(address.packed, entry.pack())

    def approve(
        self,
        key: FlowKey,
        *,
        age_s: float = 0,
        mark: int = 0,
        priority: int = 0,
        to: Translation | None = None,
    ) -> None:
        """As if the kernel path had carried the flow `age_s` ago (or when the machine started), translated
        so.
        """
        now = time.clock_gettime_ns(MONOTONIC_COARSE)
        approved = max(now - int(age_s * 1e9), 0)
        entry = FlowEntry(
            approved, 0, 0, mark, priority, key.dscp, to, seal_of(flow_hash(key, self._seed()), to)
        )
        self._raw["flows"].update(place_of(key).pack(), entry.pack(self.cast.version))

    def _seed(self) -> int:
        """What the node's signatures are made with."""
        node = self.maps.node()
        return NODE.flow_seed if node is None else node.flow_seed

    def approved(self, key: FlowKey) -> bool:
        """Whether the flow is in the map, however long ago it was approved."""
        raw = self._raw["flows"].lookup(place_of(key).pack())
        return raw is not None and FlowEntry.unpack(raw[0]).dscp == key.dscp

    def translation(self, key: FlowKey) -> Translation | None:
        """What an approved flow is translated to; None: to nothing."""
        raw = self._raw["flows"].lookup(place_of(key).pack())
        return None if raw is None else FlowEntry.unpack(raw[0]).to

    def stats(self, host: Ip) -> PeerStats:
        """What eBPF has carried to and from a peer's host."""
        found = self._raw["peer_stats"].lookup(host.packed)
        assert found is not None
        return PeerStats.unpack(found)

    def fill(self, name: str, key: bytes, value: bytes) -> None:
        """An entry past all types."""
        self._raw[name].update(key, value)

    def fd(self, program: str) -> int:
        """A program, loaded when first asked for."""
        if program not in self._fds:
            maps = self.maps_of_frags if program == XDP_FRAGS else self.maps
            self._fds[program] = bcc(self.cast.version).load((program,), maps)[program]
        return self._fds[program]

    def run(
        self,
        program: str,
        packet: bytes,
        *,
        ifindex: int = 0,
        gso_size: int = 0,
        gso_segs: int = 0,
        hash: int = 0,
        cut: int = 0,
        vlan: int = 0,
        encapsulated: bool = False,
        mark: int = 0,
        ingress: int = 0,
        by: Datapath | None = None,
    ) -> Result:
        """One packet; anything from `hash` to `encapsulated` asks for the program's probe.

        Fails unless exactly one counter rose (and one of the tunnel gear's), and that by one packet.
        `by`: whose program gets it, and hands it over.
        """
        probed = bool(hash or cut or vlan or encapsulated)
        name = f"probe_{program}" if probed and not program.startswith("probe_") else program
        ctx = _context(
            (hash, cut, vlan, int(encapsulated), 0), ifindex, gso_size, gso_segs, mark=mark, ingress=ingress
        )
        before = self._counters[:]
        result, out, ctx_out, _ = syscall.prog_test_run((by or self).fd(name), packet, ctx=ctx)
        hook = Hook.FROM_WIRE if program in EXTRA else Hook[program.removeprefix("probe_").upper()]
        reason, counted, gear = self._counted(before, hook, max(gso_segs, 1))
        signed, mark, priority = (_word(ctx_out, at) for at in (_CB + 16, _MARK, _PRIORITY))
        return Result(Action(result), reason, out, counted, signed, mark, priority, gear=gear)

    def xdp(
        self, packet: bytes, *, meta: bytes = b"", program: str = XDP, by: Datapath | None = None
    ) -> Result:
        """One packet through a program for XDP, with metadata of someone's already in front of it.

        `by`: as for `run`.
        """
        before = self._counters[:]
        ctx = struct.pack("=6I", len(meta), len(meta) + len(packet), 0, 0, 0, 0)
        result, out, ctx_out, _ = syscall.prog_test_run((by or self).fd(program), meta + packet, ctx=ctx)
        reason, counted, _ = self._counted(before, Hook.FROM_WIRE_XDP, 1)
        (start,) = struct.unpack_from("=I", ctx_out)
        return Result(XdpAction(result), reason, out[start:], counted, 0, note=out[:start])

    def deliver(
        self, packet: bytes, note: bytes, *, vlan: int = 0, gso_size: int = 0, gso_segs: int = 0
    ) -> Result:
        """from_wire on a packet with this metadata (as much of it as is the note)."""
        before = self._counters[:]
        ctx = _context(struct.unpack("=5I", note), 0, gso_size, gso_segs, mark=vlan)
        result, out, _, _ = syscall.prog_test_run(self.fd("probe_delivery"), packet, ctx=ctx)
        reason, counted, gear = self._counted(before, Hook.FROM_WIRE, max(gso_segs, 1))
        return Result(Action(result), reason, out, counted, 0, gear=gear)

    def _counted(self, before: bytes, hook: Hook, packets: int) -> tuple[str, tuple[int, int], str]:
        """The reason of a packet that `hook` has just seen, packets and bytes; the tunnel gear's reason."""
        found = {Hook(at // abi.REASON_MAX): (REASONS[at % abi.REASON_MAX].label, counted)
                 for at, counted in _differences(before, self._counters[:])}  # fmt: skip
        gear = found.pop(STAGES[hook], ("", None)) if hook in STAGES else ("", None)
        assert list(found) == [hook], f"{hook.label} counted at other hooks: {found}"
        assert found[hook][1][0] == packets
        assert gear[1] in (None, found[hook][1]), "the gear counts another packet"
        return *found[hook], gear[0]


def _specs(peers: int, endpoints: int, flows: int, version: int) -> dict[str, Spec]:
    wanted = specs(peers, endpoints, flows, version)
    return wanted | {"counters": replace(wanted["counters"], kind="array")}


def _created(wanted: Mapping[str, Spec]) -> dict[str, syscall.Map]:
    return {name: syscall.Map(_create(name, spec)) for name, spec in wanted.items()}


def _clear(raw: syscall.Map, spec: Spec) -> None:
    if spec.kind == "ringbuf":
        with closing(Ring(raw.fd, spec.entries, bytes)) as ring:
            ring.clear()
        return
    if spec.kind == "prog_array":  # the kernel tells its entries one by one
        for index in range(spec.entries):
            raw.delete(struct.pack("=I", index))
        return
    for key, _ in list(raw.items()):
        if spec.kind == "array":
            raw.update(key, bytes(spec.value))
        else:
            raw.delete(key)


def _create(name: str, spec: Spec) -> int:
    flags = syscall.MMAPABLE if name == "counters" else spec.flags
    return syscall.map_create(spec.kind, name, spec.key, spec.value, spec.entries, flags)


MONOTONIC_COARSE: Final = 6
"""The programs' clock (linux/time.h); the fine one is ahead of it, in their future."""

# Offsets in struct __sk_buff (linux/bpf.h) of what a test run takes from its context.
_MARK, _PRIORITY, _INGRESS, _IFINDEX, _CB, _GSO_SEGS, _GSO_SIZE, _CTX_SIZE = 8, 32, 36, 40, 48, 164, 176, 192


def _word(context: bytes, at: int) -> int:
    word: int = struct.unpack_from("=I", context, at)[0]
    return word


def _context(
    cb: tuple[int, ...], ifindex: int, gso_size: int, gso_segs: int, *, mark: int = 0, ingress: int = 0
) -> bytes:
    raw = bytearray(_CTX_SIZE)
    struct.pack_into("=I", raw, _MARK, mark)
    struct.pack_into("=I", raw, _INGRESS, ingress)
    struct.pack_into("=I", raw, _IFINDEX, ifindex)
    struct.pack_into("=5I", raw, _CB, *cb)
    struct.pack_into("=I", raw, _GSO_SEGS, gso_segs)
    struct.pack_into("=I", raw, _GSO_SIZE, gso_size)
    return bytes(raw)


def _differences(before: bytes, after: bytes) -> list[tuple[int, tuple[int, int]]]:
    """The counters that changed: index, packets and bytes. One for each hook at the most."""
    size = abi.REASON_MAX * abi.COUNTER.size
    starts = [at for at in range(0, len(before), size) if before[at : at + size] != after[at : at + size]]
    assert starts, "no counter has changed"
    return [_difference(start // size, before[start:], after[start:]) for start in starts]


def _difference(hook: int, before: bytes, after: bytes) -> tuple[int, tuple[int, int]]:
    """That of one hook, whose counters come first in these."""
    old, new = memoryview(before).cast("Q"), memoryview(after).cast("Q")
    changed = [3 * each for each in range(abi.REASON_MAX) if old[3 * each] != new[3 * each]]
    assert len(changed) == 1, f"counters that changed: {changed}"
    (at,) = changed
    return hook * abi.REASON_MAX + at // 3, (new[at] - old[at], new[at + 1] - old[at + 1])


flow_out, flow_in = INET.flow_out, INET.flow_in
sent, received, wire = INET.sent, INET.received, INET.wire


def place_of(key: FlowKey) -> FlowKey:
    """The key that a flow's approval has in the map, as bpf/flow.h makes it."""
    return replace(key, dscp=0) if key.proto == packets.TCP else key


def flow_hash(key: FlowKey, seed: int = NODE.flow_seed) -> int:
    """The signature of a flow's packets, as bpf/flow.h computes it."""
    word = (1 << 64) - 1
    ends = [struct.unpack(f"={len(each.packed) // 4}I", each.packed) for each in (key.saddr, key.daddr)]
    sport, dport = (int.from_bytes(port.to_bytes(2, "big"), sys.byteorder) for port in (key.sport, key.dport))
    mixed = seed
    for saddr, daddr in zip(*ends, strict=True):
        mixed ^= saddr << 32 | daddr
        mixed = (mixed ^ mixed >> 32) * 0x9E3779B97F4A7C15 & word
    mixed ^= sport << 48 | dport << 32 | key.ifindex
    mixed = (mixed ^ mixed >> 29 ^ seed >> 32) * 0xBF58476D1CE4E5B9 & word
    mixed ^= key.dscp << 16 | key.proto << 8 | key.direction
    mixed = (mixed ^ mixed >> 32) * 0x94D049BB133111EB & word
    return mixed >> 32 | 1


def seal_of(hash: int, to: Translation | None) -> int:
    """What shows that a flow's entry is whole, as bpf/flow.h computes it."""
    if to is None:
        return hash
    *address, sport, dport = struct.unpack(f"={len(to.address.packed) // 4}IHH", to.pack())
    folded = 0
    for each in address:
        folded = (folded * 0x9E3779B1 + each) & 0xFFFFFFFF
    word: int = folded << 32 | sport << 16 | dport
    return hash ^ (word * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 32


def source_port(hash: int, ports: tuple[int, int] = NODE.source_ports) -> int:
    """udp_flow_src_port() of include/net/udp.h."""
    low, high = ports
    mixed = (hash ^ hash << 16) & 0xFFFFFFFF
    return (mixed * (high - low) >> 32) + low
