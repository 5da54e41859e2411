"""Injected packet rates: what one core does with packets of 64 bytes, each way, and with many peers.

    peer (bare) -- eth0 --- eth0 -- host with an agent -- veth -- container

Decapsulation: the uplink receives VXLAN, and a sink in the container counts what comes.
Encapsulation: the container's port receives, and a sink at the peer counts, behind the veth
that is the wire. The generator works on the same core, so its work is in the figures, and
that of the skb; `direct` shows them without a host between.
"""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from ctl.core import abi
from ctl.core.model import Bypass, Lease, MacAddress
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.maps import layout_dir, open_maps
from ctl.store import open_store
from tests import packets
from tests.bench import inject
from tests.bench.inject import Injected, Sink, Spread
from tests.bench.measures import Conditions, tcp_1
from tests.bench.paths import Path as Way
from tests.bench.placement import Placement
from tests.bench.results import Collected
from tests.lab import Lab
from tests.namespace import Namespace
from tests.process import CommandFailed, wait_until

CPU: Final = 0
WARM_S: Final = 0.1
PAYLOAD: Final = bytes(64 - packets.ETH_LEN - packets.IP_LEN - 8)
"""So that the container's frame has 64 bytes."""
UNIT: Final = "packets/s"
SIZES: Final = (100, 1_000, 10_000, 100_000)
SUBNET_LEN: Final = 25
FIRST: Final = IPv4Network("10.1.0.0/25")
"""Subnet of the first simulated peer; the others follow."""
FIRST_HOST: Final = IPv4Address("172.20.0.0")


def mac_of(place: Namespace, device: str) -> MacAddress:
    return MacAddress.parse(json.loads(place.ip("-j", "link", "show", "dev", device))[0]["address"])


class Rig:
    """A host under test between a peer that is a lease and a cable only, and a container."""

    def __init__(self, lab: Lab, stem: str, subnet: IPv4Network, *flags: str) -> None:
        self.peer, self.host = lab.pair(f"{stem}p", f"{stem}h")
        self.agent = self.host.agent(*flags)
        self.container = self.host.container(f"{stem}c")
        self._far = subnet.network_address + 5
        self._vtep = MacAddress(b"\x02\x01" + subnet.network_address.packed)
        lease = Lease(subnet, IPv4Address(self.peer.address), self._vtep, 1, node=f"{stem}p")
        with closing(open_store(lab.store_url)) as store:
            store.put(lease, None)
        self.container.run("ping", "-c1", str(self.host.gateway.ip))  # so that it is an endpoint
        wait_until(self._knows_both, 30, lambda: f"peer and container are known\n{self.agent.log()}")
        self.peer.run("ping", "-c1", self.host.address)  # the sinks swallow answers
        self._sinks: dict[Namespace, Sink] = {
            place: Sink(place, "eth0", self.host.bpffs / "sink") for place in (self.container, self.peer)
        }

    def _knows_both(self) -> bool:
        route = str(self._far - 5) in self.host.ip("route")
        with open_maps(self.host.bpffs) as maps:
            node = maps.node()
            if node is None or node.bypass is Bypass.OFF:
                return route
            known = maps.lookup_endpoint(IPv4Address(self.container.address))
            return route and known is not None and maps.lookup_peer(self._far - 5) is not None

    def decap(self, seconds: float) -> float:
        """Packets a second of CPU time, from the uplink into the container."""
        datagram = self.datagram(self._far, IPv4Address(self.container.address))
        inner = packets.ether(datagram, self._vtep, mac_of(self.host, "ovnet.1"))
        tunnel = packets.udp(packets.vxlan(inner, 1), 40000, 8472)
        ends = IPv4Address(self.peer.address), IPv4Address(self.host.address)
        outer = packets.ipv4(tunnel, *ends, packets.UDP, fragment=0)
        outer = packets.ether(outer, mac_of(self.peer, "eth0"), mac_of(self.host, "eth0"))
        return self._rate("eth0", self.container, outer, seconds)

    def encap(self, seconds: float, spread: Spread | None = None, to: IPv4Address | None = None) -> float:
        """Packets a second of CPU time, from the container to the uplink; to one address or many."""
        datagram = self.datagram(IPv4Address(self.container.address), to or self._far)
        gateway = mac_of(self.host, self.host.bridge)
        frame = packets.ether(datagram, MacAddress.parse(self.container.mac), gateway)
        return self._rate(self.container.port, self.peer, frame, seconds, spread)

    @staticmethod
    def datagram(source: IPv4Address, to: IPv4Address) -> bytes:
        """A UDP packet as injected, 64 bytes with the Ethernet header."""
        return packets.ipv4(packets.udp(PAYLOAD, 1000, 2000), source, to, packets.UDP)

    def _rate(
        self, device: str, sink: Namespace, frame: bytes, seconds: float, spread: Spread | None = None
    ) -> float:
        before = self._sinks[sink].count()
        done = inject.inject(self.host, device, frame, seconds, CPU, spread)
        return _arrived(self._sinks[sink].count() - before, done)


