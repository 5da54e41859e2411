"""The rules of policy routing (`ip rule`), as far as they say which packets they are for."""

from __future__ import annotations

import struct
from typing import Any, Final

from pyroute2.netlink.rtnl import RTM_GETRULE
from pyroute2.netlink.rtnl.fibmsg import fibmsg

from ctl.core.family import Family
from ctl.core.policy import Rule, Span
from ctl.kernel.netlink.message import attributes, body, layout, message, number_of, text, to_number
from ctl.kernel.netlink.socket import Rtnl
from ctl.kernel.netlink.tables import AF

_HEAD: Final = layout(fibmsg)
_SRC, _IIF, _OIF, _MASK, _TUN_ID, _L3MDEV, _USERS, _PROTOCOL, _SPORTS, _DPORTS = (
    number_of(fibmsg, f"FRA_{name}")
    for name in (
        "SRC",
        "IIFNAME",
        "OIFNAME",
        "FWMASK",
        "TUN_ID",
        "L3MDEV",
        "UID_RANGE",
        "IP_PROTO",
        "SPORT_RANGE",
        "DPORT_RANGE",
    )
)
# Of linux/fib_rules.h, newer than pyroute2.
_DSCP, _SPORT_MASK, _DPORT_MASK = 25, 28, 29
_WHOLE: Final = (0, 0xFFFF)
"""Masks of ports that look at all bits; 0: none was given."""
_FIB_RULE_INVERT: Final = 2


def listing(rtnl: Rtnl, family: Family[Any, Any]) -> list[Rule]:
    """All rules of a family, in their order. Refused."""
    request = body(message(fibmsg, family=AF[family.version]))
    return [parse(content, family) for content in rtnl.bulk.dump(RTM_GETRULE, request)]


def parse(content: bytes, family: Family[Any, Any]) -> Rule:
    """A rule by its message."""
    _, _, source_length, tos, *_, flags = _HEAD.unpack_from(content)
    found = attributes(content, _HEAD.size)
    sport_bits, dport_bits = (
        to_number(found.get(mask, b"")) not in _WHOLE for mask in (_SPORT_MASK, _DPORT_MASK)
    )
    return Rule(
        source=family.network((int.from_bytes(found.get(_SRC, b"")), source_length)),
        iif=text(found.get(_IIF, b"")),
        bound=bool(_OIF in found or any(found.get(_L3MDEV, b"")) or any(found.get(_TUN_ID, b""))),
        mask=to_number(found.get(_MASK, b"")),
        tos=tos | to_number(found.get(_DSCP, b"")),
        protocol=to_number(found.get(_PROTOCOL, b"")),
        sports=_span(found.get(_SPORTS), "=HH"),
        dports=None if dport_bits else _span(found.get(_DPORTS), "=HH"),
        users=_span(found.get(_USERS), "=II"),
        sport_bits=sport_bits,
        inverted=bool(flags & _FIB_RULE_INVERT),
    )


def _span(content: bytes | None, form: str) -> Span | None:
    if content is None:
        return None
    first, last = struct.unpack_from(form, content)
    return first, last
