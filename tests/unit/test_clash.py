"""What else a host has in the overlay's network, and what that means."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.clash import Clashes, clashes, over_the_underlay
from ctl.core.host import Ground, Surroundings
from ctl.core.lease import rank
from ctl.core.model import Lease, Network
from ctl.core.wire import parse_network
from tests.unit.strategies import leases, networks


def network(text: str, low: str | None = None, high: str | None = None) -> Network:
    config = {"Network": text, "SubnetLen": 24, "SubnetMin": low, "SubnetMax": high}
    fields = ", ".join(
        f'"{key}": {value if key == "SubnetLen" else repr(value)}' for key, value in config.items() if value
    )
    return parse_network("{" + fields.replace("'", '"') + ', "Backend": {"Type": "vxlan"}}')


def has(device: str, text: str) -> Ground:
    interface = IPv4Interface(text)
    return Ground(interface.network, device, interface.ip)


def route(device: str, text: str) -> Ground:
    return Ground(IPv4Network(text), device)


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
    first, last = chosen.subnet_min.network_address, chosen.subnet_max.broadcast_address
    for ground in around.others:
        lines = [line for line in told.problems + told.warnings if line.startswith(f"{ground},")]
        apart = ground.network.broadcast_address < first or ground.network.network_address > last
        assert len(lines) <= 1
        assert not (apart and lines)
        within = [each.subnet for each in held if ground.network.subnet_of(each.subnet)]
        if within and not apart and not (within[0] == held[0].subnet and ground.network.prefixlen == 32):
            assert lines and lines[0] in told.problems
