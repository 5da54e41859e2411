"""The same two nodes twice, one with eBPF and one without, and what an exchange shows in each.

                      +--- wire, outside ---+   <- tapped on a's cable
    one -- ovnet0: a -+                     +- b :ovnet0 -- two (tapped)
    near -- |                                        | -- far

All addresses, MACs and subnets are fixed, so that frames of two labs can be compared as they are.
"""

from __future__ import annotations

import os
import select
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from typing import Any, Final, Self

from ctl.core.abi import Hook, Ip
from ctl.core.model import MacAddress
from ctl.core.reasons import REASONS
from ctl.kernel.bpf.maps import Maps, open_maps
from tests import packets
from tests.host import Container, Host, started
from tests.lab import Lab, wait_until
from tests.netns.parity.capture import Ring, Shot, Tap, fields

MARK: Final = 253
"""IP protocol of the packet that ends an exchange (RFC 3692: for experiments). No program
carries it, so it comes behind whatever the kernel path has carried."""
SECONDS: Final = 30
VARIES: Final = frozenset({"outer.id", "outer.sport"})
"""Ids are the kernel's to choose; the source port comes from a hash with a key of its own.
That it is one for each flow, and in the range, is checked apart."""
PLACES: Final = ("wire", "two", "one")
UPLINK_MACS: Final = {"a": "02:00:c0:a8:4d:0b", "b": "02:00:c0:a8:4d:0c"}
SUBNETS: Final = {"a": "172.17.20.0/24", "b": "172.17.30.0/24"}


@dataclass
class Seen:
    """What an exchange has shown."""

    wire: list[bytes] = field(default_factory=list)
    """On the underlay, both directions."""
    two: list[bytes] = field(default_factory=list)
    """What came into container two."""
    one: list[bytes] = field(default_factory=list)
    """What came back into container one."""
    counted: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    """Reasons by host and hook."""

    def differences(self, kernel: Seen, *, ordered: bool = True) -> list[str]:
        """Where this is not what the kernel path showed, field by field; empty: parity."""
        found: list[str] = []
        for place in PLACES:
            ours, theirs = (list(map(fields, getattr(each, place))) for each in (self, kernel))
            if not ordered:
                ours, theirs = (sorted(each, key=_without_varying) for each in (ours, theirs))
            if len(ours) != len(theirs):
                found.append(f"{place}: {len(ours)} frames, {len(theirs)} by the kernel path")
            for number, pair in enumerate(zip(ours, theirs, strict=False)):
                found += [f"{place}[{number}]: {text}" for text in _unequal(*pair)]
        return found

    def beyond(self, kernel: Seen) -> list[str]:
        """Frames that the kernel path has not shown, by place."""
        found = []
        for place in PLACES:
            more = _multiset(getattr(self, place)) - _multiset(getattr(kernel, place))
            found += [f"{place}, {number} times more: {text}" for text, number in more.items()]
        return found

    def reasons(self) -> dict[str, dict[str, int]]:
        """What was counted, for people."""
        return {f"{host}.{hook}": dict(found) for (host, hook), found in self.counted.items() if +found}

    def source_ports(self) -> dict[tuple[object, ...], set[object]]:
        """Outer source ports by inner flow: addresses, protocol, ports; DSCP, which our hash takes in."""
        found: dict[tuple[object, ...], set[object]] = {}
        for each in map(fields, self.wire):
            if "outer.sport" in each and each.get("inner.fragment", "0000") in ("0000", "4000"):
                flow = (each["inner.source"], each["inner.target"], each["inner.proto"],
                        str(each["inner.body"])[:8], str(each["inner.tos"] >> 2))  # fmt: skip
                found.setdefault(flow, set()).add(each["outer.sport"])
        return found


def _multiset(frames: Sequence[bytes]) -> Counter[str]:
    return Counter(map(_without_varying, map(fields, frames)))


def _varying(found: dict[str, Any]) -> set[str]:
    """Fields of a frame that need not be the same."""
    return {*VARIES, *(f"{prefix}id" for prefix in ("", "inner.") if _may_vary(found, prefix))}


def _may_vary(found: dict[str, Any], prefix: str) -> bool:
    """Whether its id is drawn anew: that of an error, and of IPv6's fragments, made so by conntrack."""
    return f"{prefix}label" in found or _error_of_a_host(found, prefix)


def _without_varying(found: dict[str, Any]) -> str:
    varying = _varying(found)
    return str({name: value for name, value in found.items() if name not in varying})


def _unequal(ours: dict[str, Any], kernel: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {ours.get(name)}, {kernel.get(name)} by the kernel path"
        for name in sorted({*ours, *kernel} - _varying(kernel))
        if ours.get(name) != kernel.get(name)
    ]


