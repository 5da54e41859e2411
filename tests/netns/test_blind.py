"""Programs of others that end what is run before ours: named, and what they let in is still refused."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.kernel.bpf import syscall
from tests.hooks import counted, programs, put_foreign_filter
from tests.host import Host
from tests.lab import Lab, wait_until
from tests.netns.conftest import Pair, build
from tests.netns.test_hostile import NOBODYS
from tests.netns.test_resilience import complaints_or_nothing, healthy
from tests.netns.test_source_check import Attack, attack, evil

__all__ = ["attack", "evil"]
"""Fixtures."""
SOON = 20
TCX_PASS = struct.pack("=BBhi BBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
"""r0 = 0; exit."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with Lab() as made:
        yield build(made, "--resync-interval", "1")


@contextmanager
def someone_who_ends_it(host: Host, device: str) -> Iterator[None]:
    """A program at tcx that returns TCX_PASS; ours soon comes behind it."""
    fd = syscall.prog_load(TCX_PASS, "monitor")
    link = host.call(partial(syscall.link_create, fd, host.ifindex(device), syscall.TCX_INGRESS))
    try:
        yield
    finally:
        syscall.link_detach(link)
        os.close(link)
        os.close(fd)


def blind(pair: Pair, program: str) -> bool:
    """Whether status says so, while packets pass."""
    pair.on_a.run("ping", "-c5", "-i0.02", "-W1", pair.on_b.address, check=False)
    return f"{program} sees nothing" in complaints_or_nothing(pair.a)


def gauge(host: Host, program: str) -> float:
    text = host.http("http://127.0.0.1:9475/metrics")[1]
    (line,) = [
        line for line in text.splitlines() if line.startswith(f'ovnet_program_blind{{hook="{program}"')
    ]
    return float(line.split()[-1])


def well(pair: Pair) -> bool:
    """Whether it is healthy again, once packets are seen."""
    pair.on_a.run("ping", "-c5", "-i0.02", "-W1", pair.on_b.address, check=False)
    return healthy(pair.a)


@contextmanager
def someone_at(host: Host, hook: str) -> Iterator[None]:
    """Who ends what runs on the uplink's ingress before ours, by tcx or by a filter of clsact."""
    if hook == "tcx":
        with someone_who_ends_it(host, "eth0"):
            yield
        return
    host.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    put_foreign_filter(host, "eth0", "ingress", 10, ends=True)
    try:
        yield
    finally:
        host.run("tc", "qdisc", "del", "dev", "eth0", "clsact")


def named(pair: Pair, someone: str) -> bool:
    """Whether status says that from_wire has gone before it, while packets pass."""
    pair.on_a.run("ping", "-c5", "-i0.02", "-W1", pair.on_b.address, check=False)
    lines = pair.a.status()["problems"]
    return any(f"runs before {someone}" in line for line in lines)


@pytest.mark.parametrize(
    ("hook", "someone"), [("tcx", "program monitor"), ("clsact", "u32 filter at priority 10")]
)
def test_from_wire_goes_before_who_keeps_packets_from_it_and_checks(
    attack: Attack, hook: str, someone: str
) -> None:
    """Sources, a peer's inner ones too; and it redirects nothing, so that who comes behind sees it all."""
    pair, a = attack.pair, attack.pair.a
    assert well(pair), complaints_or_nothing(a)
    with someone_at(a, hook):
        wait_until(partial(named, pair, someone), SOON, lambda: f"{a.status()['problems']}")
        wait_until(partial(well, pair), SOON, lambda: complaints_or_nothing(a))
        stranger = replace(attack.true, host=IPv4Address(pair.outside.address))
        for forged, reason in (
            (stranger, "unknown_vtep"),
            (replace(attack.true, source=NOBODYS), "spoofed_source"),
        ):
            assert attack.fate(pair.outside, forged, partial(attack.counted, reason)) == "counted"
        before = attack.counted("decap")
        for _ in range(3):
            attack.send_true()
        assert attack.counted("decap") == before, "it would redirect past the other"
    wait_until(lambda: carries(attack), SOON, "it redirects again")
    assert well(pair), complaints_or_nothing(a)


def carries(attack: Attack) -> bool:
    before = attack.counted("decap")
    for _ in range(3):
        attack.send_true()
    return attack.counted("decap") > before


def test_strangers_are_refused_before_that_is_found_out(attack: Attack) -> None:
    """The rules do, from the first packet on: from_wire need not run."""
    pair, a = attack.pair, attack.pair.a
    with someone_at(a, "clsact"):
        wait_until(lambda: [each.at for each in programs(a, "eth0")] == ["clsact"], SOON, "ours is behind")
        before = counted(a, "from_wire")
        stranger = replace(attack.true, host=IPv4Address(pair.outside.address))
        assert attack.fate(pair.outside, stranger, attack.refused_by_rules) == "counted"
        assert counted(a, "from_wire") == before, "else this shows nothing"


def test_who_ends_it_before_to_overlay_is_named(pair: Pair) -> None:
    a = pair.a
    a.run("tc", "qdisc", "add", "dev", "ovnet.1", "clsact")
    put_foreign_filter(a, "ovnet.1", "egress", 10, ends=True)
    wait_until(partial(blind, pair, "to_overlay"), SOON, lambda: complaints_or_nothing(a))
    assert "u32 filter at priority 10" in complaints_or_nothing(a)
    assert gauge(a, "to_overlay") == 1
    a.run("tc", "qdisc", "del", "dev", "ovnet.1", "clsact")
    wait_until(partial(well, pair), SOON, lambda: complaints_or_nothing(a))


def test_who_passes_on_is_nobodys_concern_and_idle_nodes_are_well(pair: Pair) -> None:
    a = pair.a
    a.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    put_foreign_filter(a, "eth0", "ingress", 10)
    began = a.status()["reconcile"]["ok"]
    pair.on_a.run("ping", "-c30", "-i0.02", "-W1", pair.on_b.address)
    wait_until(lambda: a.status()["reconcile"]["ok"] > began + 8, 30, "it has looked twice at least")
    assert healthy(a), complaints_or_nothing(a)
    assert (gauge(a, "from_wire"), gauge(a, "to_overlay")) == (0, 0)
    a.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
    assert healthy(pair.b), complaints_or_nothing(pair.b)
