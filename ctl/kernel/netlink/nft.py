"""What our nftables rules have counted, asked by netlink: 0.1 ms, where nft takes 5 as a process.

pyroute2 knows nothing of rules' counters. Numbers are those of linux/netfilter/nf_tables.h; what the
kernel counts is in the network's byte order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Final

from pyroute2.netlink import NETLINK_NETFILTER
from pyroute2.netlink.nlsocket import NetlinkSocket

from ctl.core.errors import KernelError
from ctl.kernel.firewall import TABLE
from ctl.kernel.netlink.message import attribute, attributes, listed, text
from ctl.kernel.netlink.socket import Bulk, suppress_missing

_SUBSYSTEM: Final = 10 << 8
_GETRULE: Final = _SUBSYSTEM | 7
NEWSETELEM: Final = _SUBSYSTEM | 12
DELSETELEM: Final = _SUBSYSTEM | 14
NFGENMSG: Final = 4
"""Bytes of struct nfgenmsg, which begins with the family."""
_FAMILIES: Final = (2, 10)
"""NFPROTO_IPV4 and NFPROTO_IPV6, of linux/netfilter.h."""

NFTA_SET_ELEM_LIST_TABLE: Final = 1
NFTA_SET_ELEM_LIST_SET: Final = 2
NFTA_SET_ELEM_LIST_ELEMENTS: Final = 3
NFTA_SET_ELEM_KEY: Final = 1
NFTA_DATA_VALUE: Final = 1
LIST_ELEM: Final = 1

_RULE_TABLE: Final = 1
_RULE_EXPRESSIONS: Final = 4
_RULE_USERDATA: Final = 7
_EXPR_NAME: Final = 1
_EXPR_DATA: Final = 2
_COUNTER_PACKETS: Final = 2
_COMMENT: Final = 0
"""Of what user space says of a rule (libnftnl's udata: type, length, value), the comment."""


def dropped() -> Mapping[str, int]:
    """Packets that each rule of our tables has counted, by its comment; none without a table. KernelError.

    All of these are rules that drop (ctl.kernel.firewall); what one has in both families is one sum.
    """
    try:
        opened = NetlinkSocket(family=NETLINK_NETFILTER)
    except OSError as error:
        raise KernelError(f"ask what our rules count: {error.strerror}") from error
    sums: dict[str, int] = {}
    with closing(Bulk(opened)) as bulk:
        for comment, packets in (found for family in _FAMILIES for found in _counts(bulk, family)):
            sums[comment] = sums.get(comment, 0) + packets
    return sums


def _counts(bulk: Bulk, family: int) -> Iterator[tuple[str, int]]:
    """Comments and packets of the table of that family."""
    with suppress_missing():
        for rule in bulk.dump(_GETRULE, bytes((family, 0, 0, 0)) + _OURS):
            yield from counted(rule)


_OURS: Final = attribute(_RULE_TABLE, TABLE.encode() + b"\0")


def counted(rule: bytes) -> Iterator[tuple[str, int]]:
    """(comment, packets) of a rule's message, if it counts and has a comment."""
    found = attributes(rule, NFGENMSG)
    comment = _comment(found.get(_RULE_USERDATA, b""))
    for expression in listed(found.get(_RULE_EXPRESSIONS, b"")):
        parts = attributes(expression)
        if comment and text(parts.get(_EXPR_NAME, b"")) == "counter":
            packets = attributes(parts.get(_EXPR_DATA, b"")).get(_COUNTER_PACKETS, b"")
            yield comment, int.from_bytes(packets, "big")


def _comment(userdata: bytes) -> str:
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == _COMMENT:
            return text(userdata[at + 2 : at + 2 + length])
        at += 2 + length
    return ""
