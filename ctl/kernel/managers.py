"""Who on this host sets up interfaces by itself, by what it leaves below /run. Nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ctl.core.host import Link


def managers(links: Iterable[Link], root: Path = Path("/")) -> dict[str, str]:
    """Which of these interfaces a daemon manages by a configuration of its own, and which daemon.

    systemd-networkd says so of each interface (`ADMIN_STATE`). NetworkManager names the profile that is
    active; one that it has only made up for what others have set up is not among those that are stored.
    """
    found = {}
    for link in links:
        networkd = _read(root / f"run/systemd/netif/links/{link.ifindex}")
        if re.search(r"^ADMIN_STATE=(configuring|configured|pending)$", networkd, re.MULTILINE):
            found[link.name] = "systemd-networkd"
        profile = re.search(
            r"^connection-uuid=(\S+)$",
            _read(root / f"run/NetworkManager/devices/{link.ifindex}"),
            re.MULTILINE,
        )
        if profile and profile[1] in _profiles(root):
            found[link.name] = "NetworkManager"
    return found


def _profiles(root: Path) -> set[str]:
    files = (root / "etc/NetworkManager/system-connections").glob("*.nmconnection")
    return {uuid for file in files for uuid in re.findall(r"^uuid=(\S+)$", _read(file), re.MULTILINE)}


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""
