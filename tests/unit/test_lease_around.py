"""A node takes no subnet that would cost its host the way to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.errors import ConfigError, NetworkExhausted
from ctl.core.host import Ground, Surroundings
from ctl.core.lease import Create, Keep, choose, fits, free_subnets, inside, span, with_ipv6
from ctl.core.model import IPv6Lease, Lease, Network
from ctl.core.wire import parse_network
from tests.unit.strategies import leases, networks
from tests.unit.test_clash import grounds

HOST = IPv4Address("172.17.5.11")
TWO = parse_network(
    '{"Network":"172.17.0.0/16","SubnetMin":"172.17.5.0","SubnetMax":"172.17.6.0","Backend":{"Type":"vxlan"}}'
)


def has(device: str, text: str) -> Ground:
    interface = ip_interface(text)
    return Ground(interface.network, device, interface.ip)


UPLINK = has("eth0", "172.17.5.11/24")
ON_THE_LINK = Surroundings((UPLINK,))


def lowest(candidates: Sequence[IPv4Network]) -> IPv4Network:
    return candidates[0]


def lease(subnet: str, host: IPv4Address = HOST, expires_at: float | None = 100.0) -> Lease:
    return Lease(IPv4Network(subnet), host, expires_at=expires_at)


def test_a_subnet_over_the_link_is_not_chosen() -> None:
    assert choose(TWO, [], HOST, None, lowest, ON_THE_LINK) == Create(IPv4Network("172.17.6.0/24"))


def test_nor_is_one_of_an_earlier_life() -> None:
    previous = IPv4Network("172.17.5.0/24")
    assert choose(TWO, [], HOST, previous, lowest) == Create(previous)
    assert choose(TWO, [], HOST, previous, lowest, ON_THE_LINK) == Create(IPv4Network("172.17.6.0/24"))


@pytest.mark.parametrize("expires_at", [100.0, None], ids=["a lease", "a reservation"])
def test_one_that_is_ours_already_is_refused_with_the_remedy(expires_at: float | None) -> None:
    held = [lease("172.17.5.0/24", expires_at=expires_at)]
    with pytest.raises(
        ConfigError, match=r"eth0 has 172\.17\.5\.11/24.*ovctl lease release 172\.17\.5\.0/24"
    ):
        choose(TWO, held, HOST, None, lowest, ON_THE_LINK)


def test_where_only_the_link_is_free_it_is_refused_with_the_remedy() -> None:
    held = [lease("172.17.6.0/24", IPv4Address("172.17.5.12"))]
    with pytest.raises(ConfigError, match=r"eth0 has 172\.17\.5\.11/24.*SubnetMin"):
        choose(TWO, held, HOST, None, lowest, ON_THE_LINK)


def test_a_full_network_is_full_as_before() -> None:
    others = [lease(f"172.17.{n}.0/24", IPv4Address(f"192.0.2.{n}")) for n in (5, 6)]
    with pytest.raises(NetworkExhausted):
        choose(TWO, others, HOST, None, lowest, ON_THE_LINK)


def test_a_peers_own_address_is_not_covered() -> None:
    """Its hosts are in several networks with routers between: we see of them no more than our own."""
    peer = lease("172.17.9.0/24", IPv4Address("172.17.5.99"))
    assert choose(TWO, [peer], IPv4Address("192.0.2.1"), None, lowest) == Create(IPv4Network("172.17.6.0/24"))


def test_what_another_has_is_kept_off_as_far_as_there_is_room() -> None:
    """Docker's bridge around all of it leaves only what does not have its own address in it."""
    docker = Surroundings(others=(has("docker0", "172.17.5.1/16"),))
    assert choose(TWO, [], HOST, None, lowest, docker) == Create(IPv4Network("172.17.6.0/24"))
    half = Surroundings(others=(has("docker0", "172.17.4.1/23"),))
    assert choose(TWO, [], HOST, None, lowest, half) == Create(IPv4Network("172.17.6.0/24"))


def test_our_lease_in_anothers_network_is_kept() -> None:
    """Containers have it. What is in the way is named while it runs."""
    held = lease("172.17.5.0/24")
    around = Surroundings(others=(has("docker0", "172.17.5.1/24"),))
    assert choose(TWO, [held], HOST, None, lowest, around) == Keep(held)


@given(networks(), st.data())
def test_what_is_chosen_covers_neither_the_link_nor_a_peer(network: Network, data: st.DataObject) -> None:
    held = data.draw(st.lists(leases(network), max_size=5))
    some = st.lists(grounds(network), max_size=3).map(tuple)
    around = Surroundings(data.draw(some), data.draw(some))
    try:
        choice = choose(network, held, HOST, None, lowest, around)
    except NetworkExhausted:
        assert not list(free_subnets(network, held))
        return
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    if isinstance(choice, Create):
        assert fits(network, choice.subnet)
        assert not any(choice.subnet.overlaps(each) for each in around.links)
        assert not any(each.host in choice.subnet for each in held)
        assert not any(inside(span(each.network), span(choice.subnet)) for each in around.others)
    if isinstance(choice, Keep):
        assert not any(choice.lease.subnet.overlaps(each) for each in around.links)


# --- IPv6 -----------------------------------------------------------------------------

TWO_OF_IPV6 = parse_network(
    '{"Network":"172.17.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","IPv6SubnetMin":"fd00:10:0:5::",'
    '"IPv6SubnetMax":"fd00:10:0:6::","Backend":{"Type":"vxlan"}}'
)
FIVE, SIX = IPv6Network("fd00:10:0:5::/64"), IPv6Network("fd00:10:0:6::/64")
ON_THE_IPV6_LINK = Surroundings((UPLINK, has("eth0", "fd00:10:0:5::11/64")))


def ipv6_of(held: Lease, *others: Lease, around: Surroundings, previous: IPv6Network | None = None) -> object:
    found = with_ipv6(held, TWO_OF_IPV6, others, lambda candidates: candidates[0], previous, around)
    return found.ipv6 and found.ipv6.subnet


def test_an_ipv6_subnet_over_the_link_is_not_chosen_nor_kept_nor_had_again() -> None:
    mine = lease("172.17.9.0/24")
    assert ipv6_of(mine, around=Surroundings()) == FIVE
    assert ipv6_of(mine, around=ON_THE_IPV6_LINK) == SIX
    assert ipv6_of(mine, around=ON_THE_IPV6_LINK, previous=FIVE) == SIX
    assert ipv6_of(replace(mine, ipv6=IPv6Lease(FIVE)), around=ON_THE_IPV6_LINK) == SIX


def test_nor_is_one_with_a_peer_or_another_network_in_it() -> None:
    mine = lease("172.17.9.0/24")
    peer = replace(
        lease("172.17.8.0/24"), ipv6=IPv6Lease(IPv6Network("fd00:9::/64"), IPv6Address("fd00:10:0:5::99"))
    )
    assert ipv6_of(mine, peer, around=Surroundings()) == SIX
    assert ipv6_of(mine, around=Surroundings(others=(has("lxdbr0", "fd00:10:0:5:1::1/80"),))) == SIX


def test_where_only_the_ipv6_link_is_free_it_is_refused_with_the_remedy() -> None:
    peer = replace(lease("172.17.8.0/24"), ipv6=IPv6Lease(SIX))
    with pytest.raises(ConfigError, match=r"each free /64 of fd00:10::/48 .*eth0 has fd00:10:0:5::11/64"):
        ipv6_of(lease("172.17.9.0/24"), peer, around=ON_THE_IPV6_LINK)
