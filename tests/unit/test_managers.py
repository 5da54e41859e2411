"""Who manages an interface, by what its daemon leaves below /run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctl.core.host import Link
from ctl.kernel.managers import managers

BRIDGE = Link(7, "ovnet0", "bridge", None, 1450, True, 0, False, "", 0)
UUID = "11111111-2222-3333-4444-555555555555"


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("state", "managed"),
    [("configured", True), ("configuring", True), ("unmanaged", False), ("initialized", False)],
)
def test_networkd_manages_what_it_configures(tmp_path: Path, state: str, managed: bool) -> None:
    put(tmp_path, "run/systemd/netif/links/7", f"# private\nADMIN_STATE={state}\nOPER_STATE=routable\n")
    assert managers([BRIDGE], tmp_path) == ({"ovnet0": "systemd-networkd"} if managed else {})


def test_networkmanager_manages_what_it_has_a_stored_profile_of(tmp_path: Path) -> None:
    """It makes up a profile of its own for what others have set up, and leaves that alone."""
    put(tmp_path, "run/NetworkManager/devices/7", f"[device]\nmanaged=true\nconnection-uuid={UUID}\n")
    assert managers([BRIDGE], tmp_path) == {}
    profiles = "etc/NetworkManager/system-connections"
    put(tmp_path, f"{profiles}/bridge.nmconnection", f"[connection]\nid=bridge\nuuid={UUID}\n")
    assert managers([BRIDGE], tmp_path) == {"ovnet0": "NetworkManager"}


def test_a_host_without_either_has_no_manager(tmp_path: Path) -> None:
    assert managers([BRIDGE], tmp_path) == {}
