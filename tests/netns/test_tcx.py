"""Programs as links at tcx: how they come, stay, give way to others' filters, and go."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from ctl.core.host import FilterKey
from ctl.kernel.bpf import syscall
from ctl.kernel.hooks import tcx
from ctl.kernel.hooks.filters import HANDLE, PRIORITY
from ctl.kernel.netlink import tc
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.socket import Refused
from tests.hooks import counted, detach, programs, put_foreign_filter
from tests.host import Host
from tests.lab import Lab, wait_until
from tests.netns.conftest import Pair, build
from tests.netns.test_resilience import SOON, complaints_or_nothing, healthy, stopped
from tests.netns.test_xdp import streams
from tests.stream import UdpStream

PASS_ON = struct.pack("=BBhi BBhi", 0xB7, 0, 0, -1, 0x95, 0, 0, 0)
"""r0 = TC_ACT_UNSPEC; exit."""
RESYNC = ("--resync-interval", "1")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with Lab() as made:
        yield build(made, *RESYNC)


@contextmanager
def someone_at_tcx(host: Host, device: str, side: int) -> Iterator[int]:
    """A program of someone else, which passes everything on; its id."""
    ifindex = host.ifindex(device)
    fd = syscall.prog_load(PASS_ON, "someone")
    link = host.call(partial(syscall.link_create, fd, ifindex, side))
    try:
        yield syscall.prog_info(fd).id
    finally:
        syscall.link_detach(link)
        os.close(link)
        os.close(fd)


def at(host: Host, *devices: str) -> list[tuple[str, str]]:
    """Where ours are: (device, tcx or clsact)."""
    return [(each.dev, each.at) for each in programs(host, *devices)]


def full(host: Host, port: str) -> bool:
    """Whether a port has both its programs."""
    return len(programs(host, port)) == 2


def test_nothing_of_it_needs_a_qdisc(pair: Pair) -> None:
    a, port = pair.a, pair.on_a.port
    wait_until(partial(full, a, port), SOON, "the port has its programs")
    assert at(a, "eth0", "ovnet.1", port) == [
        ("eth0", "tcx"),
        ("ovnet.1", "tcx"),
        (port, "tcx"),
        (port, "tcx"),
    ]
    assert "clsact" not in a.run("tc", "qdisc", "show").stdout


def test_a_container_loses_nothing_when_its_port_gets_programs(pair: Pair) -> None:
    """As it would by the first qdisc of a port, which stops its queue."""
    for turn in range(3):
        with stopped(pair.agents["a"]):
            late = pair.a.container(f"late{turn}")
            there = UdpStream(late, pair.on_b, pair.on_b.address, port=9010, rate=5000)
            back = UdpStream(pair.on_b, late, late.address, port=9011, rate=5000)
            for stream in (there, back):
                stream.advance(0.2)
            assert not programs(pair.a, late.port)
        wait_until(partial(full, pair.a, late.port), SOON, "the port has its programs")
        for stream in (there, back):
            stream.advance(0.2)
            sent, tally = stream.finish()
            assert (tally.received, tally.lost, tally.late) == (sent, 0, 0)
        late.remove()


@pytest.mark.parametrize("device", ["eth0", "ovnet.1"])
def test_a_detached_program_comes_back(pair: Pair, device: str) -> None:
    before = programs(pair.a, device)
    assert before
    with streams(pair):
        detach(pair.a, device)
        wait_until(lambda: programs(pair.a, device) == before, SOON, "the programs are back")
    wait_until(partial(healthy, pair.a), SOON, lambda: complaints_or_nothing(pair.a))


@pytest.mark.parametrize(("device", "program"), [("eth0", "from_wire"), ("ovnet.1", "to_overlay")])
def test_ours_gives_way_to_a_filter_and_returns(pair: Pair, device: str, program: str) -> None:
    """Filters run after tcx: someone's would not see what ours redirects."""
    a = pair.a
    side = "ingress" if device == "eth0" else "egress"

    def runs() -> bool:
        """A flow that is new goes by the kernel path, and so by all programs."""
        before = counted(a, program)
        pair.on_a.run("ping", "-c1", "-W2", pair.on_b.address)
        return counted(a, program) > before

    a.run("tc", "qdisc", "add", "dev", device, "clsact")  # which costs packets: not ours to mend
    with streams(pair) as both:
        put_foreign_filter(a, device, side, 10)
        wait_until(lambda: at(a, device) == [(device, "clsact")], SOON, "ours is a filter behind it")
        assert runs(), "behind it, ours still has its turn"
        for stream in both:
            stream.advance(0.3)
        a.run("tc", "filter", "del", "dev", device, side, "prio", "10")
        wait_until(lambda: at(a, device) == [(device, "tcx")], SOON, "ours is a link again")
        assert runs()
    assert healthy(a), complaints_or_nothing(a)
    a.run("tc", "qdisc", "del", "dev", device, "clsact")


