"""Hostile packets, one row each, by tc, by XDP and by the kernel path alone (`--bypass=off`).

    outside --+                              sends on the underlay, with any outer source
    b, c -----+-- underlay -- a -- ovnet0 -- victim
                                   ovnet0 -- evil: an attacker in a container

Everywhere stands a socket, and on a's cable a tap: what a row sends may show up nowhere but
where the row says. Its frames are in the flow of a true packet that is approved, so that a
program that believes them would deliver them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import pytest

from ctl.core.abi import Hook
from ctl.core.model import MacAddress
from ctl.core.reasons import REASONS, Verdict
from ctl.kernel.bpf.maps import Maps, open_maps
from tests import packets
from tests.host import Container, Host
from tests.lab import Lab, wait_until
from tests.netns.conftest import Pair, build
from tests.netns.test_source_check import GOOD, VICTIM_PORT, VXLAN_PORT, Forgery, device_mac, listener, send
from tests.netns.test_xdp import like_a_wire
from tests.packets import Ip, Tunnel

SOON = 10
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
"""linux/socket.h, linux/if_packet.h"""
EVIL = b"hostile"
MODES = {
    "tc": ("--hook", "tc", "--approval-ttl", "60"),
    "xdp": ("--hook", "xdp", "--approval-ttl", "60"),
    "off": ("--bypass", "off"),
}
IP, UDP, VXLAN, INNER, INNER_IP, INNER_UDP = 14, 34, 42, 50, 64, 84
"""Where the headers of a true frame begin."""
BROADCAST = MacAddress.parse("ff:ff:ff:ff:ff:ff")
NOBODY = MacAddress.parse("02:00:00:00:00:99")
NOBODYS = IPv4Address("172.17.250.9")
"""In the network, in nobody's subnet."""


@dataclass
class Site:
    """Two nodes in one mode, an attacker on either side, and what shows up where."""

    pair: Pair
    third: Host
    evil: Container
    true: Forgery
    """As b itself would send it to the victim."""
    sinks: dict[str, socket.socket]
    tap: socket.socket
    """What a sends on its cable."""
    maps: Maps[IPv4Address]
    mode: str
    seen: set[str] = field(default_factory=set)

    @property
    def off(self) -> bool:
        return self.mode == "off"

    @property
    def xdp(self) -> bool:
        return self.mode == "xdp"

    def look(self) -> bool:
        """Note where something hostile has shown up; whether a true packet has reached the victim."""
        good = False
        for place, sink in self.sinks.items():
            for data in drained(sink):
                if data == GOOD:
                    good |= place == "victim"
                else:
                    self.seen.add(place)
        if any(relayed(frame) for frame in drained(self.tap)):
            self.seen.add("wire")
        return good

    def send_true(self) -> None:
        """When it is there, nothing sent earlier is still on its way."""
        send(self.pair.outside, replace(self.true, payload=GOOD).frame())
        wait_until(self.look, SOON, "a true packet reaches the victim")

    def counted(self, why: str) -> int:
        """Packets for a reason of the programs, or by a rule of ours with that comment."""
        if " " in why:
            text = self.pair.a.run("nft", "list", "table", "ip", "ovnet").stdout
            lines = [line.split() for line in text.splitlines() if f'"{why}"' in line]
            return sum(int(words[words.index("packets") + 1]) for words in lines)
        (reason,) = (reason for reason in REASONS.values() if reason.label == why)
        hooks = [Hook.FROM_WIRE, Hook.FROM_CONTAINER]
        if reason.verdict is Verdict.DROP:  # what XDP leaves to tc is counted there again
            hooks.append(Hook.FROM_WIRE_XDP)
        counters = self.maps.counters()
        return sum(
            counters[hook, reason.number].packets for hook in hooks if (hook, reason.number) in counters
        )


def drained(sink: socket.socket) -> Iterator[bytes]:
    with suppress(BlockingIOError):
        while True:
            yield sink.recv(1 << 16)


def relayed(frame: bytes) -> bool:
    """Whether it carries the packet itself; an ICMP error only quotes it."""
    with suppress(ValueError):
        ip = Ip.parse(frame[IP:])
        if ip.proto == packets.UDP and frame[UDP + 2 : UDP + 4] == struct.pack("!H", VXLAN_PORT):
            ip = Ip.parse(Tunnel.parse(frame).frame[IP:])
        return ip.proto == packets.UDP and EVIL in frame
    return False


