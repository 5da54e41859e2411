"""When IPv6 is handed to its programs, and when it is the kernel path's."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.backend.vxlan.beside import Beside
from ctl.core.errors import KernelError
from ctl.core.findings import UNHEALTHY, Concern, Findings
from ctl.kernel.bpf import loader, maps
from ctl.kernel.bpf.loader import Program, Programs
from ctl.settings.config import resolve
from tests.unit.test_peering import site

PROGRAMS = Programs("digest", {"from_wire": Program("from_wire", 9, 100)})
IPV4_MAPS: Any = object()


class World:
    """What is done, in that order, and what fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bypass: str = "learned") -> None:
        self.done: list[str] = []
        self.fails: dict[str, str] = {}
        self.now = 1000.0
        self.findings = Findings()
        settings = resolve(argparse.Namespace(bypass=bypass), {}, None)
        self.patience = settings.resync_interval / 2
        self.beside = Beside(settings, self.findings, steady=lambda: self.now)
        self.ipv6: Any = SimpleNamespace(
            programs=None,
            is_filled=False,
            root=Path("/nowhere"),
            open_maps=lambda: self._do("open maps"),
            announce=lambda *_, **__: self._do("announce"),
            load_programs=self._load,
            close=lambda: self._do("close"),
        )
        monkeypatch.setattr(
            loader, "hand_over", lambda _, programs: self._do("hand over" if programs else "take back")
        )
        monkeypatch.setattr(loader, "drop_others", lambda *_: self._do("drop others"))
        monkeypatch.setattr(maps, "unpin_all", lambda _: self._do("unpin"))

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.fails:
            raise KernelError(self.fails[what])

    def _load(self) -> None:
        if self.ipv6.programs is None:
            self._do("load")
            self.ipv6.programs = PROGRAMS

    def load(self, *, ipv6: bool = True) -> list[str]:
        """What a look at the programs does."""
        self.done.clear()
        self.beside.load(IPV4_MAPS, self.ipv6 if ipv6 else None, site(), first=False)
        return self.done

    def hand_over(self) -> list[str]:
        """What a look at the ports does."""
        self.done.clear()
        self.beside.hand_over(IPV4_MAPS, self.ipv6)
        return self.done

    def line(self) -> str:
        return " ".join(self.findings.problems.get(Concern.IPV6_PROGRAMS, ()))


def test_ipv6_is_handed_over_once_the_maps_hold_all_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    assert world.load() == ["open maps", "announce", "load"]
    assert world.hand_over() == [], "who is in no map would be refused"
    world.ipv6.is_filled = True
    assert world.hand_over() == ["hand over", "drop others"]
    assert world.hand_over() == ["hand over"], "what someone has taken out is put in again"


@pytest.mark.parametrize("broken", ["open maps", "load"])
def test_what_ipv6_lacks_is_told_and_costs_ipv4_nothing(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    world = World(monkeypatch)
    world.fails[broken] = "no space for it"
    assert world.load()[-2:] == [broken, "take back"]
    assert world.line() == "IPv6 takes the kernel path only: no space for it"
    assert Concern.IPV6_PROGRAMS not in UNHEALTHY, "containers reach each other"
    world.now += world.patience - 1
    assert world.load() == [], "compiling takes a second: not with each container that starts"
    world.fails.clear()
    world.now += 1
    world.ipv6.is_filled = True
    assert world.load() == ["open maps", "announce", "load"]
    world.hand_over()
    assert world.line() == ""


def test_programs_that_do_not_go_with_those_for_ipv4_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.load()
    world.ipv6.is_filled = True
    world.fails["hand over"] = "program from_wire of IPv6 does not go with that of IPv4"
    assert world.hand_over() == ["hand over", "take back"]
    assert "does not go with" in world.line()


@pytest.mark.parametrize("why", ["no IPv6", "off"])
def test_nothing_is_left_where_there_is_to_be_none(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """An earlier life may have left programs: IPv6 is taken from them before a map goes."""
    world = World(monkeypatch, "off" if why == "off" else "learned")
    done = world.load(ipv6=why == "off")
    assert done == (["take back", "close", "unpin"] if why == "off" else ["take back", "unpin"])
    assert world.load(ipv6=why == "off") == [], "once"


def test_a_node_that_loses_ipv6_takes_it_from_the_programs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.ipv6.is_filled = True
    world.load()
    world.hand_over()
    world.done.clear()
    world.beside.remove(IPV4_MAPS, world.ipv6)
    assert world.done == ["take back", "close", "unpin"]
