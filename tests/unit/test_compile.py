"""What the child with BCC does with an order: which calls load a program, and on which maps."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.kernel.bpf import compile, loader, syscall
from ctl.kernel.bpf.source import XDP, XDP_FRAGS, maps_of

MAPS = maps_of(4)


class Unit:
    """Stands for a bcc.BPF: each map and program is a file of its name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.tables = {name: SimpleNamespace(map_fd=self.opened(name)) for name in MAPS}
        self.funcs: dict[bytes, Any] = {}
        self.loaded: list[tuple[str, int, list[str]]] = []
        """Names, types, and which files were in the places of the maps."""
        self.refuses: tuple[str, ...] = ()
        """What the kernel does not take."""
        self.cannot: tuple[str, ...] = ()
        """What BCC does not get it to take."""

    def opened(self, name: str) -> int:
        return os.open(self._root / name, os.O_RDWR | os.O_CREAT)

    def __getitem__(self, name: str) -> Any:
        return self.tables[name]

    def load_func(self, name: str, kind: int) -> Any:
        if name in self.refuses + self.cannot:
            raise Exception(f"Failed to load BPF program {name}: Bad address")
        if name.encode() not in self.funcs:
            self.loaded.append((name, kind, [file_at(self[each].map_fd) for each in MAPS]))
            self.funcs[name.encode()] = SimpleNamespace(fd=self.opened(name))
        return self.funcs[name.encode()]

    @staticmethod
    def dump_func(name: str) -> bytes:
        return name.encode()


def file_at(fd: int) -> str:
    return Path(os.readlink(f"/proc/self/fd/{fd}")).name


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unit]:
    made = Unit(tmp_path)

    def prog_load(insns: bytes, name: str, kind: int = syscall.PROG_TYPE_SCHED_CLS, flags: int = 0) -> int:
        if insns.decode() in made.refuses:
            error = syscall.VerifierError(14, "Bad address")
            error.log = "\n".join(f"line {number} {'x' * 300}" for number in range(100))
            raise error
        return made.opened(f"{name}, {kind}, {flags}, of {insns.decode()} by bpf(2)")

    monkeypatch.setattr(syscall, "prog_load", prog_load)
    yield made
    for table in made.tables.values():
        os.close(table.map_fd)


def ordered(unit: Unit, names: list[str], maps: str) -> tuple[Any, list[str]]:
    """The answer to an order, and the programs that came with it."""
    agent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with agent, child:
        fds = [unit.opened(f"{maps}-{name}") for name in MAPS]
        socket.send_fds(agent, [json.dumps([names, MAPS]).encode()], fds)
        assert compile.obey(unit, child)
        answer, loaded, _, _ = socket.recv_fds(agent, compile.ORDER_BYTES, 9)
        found = [file_at(fd) for fd in loaded]
        for fd in (*fds, *loaded):
            os.close(fd)
    return json.loads(answer), found


def test_bcc_loads_the_programs_and_on_the_maps_that_were_handed_over(unit: Unit) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert ordered(unit, ["from_wire", XDP], "first") == (None, ["from_wire", XDP])
    assert unit.loaded == [
        ("from_wire", syscall.PROG_TYPE_SCHED_CLS, [f"first-{name}" for name in MAPS]),
        (XDP, syscall.PROG_TYPE_XDP, [f"first-{name}" for name in MAPS]),
    ]
    assert len(os.listdir("/proc/self/fd")) == before, "what is handed over is not kept"


def test_another_order_is_for_other_maps(unit: Unit) -> None:
    ordered(unit, ["from_wire"], "first")
    assert ordered(unit, ["from_wire"], "second") == (None, ["from_wire"])
    assert unit.loaded[1][2] == [f"second-{name}" for name in MAPS]


def test_the_flag_that_bcc_cannot_pass_is_passed_by_bpf2(unit: Unit) -> None:
    loaded = f"{XDP}, {syscall.PROG_TYPE_XDP}, {syscall.XDP_HAS_FRAGS}, of {XDP_FRAGS} by bpf(2)"
    assert ordered(unit, [XDP_FRAGS], "m") == (None, [loaded])


def test_what_only_bpf2_can_load_is_loaded_all_the_same(unit: Unit) -> None:
    unit.cannot = ("from_wire",)
    loaded = f"from_wire, {syscall.PROG_TYPE_SCHED_CLS}, 0, of from_wire by bpf(2)"
    assert ordered(unit, ["from_wire"], "m") == (None, [loaded])


def test_of_a_refusal_the_last_lines_are_told_and_nothing_stays_loaded(unit: Unit) -> None:
    before = len(os.listdir("/proc/self/fd"))
    unit.refuses = ("to_overlay",)
    (name, code, words), loaded = ordered(unit, ["from_wire", "to_overlay", "to_container"], "m")
    assert (name, code, loaded) == ("to_overlay", 14, [])
    assert [line.split()[1] for line in words] == [str(number) for number in range(60, 100)]
    assert [name for name, _, _ in unit.loaded] == ["from_wire"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_there_are_no_more_orders_when_the_other_end_is_closed(unit: Unit) -> None:
    agent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with child:
        agent.close()
        assert not compile.obey(unit, child)


def test_a_child_that_waited_in_vain_is_let_go_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    ahead: Any = SimpleNamespace(gave_up=lambda: True, close=lambda: closed.append(True))
    another: Any = object()
    monkeypatch.setattr(loader, "Bcc", lambda _: another)
    assert loader._at_hand(ahead, "text") is another
    assert closed
