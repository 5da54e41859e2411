"""What comes off the wire is decapsulated by XDP as by the kernel path.

The underlay is like a wire, for both: XDP on a veth sees what its other end has left undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import pytest

from tests.netns.parity.rows import ARRIVING, CHECKSUMS, OFFLOADS, PROTOCOLS, Row
from tests.netns.parity.site import Seen, Site
from tests.netns.parity.test_packets import arrive, compare, counted, ends, shoot

FIRST_PORT: Final = 30000
WIRE: Final[dict[str, bool | None]] = {"tx": False, "gro": True}
SENT: Final = [row for row in (*OFFLOADS, *CHECKSUMS, *PROTOCOLS) if row.into == "decap"]
"""Those that arrive whole and carry what a NIC has had a hand in, and one of each protocol."""


@pytest.fixture(scope="module")
def wired(kernel: Site) -> Iterator[Site]:
    """The nodes without eBPF, for as long as they are compared with those here."""
    kernel.underlay(WIRE)
    yield kernel
    kernel.underlay(dict.fromkeys(WIRE))


@pytest.fixture(scope="module")
def xdp() -> Iterator[Site]:
    with Site("--hook", "xdp", "--approval-ttl", "60") as site:
        site.underlay(WIRE)
        assert site.b.status()["hook"] == "xdp"
        yield site


def check(seen: Seen, into: str) -> None:
    """XDP counts what the row says, and from_wire what XDP has left it or given it to deliver.

    Between the two is GRO, which verifies outer checksums.
    """
    assert counted(seen, "b", "from_wire_xdp", into), seen.reasons()
    left = into.replace("decap", "delivered").replace("outer_checksum", "outer_checksum|decap")
    assert counted(seen, "b", "from_wire", left), seen.reasons()


@pytest.mark.parametrize("number", range(len(ARRIVING)), ids=[row.name for row in ARRIVING])
def test_what_comes_off_the_wire_goes_as_by_the_kernel(wired: Site, xdp: Site, number: int) -> None:
    row = ARRIVING[number]
    act = partial(arrive, row=row, port=FIRST_PORT + number)
    check(compare(wired, xdp, act, from_a=False), row.into)


@pytest.mark.parametrize("number", range(len(SENT)), ids=[row.name for row in SENT])
def test_what_a_container_sends_goes_as_by_the_kernel(wired: Site, xdp: Site, number: int) -> None:
    row: Row = SENT[number]

    def act(site: Site) -> Callable[[], None]:
        return partial(shoot, site.at_one, row.send(ends(site, FIRST_PORT + 500 + number)))

    with wired.container_mtu(row.mtu), xdp.container_mtu(row.mtu):
        check(compare(wired, xdp, act, mixed=row.mixed), row.into)
