"""What netlink answers, and what is made of answers that are none; what pyroute2 is told."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any, Self

import pytest
from pyroute2.netlink import NLM_F_DUMP_INTR, NLM_F_MULTI, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.rtnl import RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ctl.core.errors import KernelError
from ctl.core.family import IPV4
from ctl.core.host import Hop, Route, RouteKey
from ctl.core.model import IPv4Network
from ctl.core.plan import Delta
from ctl.kernel.netlink import fib, link, xfrm
from ctl.kernel.netlink.message import (
    Attribute,
    Shape,
    attributes,
    body,
    message,
    nested,
    number_of,
    to_number,
)
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.socket import Bulk, Message, Refused, Rtnl
from ctl.kernel.netlink.tables import UNICAST, Routes

NEWPOLICY = 0x13


def answer(kind: int, flags: int, content: bytes) -> bytes:
    """With a sequence number that `Kernel` fills in."""
    return struct.pack("=IHHII", 16 + len(content), kind, flags, 0, 0) + content


def error(code: int) -> bytes:
    """As it stands in NLMSG_ERROR and NLMSG_DONE; the first also has the header of what failed."""
    return struct.pack("=i", -code) + bytes(16)


class Kernel:
    """A netlink socket whose other end answers as it is told: a datagram for each in `answers`."""

    def __init__(self) -> None:
        self.answers = deque[bytes]()
        self.closed = False
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.fileno: Callable[[], int] = self._near.fileno
        self.recv: Callable[[int], bytes] = self._near.recv

    def setsockopt(self, *_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def send(self, data: bytes) -> None:
        offset = 0
        while offset < len(data):
            length, _, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            offset += length
        for each in self.answers:
            numbered = bytearray(each)
            offset = 0
            while offset < len(numbered):
                struct.pack_into("=I", numbered, offset + 8, sequence)
                offset += (int(struct.unpack_from("=I", numbered, offset)[0]) + 3) & ~3
            self._far.send(numbered)
        self.answers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True
        self._near.close()
        self._far.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


@pytest.fixture
def bulk(kernel: Kernel) -> Bulk:
    return Bulk(kernel)


ALL = body(message(rtmsg))

WHOLE, PART = (answer(NLMSG_DONE, NLM_F_MULTI | flag, error(0)) for flag in (0, NLM_F_DUMP_INTR))
ONE = answer(RTM_NEWROUTE, NLM_F_MULTI, bytes(12))


class Answers(Kernel):
    """One that has another list of datagrams for each request."""

    def __init__(self, *answers: list[bytes]) -> None:
        super().__init__()
        self._next = deque(answers)

    def send(self, data: bytes) -> None:
        self.answers.extend(self._next.popleft())
        super().send(data)


def test_a_dump_that_was_interrupted_is_made_again() -> None:
    with closing(Answers([ONE + PART], [ONE, ONE + WHOLE])) as kernel:
        assert Bulk(kernel).dump(RTM_GETROUTE, ALL) == [bytes(12), bytes(12)]


def test_a_dump_that_is_always_interrupted_is_no_answer() -> None:
    with (
        closing(Answers(*([[ONE + PART]] * 10))) as kernel,
        pytest.raises(KernelError, match="changed 10 times meanwhile"),
    ):
        Bulk(kernel).dump(RTM_GETROUTE, ALL)


@pytest.mark.parametrize("end", [NLMSG_DONE, NLMSG_ERROR])
def test_a_dump_that_broke_off_is_no_answer(kernel: Kernel, bulk: Bulk, end: int) -> None:
    kernel.answers += [ONE, answer(end, NLM_F_MULTI, error(errno.ENOMEM))]
    with pytest.raises(Refused, match="Cannot allocate memory"):
        bulk.dump(RTM_GETROUTE, ALL)


@pytest.mark.parametrize(
    ("code", "missing"), [(errno.ENOENT, True), (errno.ESRCH, True), (errno.EINVAL, False)]
)
def test_what_is_gone_and_what_is_refused(kernel: Kernel, bulk: Bulk, code: int, missing: bool) -> None:
    kernel.answers.append(answer(NLMSG_ERROR, 0, error(code)))
    key = RouteKey(IPv4Network("10.1.0.0/24"), 1)
    removal: Delta[RouteKey[IPv4Network], Route[IPv4Address]] = Delta(removals=(key,))
    table = Routes(SimpleNamespace(bulk=bulk), IPV4)  # type: ignore[arg-type]
    if missing:
        table.apply(removal)
        return
    with pytest.raises(KernelError, match="1 entries not applied: Invalid argument"):
        table.apply(removal)


def test_hosts_behind_a_gateway_share_their_hop_and_neighbours_have_one_each() -> None:
    """The FIB answers with the route, the same for all that it leads to: a neighbour is not in it."""
    gateway, one, other = (IPv4Address(each) for each in ("192.0.2.254", "192.0.2.1", "192.0.2.2"))
    behind, also_behind = IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")

    def ask(messages: Iterable[Message]) -> list[tuple[int, bytes]]:
        direct: list[Attribute] = [("RTA_OIF", 3)]
        ways = {True: direct, False: [("RTA_GATEWAY", str(gateway)), *direct]}
        near = (any(host.packed in each.body for host in (one, other)) for each in messages)
        return [(0, body(message(rtmsg, ways[each], family=socket.AF_INET, type=UNICAST))) for each in near]

    rtnl: Any = SimpleNamespace(bulk=SimpleNamespace(ask=ask))
    found = fib.hops(rtnl, [one, behind, other, also_behind], IPv4Address("192.0.2.9"), 1500)
    assert found == {host: Hop(3, host) for host in (one, other)} | dict.fromkeys(
        (behind, also_behind), Hop(3, gateway)
    )
    assert found[behind] is found[also_behind]


def test_a_subnets_route_with_another_metric_is_there_before_the_old_one_goes() -> None:
    """A new version may number its routes otherwise."""
    asked: list[int] = []

    def change(messages: Iterable[Message]) -> list[int]:
        kinds = [each.kind for each in messages]
        asked.extend(kinds)
        return [0] * len(kinds)

    subnet = IPv4Network("10.1.0.0/24")
    key, route = RouteKey.of(subnet), Route(subnet.network_address, 7, onlink=True)
    table = Routes(SimpleNamespace(bulk=SimpleNamespace(change=change)), IPV4)  # type: ignore[arg-type]
    table.apply(Delta(puts=((key, route),), removals=(RouteKey(subnet, 1),)))
    assert asked == [RTM_NEWROUTE, RTM_DELROUTE]


def test_policies_of_ipsec_that_cannot_be_listed_are_not_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else eBPF would carry, past all policies, what they are to encrypt."""
    broken = [answer(end, NLM_F_MULTI, error(errno.ENOMEM)) for end in (NLMSG_ERROR, NLMSG_DONE)]
    for there, expected in ((WHOLE, False), (answer(NEWPOLICY, NLM_F_MULTI, bytes(64)), True)):
        with closing(Answers([there])) as kernel:
            monkeypatch.setattr(xfrm, "NetlinkSocket", lambda kernel=kernel, **_: kernel)
            assert xfrm.Policies().any() is expected
    for end in broken:
        with closing(Answers([end])) as kernel:
            monkeypatch.setattr(xfrm, "NetlinkSocket", lambda kernel=kernel, **_: kernel)
            with pytest.raises(KernelError, match="IPsec policies: Cannot allocate memory"):
                xfrm.Policies().any()


