from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest

from ctl.cli.status import Status, as_json, as_text
from ctl.core.abi import Counter, Hook
from ctl.core.model import Bypass
from ctl.core.report import Datapath, LeaseReport
from tests.datapath import NODE
from tests.samples import DATAPATH, EARLY, NOW, REPORT, report


def test_a_live_node_is_as_healthy_as_its_report() -> None:
    assert Status(alive=True, report=REPORT, datapath=DATAPATH).verdict(NOW) == (True, [])
    full = Datapath(fill={"endpoints": (4, 4)})
    assert Status(alive=True, report=REPORT, datapath=full).verdict(NOW)[1] == [
        "map endpoints is full: 4 of 4 entries"
    ]


def test_maps_that_a_node_should_have_are_missed() -> None:
    gone = Status(alive=True, report=REPORT, maps_error="no maps under /x")
    assert gone.verdict(NOW) == (False, ["no maps under /x"])
    off = report(bypass=Bypass.OFF, program="")
    status = replace(gone, report=off)
    assert status.verdict(NOW) == (True, [])
    assert "bypass is off: the kernel path carries everything" in as_text(status, NOW)


def test_a_failing_reconcile_is_shown_before_it_is_overdue() -> None:
    failing = report(reconcile=replace(REPORT.reconcile, error="nft: no such table", back_off=4))
    assert "reconcile   failing, next try after 4 s: nft: no such table" in as_text(
        Status(alive=True, report=failing), NOW
    )


def test_the_hook_and_why_it_is_not_another() -> None:
    assert "hook        tc\n" in as_text(Status(alive=True, report=REPORT), NOW)
    refused = report(hook_refused="eth0: XDP: no")
    assert "hook        tc: eth0: XDP: no\n" in as_text(Status(alive=True, report=refused), NOW)


def test_what_is_worth_knowing_is_shown_and_is_no_fault() -> None:
    line = "uplink stays eth0 with 10.0.0.1: vpn0 with 10.99.0.2 would be found now"
    status = Status(alive=True, report=report(warnings=(line,)))
    assert f"warning     {line}\n" in as_text(status, NOW)
    assert status.verdict(NOW) == (True, [])


def test_the_three_gears_have_their_shares_of_packets_and_bytes() -> None:
    datapath = Datapath({(Hook.FROM_CONTAINER, 1): Counter(90, 60), (Hook.TO_OVERLAY, 14): Counter(10, 40),
                         (Hook.TUNNEL_OUT, 34): Counter(9, 30)})  # fmt: skip
    status = Status(alive=True, report=REPORT, node=NODE, datapath=datapath)
    assert (
        "out         bypass 90.0 % of packets and 60.0 % of bytes, "
        "tunnel 9.0 % of packets and 30.0 % of bytes, kernel 1.0 % of packets and 10.0 % of bytes\n"
        "in          no packets yet\n"
    ) in as_text(status, NOW)
    found = as_json(status, NOW)["datapath"]
    assert found["bypass_percent"] == {"out": 90.0, "in": None}
    assert found["gears"]["out"]["tunnel"] == {
        "packets": 9, "bytes": 30, "packets_percent": 9.0, "bytes_percent": 30.0,
    }  # fmt: skip
    assert found["gears"]["in"]["kernel"] == {
        "packets": 0, "bytes": 0, "packets_percent": None, "bytes_percent": None,
    }  # fmt: skip


def test_a_lost_lease_is_not_said_to_be_anothers() -> None:
    """A Node that was deleted has lost it to nobody; the complaint says what has become of it."""
    lost = LeaseReport(IPv4Network("10.244.1.0/24"), None, None, "there is no node b in the API")
    text = as_text(Status(alive=True, report=replace(REPORT, lease=lost)), NOW)
    assert "10.244.1.0/24, lost: fenced\n" in text


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("known", [None, EARLY, REPORT])
@pytest.mark.parametrize("alive", [False, True])
def test_every_state_can_be_shown(alive: bool, known: object, wide: bool) -> None:
    status = Status(alive=alive, report=known)  # type: ignore[arg-type]
    text = as_text(status, NOW, wide=wide)
    assert all(line.strip() for line in text.splitlines())
    assert "None" not in text
    assert set(as_json(status, NOW)) == {"alive", "healthy", "why", "report", "datapath"}


def test_a_node_of_both_families_is_shown_with_its_ipv6_subnet_and_peers() -> None:
    assert REPORT.lease is not None
    plain = as_text(Status(alive=True, report=REPORT), NOW)
    assert "lease       172.17.1.0/24, " in plain and "by the kernel path only\n" in plain
    lease = replace(REPORT.lease, ipv6=IPv6Network("fd00:10:0:1::/64"))
    both = as_text(Status(alive=True, report=report(lease=lease, peers_ipv6=2)), NOW)
    assert "lease       172.17.1.0/24 and fd00:10:0:1::/64, ends in" in both
    assert "peers       2 by eBPF, 1 by the kernel path only; 2 by IPv6 too\n" in both
    by_ebpf = as_text(Status(alive=True, report=report(peers_ipv6=2, peers_ipv6_ebpf=1)), NOW)
    assert "; 2 by IPv6 too, 1 of them by eBPF\n" in by_ebpf
