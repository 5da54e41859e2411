"""What becomes of a node's containers when a part of the way to them fails."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.backend.vxlan.ports import Ports
from ctl.core.errors import KernelError
from ctl.core.findings import Findings
from ctl.core.host import FilterKey, Link
from ctl.core.model import MacAddress
from ctl.core.plan import Delta
from ctl.kernel.bpf.loader import Program, Programs
from ctl.kernel.netlink import headroom
from ctl.settings.config import resolve
from tests.unit.test_peering import ETH0, site

BRIDGE = Link(3, "ovnet0", "bridge", MacAddress(b"\x02" * 6), 1450, True, 0, False, "", 0)
PORT = replace(BRIDGE, ifindex=4, name="veth0", kind="veth", master=3, peer_elsewhere=True)


class Filters:
    """Places with programs, none of which is someone else's."""

    def __init__(self) -> None:
        self.places: dict[FilterKey, Any] = {}

    def gone(self, _links: object) -> None: ...

    def taken(self, _ifindex: int) -> str:
        return ""

    def read(self) -> dict[FilterKey, Any]:
        return self.places

    def read_on(self, _interfaces: object) -> dict[FilterKey, Any]:
        return self.places

    def apply(self, delta: Delta[FilterKey, Any]) -> None:
        self.places = {**self.places, **dict(delta.puts)}


@pytest.mark.parametrize("broken", ["headroom", "endpoints"])
def test_programs_are_attached_whatever_becomes_of_the_rest(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise KernelError("ovnet-room exists and is not ours")

    monkeypatch.setattr(headroom, "ensure", no_room if broken == "headroom" else lambda *_, **__: None)
    filters: Any = Filters()
    netlink: Any = SimpleNamespace(
        links=lambda: {link.ifindex: link for link in (ETH0, BRIDGE, PORT)},
    )
    hook: Any = SimpleNamespace(reconcile=lambda *_: None)

    def find(*_: object) -> None:
        if broken == "endpoints":
            raise KernelError("map endpoints cannot be read")

    names = ("from_container", "to_overlay", "from_wire", "to_container")
    programs = Programs("digest", {name: Program(name, 9, id) for id, name in enumerate(names, 100)})
    ports = Ports(resolve(Namespace(), {}, None), netlink, filters, hook, Findings())
    ports._first_look = False
    with pytest.raises(KernelError, match="not ours" if broken == "headroom" else "cannot be read"):
        ports.reconcile(site(), (7,), [find], programs)
    assert FilterKey(PORT.ifindex, True) in filters.places
