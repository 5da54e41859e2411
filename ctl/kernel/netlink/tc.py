"""tc's qdiscs and filters, by pyroute2's calls and messages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from pyroute2.netlink.rtnl import RTM_GETTFILTER
from pyroute2.netlink.rtnl.tcmsg import sched_bpf, tcmsg
from pyroute2.protocols import ETH_P_ALL

from ctl.kernel.netlink.message import Shape, attributes, layout, message, number, number_of, text, to_number
from ctl.kernel.netlink.socket import Rtnl

_SIDES: Final = {True: 0xFFFFFFF2, False: 0xFFFFFFF3}
"""Ingress and egress of clsact, as parents of filters (TC_H_MIN_INGRESS, TC_H_MIN_EGRESS)."""
_HEAD: Final = layout(tcmsg)
_KIND, _OPTIONS = number_of(tcmsg, "TCA_KIND"), number_of(tcmsg, "TCA_OPTIONS")
_BPF_NAME: Final = number_of(sched_bpf.options, "TCA_BPF_NAME")
_BPF_ID: Final = 11
"""TCA_BPF_ID of linux/pkt_cls.h, which pyroute2 0.9.7 does not know."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A filter as the kernel lists it."""

    kind: str
    priority: int
    name: str
    """A bpf filter's name; empty if it has none, or is of another kind."""
    program: int = 0
    """Id of a bpf filter's program; 0 if that is not eBPF, or the filter of another kind."""


def add_clsact(rtnl: Rtnl, ifindex: int) -> None:
    """The qdisc that filters hang on. Refused."""
    rtnl.tc("add", "clsact", index=ifindex)


def remove_clsact(rtnl: Rtnl, ifindex: int) -> None:
    """Take it away, with all filters. Refused."""
    rtnl.tc("del", "clsact", index=ifindex)


def put(rtnl: Rtnl, ifindex: int, ingress: bool, place: tuple[int, int], fd: int, name: str) -> None:
    """Have a bpf program, whose verdict is the filter's, in a place of that side. Refused.

    `place`: priority and handle. What was there goes.
    """
    rtnl.tc("replace-filter", "bpf", **_place(ifindex, ingress, place), fd=fd, name=name, direct_action=True)


def remove(rtnl: Rtnl, ifindex: int, ingress: bool, place: tuple[int, int]) -> None:
    """Take the bpf filter in a place away. Refused."""
    rtnl.tc("del-filter", "bpf", **_place(ifindex, ingress, place))


def _place(ifindex: int, ingress: bool, place: tuple[int, int]) -> dict[str, int]:
    priority, handle = place
    parent = _SIDES[ingress]
    return {"index": ifindex, "parent": parent, "prio": priority, "handle": handle, "protocol": ETH_P_ALL}


def listing(rtnl: Rtnl, ifindex: int, ingress: bool) -> list[Attached]:
    """All filters of a side, in the order in which they run. Refused."""
    request = _of_a_side()(number(ifindex), number(_SIDES[ingress]))
    return [found for each in rtnl.bulk.dump(RTM_GETTFILTER, request) if (found := parse(each))]


@cache
def _of_a_side() -> Shape:
    """Asked for each container's port, twice."""
    return Shape(message(tcmsg, index=0x01010101, parent=0x02020202), b"\1" * 4, b"\2" * 4)


def parse(content: bytes) -> Attached | None:
    """A filter by its message; None for the head of a chain, which is none.

    By hand: others' filters may be of kinds whose options pyroute2 cannot take apart.
    """
    handle, info = _HEAD.unpack_from(content)[-3::2]
    found = attributes(content, _HEAD.size)
    if not handle or _OPTIONS not in found:
        return None
    kind = text(found.get(_KIND, b""))
    if kind != "bpf":
        return Attached(kind, info >> 16, "")
    options = attributes(found[_OPTIONS])
    name, ident = text(options.get(_BPF_NAME, b"")), to_number(options.get(_BPF_ID, b""))
    return Attached(kind, info >> 16, name, ident)