def tap() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    made.bind(("a", 0x0003))
    made.setblocking(False)
    return made


def peer_of(host: Host, other: Host) -> Any:
    """The other's entry in this host's map; None if it has none yet."""
    return next((row for row in host.json("map", "dump", "peers") if row["host"] == other.address), None)


def truth(pair: Pair) -> Forgery:
    peer, us = peer_of(pair.a, pair.b), peer_of(pair.b, pair.a)
    return Forgery(
        macs=(device_mac(pair.outside, "eth0"), device_mac(pair.a, "eth0")),
        inner_macs=(MacAddress.parse(peer["vtep_mac"]), MacAddress.parse(us["vtep_mac"])),
        host=IPv4Address(pair.b.address),
        to=IPv4Address(pair.a.address),
        source=IPv4Address(pair.on_b.address),
        target=IPv4Address(pair.on_a.address),
        vni=peer["vni"],
        payload=EVIL,
    )


@pytest.fixture(scope="module", params=MODES)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Lab() as lab, ExitStack() as stack:
        pair = build(lab, *MODES[request.param])
        if request.param == "xdp":
            like_a_wire(lab, pair.a, pair.b)
        with suppress(FileNotFoundError):  # it would sort the frames out on the switch already
            lab.wire.sysctl("net.bridge.bridge-nf-call-iptables", "0")
        third = lab.host("c")
        third.agent(*MODES[request.param])
        for host, other in ((pair.a, third), (third, pair.b)):
            wait_until(partial(peer_of, host, other), SOON, f"{host.name} knows {other.name}")
        evil = pair.a.container("evil")
        pair.on_a.run("ping", "-c2", "-i0.1", "-W2", pair.on_b.address)
        evil.run("ping", "-c1", "-W2", pair.on_b.address)
        places = {"victim": pair.on_a, "evil": evil, "a": pair.a, "b": pair.b, "remote": pair.on_b,
                  "c": third, "outside": pair.outside}  # fmt: skip
        sinks = {name: stack.enter_context(place.call(listener)) for name, place in places.items()}
        maps = stack.enter_context(open_maps(pair.a.bpffs))
        wire = stack.enter_context(lab.wire.call(tap))
        site = Site(pair, third, evil, truth(pair), sinks, wire, maps, request.param)
        for _ in range(3):  # a true flow, approved
            site.send_true()
        yield site


def summed(frame: bytes, at: int) -> bytes:
    """With the right checksum in the IPv4 header at `at`."""
    head = frame[at : at + 10] + bytes(2) + frame[at + 12 : at + 20]
    return frame[: at + 10] + struct.pack("!H", packets.checksum(head)) + frame[at + 12 :]


def patched(frame: bytes, at: int, data: bytes) -> bytes:
    """Bytes replaced, IPv4 checksums right again."""
    return summed(summed(frame[:at] + data + frame[at + len(data) :], IP), INNER_IP)


def cut(frame: bytes, length: int) -> bytes:
    """Cut to `length`, with outer lengths that know of it."""
    short = frame[:length]
    if length >= UDP + 8:
        short = short[: UDP + 4] + struct.pack("!H", length - UDP) + short[UDP + 6 :]
    return summed(short[: IP + 2] + struct.pack("!H", length - IP) + short[IP + 4 :], IP)


Frames = Callable[[Site], list[bytes]]


def forged(**changes: object) -> Frames:
    return lambda site: [replace(site.true, **changes).frame()]  # type: ignore[arg-type]


def by_a_stranger(frames: Frames) -> Frames:
    def made(site: Site) -> list[bytes]:
        source = IPv4Address(site.pair.outside.address).packed
        return [patched(frame, IP + 12, source) for frame in frames(site)]

    return made


def with_bytes(at: int, *values: bytes) -> Frames:
    return lambda site: [patched(site.true.frame(), at, value) for value in values]


