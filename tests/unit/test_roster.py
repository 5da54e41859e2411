"""Which leases are peers, judged change by change."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ctl.core.roster
from ctl.core.family import IPV4, Member
from ctl.core.lease import rank
from ctl.core.model import Lease, MacAddress
from ctl.core.roster import Moves, Roster, moves
from tests.unit.strategies import NETWORK, leases

OWN = Lease(IPv4Network("172.17.1.0/24"), IPv4Address("10.0.0.1"), MacAddress.local(bytes(6)), 1)
PEER = Lease(IPv4Network("172.17.2.0/24"), IPv4Address("10.0.0.2"), MacAddress.parse("02:00:00:00:00:02"), 1)
OTHER = Lease(IPv4Network("172.17.3.0/24"), IPv4Address("10.0.0.3"), MacAddress.parse("02:00:00:00:00:03"), 1)


def roster(*found: Lease) -> Roster[IPv4Address, IPv4Network]:
    made = Roster(IPV4, OWN, NETWORK)
    made.update(found)
    return made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "host-gw"}, "backend is host-gw"),
        ({"host": OWN.host}, "own host address"),
        ({"vtep_mac": None}, "no usable VTEP MAC"),
        ({"vtep_mac": MacAddress(b"\x01" + bytes(5))}, "no usable VTEP MAC"),
        ({"vtep_mac": OWN.vtep_mac}, "VTEP MAC"),
        ({"vni": 7}, "VNI is 7"),
        ({"subnet": IPv4Network("10.0.0.0/8")}, "not in 172.17.0.0/16"),
        ({"subnet": IPv4Network("0.0.0.0/0")}, "not in 172.17.0.0/16"),
        ({"subnet": IPv4Network("172.17.1.128/25")}, "overlaps"),
        ({"subnet": IPv4Network("172.17.0.0/22")}, "overlaps"),
    ],
)
def test_a_lease_that_cannot_be_used_is_named_and_harms_no_other(
    change: dict[str, object], words: str
) -> None:
    made = roster(OWN, replace(PEER, node="bad", **change), OTHER)  # type: ignore[arg-type]
    assert list(made.usable.values()) == [OTHER]
    (problem,) = made.problems
    assert words in problem
    assert "bad" in problem


def test_a_huge_lease_is_named_and_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(NETWORK, network=IPv4Network("172.0.0.0/8"))
    junk = replace(
        PEER,
        subnet=IPv4Network("172.128.0.0/9"),
        vtep_mac=MacAddress.parse("02:00:00:00:00:99"),
        node="careless",
    )
    taken_apart = Mock(wraps=ctl.core.roster.blocks)
    monkeypatch.setattr(ctl.core.roster, "blocks", taken_apart)
    made = Roster(IPV4, OWN, wide)
    made.update([OWN, OTHER, junk])
    made.update([OWN, OTHER])
    made.update([OWN, OTHER, junk])
    assert list(made.usable.values()) == [OTHER]
    assert made.problems == ("lease 172.128.0.0/9 of careless ignored: it is larger than 256 subnets of /24",)
    assert {call.args[0] for call in taken_apart.call_args_list} == {OTHER.subnet}


@pytest.mark.parametrize("order", [1, -1])
def test_a_key_put_around_many_leases_takes_nothing_from_them(order: int) -> None:
    around = replace(
        PEER,
        subnet=IPv4Network("172.17.128.0/17"),
        host=IPv4Address("10.9.9.9"),
        vtep_mac=MacAddress.parse("02:00:00:00:00:99"),
    )
    inside = [
        replace(
            OTHER,
            subnet=IPv4Network(f"172.17.{n}.0/24"),
            host=IPv4Address(f"10.0.1.{n}"),
            vtep_mac=MacAddress(bytes([2, 0, 0, 0, 1, n])),
        )
        for n in (128, 200, 255)
    ]
    made = Roster(IPV4, OWN, NETWORK)
    for count in range(1, 5):
        made.update(sorted([around, *inside][::order][:count], key=rank))
    assert sorted(made.usable.values(), key=rank) == inside
    (problem,) = made.problems
    assert "172.17.128.0/17" in problem and "overlaps 172.17." in problem
    made.update([around])
    assert list(made.usable.values()) == [around], "nobody else claims it"


def test_our_own_lease_is_no_peer() -> None:
    made = roster(OWN)
    assert (made.usable, made.problems) == ({}, ())


def test_of_two_leases_on_one_space_the_first_is_used_until_it_goes() -> None:
    second = replace(OTHER, subnet=IPv4Network("172.17.2.128/25"))
    made = roster(second)
    assert made.update([PEER, second]) == Moves((second,), (PEER,))
    assert str(second.subnet) in made.problems[0]
    assert made.update([second]) == Moves((PEER,), (second,))
    assert not made.problems


def test_of_two_leases_with_one_mac_the_first_is_used_until_it_goes() -> None:
    twin = replace(OTHER, vtep_mac=PEER.vtep_mac)
    made = roster(PEER, twin)
    assert list(made.usable.values()) == [PEER]
    assert made.update([twin]) == Moves((PEER,), (twin,))


def test_two_leases_of_one_host_are_both_used_and_named() -> None:
    made = roster(PEER, replace(OTHER, host=PEER.host))
    assert len(made.usable) == len(made.at(PEER.host)) == 2
    assert "one host address" in made.problems[0]
    made.update([PEER])
    assert not made.problems


def test_host_gw_needs_no_mac() -> None:
    plain = replace(PEER, backend="host-gw", vtep_mac=None, vni=None)
    made = Roster(IPV4, OWN, replace(NETWORK, backend="host-gw"))
    assert made.update([plain]) == Moves((), (plain,))


def test_an_equal_object_is_no_change() -> None:
    assert not moves((PEER, OTHER), (replace(PEER), OTHER))
    assert moves((PEER, OTHER), (PEER,)) == Moves((OTHER,), ())
    assert moves((OTHER,), (PEER, OTHER)) == Moves((), (PEER,))
    changed = replace(PEER, host=OWN.host)
    assert moves((PEER, OTHER), (changed, OTHER)) == Moves((PEER,), (changed,))


# Few subnets, hosts and MACs, so that they clash.
crowded = st.lists(
    st.builds(
        lambda subnet, host, mac: replace(PEER, subnet=subnet, host=host, vtep_mac=mac),
        st.sampled_from(
            [IPv4Network(f"172.17.{each}") for each in ("2.0/24", "2.0/25", "2.128/25", "2.0/23", "3.0/24")]
        ),
        st.sampled_from([IPv4Address(f"10.0.0.{each}") for each in range(1, 4)]),
        st.sampled_from([MacAddress(bytes((2, 0, 0, 0, 0, each))) for each in range(3)]),
    ),
    max_size=5,
    unique_by=lambda lease: lease.subnet,
).map(lambda found: sorted(found, key=rank))


@given(st.lists(crowded, max_size=6))
def test_change_by_change_is_as_from_the_start(story: list[list[Lease]]) -> None:
    followed = Roster(IPV4, OWN, NETWORK)
    mirror: dict[IPv4Network, Member[IPv4Address, IPv4Network]] = {}
    for found in story:
        moved = followed.update(found)
        for lease in moved.gone:
            assert mirror.pop(lease.subnet) == lease
        mirror |= {lease.subnet: lease for lease in moved.new}
        fresh = roster(*found)
        assert followed.usable == mirror == fresh.usable
        assert followed.problems == fresh.problems
        assert set(followed.hosts()) == {lease.host for lease in mirror.values()}


@given(st.lists(leases(), max_size=12, unique_by=lambda lease: lease.subnet) | crowded)
def test_no_address_ever_leads_to_two_hosts(found: list[Lease]) -> None:
    usable = list(roster(*sorted(found, key=rank)).usable.values())
    assert len({lease.vtep_mac for lease in usable}) == len(usable)
    for lease in usable:
        assert not lease.subnet.overlaps(OWN.subnet)
        assert not any(lease.subnet.overlaps(each.subnet) for each in usable if each is not lease)


UPLINK = (IPv4Network("172.17.5.0/24"),)


@pytest.mark.parametrize("subnet", ["172.17.5.0/24", "172.17.5.128/25", "172.17.4.0/23"])
def test_a_peers_subnet_over_our_link_is_not_used_and_the_others_are(subnet: str) -> None:
    """A route to it would take the packets of the tunnel itself."""
    made = Roster(IPV4, OWN, NETWORK, UPLINK)
    over = replace(OTHER, subnet=IPv4Network(subnet), host=IPv4Address("172.17.5.12"), node="b")
    made.update(sorted([PEER, over], key=rank))
    assert list(made.usable.values()) == [PEER]
    (line,) = made.problems
    assert f"lease {subnet} of b ignored" in line
    made.update([PEER])
    assert not made.problems


def test_a_peer_whose_host_is_among_containers_is_not_used() -> None:
    """Not by its own subnet, which has its VXLAN in it, nor by ours, where nobody would look for a host."""
    inside = replace(OTHER, host=OTHER.subnet.network_address + 9)
    ours = replace(PEER, host=OWN.subnet.network_address + 9)
    made = roster(*sorted([inside, ours], key=rank))
    assert not made.usable
    assert len(made.problems) == 2
    assert all("its host 172.17." in line for line in made.problems)
