from __future__ import annotations

import math
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.errors import ConfigError, NetworkExhausted
from ctl.core.lease import (
    CANDIDATES,
    Conflict,
    Create,
    Keep,
    Replace,
    choose,
    conflicts,
    fits,
    free_subnets,
    holder,
    overlaps,
    rank,
    renew_at,
)
from ctl.core.model import Lease, Network
from ctl.core.wire import parse_network
from tests.unit.strategies import NETWORK, leases, networks, subnets

HOST = IPv4Address("10.0.0.1")
OTHER = IPv4Address("10.0.0.2")
SMALL = parse_network('{"Network":"10.5.0.0/24","SubnetLen":27,"Backend":{"Type":"vxlan"}}')


def lowest(candidates: Sequence[IPv4Network]) -> IPv4Network:
    return candidates[0]


def lease(subnet: str, host: IPv4Address = OTHER, expires_at: float | None = 100.0) -> Lease:
    return Lease(IPv4Network(subnet), host, expires_at=expires_at)


def test_the_lease_with_our_address_comes_first() -> None:
    held = [lease("172.17.3.0/24"), lease("172.17.5.0/24", HOST)]
    assert choose(NETWORK, held, HOST, IPv4Network("172.17.9.0/24"), lowest) == Keep(held[1])


def test_of_several_of_ours_a_reservation_comes_first_then_the_previous_one() -> None:
    held = [lease(f"172.17.{n}.0/24", HOST) for n in (3, 5, 7)]
    assert choose(NETWORK, held, HOST, held[1].subnet, lowest) == Keep(held[1])
    reserved = lease("172.17.9.0/24", HOST, None)
    assert choose(NETWORK, [*held, reserved], HOST, held[1].subnet, lowest) == Keep(reserved)


def test_our_lease_outside_the_network_makes_room_first() -> None:
    stale = lease("10.99.0.0/24", HOST)
    assert choose(NETWORK, [stale], HOST, None, lowest) == Replace(stale)
    assert choose(NETWORK, [stale, lease("172.17.7.0/24", HOST)], HOST, None, lowest) == Keep(
        lease("172.17.7.0/24", HOST)
    )


def test_the_previous_subnet_is_taken_again_if_free() -> None:
    previous = IPv4Network("172.17.40.0/24")
    assert choose(NETWORK, [], HOST, previous, lowest) == Create(previous)


@pytest.mark.parametrize("previous", ["172.17.0.0/24", "172.17.40.0/25", "10.1.1.0/24"])
def test_a_previous_subnet_that_does_not_fit_is_forgotten(previous: str) -> None:
    assert choose(NETWORK, [], HOST, IPv4Network(previous), lowest) == Create(NETWORK.subnet_min)


def test_a_previous_subnet_inside_another_lease_is_not_free() -> None:
    held = [lease("172.17.40.0/22")]
    choice = choose(NETWORK, held, HOST, IPv4Network("172.17.41.0/24"), lowest)
    assert choice == Create(NETWORK.subnet_min)


def test_a_full_network_says_so() -> None:
    held = [lease(str(subnet)) for subnet in free_subnets(SMALL, [])]
    assert len(held) == 7
    with pytest.raises(NetworkExhausted, match=r"no /27 of 10\.5\.0\.0/24 is free"):
        choose(SMALL, held, HOST, None, lowest)


def test_a_network_that_one_lease_fills_names_it() -> None:
    around = Lease(IPv4Network("10.5.0.0/24"), IPv4Address("10.9.9.9"), node="careless")
    with pytest.raises(
        NetworkExhausted, match=r"release 10\.5\.0\.0/24 of careless at 10\.9\.9\.9, which holds"
    ):
        choose(SMALL, [around], HOST, None, lowest)


