"""What else a host has in the overlay's network, and what that means."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.clash import Clashes, clashes, handed_out, over_the_underlay
from ctl.core.family import IPV6
from ctl.core.host import Ground, Surroundings
from ctl.core.lease import inside, rank, span
from ctl.core.model import IPv6Lease, Lease, Network
from ctl.core.wire import parse_network
from tests.unit.strategies import leases, networks


def network(text: str, low: str | None = None, high: str | None = None) -> Network:
    config = {"Network": text, "SubnetLen": 24, "SubnetMin": low, "SubnetMax": high}
    fields = ", ".join(
        f'"{key}": {value if key == "SubnetLen" else repr(value)}' for key, value in config.items() if value
    )
    return parse_network("{" + fields.replace("'", '"') + ', "Backend": {"Type": "vxlan"}}')


def has(device: str, text: str) -> Ground:
    interface = ip_interface(text)
    return Ground(interface.network, device, interface.ip)


def route(device: str, text: str) -> Ground:
    return Ground(ip_network(text), device)


PLAIN = network("10.77.0.0/16")
FLANNELS_EXAMPLE = network("10.0.0.0/8", "10.10.0.0", "10.99.0.0")
OWN = IPv4Network("10.77.3.0/24")
PEER = Lease(IPv4Network("10.77.5.0/24"), IPv4Address("192.0.2.5"), node="b")


def found(*others: Ground, of: Network = PLAIN, underlay: tuple[Ground, ...] = ()) -> Clashes:
    return clashes(of, OWN, [PEER], Surroundings(underlay, others))


@pytest.mark.parametrize(
    "ground",
    [
        has("docker0", "172.17.0.1/16"),
        has("virbr0", "192.168.122.1/24"),
        has("lxdbr0", "10.76.255.1/24"),
        has("podman0", "10.88.0.1/16"),
        route("tun0", "10.0.0.0/8"),  # a company's VPN: wider than all of it
        route("", "10.0.0.0/8"),  # a blackhole for what is private
        route("tun0", "10.77.0.0/16"),
        route("cali1", "10.77.3.9/32"),  # a container that is on no bridge
    ],
)
def test_what_harms_nobody_is_not_named(ground: Ground) -> None:
    assert found(ground) == Clashes()


@pytest.mark.parametrize(
    "ground",
    [
        has("docker0", "10.77.0.1/16"),
        has("docker0", "10.77.128.1/17"),
        has("eth1", "10.0.0.7/8"),
        route("tun0", "10.77.64.0/18"),
        has("lxdbr0", "10.77.200.1/24"),  # nobody's subnet so far
    ],
)
def test_what_may_lose_something_is_a_warning(ground: Ground) -> None:
    (line,) = found(ground).warnings
    assert str(ground) in line
    assert not found(ground).problems


@pytest.mark.parametrize(
    ("ground", "whose"),
    [
        (has("virbr0", "10.77.5.1/24"), "10.77.5.0/24 of b at 192.0.2.5"),
        (has("docker0", "10.77.5.129/25"), "10.77.5.0/24 of b"),
        (route("tun0", "10.77.5.0/24"), "10.77.5.0/24 of b"),
        (route("", "10.77.5.64/26"), "10.77.5.0/24 of b"),
        (has("lo", "10.77.5.7/32"), "10.77.5.0/24 of b"),
        (has("docker0", "10.77.3.1/24"), "our own subnet 10.77.3.0/24"),
        (route("tun0", "10.77.3.128/25"), "our own subnet 10.77.3.0/24"),
    ],
)
def test_what_takes_packets_from_a_node_is_a_problem(ground: Ground, whose: str) -> None:
    (line,) = found(ground).problems
    assert str(ground) in line
    assert whose in line
    assert not found(ground).warnings


def test_our_own_subnet_over_the_underlay_is_a_problem() -> None:
    (line,) = found(underlay=(has("eth0", "10.77.3.9/22"),)).problems
    assert "eth0 has 10.77.3.9/22" in line
    assert "SubnetMin" in line


def test_hosts_beside_what_is_handed_out_are_flannels_documented_example() -> None:
    hosts = has("eth0", "10.240.0.11/24")
    assert over_the_underlay(FLANNELS_EXAMPLE, [hosts]) == ""
    own = IPv4Network("10.10.3.0/24")
    assert (
        clashes(FLANNELS_EXAMPLE, own, [], Surroundings((hosts,), (has("docker0", "10.200.0.1/24"),)))
        == Clashes()
    )


@pytest.mark.parametrize(
    ("over", "link"),
    [
        (network("172.17.0.0/16", "172.17.5.0", "172.17.6.0"), "172.17.5.11/24"),
        (network("10.0.0.0/8"), "10.240.0.11/24"),
        (FLANNELS_EXAMPLE, "10.99.0.11/24"),
        (FLANNELS_EXAMPLE, "10.0.0.11/8"),
        (PLAIN, "10.77.200.1/32"),
    ],
)
def test_a_network_over_the_hosts_own_link_is_named_with_the_remedy(over: Network, link: str) -> None:
    line = over_the_underlay(over, [has("eth0", "192.168.1.1/24"), has("eth0", link)])
    assert f"eth0 has {link}" in line
    assert "SubnetMin" in line
    assert "\n" not in line


@st.composite
def grounds(draw: st.DrawFn, around: Network) -> Ground:
    """Some in the network, some around it, some elsewhere; with an address or without."""
    first = int(around.network.network_address)
    near = st.integers(first, first + around.network.num_addresses - 1)
    address = IPv4Address(draw(near | st.integers(0, 2**32 - 1)))
    length = draw(st.integers(1, 32))
    return Ground(
        IPv4Network((address, length), strict=False),
        draw(st.sampled_from(("d0", "d1", ""))),
        draw(st.sampled_from((address, None))),
    )


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Network, list[Lease], Surroundings]:
    """A network, leases that nobody disputes (the first is ours), and what else is on the host."""
    chosen = draw(networks())
    held: list[Lease] = []
    for lease in draw(st.lists(leases(chosen), min_size=1, max_size=5)):
        if not any(lease.subnet.overlaps(other.subnet) for other in held):
            held.append(lease)
    some = st.lists(grounds(chosen), max_size=4).map(tuple)
    return chosen, held, Surroundings(draw(some), draw(some))


@given(worlds())
def test_a_ground_is_named_once_or_not_at_all_and_only_if_it_is_in_the_way(
    world: tuple[Network, list[Lease], Surroundings],
) -> None:
    chosen, held, around = world
    told = clashes(chosen, held[0].subnet, sorted(held, key=rank), Surroundings((), around.others))
    first, last = handed_out(chosen)
    for ground in around.others:
        lines = [line for line in told.problems + told.warnings if line.startswith(f"{ground},")]
        start, end = span(ground.network)
        apart = end < first or start > last
        assert len(lines) <= 1
        assert not (apart and lines)
        around_it = [each.subnet for each in held if inside(span(ground.network), span(each.subnet))]
        if (
            around_it
            and not apart
            and not (around_it[0] == held[0].subnet and ground.network.prefixlen == 32)
        ):
            assert lines and lines[0] in told.problems


# --- IPv6 -----------------------------------------------------------------------------

DUAL = parse_network(
    '{"Network":"10.77.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:77::/48","Backend":{"Type":"vxlan"}}'
)
OWN_IPV6 = IPv6Network("fd00:77:0:3::/64")
IPV6_PEER = Lease(
    PEER.subnet, PEER.host, node="b", ipv6=IPv6Lease(IPv6Network("fd00:77:0:5::/64"), IPv6Address("fd77::5"))
)


def found_of_ipv6(*others: Ground, underlay: tuple[Ground, ...] = ()) -> Clashes:
    space, member = IPV6.space(DUAL), IPV6.member(IPV6_PEER)
    assert space is not None and member is not None
    return clashes(space, OWN_IPV6, [member], Surroundings(underlay, others))


@pytest.mark.parametrize(
    ("ground", "problem", "warning"),
    [
        (has("eth0", "2001:db8::1/64"), "", ""),
        (route("tun0", "fd00::/8"), "", ""),
        (route("cali1", "fd00:77:0:3::9/128"), "", ""),
        (route("tun0", "fd00:77:0:5::/64"), "within fd00:77:0:5::/64 of b at fd77::5", ""),
        (has("lxdbr0", "fd00:77:0:5:1::1/80"), "within fd00:77:0:5::/64 of b", ""),
        (has("docker0", "fd00:77:0:3::1/64"), "within our own subnet fd00:77:0:3::/64", ""),
        (has("virbr0", "fd00:77:0:99::1/64"), "", "which overlaps what fd00:77::/48 hands out"),
        (route("tun0", "fd00:77:0:8000::/49"), "", "which overlaps what fd00:77::/48 hands out"),
    ],
    ids=str,
)
def test_grounds_of_ipv6_are_judged_alike(ground: Ground, problem: str, warning: str) -> None:
    told = found_of_ipv6(ground)
    for lines, wanted in ((told.problems, problem), (told.warnings, warning)):
        assert len(lines) == bool(wanted)
        assert all(wanted in line and str(ground) in line for line in lines)


def test_an_ipv6_network_over_the_hosts_own_link_is_named_with_the_remedy() -> None:
    link = has("eth0", "fd00:77:0:9::11/64")
    assert "fd00:77::/48 hands out fd00:77:0:1::/64 to" in over_the_underlay(DUAL, [link])
    assert over_the_underlay(PLAIN, [link]) == ""
    (line,) = found_of_ipv6(underlay=(has("eth0", "fd00:77:0:3::11/64"),)).problems
    assert "which is the underlay, and our subnet fd00:77:0:3::/64 covers it" in line