def _arrived(count: int, done: Injected) -> float:
    if not count:
        raise CommandFailed(f"of {done.frames} injected packets none arrived")
    return count / done.cpu_s


def direct_rate(lab: Lab) -> Callable[[float], float]:
    """The rate into a bare namespace: what generator, skb and sink cost."""
    one, two = lab.pair("dp", "dh")
    two.bpffs.mkdir()
    sink = Sink(two, "eth0", two.bpffs / "sink")
    datagram = Rig.datagram(IPv4Address(one.address), IPv4Address(two.address))
    frame = packets.ether(datagram, mac_of(one, "eth0"), mac_of(two, "eth0"))

    def rate(seconds: float) -> float:
        before = sink.count()
        done = inject.inject(two, "eth0", frame, seconds, CPU)
        return _arrived(sink.count() - before, done)

    return rate


RIGS: Final[Mapping[str, tuple[str, ...]]] = {
    "kernel-vxlan": ("--bypass", "off"),
    "ebpf": (),
    "ebpf-xdp": ("--hook", "xdp"),
}
"""Paths with the flags of their agents; `direct` is beside them."""


def injected(
    rounds: int, seconds: float, tick: Callable[[str], None], kinds: Mapping[str, tuple[str, ...]] = RIGS
) -> Collected:
    """`inject_decap` and `inject_encap` by path; `tick` is told of each step."""
    found = Collected()
    with Lab() as lab:
        lab.init_network()
        bare = direct_rate(lab)
        rigs = {
            name: Rig(lab, f"i{number}", IPv4Network(f"172.17.{200 + number}.0/24"), *flags)
            for number, (name, flags) in enumerate(kinds.items())
        }
        runs = {"direct": (bare, bare)} | {name: (rig.decap, rig.encap) for name, rig in rigs.items()}
        for each in rigs.values():  # flows are learned, caches warm
            each.decap(WARM_S)
            each.encap(WARM_S)
        names = list(runs)
        for number in range(rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                tick(f"injected packets, {name}")
                decap, encap = runs[name]
                found.add(name, "inject_decap", UNIT, decap(seconds))
                found.add(name, "inject_encap", UNIT, encap(seconds))
    return found


# --- Many peers ---------------------------------------------------------------------------


class Crowd:
    """Simulated peers in the maps of a host, all by one next hop; by batches, as there are many."""

    def __init__(self, bpffs: Path, template: abi.PeerEntry, most: int) -> None:
        """`most`: the largest `size` there will be."""
        maps = layout_dir(bpffs) / "maps"
        self._peers, self._vteps = (
            syscall.Map(syscall.obj_get(str(maps / name))) for name in ("peers", "peer_stats")
        )
        self._size = 0
        subnet, host, rest = int(FIRST.network_address), int(FIRST_HOST), template.pack()[4:]
        self._subnets = [(subnet + i * FIRST.num_addresses).to_bytes(4, "big") for i in range(most)]
        self._hosts = [(host + i).to_bytes(4, "big") for i in range(most)]
        self._entries = [each + rest for each in self._hosts]
        self._counts = bytes(abi.PEER_STATS.size * syscall.possible_cpus())

    def resize(self, size: int) -> None:
        """Add or remove what is missing or too much."""
        new, old = slice(self._size, size), slice(size, self._size)
        change_batch(self._peers.fd, syscall.MAP_UPDATE_BATCH, self._subnets[new], self._entries[new])
        change_batch(
            self._vteps.fd, syscall.MAP_UPDATE_BATCH, self._hosts[new], [self._counts] * (size - self._size)
        )
        change_batch(self._peers.fd, syscall.MAP_DELETE_BATCH, self._subnets[old])
        change_batch(self._vteps.fd, syscall.MAP_DELETE_BATCH, self._hosts[old])
        self._size = size

    def close(self) -> None:
        self._peers.close()
        self._vteps.close()


def change_batch(fd: int, change: int, keys: Sequence[bytes], values: Sequence[bytes] = ()) -> None:
    """MAP_UPDATE_BATCH or MAP_DELETE_BATCH."""
    if not keys:
        return
    key, value = b"".join(keys), b"".join(values)
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, max(len(value), 1))
    attr = struct.pack("=QQQQIIQQ", 0, 0, ctypes.addressof(key_buffer),
                       ctypes.addressof(value_buffer) if value else 0, len(keys), fd, 0, 0)  # fmt: skip
    inject.command(change, attr)