def _error_of_a_host(found: dict[str, Any], prefix: str = "") -> bool:
    """Whether it is an ICMP error: a new packet of whoever sends it, with an id of its choice."""
    return found.get(f"{prefix}proto") == packets.ICMP and str(found[f"{prefix}body"])[:2] in (
        "03",
        "0b",
        "0c",
    )


class Site:
    """Two nodes with a container each. Use it in a `with` block."""

    def __init__(self, *flags: str, mtu: int = 1500, network: Sequence[str] = ()) -> None:
        """`flags`: the agents'; `network`: of `ovctl network init`."""
        self.lab = Lab()
        self.flags, self._mtu, self._network = flags, mtu, network
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.lab)
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            self._build()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self) -> None:
        lab = self.lab
        self.a, self.b = lab.host("a", mtu=self._mtu), lab.host("b", mtu=self._mtu)
        for host in (self.a, self.b):
            host.ip("link", "set", "eth0", "address", UPLINK_MACS[host.name])
        self._lease()
        self.agents = started((self.a, self.b), *self.flags)
        for host in (self.a, self.b):
            wait_until(host.knows_a_peer, 10, f"{host.name} knows its peer")
        self._plug()
        for place in (self.a, self.b, self.one, self.two):
            quiet(place)
        # Nobody listens where the rows send: answers would be other packets than the row's.
        for container in (self.one, self.two):
            container.nft(
                "table inet quiet { chain in { type filter hook input priority 0; "
                f"meta l4proto {MARK} drop; udp dport 20000-29999 drop; tcp dport 20000-29999 drop; }}; }}"
            )
        self._open()
        self._tap()
        self._settle()

    def _lease(self) -> None:
        """A network in which both hosts will have their subnets."""
        self.lab.init_network("172.17.0.0/16", 24, *self._network)
        for host in (self.a, self.b):
            host.ovctl("lease", "reserve", SUBNETS[host.name], "--host", host.address)

    def _plug(self) -> None:
        """Containers, and a host that is no node."""
        self.one, self.two = self.a.container("one"), self.b.container("two")
        self.near, self.far = self.a.container("near"), self.b.container("far")
        self.outside = self.lab.outside()

    def _open(self) -> None:
        """The maps of the programs that the rows are about."""
        self.maps: dict[str, Maps[Any]] = {
            host.name: self._stack.enter_context(open_maps(host.bpffs)) for host in (self.a, self.b)
        }

    def _tap(self) -> None:
        self.at_one, self.at_two, self.at_a = (
            self._stack.enter_context(closing(Tap(place))) for place in (self.one, self.two, self.a)
        )
        self.wire = self._stack.enter_context(closing(Ring(self.lab.wire, "a")))

    def _settle(self) -> None:
        """Neighbours are resolved, endpoints known."""
        for source, sink in ((self.one, self.two), (self.near, self.far)):
            source.run("ping", "-c2", "-i0.1", "-W2", sink.address)
        if "off" in self.flags:
            return  # no programs, so nobody needs to know
        for name, container in (("a", self.one), ("b", self.two), ("a", self.near), ("b", self.far)):
            wait_until(partial(knows, self.maps[name], container), 10, f"{container.address} is known")

    @property
    def gateway(self) -> MacAddress:
        """MAC of container one's gateway."""
        return MacAddress(b"\x02\x42" + self.a.gateway.ip.packed)

    def addresses(self) -> tuple[Ip, Ip]:
        """Of containers one and two."""
        return IPv4Address(self.one.address), IPv4Address(self.two.address)

    def exchange(self, act: Callable[[], object], *, from_a: bool = True) -> Seen:
        """Do something, wait until all that it caused has passed, and tell what was seen.

        `from_a`: with what node a sent on the wire. Where that is what the caller put there,
        the tap shows its inner header as the receiver's kernel has marked it: they share it.
        """
        self.at_one.frames(), self.at_two.frames(), self.wire.frames()
        before = self.counters()
        with one_cpu():
            act()
            at_two: list[tuple[bool, bytes]] = []
            for turn in range(2):  # the second one is sent when the first has come: nothing is held back
                at_two += self._mark(turn)
        on_wire = self._until_marks()
        counted = {hook: now - before[hook] for hook, now in self.counters().items()}
        return Seen(
            wire=[frame for out, frame in on_wire if not_ours(frame) and (out or from_a)],
            two=[frame for out, frame in at_two if not out and not_ours(frame)],
            one=[frame for out, frame in self.at_one.frames() if not out and not_ours(frame)],
            counted=counted,
        )

    def _mark(self, turn: int) -> Iterator[tuple[bool, bytes]]:
        src, dst = self.addresses()
        packet = packets.ip(bytes([turn]) * 8, src, dst, MARK)
        kind = packets.IPV4 if src.version == 4 else packets.IPV6
        self.at_one.send(Shot(packets.ether(packet, MacAddress.parse(self.one.mac), self.gateway, kind)))
        deadline = time.monotonic() + SECONDS
        while select.select([self.at_two], [], [], max(deadline - time.monotonic(), 0))[0]:
            found = self.at_two.frames()
            yield from found
            if any(is_mark(frame) and frame[-1] == turn for out, frame in found if not out):
                return
        raise AssertionError(f"the packet that ends an exchange has not come in {SECONDS} s")

    def carried(self, name: str) -> int:
        """Packets that eBPF has sent and delivered on node `name`."""
        counted = self.counters()
        return counted[name, "from_container"]["encap"] + counted[name, "from_wire"]["decap"]

    def _until_marks(self) -> list[tuple[bool, bytes]]:
        """What is in the wire's ring, which is filled block by block, up to the end of the exchange."""
        found: list[tuple[bool, bytes]] = []

        def complete() -> bool:
            found.extend(self.wire.frames())
            return sum(is_mark(inner_of(frame)) for _, frame in found) >= 2

        wait_until(complete, SECONDS, "the exchange shows on the wire", every=0.001)
        return found

    def counters(self) -> dict[tuple[str, str], Counter[str]]:
        found = {(name, hook.name.lower()): Counter[str]() for name in self.maps for hook in Hook}
        for name, maps in self.maps.items():
            for (hook, number), counter in maps.counters().items():
                found[name, Hook(hook).name.lower()][REASONS[number].label] += counter.packets
        return found

    @contextmanager
    def container_mtu(self, mtu: int) -> Iterator[None]:
        """Container one with another MTU than the overlay's: somebody has not set it."""
        usual = int(self.a.subnet_env()["FLANNEL_MTU"])
        if mtu == usual:
            yield
            return
        for size in (mtu, usual):
            self.a.ip("link", "set", self.one.port, "mtu", str(size))
            self.one.ip("link", "set", "eth0", "mtu", str(size))
            if size == mtu:
                yield

    def underlay(self, features: Mapping[str, bool | None]) -> None:
        """Set features of both uplinks and of the switch's ports; None: as the kernel sets them."""
        for name, on in features.items():
            wanted = name != "gro" if on is None else on
            for host in (self.a, self.b):
                host.offload("eth0", name, wanted)
                self.lab.wire.offload(host.name, name, wanted)


