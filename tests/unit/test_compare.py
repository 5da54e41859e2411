"""What differs between what is wanted and what is there."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from ctl.core.abi import PeerEntry
from ctl.core.compare import Difference, State, compare, lasting
from ctl.core.host import Route, RouteKey
from ctl.core.model import MacAddress

TABLES = st.dictionaries(st.integers(0, 9), st.integers(0, 3))


def dev(ifindex: int) -> str:
    return f"if{ifindex}"


@given(TABLES, TABLES)
def test_what_is_done_about_each_difference_leaves_none(
    desired: dict[int, int], actual: dict[int, int]
) -> None:
    found = list(compare("t", desired, actual, dev))
    assert bool(found) == (desired != actual)
    mended = dict(actual)
    for each in found:
        if each.state is State.STALE:
            del mended[int(each.key)]
        else:
            mended[int(each.key)] = int(each.wanted)
        assert (each.found == "") == (each.state is State.MISSING)
        assert (each.wanted == "") == (each.state is State.STALE)
    assert mended == desired


def test_values_are_shown_as_the_tools_show_them_that_mend_them() -> None:
    key = RouteKey(IPv4Network("172.17.9.0/24"), 107)
    wanted = Route(IPv4Address("172.17.9.0"), 7, onlink=True, mtu=1400)
    (route,) = compare("routes", {key: wanted}, {key: Route(IPv4Address(0), 0)}, dev)
    assert route == Difference(
        "routes",
        "172.17.9.0/24 metric 107",
        State.DIFFERENT,
        "via 172.17.9.0 dev if7 onlink mtu 1400",
        "several routes",
    )
    mac = MacAddress.parse("02:00:00:00:00:01")
    entry = PeerEntry(IPv4Address("192.0.2.9"), mac, 8472, 1, 2, None, 1)
    (peer,) = compare("peers", {IPv4Address("172.17.9.0"): entry}, {}, dev)
    assert peer.wanted == "192.0.2.9 02:00:00:00:00:01 vni 1 port 8472 via fib dev if2 ttl 64 kernel-path"


def test_only_what_two_looks_have_in_common_differs() -> None:
    one, two, three = (Difference("t", key, State.MISSING, "x") for key in "abc")
    assert lasting([two, one], [three, two]) == [two]
