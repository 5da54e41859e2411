"""`ovctl trace`, `monitor` and `capture` as their users have them, less what takes a kernel."""

from __future__ import annotations

import io
import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.cli import capture, trace
from ctl.cli.live import Listener
from ctl.cli.monitor import show
from ctl.core.abi import Hook
from ctl.core.decision import View
from ctl.core.reasons import labelled
from ctl.core.sighting import Sighting, comes_again, sighting
from ctl.core.tracer import Trace
from tests.datapath import received, sent, wire
from tests.unit.conftest import Ovctl, refuses
from tests.unit.test_path import LEAVING, OUT

PORT = 8472
NOT_THERE = (1 << 31) - 1
"""An ifindex that this machine has not."""
DEV = f"if{NOT_THERE}"

WRONG = {
    "trace 10.77.1.2 nowhere": "argument DST: 'nowhere' is not an IPv4 or IPv6 address",
    "trace 10.77.1.2 10.77.2.3 --size 19": "argument --size: '19' is no number from 20 to 65535",
    "trace 10.77.1.2 10.77.2.3 --proto quic": "argument --proto: 'quic' is no protocol: icmp, icmpv6, tcp,",
    "trace 10.77.1.2 10.77.2.3 --count 3": "--until-eof are about packets as they pass: add --live",
    "trace 10.77.1.2 10.77.2.3 --until-eof": "--count, --seconds, --until-eof are about packets as they pass",
    "trace 10.77.1.2 10.77.2.3 --peer-command ssh": "'ssh' does not say which node: put {host} or",
    "trace 10.77.1.2 10.77.2.3 --live --df": "--size and --df are about one packet: leave --live away",
    "trace 10.77.1.2 10.77.2.3 --live --proto icmp --sport 1": "icmp has no ports: leave --sport and --dport",
    "monitor --count 0": "argument --count: '0' is no number from 1 to 2147483647",
    "monitor --flow 10.77.1.2:80,any,icmp": "argument --flow: icmp has no ports",
    "monitor --flow any --container 10.77.1.2": "argument --container: not allowed with argument --flow",
    "monitor --peer alpha": "argument --peer: 'alpha' is not an IPv4 or IPv6 address",
    "capture --snaplen 13 -w -": "argument --snaplen: '13' is no number from 14 to 2016",
    "capture": "the following arguments are required: -w/--write",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_flag_is_one_line_and_code_2(ovctl: Ovctl, line: str) -> None:
    refuses(ovctl, line, WRONG[line])


@pytest.mark.parametrize(("view", "code"), [(LEAVING, 0), (View(LEAVING.node), 1)])
def test_of_a_packet_that_is_lost_the_exit_code_is_1(
    ovctl: Ovctl, monkeypatch: pytest.MonkeyPatch, view: View, code: int
) -> None:
    monkeypatch.setattr(trace, "_asked", lambda args: (OUT, view, ()))
    assert ovctl("trace 10.77.1.2 10.77.2.3")[0] == code


# --- Packets as they pass -------------------------------------------------------


def traced(hook: Hook, label: str, data: bytes, time_ns: int = 5) -> Trace:
    return Trace(time_ns, NOT_THERE, len(data), len(data), labelled(label).number, 0, hook, data)


def seen(hook: Hook, label: str, data: bytes = b"") -> Sighting:
    return sighting(traced(hook, label, data or sent()), 10**18, lambda _: "eth0", PORT)


def listener(
    packets: Iterator[list[Trace]],
    most: int | None = None,
    unwanted: Callable[[Sighting], bool] = lambda seen: False,
) -> Listener:
    """Of a tracer that hands out one list after the other, and then interrupts."""

    def next_ones(patience_s: float) -> Iterator[Trace]:
        found = next(packets, None)
        if found is None:
            os.kill(os.getpid(), signal.SIGINT)
        yield from found or ()

    tracing: Any = SimpleNamespace(packets=next_ones, skipped=3)
    return Listener(tracing, PORT, unwanted, most)


THREE = [
    traced(Hook.FROM_CONTAINER, "encap", sent()),
    traced(Hook.FROM_WIRE, "spoofed_source", wire(received())),
]
THREE.append(traced(Hook.TO_CONTAINER, "learned", received()))


def test_an_interrupt_is_the_end_of_it_and_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with listener(iter([THREE[:2], THREE[2:]])).until_interrupted() as packets:
        assert show(packets, "table") == 0
    out, err = capsys.readouterr()
    assert [line.split()[1:5] for line in out.splitlines()] == [
        ["from_container", DEV, "bypass", "encap"], ["from_wire", DEV, "drop", "spoofed_source"],
        ["to_container", DEV, "pass", "learned"],
    ]  # fmt: skip
    assert err == "ovctl: 3 packets, 3 more skipped for want of room\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_after_as_many_as_were_asked_for_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(listener(iter([THREE]), most=2), "json") == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_wide_lines_say_what_the_reason_means(capsys: pytest.CaptureFixture[str]) -> None:
    show(listener(iter([THREE]), most=1), "wide")
    assert capsys.readouterr().out.endswith(" (encapsulated and sent to the uplink)\n")


@pytest.mark.parametrize(
    ("hook", "label", "again"),
    [
        (Hook.FROM_WIRE_XDP, "decap", True),
        (Hook.FROM_WIRE, "delivered", False),
        (Hook.FROM_WIRE_XDP, "spoofed_source", False),
        (Hook.FROM_WIRE, "decap", False),
    ],
)
def test_what_xdp_has_decapsulated_comes_again(hook: Hook, label: str, again: bool) -> None:
    assert comes_again(seen(hook, label)) is again


def test_what_comes_again_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    twice = [traced(Hook.FROM_WIRE_XDP, "decap", sent()), traced(Hook.FROM_WIRE, "delivered", sent())]
    show(listener(iter([twice, twice, THREE]), most=2, unwanted=comes_again), "table")
    out, err = capsys.readouterr()
    assert out.count(" delivered ") == out.count("\n") == 2
    assert err.startswith("ovctl: 2 packets, ")


def test_a_flood_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr("ctl.cli.live.time.monotonic", lambda: next(seconds))
    tracing: Any = SimpleNamespace(packets=lambda patience_s: repeat(THREE[0]), skipped=0)
    assert 0 < len(list(Listener(tracing, PORT, comes_again, seconds=9))) <= 9


def test_what_a_capture_has_of_a_packet_is_told_with_it() -> None:
    file = io.BytesIO()
    capture.write(file, [seen(Hook.FROM_WIRE, "unknown_vtep"), seen(Hook.TO_CONTAINER, "learned")], 256)
    raw = file.getvalue()
    for words in (
        b"eth0",
        b"hook from_wire",
        b"hook to_container",
        b"from_wire: drop: unknown_vtep: VXLAN from",
    ):
        assert words in raw
    # Option 2, of 4 bytes: flags, of which the lowest two are the direction.
    assert re.findall(b"\x02\0\x04\0(.)\0\0\0", raw) == [b"\1", b"\2"]


def test_only_its_owner_can_read_a_capture(tmp_path: Path) -> None:
    with capture._opened(str(tmp_path / "it")) as file:
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "it").stat().st_mode) == 0o600
