"""Whose an XDP program is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.bpffs import unpin
from ctl.kernel.bpf.maps import layout_dir
from ctl.kernel.hooks.xdp import PROGRAM, Xdp
from tests.datapath import Datapath

NO_NETLINK: Any = None


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def program(datapath: Datapath) -> tuple[int, int]:
    """(file descriptor, id) of from_wire_xdp."""
    fd = datapath.fd(PROGRAM)
    return fd, syscall.prog_info(fd).id


@pytest.fixture
def xdp(pins: Path) -> Iterator[Xdp]:
    with closing(Xdp(NO_NETLINK, pins)) as opened:
        yield opened


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CAP_SYS_ADMIN, as the service runs."""

    def refuse(ident: int) -> int:
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(syscall, "prog_get", refuse)


@pytest.mark.usefixtures("unprivileged")
@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_what_is_pinned_is_ours_and_stays_so(
    pins: Path, xdp: Xdp, program: tuple[int, int], layout: str
) -> None:
    fd, ident = program
    home = pins / layout / "progs-0123456789abcdef"
    home.mkdir(parents=True)
    assert not xdp.is_ours(ident)
    syscall.obj_pin(fd, str(home / PROGRAM))
    assert xdp.is_ours(ident)
    assert not xdp.is_ours(ident + 1)
    unpin(home)
    assert xdp.is_ours(ident), "maps that do not fit take the pins with them"
    with closing(Xdp(NO_NETLINK, pins)) as next_agents:
        assert not next_agents.is_ours(ident)
        xdp.keep()
        assert next_agents.is_ours(ident), "the one before was killed before it could replace it"


def test_without_a_pin_its_name_tells(xdp: Xdp, program: tuple[int, int], datapath: Datapath) -> None:
    assert xdp.is_ours(program[1])
    assert not xdp.is_ours(syscall.prog_info(datapath.fd("from_wire")).id)


@pytest.mark.usefixtures("unprivileged")
def test_of_one_that_nobody_may_look_at_it_is_not_claimed(xdp: Xdp, program: tuple[int, int]) -> None:
    assert not xdp.is_ours(program[1])


def test_a_pin_of_that_name_is_not_enough(pins: Path, xdp: Xdp, program: tuple[int, int]) -> None:
    home = layout_dir(pins) / "progs-0123456789abcdef"
    home.mkdir(parents=True)
    with closing(syscall.Map(syscall.map_create("hash", "m", 4, 4, 1))) as table:
        syscall.obj_pin(table.fd, str(home / PROGRAM))
        assert not xdp.is_ours(program[1] + 1)


def test_a_program_that_cannot_be_looked_at_leaves_no_descriptor_open(
    pins: Path, xdp: Xdp, program: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, ident = program
    home = layout_dir(pins) / "progs-0123456789abcdef"
    home.mkdir(parents=True)
    syscall.obj_pin(fd, str(home / PROGRAM))

    def refuse(_: int) -> syscall.ProgInfo:
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(syscall, "prog_info", refuse)
    before = descriptors()
    assert not xdp.is_ours(ident)
    assert descriptors() == before
