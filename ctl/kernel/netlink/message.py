"""pyroute2's messages: checked, packed once for many, taken apart where there are thousands.

pyroute2 passes over names that it does not know: a request with a slip of the pen succeeds and
does nothing. So the names of fields, attributes and keywords are held against its own tables
first, and one that is not there is a TypeError.

A message takes it 60 to 250 us to pack and 50 to 90 us to unpack. A first sync of 10,000 leases
has 30,000 of them, so one is packed and the others are made of it (`Shape`: 1 to 3 us), and
answers of which there are thousands are taken apart here (`attributes`: 5 to 10 us).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from pyroute2.netlink import NLA_F_NESTED, nlmsg

Attribute = tuple[str, object]
"""An attribute: pyroute2's name of it (RTA_DST), and its value; a nested one's is {"attrs": [...]}."""

Kind = Any
"""A class of pyroute2's messages (rtmsg, ndmsg), or of their nested attributes. pyroute2 has no types."""

HEADER: Final = struct.Struct("=" + "".join(form for _, form in nlmsg.header))
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_TYPE: Final = 0x3FFF
"""The bits of an attribute's type that are its number: not NLA_F_NESTED and NLA_F_NET_BYTEORDER."""
_ATTRIBUTE: Final = struct.Struct("=HH")
assert not _TYPE & NLA_F_NESTED


def layout(kind: Kind) -> struct.Struct:
    """The fixed part of a message, or of a part of one: struct rtmsg, struct ndmsg and so on."""
    return struct.Struct("=" + "".join(form for _, form in (*(kind.cell_header or ()), *kind.fields)))


@cache
def _types(kind: Kind) -> Mapping[str, int]:
    """Number of each attribute that such a message can have, by its name."""
    rows = [row if isinstance(row[0], int) else (number, *row) for number, row in enumerate(kind.nla_map)]
    return {row[1]: row[0] for row in rows}


def number_of(kind: Kind, name: str) -> int:
    """The type of an attribute: RTA_DST of rtmsg is 1."""
    return _types(kind)[name]


@cache
def words(kind: Kind) -> frozenset[str]:
    """What pyroute2's calls take as keywords for such a message: fields, and attributes without prefix."""
    fields = {name for name, _ in kind.fields}
    return frozenset(fields | {name.removeprefix(kind.prefix).lower() for name in _types(kind)})


def check(known: frozenset[str], given: Iterable[str]) -> None:
    """TypeError for what pyroute2 would pass over."""
    if unknown := sorted(set(given) - known):
        raise TypeError(f"pyroute2 does not know {', '.join(unknown)}")


def nested(kind: Kind, attributes_: Sequence[Attribute]) -> dict[str, object]:
    """The value of an attribute that consists of attributes, or what goes after a message's fields."""
    check(frozenset(_types(kind)), (name for name, _ in attributes_))
    return {"attrs": list(attributes_)}


def message(kind: Kind, attributes_: Sequence[Attribute] = (), **fields: int) -> nlmsg:
    """A message of pyroute2's."""
    check(frozenset(name for name, _ in kind.fields), fields)
    made = kind()
    made.update(fields)
    made.update(nested(kind, attributes_))
    return made


def body(packed: nlmsg) -> bytes:
    """A message in the kernel's form, without its header."""
    packed.reset()
    packed.encode()
    return bytes(packed.data[HEADER.size :])


def raw(received: nlmsg) -> bytes:
    """The body of a message that pyroute2 has received."""
    start = received.offset
    return bytes(received.data[start + HEADER.size : start + received["header"]["length"]])


def unpack(kind: Kind, content: bytes) -> Any:
    """A message of pyroute2's from its body."""
    made = kind(HEADER.pack(HEADER.size + len(content), 0, 0, 0, 0) + content)
    made.decode()
    return made


class Shape:
    """A message that is packed once, for all that differ from it in a few values only.

    `marks`: those values as they stand in the one that is packed, in their order, each unlike
    everything else in it.
    """

    def __init__(self, packed: nlmsg, *marks: bytes) -> None:
        rest = body(packed)
        self._parts: list[bytes] = []
        for mark in marks:
            assert rest.count(mark) == 1, "a mark has to be unlike the rest"
            before, _, rest = rest.partition(mark)
            self._parts += [before, mark]
        self._parts.append(rest)

    def __call__(self, *values: bytes) -> bytes:
        """The body with these values, which are as many, and as long, as the marks."""
        parts = self._parts.copy()
        parts[1::2] = values
        return b"".join(parts)


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(sequence number, type, flags, body) of each message that one call brought."""
    offset, size, unpack = 0, HEADER.size, HEADER.unpack_from
    last = len(data) - size
    while offset <= last:
        length, kind, flags, sequence, _ = unpack(data, offset)
        if length < size:
            break
        yield sequence, kind, flags, data[offset + size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes of a message from `offset` on, by their type."""
    found = {}
    last, unpack = len(data) - _ATTRIBUTE.size, _ATTRIBUTE.unpack_from
    while offset <= last:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        found[kind & _TYPE] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def listed(data: bytes) -> list[bytes]:
    """The values of attributes of which there are several of one type, in their order."""
    found, offset = [], 0
    while offset + 4 <= len(data):
        length, _ = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found.append(data[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute as the kernel takes it."""
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def number(value: int) -> bytes:
    """32 bits as the kernel takes them: in the host's byte order."""
    return value.to_bytes(4, sys.byteorder)


def to_number(value: bytes) -> int:
    """The inverse, of whatever length; 0 for an attribute that is not there."""
    return int.from_bytes(value, sys.byteorder)


def text(value: bytes) -> str:
    """A string of the kernel's, which ends with a zero byte."""
    return value.rstrip(b"\0").decode(errors="replace")