def test_a_socket_that_cannot_be_set_up_is_closed(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.kernel.netlink.socket.IPRSocket", lambda **_: kernel)
    with pytest.raises(PermissionError):
        Rtnl()
    assert kernel.closed


def test_a_mistake_of_ours_is_not_taken_for_something_that_vanished() -> None:
    doing: Any = Netlink.doing
    with pytest.raises(KeyError), doing(None, "look"):
        dict[str, str]()["nothing"]


# --- What pyroute2 is told -------------------------------------------------------


@pytest.mark.parametrize(
    "slip",
    [
        lambda rtnl: rtnl.link("set", index=1, mtuu=1400),
        lambda rtnl: rtnl.addr("add", index=1, adress="10.0.0.1"),
        lambda rtnl: rtnl.neigh("change", ifindex=1, dest="10.0.0.1"),
        lambda rtnl: rtnl.route("replace", dst="10.0.0.0/24", gatway="10.0.0.1"),
        lambda rtnl: rtnl.tc("add", "clsact", ifindx=1),
        lambda _: message(rtmsg, tabel=254),
        lambda _: message(ndmsg, [("NDA_LLADR", "02:02:02:02:02:02")]),
        lambda _: nested(ifinfmsg.xdp, [("IFLA_XDP_FDD", 3)]),
    ],
)
def test_a_name_that_pyroute2_would_pass_over_is_a_mistake(slip: Callable[[Any], object]) -> None:
    told: list[object] = []
    rtnl = Rtnl.__new__(Rtnl)
    nothing = SimpleNamespace(**dict.fromkeys(("link", "addr", "neigh", "route", "tc"), told.append))
    rtnl.__dict__.update(_thread=threading.get_ident(), _iproute=nothing)
    with pytest.raises(
        TypeError, match="pyroute2 does not know (mtuu|adress|dest|gatway|ifindx|tabel|NDA|IFLA)"
    ):
        slip(rtnl)
    assert not told


def test_another_thread_is_kept_from_an_iproute() -> None:
    """Its socket would be one of that thread's, and perhaps of another network namespace."""
    rtnl = Rtnl.__new__(Rtnl)
    rtnl.__dict__.update(_thread=threading.get_ident() + 1)
    with pytest.raises(AssertionError, match="belongs to the thread"):
        rtnl.link("get", index=1)


def test_an_iproute_whose_socket_fails_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an ENOBUFS it would raise that for ever, and in close() too."""

    class Overflowed:
        def link(self, *_: object, **__: object) -> list[object]:
            raise OSError(errno.ENOBUFS, "No buffer space available")

        close = link

    class Fresh:
        def link(self, *_: object, **__: object) -> list[object]:
            return ["a link"]

    rtnl = Rtnl.__new__(Rtnl)
    rtnl.__dict__.update(_thread=threading.get_ident(), _iproute=Overflowed())
    monkeypatch.setattr(Rtnl, "_open", Fresh)
    with pytest.raises(KernelError, match="No buffer space"):
        rtnl.link("set", index=1)
    assert rtnl.link("set", index=1) == ["a link"]


def test_a_shape_gives_what_pyroute2_would_pack() -> None:
    attributes_ = [("NDA_LLADDR", "02:02:02:02:02:02"), ("NDA_DST", "1.1.1.1")]
    shape = Shape(message(ndmsg, attributes_, family=7, ifindex=9), b"\2" * 6, b"\1" * 4)
    wanted = message(
        ndmsg, [("NDA_LLADDR", "02:00:00:00:00:07"), ("NDA_DST", "10.0.0.7")], family=7, ifindex=9
    )
    assert shape(b"\2\0\0\0\0\7", bytes([10, 0, 0, 7])) == body(wanted)


def test_a_mark_that_is_no_mark_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="unlike the rest"):
        Shape(message(ndmsg, [("NDA_DST", "1.1.1.1")], ifindex=0x01010101), b"\1" * 4)


def test_numbers_are_the_kernels() -> None:
    """linux/rtnetlink.h, linux/neighbour.h, linux/if_link.h."""
    known = {
        rtmsg: {"RTA_DST": 1, "RTA_OIF": 4, "RTA_GATEWAY": 5, "RTA_MULTIPATH": 9, "RTA_ENCAP": 22},
        ndmsg: {"NDA_DST": 1, "NDA_LLADDR": 2, "NDA_IFINDEX": 8, "NDA_MASTER": 9},
        ifinfmsg: {"IFLA_IFNAME": 3, "IFLA_LINKINFO": 18, "IFLA_LINK_NETNSID": 37, "IFLA_XDP": 43},
    }
    for kind, names in known.items():
        assert {name: number_of(kind, name) for name in names} == names


def test_a_link_by_hand_is_what_pyroute2_makes_of_it() -> None:
    inner = {"attrs": [("IFLA_XDP_DRV_PROG_ID", 77)]}
    named = [("IFLA_IFNAME", "veth1"), ("IFLA_MTU", 1450), ("IFLA_ADDRESS", "02:00:00:00:00:01"),
             ("IFLA_MASTER", 4), ("IFLA_IFALIAS", "ovnet"), ("IFLA_LINK_NETNSID", 0), ("IFLA_XDP", inner),
             ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]})]  # fmt: skip
    packed = body(message(ifinfmsg, named, index=9, flags=1))
    assert to_number(attributes(packed, 16)[number_of(ifinfmsg, "IFLA_MTU")]) == 1450
    found = link.parse(packed)
    assert (found.ifindex, found.name, found.kind, found.mtu, found.up, found.master) == (
        9, "veth1", "veth", 1450, True, 4,
    )  # fmt: skip
    assert (str(found.mac), found.alias, found.peer_elsewhere, found.xdp) == (
        "02:00:00:00:00:01", "ovnet", True, 77,
    )  # fmt: skip