def test_ours_runs_behind_everyone_elses(pair: Pair) -> None:
    a = pair.a
    key = FilterKey(a.ifindex("eth0"), True)
    with streams(pair), someone_at_tcx(a, "eth0", syscall.TCX_INGRESS) as theirs:
        (ours,) = programs(a, "eth0")
        wait_until(lambda: a.call(partial(tcx.programs, key)) == [theirs, ours.id], SOON, "ours is last")
    assert a.call(partial(tcx.programs, key)) == [ours.id]


def test_lost_pins_are_pinned_again(pair: Pair) -> None:
    links = pair.a.bpffs / tcx.DIRECTORY
    before = sorted(path.name for path in links.iterdir())
    with streams(pair):
        for pin in links.iterdir():
            pin.unlink()
        wait_until(lambda: sorted(path.name for path in links.iterdir()) == before, SOON, "the pins are back")
        assert len(programs(pair.a, "eth0")) == 1


def test_pins_of_containers_that_are_gone_go(lab: Lab) -> None:
    pair = build(lab)
    a = pair.a
    late = a.container("late")
    wait_until(partial(full, a, late.port), SOON, "the port has its programs")
    links = a.bpffs / tcx.DIRECTORY
    count = len(list(links.iterdir()))
    gone = a.ifindex(late.port)
    late.remove()
    wait_until(lambda: len(list(links.iterdir())) == count - 2, SOON, "an agent that runs removes them")
    pair.agents["a"].kill()
    pair.on_a.remove()
    a.agent()
    wait_until(lambda: len(list(links.iterdir())) == count - 4, SOON, "and so does one that starts")
    assert not any(path.name.startswith(f"{gone}-") for path in links.iterdir())


def put_filter(host: Host, device: str) -> None:
    """Our program as a kernel without tcx has it."""
    (pin,) = host.bpffs.glob("v*/progs-*/from_wire")
    fd = syscall.obj_get(str(pin))
    name = f"ovnet:from_wire:{syscall.prog_info(fd).id}"

    def put() -> None:
        with Netlink() as netlink:
            tc.put(netlink.rtnl, host.ifindex(device), True, (PRIORITY, HANDLE), fd, name)

    host.run("tc", "qdisc", "add", "dev", device, "clsact")
    host.call(put)
    os.close(fd)


def test_filters_of_an_earlier_version_are_exchanged_for_links(lab: Lab) -> None:
    pair = build(lab)
    a = pair.a
    (before,) = programs(a, "eth0")
    pair.agents["a"].stop()
    put_filter(a, "eth0")
    for pin in (a.bpffs / tcx.DIRECTORY).iterdir():
        pin.unlink()
    wait_until(lambda: at(a, "eth0") == [("eth0", "clsact")], SOON, "there are only filters")
    with streams(pair):
        pair.agents["a"] = a.agent()
        assert programs(a, "eth0") == [before]


def test_teardown_leaves_others_alone(lab: Lab) -> None:
    pair = build(lab)
    a = pair.a
    with someone_at_tcx(a, "eth0", syscall.TCX_INGRESS) as theirs:
        pair.agents["a"].stop()
        a.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
        a.teardown()
        assert programs(a) == []
        assert "clsact" in a.run("tc", "qdisc", "show", "dev", "eth0").stdout
        assert not a.bpffs.exists()
        key = FilterKey(a.ifindex("eth0"), True)
        assert a.call(partial(tcx.programs, key)) == [theirs]


def test_hooks_are_listed(pair: Pair) -> None:
    a, port = pair.a, pair.on_a.port
    wait_until(partial(full, a, port), SOON, "the port has its programs")
    with someone_at_tcx(a, port, syscall.TCX_INGRESS) as theirs:
        rows = a.json("hook", "list")
    found = [(row["dev"], row["hook"], row["name"], row["ours"]) for row in rows]
    assert ("eth0", "ingress", "from_wire", True) in found
    assert ("ovnet.1", "egress", "to_overlay", True) in found
    assert (port, "ingress", "from_container", True) in found
    assert (port, "egress", "to_container", True) in found
    assert (port, "ingress", "someone", False) in found
    assert theirs in [row["id"] for row in rows]
    assert "from_wire" in a.ovctl("hook", "list").stdout


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EINVAL])
def test_where_nothing_can_be_nothing_runs(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interface that has just gone, or a kernel without tcx."""
    monkeypatch.setattr(syscall, "attached", refusal(code))
    assert tcx.programs(FilterKey(1, True)) == []


def test_a_question_that_is_refused_is_not_taken_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hook list` would show hooks as empty, and the agent put its program there once more."""
    monkeypatch.setattr(syscall, "attached", refusal(errno.EPERM))
    with pytest.raises(Refused, match="ask what runs on interface 1: Operation not permitted"):
        tcx.programs(FilterKey(1, True))


def refusal(code: int) -> Callable[[int, int], list[int]]:
    def attached(ifindex: int, attach_type: int) -> list[int]:
        raise OSError(code, os.strerror(code))

    return attached