def quiet(place: Host | Container) -> None:
    """Errors are sent each time, not at a rate."""
    place.sysctl("net.ipv6.icmp.ratelimit", "0")
    place.sysctl("net.ipv4.icmp_ratelimit", "0")
    place.sysctl("net.ipv4.icmp_msgs_per_sec", "100000")
    place.sysctl("net.ipv4.icmp_msgs_burst", "100000")


def knows(maps: Maps[IPv4Address], container: Container) -> bool:
    """Whether the agent has found the container."""
    return maps.lookup_endpoint(IPv4Address(container.address)) is not None


def is_mark(frame: bytes) -> bool:
    kind = frame[12:14]
    at = {b"\x08\0": packets.ETH_LEN + 9, b"\x86\xdd": packets.ETH_LEN + 6}.get(kind)
    return at is not None and frame[at : at + 1] == bytes([MARK])


def not_ours(frame: bytes) -> bool:
    """Neither a mark, inside a tunnel or not, nor ARP or what IPv6 has in its place."""
    return not (is_mark(frame) or is_mark(inner_of(frame)) or frame[12:14] == b"\x08\x06" or of_link(frame))


def of_link(frame: bytes) -> bool:
    """Whether it is neighbour discovery, or MLD, which has router alert in front (RFC 3810)."""
    ip = frame[packets.ETH_LEN :]
    if frame[12:14] != b"\x86\xdd" or len(ip) <= packets.IPV6_LEN:
        return False
    discovery = ip[6:8] == bytes((packets.ICMPV6, 255)) and 133 <= ip[packets.IPV6_LEN] <= 137
    return discovery or (ip[6] == packets.HOP_BY_HOP and ip[24:26] == b"\xff\x02")


def inner_of(frame: bytes) -> bytes:
    """The frame in a tunnel; empty if there is none."""
    head = packets.ETH_LEN + (packets.IPV6_LEN if frame[12:14] == b"\x86\xdd" else packets.IP_LEN)
    return frame[head + 16 :] if frame[head + 2 : head + 4] == b"\x21\x18" else b""


@contextmanager
def one_cpu() -> Iterator[None]:
    """Packets sent from one CPU are worked off in the order in which they were sent.

    Not the same one for all who run tests at this time.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[os.getpid() % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