def fragments(site: Site) -> list[bytes]:
    """The true packet, of whom it says, in two outer fragments."""
    frame = site.true.frame()
    whole, size = frame[UDP:], 48
    hosts = site.true.host, site.true.to
    pieces = ((whole[:size], packets.MF), (whole[size:], size // 8))
    return [
        packets.ether(packets.ipv4(data, *hosts, packets.UDP, fragment=fragment), *site.true.macs)
        for data, fragment in pieces
    ]


def inner_options(options: bytes, source: IPv4Address | None = None) -> Frames:
    def made(site: Site) -> list[bytes]:
        true = site.true
        datagram = packets.udp(EVIL, 1, VICTIM_PORT)
        packet = packets.ipv4(datagram, source or true.source, true.target, packets.UDP, options=options)
        tunnel = packets.udp(
            packets.vxlan(packets.ether(packet, *true.inner_macs), true.vni), 40000, VXLAN_PORT
        )
        return [packets.ether(packets.ipv4(tunnel, true.host, true.to, packets.UDP), *true.macs)]

    return made


def of_third(site: Site) -> IPv4Address:
    """An address of the third node's subnet."""
    return site.third.gateway.network[9]


ROUTER_ALERT = bytes([148, 4, 0, 0])
SOURCE_ROUTE = bytes([131, 7, 4, 172, 17, 20, 1, 0])
"""By way of somebody, loose (RFC 791)."""


def words(*values: int) -> list[bytes]:
    return [struct.pack("!H", value) for value in values]


def inner_macs(source: MacAddress | None = None, target: MacAddress | None = None, to: str = "") -> Frames:
    def made(site: Site) -> list[bytes]:
        theirs, ours = site.true.inner_macs
        macs = (source or theirs, target or ours)
        if source is BROADCAST:
            macs = (ours, ours)
        target_ip = site.pair.a.gateway.ip if to == "gateway" else site.true.target
        return [replace(site.true, inner_macs=macs, target=target_ip).frame()]

    return made


def inner_to(where: Callable[[Pair], IPv4Address]) -> Frames:
    return lambda site: [replace(site.true, target=where(site.pair)).frame()]


def nested(where: Callable[[Pair], IPv4Address]) -> Frames:
    """VXLAN for the victim, as a packet of the peer's container to an address of ours."""

    def made(site: Site) -> list[bytes]:
        frame = site.true.frame()
        tunnel = packets.udp(frame[VXLAN:], 40000, VXLAN_PORT)
        packet = packets.ipv4(tunnel, site.true.source, where(site.pair), packets.UDP)
        inner = packets.vxlan(packets.ether(packet, *site.true.inner_macs), site.true.vni)
        outer = packets.ipv4(packets.udp(inner, 40000, VXLAN_PORT), site.true.host, site.true.to, packets.UDP)
        return [packets.ether(outer, *site.true.macs)]

    return made


def from_evil(
    target: Callable[[Site], IPv4Address],
    source: Callable[[Site], str],
    payload: Callable[[Site], bytes],
    port: int = VXLAN_PORT,
) -> Frames:
    """A frame of the container to its gateway."""

    def made(site: Site) -> list[bytes]:
        datagram = packets.udp(payload(site), 40000, port)
        packet = packets.ipv4(datagram, IPv4Address(source(site)), target(site), packets.UDP)
        return [packets.ether(packet, MacAddress.parse(site.evil.mac), device_mac(site.pair.a, "ovnet0"))]

    return made


def tunnel(site: Site) -> bytes:
    """VXLAN for the victim, as b would send it."""
    return site.true.frame()[VXLAN:]


def tunnel_to_b(site: Site) -> bytes:
    """VXLAN for b's container, as another container of a's would be sent by a."""
    theirs, ours = site.true.inner_macs
    back = replace(site.true, source=site.true.target, target=site.true.source, inner_macs=(ours, theirs))
    return back.frame()[VXLAN:]


def of_evil(site: Site) -> str:
    return site.evil.address


def of_b(site: Site) -> str:
    return site.pair.b.address


def b(site: Site) -> IPv4Address:
    return IPv4Address(site.pair.b.address)


FOREIGN, NO_PEER = "VXLAN not from the underlay", "VXLAN of no peer"


@dataclass(frozen=True)
class Row:
    """What is sent, why it is refused, and where it shows up if that is nowhere."""

    name: str
    frames: Frames
    why: str
    """A reason of the programs, or the comment of a rule in our table."""
    off: str = ""
    """Where the kernel path alone lets it show up."""
    shows: str = ""
    """Where it shows up in every mode, because the kernel's rules have it so."""
    evil: bool = False
    """Sent by the container, not on the underlay."""
    xdp: str = ""
    """The reason with XDP, where that is another."""
    counts: int = 0
    """How many of its frames are counted; 0: all."""
    rule: str = ""
    """The rule that refuses it where the programs do not, with `--bypass=off`."""


ROWS = [
    Row("an unknown host", by_a_stranger(forged()), "unknown_vtep", rule=NO_PEER),
    Row("an unknown host to our host", by_a_stranger(inner_to(lambda pair: pair.a.gateway.ip)),
        "unknown_vtep", rule=NO_PEER),
    Row("an unknown host, with outer options", by_a_stranger(forged(options=bytes(4))), "outer_options",
        rule=NO_PEER),
    Row("an unknown host, behind priority tags",
        lambda site: [replace(site.true, host=IPv4Address(site.pair.outside.address), tags=(0, 0)).frame()],
        "tagged", rule=NO_PEER),
    Row("our own address outside", lambda site: [replace(site.true, host=site.true.to).frame()],
        "unknown_vtep"),
    Row("a peer for nobody's subnet", forged(source=NOBODYS), "spoofed_source", off="victim"),
    Row("a peer with a source of our subnet",
        lambda site: [replace(site.true, source=site.pair.a.gateway.network[77]).frame()],
        "spoofed_source", off="victim"),
    Row("a peer as our gateway",
        lambda site: [replace(site.true, source=site.pair.a.gateway.ip).frame()], "spoofed_source"),
    Row("a peer as our host", lambda site: [replace(site.true, source=site.true.to).frame()],
        "foreign_source"),
    Row("a peer as loopback", forged(source=IPv4Address("127.0.0.1")), "foreign_source"),
    Row("a peer for another peer's container",
        lambda site: [replace(site.true, source=of_third(site)).frame()], "spoofed_source", off="victim"),
    Row("another peer for this peer's container",
        lambda site: [replace(site.true, host=IPv4Address(site.third.address)).frame()],
        "spoofed_source", off="victim"),
    Row("a peer as another peer's host",
        lambda site: [replace(site.true, source=IPv4Address(site.third.address)).frame()], "foreign_source",
        shows="victim"),
    Row("to another peer's container", lambda site: [replace(site.true, target=of_third(site)).frame()],
        "no relaying"),
    Row("another peer to this peer's container",
        lambda site: [replace(site.true, host=IPv4Address(site.third.address), source=of_third(site),
                              target=site.true.source).frame()], "no relaying"),
    Row("outer options", forged(options=bytes(4)), "outer_options", off="victim"),
    Row("an outer source route", forged(options=SOURCE_ROUTE), "outer_options"),
    Row("all outer options", forged(options=bytes(40)), "outer_options", off="victim"),
    Row("outer fragments", fragments, "outer_fragment", off="victim", counts=1),
    Row("a first outer fragment", forged(fragment=packets.MF), "outer_fragment"),
    Row("a last outer fragment", forged(fragment=6), "not_overlay"),
    Row("options inside, of nobody's subnet", inner_options(ROUTER_ALERT, NOBODYS), "spoofed_source",
        off="victim"),
    Row("a source route inside", inner_options(SOURCE_ROUTE), "ip_options"),
    Row("a first fragment inside, of nobody's subnet",
        lambda site: [patched(replace(site.true, source=NOBODYS).frame(), INNER_IP + 6, b"\x20\0")],
        "spoofed_source"),
    # A veth puts the tag beside the data, where XDP does not see it.
    Row("a tag of a VLAN outside", forged(tags=(5,)), "vlan", xdp="tagged"),
    Row("priority tags outside", forged(tags=(0, 0)), "tagged", off="victim"),
    Row("five priority tags outside", forged(tags=(0,) * 5), "tagged", off="victim"),
    Row("a priority tag inside", forged(inner_tags=(0,)), "tagged", off="victim"),
    Row("a tag of a VLAN inside", forged(inner_tags=(5,)), "tagged"),
    Row("other VNIs", with_bytes(VXLAN + 4, b"\0\0\0", b"\0\0\2", b"\1\0\1", b"\xff\xff\xff"),
        "vxlan_header"),
    Row("no VNI flag", with_bytes(VXLAN, bytes(4)), "vxlan_header"),
    Row("each reserved bit of the flags, group policy's among them",
        with_bytes(VXLAN, *(struct.pack("!I", packets.VXLAN_I | 1 << bit) for bit in range(32) if bit != 27)),
        "vxlan_header"),
    Row("a group policy", with_bytes(VXLAN, b"\x88\0\0\7", b"\x88\x48\xff\xff"), "vxlan_header"),
    Row("each reserved bit behind the VNI", with_bytes(VXLAN + 7, *(bytes([1 << bit]) for bit in range(8))),
        "vxlan_header"),
    Row("a stranger's reserved bits", by_a_stranger(with_bytes(VXLAN, b"\x88\0\0\0", b"\x08\0\0\1")),
        "vxlan_header"),
    Row("an inner MAC of nobody", inner_macs(target=NOBODY), "inner_mac"),
    Row("an inner broadcast MAC", inner_macs(target=BROADCAST), "inner_mac"),
    Row("an inner broadcast MAC, to our host", inner_macs(target=BROADCAST, to="gateway"), "inner_mac",
        shows="a"),
    Row("our own inner MAC", inner_macs(source=BROADCAST), "inner_mac"),
    Row("truncated at every byte",
        lambda site: [site.true.frame()[:size] for size in range(IP, len(site.true.frame()))], "truncated"),
    Row("truncated at every byte of the tunnel, outer lengths right",
        lambda site: [cut(site.true.frame(), size) for size in range(UDP + 8, len(site.true.frame()))],
        "truncated"),
    Row("outer lengths that lie", with_bytes(IP + 2, *words(0, 19, 20, 28, 36, 50, 69, 77, 86, 1500, 65535)),
        "truncated"),
    Row("UDP lengths that lie", with_bytes(UDP + 4, *words(1, 7, 8, 16, 30, 49, 57, 66, 1500, 65535)),
        "truncated"),
    Row("inner lengths that lie", with_bytes(INNER_IP + 2, *words(0, 19, 20, 27, 34, 36, 1500, 65535)),
        "truncated"),
    Row("VXLAN in VXLAN to our VTEP's address", nested(lambda pair: IPv4Address(pair.a.address)), FOREIGN),
    Row("VXLAN in VXLAN to our gateway", nested(lambda pair: pair.a.gateway.ip), FOREIGN),
    Row("to our gateway", inner_to(lambda pair: pair.a.gateway.ip), "no_endpoint", shows="a"),
    Row("to our host", inner_to(lambda pair: IPv4Address(pair.a.address)), "no_endpoint", shows="a"),
    Row("to our loopback", inner_to(lambda pair: IPv4Address("127.0.0.1")), "no_endpoint"),
    Row("back to the peer", inner_to(lambda pair: IPv4Address(pair.on_b.address)), "no relaying"),
    Row("to nobody's subnet", inner_to(lambda pair: NOBODYS), "no relaying"),
    Row("to the whole network's broadcast", inner_to(lambda pair: IPv4Address("172.17.255.255")),
        "no relaying"),
    Row("to our subnet's broadcast",
        inner_to(lambda pair: pair.a.gateway.network.broadcast_address), "no_endpoint", shows="a"),
    Row("to limited broadcast", inner_to(lambda pair: IPv4Address("255.255.255.255")), "no_endpoint",
        shows="a"),
    Row("to all hosts", inner_to(lambda pair: IPv4Address("224.0.0.1")), "no_endpoint", shows="a"),
    Row("to a multicast group", inner_to(lambda pair: IPv4Address("239.1.2.3")), "no_endpoint"),
    *(Row(f"a container sends VXLAN to its {name}, as {who}", from_evil(target, source, tunnel), FOREIGN,
          evil=True)
      for name, target in {"host": lambda site: site.true.to, "gateway": lambda site: site.pair.a.gateway.ip,
                           "VTEP": lambda site: site.pair.a.gateway.network[0]}.items()
      for who, source in {"itself": of_evil, "the peer": of_b}.items()),
    *(Row(f"a container sends VXLAN to a peer, as {who}", from_evil(b, source, tunnel_to_b),
          "VXLAN of a container", evil=True)
      for who, source in {"itself": of_evil, "that peer": of_b}.items()),
    Row("a container sends VXLAN to a peer's gateway",
        from_evil(lambda site: site.pair.b.gateway.ip, of_evil, tunnel_to_b), "flow_unknown",
        shows="wire", evil=True),
    Row("a container with its neighbour's source",
        from_evil(lambda site: site.true.source, lambda site: site.pair.on_a.address, lambda site: EVIL,
                  VICTIM_PORT), "no_endpoint", shows="remote wire", evil=True),
    Row("a container with a remote container's source",
        from_evil(lambda site: site.true.source, lambda site: str(site.true.source + 1), lambda site: EVIL,
                  VICTIM_PORT), "no_endpoint", shows="remote wire", evil=True),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_shows_up_nowhere_else_and_is_counted(site: Site, row: Row) -> None:
    frames = row.frames(site)
    why = (row.xdp if site.xdp else row.rule if site.off else "") or row.why
    site.send_true()
    site.seen.clear()
    before = site.counted(why)
    for frame in frames:
        send(site.evil if row.evil else site.pair.outside, frame)
    if " " in why or not site.off:
        wait_until(
            lambda: site.counted(why) >= before + (row.counts or len(frames)),
            SOON,
            lambda: f"{len(frames)} counted (+{site.counted(why) - before}); seen {site.seen}",
        )
    expected = set(((row.off if site.off else "") or row.shows).split())
    if expected:
        wait_until(lambda: site.look() or site.seen >= expected, SOON, lambda: f"it shows up: {site.seen}")
    site.send_true()
    assert site.seen == expected


def test_the_true_flow_goes_by_ebpf(site: Site) -> None:
    """Else the rows above would have shown less: only what is approved can be delivered by mistake."""

    def carried() -> int:
        return site.counted("decap") + site.counted("delivered")

    before = carried()
    site.send_true()
    if carried() == before:  # its approval was over: this one has renewed it
        site.send_true()
    assert carried() == before + (not site.off)


def test_arp_spoofing_is_the_bridges_business(site: Site) -> None:
    """Who answers for an address gets its packets, from eBPF as from the kernel."""
    victim, gateway = site.pair.on_a, site.pair.a.gateway.ip
    site.evil.ip("addr", "add", f"{victim.address}/32", "dev", "eth0")
    try:
        bridge_mac, mac = device_mac(site.pair.a, site.pair.a.bridge), MacAddress.parse(site.evil.mac)
        reply = struct.pack("!HHBBH", 1, packets.IPV4, 6, 4, 2)
        reply += mac.packed + IPv4Address(victim.address).packed + bridge_mac.packed + gateway.packed
        lie = packets.ether(reply, mac, bridge_mac, packets.ARP)
        site.seen.clear()

        def stolen() -> bool:
            send(site.evil, lie)
            send(site.pair.outside, site.true.frame())
            site.look()
            return "evil" in site.seen

        wait_until(stolen, SOON, lambda: site.pair.a.ip("neigh"))
    finally:
        site.evil.ip("addr", "del", f"{victim.address}/32", "dev", "eth0")
        site.pair.a.ip("neigh", "flush", "dev", site.pair.a.bridge)

    def restored() -> bool:
        victim.run("ping", "-c1", "-W1", str(gateway), check=False)
        send(site.pair.outside, replace(site.true, payload=GOOD).frame())
        return site.look()

    wait_until(restored, SOON, "the victim has its address again")


def test_no_masquerade_makes_vxlan_ours(site: Site) -> None:
    """A guest behind another bridge, as Docker has them, that sends what a peer would believe of us."""
    a, guest = site.pair.a, site.pair.lab.namespace("guest")
    a.ip("link", "add", "other0", "type", "veth", "peer", "name", "eth0", "netns", guest.netns)
    a.ip("addr", "add", "10.99.0.1/24", "dev", "other0")
    a.ip("link", "set", "other0", "up")
    guest.ip("addr", "add", "10.99.0.2/24", "dev", "eth0")
    guest.ip("link", "set", "eth0", "up")
    guest.ip("route", "add", "default", "via", "10.99.0.1")
    chain = "type nat hook postrouting priority srcnat; ip saddr 10.99.0.0/24 masquerade"
    a.nft(f"table ip theirs {{ chain post {{ {chain}\n}}\n}}")
    site.seen.clear()
    why = "VXLAN masqueraded as ours"
    before = site.counted(why)

    def speak() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(tunnel_to_b(site), (site.pair.b.address, VXLAN_PORT))

    try:
        guest.call(speak)
        wait_until(lambda: site.look() or site.seen or site.counted(why) > before, SOON, "its fate is known")
        site.send_true()
        assert (site.seen, site.counted(why)) == (set(), before + 1)
    finally:
        a.nft("delete table ip theirs")
        a.ip("link", "del", "other0")
