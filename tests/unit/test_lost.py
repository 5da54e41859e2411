"""What the vxlan backend asks between two looks at everything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ctl.backend.vxlan.backend import VxlanBackend
from ctl.core.host import Change


def test_a_program_that_stays_off_does_not_keep_the_rest_from_being_looked_at() -> None:
    """A driver may refuse ours for hours, while our rules drop what is a peer's."""
    asked: list[str] = []

    def look(*_: object) -> frozenset[Change]:
        asked.append("look")
        return frozenset({Change.FIREWALL})

    backend: Any = SimpleNamespace(
        _datapaths=(SimpleNamespace(device=7, watched=None),),
        _ports=SimpleNamespace(uplink=2, detached=lambda _: True),
        _lookout=SimpleNamespace(forget=lambda: asked.append("forget"), look=look),
    )
    assert VxlanBackend.lost(backend) == {Change.FILTERS, Change.FIREWALL}
    assert asked == ["forget", "look"], "what went by meanwhile tells nothing"