@given(networks(), st.data())
def test_what_is_chosen_fits_and_overlaps_nobody(network: Network, data: st.DataObject) -> None:
    held = data.draw(st.lists(leases(network), max_size=8))
    previous = data.draw(st.none() | subnets(network))
    offered: list[IPv4Network] = []

    def pick(candidates: Sequence[IPv4Network]) -> IPv4Network:
        offered.extend(candidates)
        return data.draw(st.sampled_from(candidates))

    try:
        choice = choose(network, held, HOST, previous, pick)
    except NetworkExhausted:
        assert not list(free_subnets(network, held))
        return
    except ConfigError:
        assert all(any(other.host in free for other in held) for free in free_subnets(network, held))
        return
    if isinstance(choice, Create):
        assert fits(network, choice.subnet)
        assert not any(choice.subnet.overlaps(other.subnet) for other in held)
    assert len(offered) <= CANDIDATES


@given(st.lists(leases(SMALL), max_size=12))
def test_free_subnets_are_all_that_are_free(held: list[Lease]) -> None:
    every = [subnet for subnet in SMALL.network.subnets(new_prefix=27) if fits(SMALL, subnet)]
    free = [subnet for subnet in every if not any(subnet.overlaps(other.subnet) for other in held)]
    assert list(free_subnets(SMALL, held)) == free


@given(st.lists(leases(SMALL), max_size=8), subnets(SMALL))
def test_holder_finds_any_overlap(held: list[Lease], subnet: IPv4Network) -> None:
    held.sort(key=rank)
    found = holder(held, subnet)
    assert found == next((other for other in held if other.subnet.overlaps(subnet)), None)


@given(st.lists(leases(SMALL), max_size=8))
def test_overlaps_name_every_lease_that_lies_in_another(held: list[Lease]) -> None:
    found = list(overlaps(held))
    assert all(conflict.first.subnet.overlaps(conflict.second.subnet) for conflict in found)
    # In every pair that overlaps, the inner one has been named as somebody's inner one.
    inner = {conflict.second.subnet for conflict in found}
    for one, two in combinations(held, 2):
        if one.subnet.overlaps(two.subnet):
            assert max(one.subnet, two.subnet) in inner


def test_conflicts_are_lines_that_name_both() -> None:
    one = Lease(IPv4Network("172.17.3.0/24"), HOST, node="a")
    two = Lease(IPv4Network("172.17.4.0/24"), HOST, node="b")
    three = Lease(IPv4Network("172.17.4.0/25"), OTHER)
    assert conflicts([one, two, three]) == (Conflict(two, three), Conflict(one, two))
    assert [str(conflict) for conflict in conflicts([one, two, three])] == [
        "two leases with overlapping subnets: 172.17.4.0/24 of b at 10.0.0.1, 172.17.4.0/25 of 10.0.0.2",
        "two leases with one host address: 172.17.3.0/24 of a at 10.0.0.1, 172.17.4.0/24 of b at 10.0.0.1",
    ]


def test_a_clean_network_of_ten_thousand_has_no_conflicts_and_room() -> None:
    network = parse_network('{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}')
    base = int(network.subnet_min.network_address)
    held = [
        Lease(IPv4Network((base + 256 * n, 24)), IPv4Address(0xC0A80000 + n), expires_at=1.0)
        for n in range(10_000)
    ]
    assert conflicts(held) == ()
    behind = IPv4Network((base + 256 * 10_000, 24))
    assert choose(network, held, HOST, held[7].subnet, lowest) == Create(behind)


@pytest.mark.parametrize(
    ("expires_at", "ttl", "margin", "due"),
    [
        (100_000.0, 86_400, 3600, 96_400.0),
        (100.0, 60, 3600, 70.0),
        (None, 60, 3600, math.inf),
    ],
)
def test_renewal_is_due_a_margin_before_the_end(
    expires_at: float | None, ttl: float, margin: float, due: float
) -> None:
    assert renew_at(lease("172.17.3.0/24", expires_at=expires_at), ttl, margin) == due
