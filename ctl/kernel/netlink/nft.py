"""What our nftables rules have counted, asked by netlink: 0.1 ms, where nft takes 5 as a process.

pyroute2 knows nothing of rules' counters. Numbers are those of linux/netfilter/nf_tables.h; what the
kernel counts is in the network's byte order.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Final

from pyroute2.netlink import NETLINK_NETFILTER
from pyroute2.netlink.nlsocket import NetlinkSocket

from ctl.core.errors import KernelError
from ctl.kernel.firewall import TABLE
from ctl.kernel.netlink.message import attribute, attributes, listed, text
from ctl.kernel.netlink.socket import Bulk, Refused

_SUBSYSTEM: Final = 10 << 8
_GETRULE: Final = _SUBSYSTEM | 7
NEWSETELEM: Final = _SUBSYSTEM | 12
DELSETELEM: Final = _SUBSYSTEM | 14
NFGENMSG: Final = 4
"""Bytes of struct nfgenmsg, which begins with the family."""
_NFPROTO_IPV4: Final = 2

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
    """Packets that each rule of our table has counted, by its comment; none without the table. KernelError.

    All of these are rules that drop (ctl.kernel.firewall).
    """
    try:
        opened = NetlinkSocket(family=NETLINK_NETFILTER)
    except OSError as error:
        raise KernelError(f"ask what our rules count: {error.strerror}") from error
    with closing(Bulk(opened)) as bulk:
        try:
            rules = bulk.dump(_GETRULE, bytes((_NFPROTO_IPV4, 0, 0, 0)) + _OURS)
        except Refused as error:
            if error.code == errno.ENOENT:
                return {}
            raise
    return dict(found for rule in rules for found in counted(rule))


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
