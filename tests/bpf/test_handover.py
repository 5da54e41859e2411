"""Packets of IPv6 at the programs for IPv4: handed over to those for IPv6, if they are in place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ctl.core.abi import Hook
from ctl.core.errors import KernelError
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.loader import Program, hand_over
from ctl.kernel.bpf.maps import create_or_adopt, layout_dir, open_maps, specs
from ctl.kernel.bpf.source import CALLS, PROGRAMS, XDP, XDP_FRAGS
from tests import packets
from tests.datapath import INET, INET6, Action, Datapath, Result, XdpAction, bcc
from tests.lab import wait_until

TC = [name for name in PROGRAMS if name != XDP]
ALL = {Hook[name.upper()] for name in PROGRAMS}
SPECS = specs(4, 4, 64)

QUESTION = INET6.sent(packets.udp(b"question", 1000, 2000))
PACKETS = {
    "a container's": QUESTION,
    "out of netfilter": INET6.sent(ttl=63),
    "a peer's": INET6.wire(INET6.received()),
    "a stranger's": INET6.wire(INET6.received(), host=INET6.foreign),
    "an answer": INET6.received(),
    "cut short": QUESTION[:54],
}


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Datapath, Datapath]]:
    with Datapath() as four, Datapath(cast=INET6) as six:
        yield four, six


@pytest.fixture
def four(both: tuple[Datapath, Datapath]) -> Datapath:
    """The programs for IPv4 on furnished maps; they hand nothing over yet."""
    return both[0].clear().furnish()


@pytest.fixture
def six(both: tuple[Datapath, Datapath]) -> Datapath:
    """Those for IPv6, with a flow approved in both directions."""
    return approved(both[1])


def approved(six: Datapath) -> Datapath:
    six.clear().furnish()
    six.approve(INET6.flow_out())
    six.approve(INET6.flow_in())
    return six


def programs(of: Datapath, names: list[str] | None = None, xdp: str = XDP) -> dict[str, Program]:
    """These programs (all, unless told otherwise), as they are loaded; `xdp` as the one for XDP."""
    fds = {name: of.fd(xdp if name == XDP else name) for name in names or PROGRAMS}
    return {name: Program(name, fd, syscall.prog_info(fd).id) for name, fd in fds.items()}


def ids(of: Mapping[str, Program]) -> dict[Hook, int]:
    return {Hook[name.upper()]: program.id for name, program in of.items()}


def seen(six: Datapath, program: str, packet: bytes, by: Datapath | None = None) -> Result:
    """What the programs for IPv6 make of a packet; `by`: whose hand it over."""
    return six.xdp(packet, by=by) if program == XDP else six.run(program, packet, by=by)


@pytest.mark.parametrize("name", PACKETS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_handed_over_leaves_as_the_programs_for_ipv6_alone_would_have_it(
    four: Datapath, six: Datapath, program: str, name: str
) -> None:
    alone = seen(six, program, PACKETS[name])
    assert alone.reason != "not_ipv6"
    hand_over(four.maps, programs(six))
    approved(six)
    assert seen(six, program, PACKETS[name], by=four) == alone
    assert four.maps.counters() == {}, "IPv4's programs have nothing to say of it"


def test_both_directions_bypass_by_the_programs_of_ipv4(four: Datapath, six: Datapath) -> None:
    hand_over(four.maps, programs(six))
    assert six.run("from_container", QUESTION, by=four).reason == "encap"
    assert six.run("from_wire", INET6.wire(INET6.received()), by=four).reason == "decap"
    first = six.xdp(INET6.wire(INET6.received()), by=four)
    assert first.reason == "decap"
    assert six.deliver(first.packet, first.note).reason == "delivered"


def test_a_packet_of_ipv4_is_not_handed_over(four: Datapath, six: Datapath) -> None:
    hand_over(four.maps, programs(six))
    four.approve(INET.flow_out())
    four.approve(INET.flow_in())
    assert four.run("from_container", INET.sent()).reason == "encap"
    assert four.run("from_wire", INET.wire(INET.received())).reason == "decap"
    assert four.xdp(INET.wire(INET.received())).reason == "decap"
    assert four.run("to_overlay", INET.sent()).action == Action.UNSPEC
    assert four.run("to_container", INET.received()).action == Action.UNSPEC
    # Inside of IPv4's tunnel it is none of IPv6's.
    assert four.run("from_wire", INET.wire(INET6.received())).reason == "not_ipv4"
    assert six.maps.counters() == {}


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_empty_place_leaves_ipv6_to_the_kernel_path(four: Datapath, six: Datapath, program: str) -> None:
    present = programs(six, [name for name in PROGRAMS if name != program])
    hand_over(four.maps, present)
    assert four.maps.handed_over() == ids(present)
    packet = INET6.wire(INET6.received())
    result = four.xdp(packet) if program == XDP else four.run(program, packet)
    assert result.action in (Action.UNSPEC, XdpAction.PASS)
    assert (result.reason, result.packet) == ("not_ipv4", packet)


def test_what_is_in_place_is_not_touched(
    four: Datapath, six: Datapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hand_over(four.maps, programs(six)) == ""
    assert four.maps.handed_over() == ids(programs(six))
    with monkeypatch.context() as frozen:
        frozen.setattr(syscall.Map, "update", None)
        frozen.setattr(syscall.Map, "delete", None)
        assert hand_over(four.maps, programs(six)) == ""


def test_a_newer_program_takes_the_place_of_the_older(four: Datapath, six: Datapath) -> None:
    hand_over(four.maps, programs(six))
    with Datapath(cast=INET6) as newer:
        approved(newer)
        hand_over(four.maps, programs(newer))
        assert four.maps.handed_over() == ids(programs(newer))
        assert newer.run("from_container", QUESTION, by=four).reason == "encap"


def test_nothing_is_handed_over_any_more_when_it_is_taken_back(four: Datapath, six: Datapath) -> None:
    for _ in range(2):
        hand_over(four.maps, programs(six))
        hand_over(four.maps, None)
        hand_over(four.maps, None)
        assert four.maps.handed_over() == {}
        assert four.run("from_container", QUESTION).reason == "not_ipv4"
        assert four.xdp(INET6.wire(INET6.received())).reason == "not_ipv4"


def test_a_frame_in_several_pieces_is_handed_over(four: Datapath, six: Datapath) -> None:
    jumbo = INET6.wire(INET6.received(packets.udp(bytes(8000), 2000, 1000)))
    six.node(mtu=8930)
    four.fd(XDP_FRAGS)
    assert hand_over(four.maps_of_frags, programs(six, xdp=XDP_FRAGS)) == ""
    result = six.xdp(jumbo, program=XDP_FRAGS, by=four)
    assert (result.action, result.reason, result.counted) == (XdpAction.PASS, "decap", (1, len(jumbo)))


@pytest.mark.parametrize(("ours", "theirs"), [(XDP, XDP_FRAGS), (XDP_FRAGS, XDP)])
def test_an_xdp_program_that_does_not_fit_is_left_out_and_from_wire_does_without_it(
    four: Datapath, six: Datapath, ours: str, theirs: str
) -> None:
    maps = four.maps if ours == XDP else four.maps_of_frags
    four.fd(ours)
    assert hand_over(maps, programs(six, xdp=ours)) == ""
    why = hand_over(maps, programs(six, xdp=theirs))
    assert why == (
        "program from_wire_xdp for IPv6 does not go with that for IPv4: "
        "map ipv6_xdp cannot be written: Invalid argument"
    )
    assert set(maps.handed_over()) == ALL - {Hook.FROM_WIRE_XDP}, "what was there is of other maps"
    assert four.xdp(INET6.wire(INET6.received()), program=ours).reason == "not_ipv4"
    assert six.run("from_wire", INET6.wire(INET6.received()), by=four).reason == "decap"


def test_a_program_for_tc_that_is_refused_is_an_error_and_its_place_is_empty(
    four: Datapath, six: Datapath
) -> None:
    hand_over(four.maps, programs(six))
    wrong = {**programs(six), "from_wire": programs(six)[XDP]}
    with pytest.raises(KernelError, match="^map ipv6_programs cannot be written: Invalid argument$"):
        hand_over(four.maps, wrong)
    assert Hook.FROM_WIRE not in four.maps.handed_over()


def test_xdp_hands_over_last_and_ceases_first() -> None:
    """What it has taken the tunnel off only from_wire of the same family can deliver."""
    written: list[tuple[Hook, int | None]] = []

    class Recorder:
        def hand_over(self, hook: Hook, program: int | None) -> None:
            written.append((hook, program))

    maps: Any = Recorder()
    hand_over(maps, {name: Program(name, fd, 0) for fd, name in enumerate(PROGRAMS)})
    assert written[-1] == (Hook.FROM_WIRE_XDP, PROGRAMS.index(XDP))
    written.clear()
    hand_over(maps, None)
    assert written[0] == (Hook.FROM_WIRE_XDP, None)
    assert {hook for hook, _ in written} == ALL
    written.clear()
    hand_over(maps, {name: Program(name, 0, 0) for name in TC})
    assert written[0] == (Hook.FROM_WIRE_XDP, None), "there is none for IPv6"


def test_what_is_handed_over_outlives_who_did_it_by_its_pin(
    pins: Path, four: Datapath, six: Datapath
) -> None:
    """The kernel empties an array of programs that no process and no pin has any more."""
    with ExitStack() as held:
        with create_or_adopt(pins, SPECS) as maps:
            program = bcc().load(("from_container",), maps)["from_container"]
            held.callback(os.close, program)
            hand_over(maps, programs(six))
        # Until then the compiler's child has the maps of what it loaded last.
        os.close(bcc().load(("from_container",), four.maps)["from_container"])
        assert verdict(program, six) == Action.REDIRECT
        with open_maps(pins) as again:
            assert again.handed_over() == ids(programs(six))
        (layout_dir(pins) / "maps" / CALLS).unlink()
        wait_until(lambda: verdict(program, six) == Action.UNSPEC, 60, "the kernel empties the array")
        with create_or_adopt(pins, SPECS) as anew:
            assert set(anew.handed_over()) == {Hook.FROM_WIRE_XDP}, "of the other array"


def verdict(program: int, six: Datapath) -> int:
    """What becomes of a packet of IPv6 whose flow has just been approved."""
    six.approve(INET6.flow_out())
    return syscall.prog_test_run(program, QUESTION)[0]
