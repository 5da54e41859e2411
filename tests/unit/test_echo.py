"""Who says that nothing listens on a port of theirs."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address

import pytest

from ctl.kernel.echo import between, closed, narrowed

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


@pytest.mark.parametrize("largest", [84, 85, 1349, 1350, 1449])
def test_the_largest_size_that_passes_is_found_in_two_rounds(largest: int) -> None:
    limits, rounds = (84, 1450), 0
    while limits[1] - limits[0] > 1:
        sizes = between(*limits)
        limits, rounds = narrowed(limits, sizes, {size for size in sizes if size <= largest}), rounds + 1
    assert (limits[0], rounds) == (largest, 2)


def test_a_size_whose_answer_was_lost_does_not_hide_a_larger_one_that_passes() -> None:
    assert narrowed((0, 50), [10, 20, 30, 40], {10, 30}) == (30, 40)
    assert narrowed((0, 50), [10, 20, 30, 40], set()) == (0, 10)
    assert narrowed((0, 50), [10, 20, 30, 40], {40}) == (40, 50)
