"""As test_packets.py, by IPv6: the rows of rows_ipv6.py. One pair of nodes, on which first the kernel path
carries all rows, and then eBPF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address
from typing import Final

import pytest

from ctl.backend.vxlan.device import vtep_mac
from ctl.core.model import MacAddress
from tests.dual import NETWORK, underlay
from tests.kube import nftables
from tests.kube.services import Endpoint, Proxy, Service
from tests.netns.parity.rows import Row
from tests.netns.parity.rows_ipv6 import ARRIVING, SENT, IPv6Outer
from tests.netns.parity.site import UPLINK_MACS, Seen
from tests.netns.parity.site_ipv6 import IPv6Site
from tests.netns.parity.test_packets import counted, ends, shoot
from tests.stream import TcpSink, tcp_send

FIRST_PORT: Final = 20000
MARK: Final = "outer_checksum"
"""Why those packets that end an exchange are the device's when they come in: their protocol has none."""
SERVICE, PORT, MEGABYTE = "fd96::1", 8080, 1_000_000
NEIGHBOURS: Final = "not_overlay"
LEARNED: Final = ("--bypass", "learned", "--approval-ttl", "60")


def send(site: IPv6Site, row: Row) -> Seen:
    """What a row shows when container one sends it."""
    port = FIRST_PORT + SENT.index(row)
    with site.container_mtu(row.mtu):
        return site.exchange(partial(shoot, site.at_one, row.send(ends(site, port))))


def arrive(site: IPv6Site, row: IPv6Outer) -> Seen:
    """What a row shows when it is put on the wire, as if from node a."""
    hosts = tuple(IPv6Address(underlay(host)) for host in (site.a, site.b))
    macs = (*(MacAddress.parse(UPLINK_MACS[name]) for name in "ab"), *(vtep_mac(host, 1) for host in hosts))
    port = FIRST_PORT + 5000 + ARRIVING.index(row)
    act = partial(shoot, site.at_a, row.send(ends(site, port), macs, hosts))
    return site.exchange(act, from_a=False)


@dataclass
class Compared:
    """The nodes, with eBPF, and what all rows have shown before, twice each, by name."""

    site: IPv6Site
    kernel: dict[str, list[Seen]]

    def show(self, name: str, act: Callable[[], Seen], *, mixed: bool = False) -> Seen:
        """The same now, as often; what the last time showed. As `compare` of test_packets.py: of packets that
        go either way order counts only once all of their flow go the same.
        """
        for turn, by_kernel in enumerate(self.kernel[name]):
            seen = act()
            renewed = any(found["flow_expired"] for found in seen.counted.values())
            ordered = turn > 0 and not renewed and not mixed
            assert seen.differences(by_kernel, ordered=ordered) == [], f"time {turn + 1}; {seen.reasons()}"
        return seen


@pytest.fixture(scope="module")
def compared() -> Iterator[Compared]:
    with IPv6Site() as site:
        kernel = {row.name: [send(site, row) for _ in range(2)] for row in SENT}
        kernel |= {row.name: [arrive(site, row) for _ in range(2)] for row in ARRIVING}
        site.bypass(*LEARNED)
        yield Compared(site, kernel)


@pytest.mark.parametrize("row", SENT, ids=lambda row: row.name)
def test_what_a_container_sends_goes_as_by_the_kernel(compared: Compared, row: Row) -> None:
    seen = compared.show(row.name, partial(send, compared.site, row), mixed=row.mixed)
    assert counted(seen, "a", "from_container", row.out, neighbours=NEIGHBOURS), seen.reasons()
    assert counted(seen, "b", "from_wire", row.into, mark=MARK, neighbours=NEIGHBOURS), seen.reasons()
    if row.out == "encap":  # then all packets of a flow have one port, on either path
        assert {flow: ports for flow, ports in seen.source_ports().items() if len(ports) > 1} == {}


@pytest.mark.parametrize("row", ARRIVING, ids=lambda row: row.name)
def test_what_comes_off_the_wire_goes_as_by_the_kernel(compared: Compared, row: IPv6Outer) -> None:
    seen = compared.show(row.name, partial(arrive, compared.site, row))
    assert counted(seen, "b", "from_wire", row.into, mark=MARK, neighbours=NEIGHBOURS), seen.reasons()


def test_a_service_is_translated_by_ebpf_as_kube_proxy_has_it_of_ipv6(compared: Compared) -> None:
    """NAT66: the client's address stays, and what follows the handshake takes neither stack nor netfilter."""
    site = compared.site
    source, target = map(str, site.addresses())
    proxy = Proxy("a", (underlay(site.a),), str(NETWORK))
    served = Service("web", SERVICE, PORT, (Endpoint(target, PORT, "b"),))
    before = site.counters()
    site.a.nft(nftables.rules(proxy, [served]))
    sink = TcpSink(site.two, PORT, address=target)
    try:
        said = tcp_send(site.one, SERVICE, 20 * MEGABYTE, port=PORT)
    finally:
        sink.stop()
        site.a.nft(nftables.removal(proxy))
    assert said["seen_as"] == source
    counted = {hook: now - before[hook] for hook, now in site.counters().items()}
    assert (
        counted["a", "to_overlay"]["learned_translated"]
        and counted["a", "to_container"]["learned_translated"]
    )
    assert counted["a", "from_container"]["encap"] > 20 * MEGABYTE / 1430 / 2