def lookups(
    rounds: int, how: Conditions, tick: Callable[[str], None], sizes: tuple[int, ...] = SIZES
) -> Collected:
    """By number of peers: TCP to one of them, and ns a packet of 64 bytes to random ones."""
    found = Collected()
    with Lab() as lab:
        lab.init_network("10.0.0.0/8", SUBNET_LEN, "--subnet-min", "10.200.0.0")
        flags = ("--peers-max", str(1 << (max(sizes) + 1).bit_length()))
        rig = Rig(lab, "s", IPv4Network("10.250.0.0/25"), *flags)
        pair = lab.pair("ta", "tb")
        agents = [host.agent(*flags) for host in pair]
        client, server = pair[0].container("c"), pair[1].container("s")
        way = Way("ebpf", client, server, server.address, pair)
        client.run("ping", "-c3", "-i0.1", server.address)
        crowds = [_crowd(rig.host.bpffs, IPv4Network("10.250.0.0/25"), max(sizes))]
        crowds += [
            _crowd(host.bpffs, other.gateway.network, max(sizes)) for host, other in (pair, pair[::-1])
        ]
        for agent in (rig.agent, *agents):  # which would remove the crowd again; packets flow on
            agent.stop()
        with open_maps(rig.host.bpffs) as maps:  # each packet another flow: they need no approval
            node = maps.node()
            assert node is not None
            maps.write_node(replace(node, bypass=Bypass.ALWAYS))
        placement = Placement(lab.dir)
        for number in range(rounds):
            shift = number % len(sizes)
            for size in sizes[shift:] + sizes[:shift]:
                tick(f"{size:,} peers")
                for crowd in crowds:
                    crowd.resize(size)
                found.add(str(size), "tcp_1", "Gb/s", placement.settled(lambda: tcp_1(way, how)["tcp_1"]))
                spread = Spread(size, FIRST.num_addresses)
                rate = rig.encap(how.seconds / 2, spread, FIRST.network_address + 1)
                found.add(str(size), "encap_random", "ns/packet", 1e9 / rate)
        for crowd in crowds:
            crowd.close()
    return found


def _crowd(bpffs: Path, like: IPv4Network, most: int) -> Crowd:
    """A crowd reached as the peer `like` is."""
    with open_maps(bpffs) as maps:
        known = wait_until(lambda: maps.lookup_peer(like.network_address), 30, f"peer {like} is in the map")
    assert known is not None
    return Crowd(bpffs, known, most)
