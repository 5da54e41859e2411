"""Each packet of the table arrives by eBPF as by the kernel path, and looks the same on the wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.backend.vxlan.device import vtep_mac
from ctl.core.model import MacAddress
from tests.netns.parity.capture import Shot, Tap
from tests.netns.parity.rows import ARRIVING, INVALID, SENT, Ends, Outer, Row
from tests.netns.parity.site import UPLINK_MACS, Seen, Site
from tests.netns.test_netfilter import forward, rules

FIRST_PORT = 20000
OFFLOADED = [row for row in SENT if row.offloads]
FOREIGN = [row for row in ARRIVING if row.into == "foreign_source"]
UNDERLAYS = {
    "no checksums": {"tx": False, "rx": False},
    "no TSO": {"tso": False, "tx-udp_tnl-segmentation": False},
    "no scatter-gather": {"sg": False},
    "GRO": {"gro": True},
    "GRO, no checksums": {"gro": True, "tx": False},
}
"""Features of the uplinks, and of the switch's ports, that are not as the kernel sets them."""


def ends(site: Site, port: int) -> Ends:
    return Ends(*site.addresses(), MacAddress.parse(site.one.mac), site.gateway, port)


def shoot(tap: Tap, shots: list[Shot]) -> None:
    for shot in shots:
        tap.send(shot)


def compare(
    kernel: Site,
    ebpf: Site,
    act: Callable[[Site], Callable[[], None]],
    *,
    mixed: bool = False,
    from_a: bool = True,
) -> Seen:
    """Twice on either site; what the second time showed where eBPF is.

    The first time, packets overtake those that have approved their flow, so order counts
    the second time. A third time where an approval has ended meanwhile, as UDP's first one
    soon does: the next ones last. `from_a`: see Site.exchange.
    """
    for turn in ("first", "second", "third"):
        by_kernel, ours = (site.exchange(act(site), from_a=from_a) for site in (kernel, ebpf))
        renewed = any(found["flow_expired"] for found in ours.counted.values())
        ordered = turn != "first" and not renewed and not mixed
        assert ours.differences(by_kernel, ordered=ordered) == [], f"the {turn} time; {ours.reasons()}"
        if turn == "second" and not renewed:
            break
    return ours


def counted(
    seen: Seen, host: str, hook: str, wanted: str, *, mark: str = "protocol", neighbours: str = "not_ipv4"
) -> bool:
    """Whether all words of `wanted` were counted and nothing else; `x|y`: either of them.

    The two that end the exchange do not count, which leave for the reason `mark`, nor do questions for
    neighbours, which leave for the other.
    """
    words = [set(word.split("|")) for word in wanted.split()]
    found = set(seen.counted[host, hook] - Counter({mark: 2}))
    if neighbours not in wanted:
        found.discard(neighbours)
    return found <= set().union(*words) and all(found & word for word in words)


def carry(kernel: Site, ebpf: Site, row: Row, port: int) -> None:
    def act(site: Site) -> Callable[[], None]:
        return partial(shoot, site.at_one, row.send(ends(site, port)))

    with kernel.container_mtu(row.mtu), ebpf.container_mtu(row.mtu):
        seen = compare(kernel, ebpf, act, mixed=row.mixed)
    assert counted(seen, "a", "from_container", row.out), seen.reasons()
    if row.out == "encap":  # then all packets of a flow have one port, on either path
        assert {flow: ports for flow, ports in seen.source_ports().items() if len(ports) > 1} == {}
    assert counted(seen, "b", "from_wire", row.into), seen.reasons()
    check_gear(seen, row.into, "a")


def check_gear(seen: Seen, into: str, *senders: str) -> None:
    """What did not bypass got and lost its tunnel by eBPF, but for what the device alone can unpack."""
    for name in senders:
        assert set(+seen.counted[name, "tunnel_out"]) - {"not_ipv4"} == {"tunnel_encap"}, seen.reasons()
    left = {"udp_gso", "ecn"} & {word for words in into.split() for word in words.split("|")}
    left.add("super_packet")
    assert set(+seen.counted["b", "tunnel_in"]) - left == {"tunnel_decap"}, seen.reasons()


