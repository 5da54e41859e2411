"""Ports that are left to the kernel path, and the kernel's messages that make the agent look again."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from pyroute2.netlink.rtnl import RTM_DELQDISC, RTM_NEWNETCONF, RTM_NEWQDISC
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from ctl.core.host import Change
from ctl.core.plan import why_kernel_path
from ctl.kernel.netlink.classify import Classifier
from ctl.kernel.netlink.message import body, message
from tests.unit.test_ports import PORT


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (PORT, ""),
        (replace(PORT, qdisc="noop"), ""),
        (replace(PORT, qdisc="tbf"), "its qdisc tbf would not see"),
        (replace(PORT, qdisc="htb"), "its qdisc htb would not see"),
        (replace(PORT, qdisc="fq_codel"), "its qdisc fq_codel would not see"),
        (replace(PORT, peer_xdp=True), "the container's own XDP program would not see"),
        (replace(PORT, kind="tun"), "a tun interface: only veth"),
        (replace(PORT, kind=""), "a hardware interface: only veth"),
        (replace(PORT, peer_elsewhere=False), "its other end is in this network namespace"),
    ],
)
def test_what_a_port_is_says_whether_it_is_bypassed(port: object, words: str) -> None:
    why = why_kernel_path(port)  # type: ignore[arg-type]
    assert why.startswith(words) if words else why == ""


def qdisc(kind: str, *extra: bytes) -> bytes:
    return body(message(tcmsg, [("TCA_KIND", kind)], index=9, parent=0xFFFFFFFF)) + b"".join(extra)


def block(number: int) -> bytes:
    """TCA_EGRESS_BLOCK."""
    return struct.pack("=HHI", 8, 14, number)


def netconf(forwarding: int | None) -> bytes:
    """A struct netconfmsg, NETCONFA_IFINDEX and NETCONFA_FORWARDING."""
    found = struct.pack("=BxxxHHi", 2, 8, 1, 9)
    return found if forwarding is None else found + struct.pack("=HHi", 8, 2, forwarding)


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        (RTM_NEWQDISC, qdisc("tbf"), {Change.FILTERS}),
        (RTM_DELQDISC, qdisc("tbf"), {Change.FILTERS}),
        (RTM_NEWQDISC, qdisc("clsact"), set()),
        (RTM_NEWQDISC, qdisc("clsact", block(10)), {Change.FILTERS}),
        (RTM_DELQDISC, qdisc("clsact"), {Change.FILTERS}),
        (RTM_NEWNETCONF, netconf(0), {Change.DEVICES}),
        (RTM_NEWNETCONF, netconf(1), set()),
        (RTM_NEWNETCONF, netconf(None), set()),
    ],
)
def test_what_the_kernel_says_of_qdiscs_and_forwarding(
    kind: int, content: bytes, expected: set[Change]
) -> None:
    assert Classifier(lambda _: False).classify(kind, content) == expected
