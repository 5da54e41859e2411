"""Networks and leases for property tests."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import assume
from hypothesis import strategies as st

from ctl.core.model import MIN_MTU, NO_HOSTS, VXLAN_OVERHEAD, Lease, MacAddress, Network

NETWORK = Network(
    IPv4Network("172.17.0.0/16"), 24, IPv4Network("172.17.1.0/24"), IPv4Network("172.17.255.0/24")
)

hosts = st.builds(IPv4Address, st.integers(1, 0xFFFFFFFE)).filter(
    lambda host: not any(host in each for each in NO_HOSTS)
)
macs = st.binary(min_size=6, max_size=6).map(MacAddress.local)
names = st.text(st.characters(categories=("L", "N")), max_size=10)


@st.composite
def networks(draw: st.DrawFn, *, backend: str = "vxlan") -> Network:
    """Any network that flannel's rules allow, from a /4 cut in four to a /28."""
    prefix = draw(st.integers(4, 28))
    length = draw(st.integers(prefix + 2, 30))
    base = draw(st.integers(0, (1 << prefix) - 1)) << (32 - prefix)
    assume(not any(IPv4Network((base, prefix)).subnet_of(each) for each in NO_HOSTS))
    size = 1 << (32 - length)
    count = 1 << (length - prefix)
    low = draw(st.integers(0 if base else 1, count - 1))
    high = draw(st.integers(low, count - 1))
    return Network(
        IPv4Network((base, prefix)),
        length,
        IPv4Network((base + low * size, length)),
        IPv4Network((base + high * size, length)),
        backend=backend,
        vni=draw(st.integers(1, (1 << 24) - 1)),
        port=draw(st.integers(1, 65535)),
        mtu=draw(st.none() | st.integers(MIN_MTU + VXLAN_OVERHEAD, 65535)),
        direct_routing=draw(st.booleans()),
    )


@st.composite
def subnets(draw: st.DrawFn, around: Network = NETWORK) -> IPv4Network:
    """Subnets of `around` and ones that are too long, too short or just outside it."""
    length = draw(st.integers(max(around.network.prefixlen - 1, 1), 30))
    first = int(around.network.network_address)
    address = draw(
        st.integers(max(first - 1024, 0), min(first + around.network.num_addresses, (1 << 32) - 1))
    )
    return IPv4Network((address, length), strict=False)


@st.composite
def leases(draw: st.DrawFn, around: Network = NETWORK) -> Lease:
    """A vxlan lease, perhaps on a subnet that `around` would not hand out."""
    return Lease(
        draw(subnets(around)),
        draw(hosts),
        vtep_mac=draw(macs),
        vni=draw(st.integers(0, (1 << 24) - 1)),
        node=draw(names),
        expires_at=draw(st.none() | st.floats(1, 1e10)),
    )
