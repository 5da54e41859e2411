"""Whom our rules let in, as text for nft; what its messages say; and what the rules have counted."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from ctl.core.host import Change, Sender
from ctl.core.plan import Delta
from ctl.kernel.netlink.classify import rules
from ctl.kernel.netlink.message import HEADER, attribute
from ctl.kernel.netlink.nft import counted
from ctl.kernel.senders import changes

ONE, OTHER = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
ADD, DELETE = "add element ip ovnet senders", "delete element ip ovnet senders"
NEWRULE, NEWSETELEM, DELSETELEM, DELTABLE = (0x0A00 | number for number in (6, 12, 14, 2))
IPV4 = bytes((2, 0, 0, 0))


def test_a_change_names_whom_it_is_about_and_nobody_else() -> None:
    assert changes(4, Delta(((ONE, True),))) == f"{ADD} {{ {ONE} }}\n"


def test_who_goes_is_put_in_before_so_that_the_rest_is_done_where_he_is_gone_already() -> None:
    told = changes(4, Delta(((ONE, True),), (OTHER,)))
    assert told == f"{ADD} {{ {OTHER}, {ONE} }}\n{DELETE} {{ {OTHER} }}\n"


def nested(*kinds: int, value: bytes) -> bytes:
    for kind in reversed(kinds):
        value = attribute(kind, value)
    return value


def message(kind: int, *attributes: bytes) -> bytes:
    body = IPV4 + b"".join(attributes)
    return HEADER.pack(HEADER.size + len(body), kind, 0, 0, 0) + body


def element(kind: int, host: IPv4Address, table: str = "ovnet", name: str = "senders") -> bytes:
    return message(
        kind,
        attribute(1, table.encode() + b"\0"),
        attribute(2, name.encode() + b"\0"),
        nested(3, 1, 1, 1, value=host.packed),
    )


RULES = rules(lambda entry: entry == Sender(ONE))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (element(DELSETELEM, ONE), {Change.PEERS}),
        (element(DELSETELEM, OTHER), set()),
        (element(NEWSETELEM, ONE), set()),
        (element(DELSETELEM, ONE, table="theirs"), set()),
        (element(DELSETELEM, ONE, name="theirs"), set()),
        (element(DELSETELEM, OTHER) + element(DELSETELEM, ONE), {Change.PEERS}),
        (element(DELSETELEM, ONE) + message(DELTABLE, attribute(1, b"ovnet\0")),
         {Change.PEERS, Change.FIREWALL}),
        (message(NEWRULE, attribute(1, b"theirs\0")), set()),
        (message(NEWRULE, attribute(2, b"FORWARD\0")), {Change.FIREWALL}),
        (message(DELSETELEM, attribute(1, b"ovnet\0"), attribute(2, b"senders\0")), set()),
    ],
    ids=["of a peer", "of nobody", "added", "another table", "another set", "two in one", "the table as well",
         "others' rules", "beside ours", "without an element"],
)  # fmt: skip
def test_a_peer_that_is_let_in_no_more_is_looked_at_and_nothing_of_our_own_doing(
    data: bytes, found: set[Change]
) -> None:
    assert RULES.heard(data) == found


def expression(name: bytes, *data: bytes) -> bytes:
    return attribute(1, attribute(1, name + b"\0") + attribute(2, b"".join(data)))


def count(packets: int) -> bytes:
    return attribute(1, bytes(8)) + attribute(2, packets.to_bytes(8, "big"))


def test_what_a_rule_has_counted_goes_by_its_comment() -> None:
    matches = attribute(4, expression(b"payload", bytes(8)) + expression(b"counter", count(7)))
    comment = attribute(7, bytes((1, 1, 9)) + bytes((0, 12)) + b"no relaying\0")
    assert dict(counted(IPV4 + matches + comment)) == {"no relaying": 7}
    assert dict(counted(IPV4 + matches)) == {}
    assert dict(counted(IPV4 + attribute(4, expression(b"cmp", bytes(8))) + comment)) == {}