@pytest.mark.parametrize("number", range(len(SENT)), ids=[row.name for row in SENT])
def test_what_a_container_sends_goes_as_by_the_kernel(kernel: Site, learned: Site, number: int) -> None:
    carry(kernel, learned, SENT[number], FIRST_PORT + number)


CARRIED = [number for number, row in enumerate(SENT) if "encap" in row.out]


@pytest.mark.parametrize("number", CARRIED, ids=[SENT[number].name for number in CARRIED])
def test_what_a_container_sends_goes_so_without_approval(kernel: Site, always: Site, number: int) -> None:
    carry(kernel, always, SENT[number], FIRST_PORT + 8000 + number)


def arrive(site: Site, row: Outer, port: int) -> Callable[[], None]:
    """Put it on the wire, as if from node a."""
    hosts = tuple(IPv4Address(host.address) for host in (site.a, site.b))
    macs = tuple(MacAddress.parse(UPLINK_MACS[name]) for name in "ab")
    vteps = tuple(vtep_mac(host, 1) for host in hosts)
    return partial(shoot, site.at_a, row.send(ends(site, port), macs + vteps, hosts))


@pytest.mark.parametrize("number", range(len(ARRIVING)), ids=[row.name for row in ARRIVING])
def test_what_comes_off_the_wire_goes_as_by_the_kernel(kernel: Site, learned: Site, number: int) -> None:
    row = ARRIVING[number]
    act = partial(arrive, row=row, port=FIRST_PORT + 5000 + number)
    seen = compare(kernel, learned, act, from_a=False)
    assert counted(seen, "b", "from_wire", row.into), seen.reasons()
    check_gear(seen, row.into)


@pytest.fixture
def strict_path(kernel: Site, learned: Site) -> Iterator[None]:
    """Both sites' node b takes a packet only from where it would send the answer to."""
    name = "net.ipv4.conf.all.rp_filter"
    before = {site: site.b.sysctl(name) for site in (kernel, learned)}
    for site in before:
        site.b.sysctl(name, "1")
    yield
    for site, value in before.items():
        site.b.sysctl(name, value)


@pytest.mark.parametrize("number", range(len(FOREIGN)), ids=[row.name for row in FOREIGN])
def test_foreign_sources_under_strict_rp_filter(
    kernel: Site, learned: Site, strict_path: None, number: int
) -> None:
    row = FOREIGN[number]
    act = partial(arrive, row=row, port=FIRST_PORT + 5500 + number)
    seen = compare(kernel, learned, act, from_a=False)
    assert seen.two == []
    assert counted(seen, "b", "from_wire", row.into), seen.reasons()


@pytest.fixture
def strict(kernel: Site, learned: Site) -> Iterator[None]:
    """Both nodes of both sites drop what conntrack calls invalid, as kube-proxy's do."""
    hosts = [host for site in (kernel, learned) for host in (site.a, site.b)]
    with ExitStack() as stack:
        for host in hosts:
            stack.enter_context(rules(host, "strict", forward("ct state invalid drop")))
        yield


@pytest.mark.parametrize("number", range(len(INVALID)), ids=[row.name for row in INVALID])
def test_invalid_is_dropped_where_the_firewall_says_so(
    kernel: Site, learned: Site, strict: None, number: int
) -> None:
    row = INVALID[number]
    carry(kernel, learned, replace(row, into="decap"), FIRST_PORT + 7000 + number)


@pytest.fixture(scope="module", params=UNDERLAYS)
def underlay(request: pytest.FixtureRequest, kernel: Site, learned: Site) -> Iterator[int]:
    """Both sites' cables with these features; its number."""
    features = UNDERLAYS[request.param]
    for site in (kernel, learned):
        site.underlay(features)
    yield list(UNDERLAYS).index(request.param)
    for site in (kernel, learned):
        site.underlay(dict.fromkeys(features, None))


@pytest.mark.parametrize("number", range(len(OFFLOADED)), ids=[row.name for row in OFFLOADED])
def test_offloads_change_nothing_of_that(kernel: Site, learned: Site, underlay: int, number: int) -> None:
    carry(kernel, learned, OFFLOADED[number], FIRST_PORT + 6000 + 100 * underlay + number)
