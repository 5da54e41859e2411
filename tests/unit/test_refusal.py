"""Who says that nothing listens on a port of theirs, and to which datagrams."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest

from ctl.core.model import A
from ctl.kernel.refusal import Datagram, closed, empty_datagram, only_whole
from tests.packets import checksum

HERE = IPv4Address("127.0.0.1")


def test_a_host_on_whose_port_nothing_listens_says_so_and_one_that_listens_says_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind((str(HERE), 0))
        port = listening.getsockname()[1]
        assert closed([HERE], port, 0.1) == set()
    assert closed([HERE], port, 30) == {HERE}


def test_more_hosts_are_asked_than_a_process_may_have_sockets() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as freed:
        freed.bind((str(HERE), 0))
        port = freed.getsockname()[1]
    hosts = [HERE + number for number in range(1500)]
    assert closed(hosts, port, 30) == set(hosts)


@pytest.mark.parametrize(
    ("offloaded", "whole", "told"),
    [(True, True, False), (True, False, False), (False, False, False), (False, True, True)],
)
def test_only_a_host_that_answers_what_was_whole_tells_of_a_device(
    offloaded: bool, whole: bool, told: bool
) -> None:
    """One that answers neither may drop such datagrams, or have sent as much ICMP as it may."""
    answered = {Datagram(HERE, kind) for kind, there in ((False, offloaded), (True, whole)) if there}
    assert only_whole(HERE, answered) == told


@pytest.mark.parametrize(
    ("source", "host"), [(HERE, HERE + 1), (IPv6Address("fd00::1"), IPv6Address("fd00::2"))]
)
def test_a_whole_datagram_has_the_checksum_that_its_receiver_computes(source: A, host: A) -> None:
    """Of the header as it is sent, with the pseudo-header: zero (RFC 1071)."""
    datagram = empty_datagram(source, host, 40000, 33434)
    assert len(datagram) == 8 and datagram[6:] != bytes(2)
    pseudo = source.packed + host.packed + (8).to_bytes(4) + (17).to_bytes(4)
    assert checksum(pseudo + datagram) == 0
