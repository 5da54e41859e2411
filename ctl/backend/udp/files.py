"""Names that the agent's side and the forwarder agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ctl import __version__

LOCK: Final = "lock"
TABLE: Final = "table"
STATS: Final = "stats"
READY: Final = "ready"
"""The forwarder's first line on stdout; any other says why it cannot run."""


def directory(state_dir: Path) -> Path:
    """The forwarder's, in a node's state directory."""
    return state_dir / "udp"


def device_name(port: int) -> str:
    """The TUN device's: one for each port, of 15 characters at most."""
    return f"ovnetu{port}"


def device_port(name: str) -> int | None:
    """The port that a device's name stands for; None if it is not one of ours."""
    port = name.removeprefix("ovnetu")
    return int(port) if port != name and port.isdigit() else None


def identity(device: str, local: str, port: int) -> str:
    """What a forwarder is; one that differs in anything is not the one that is wanted."""
    return f"{__version__} {device} {local}:{port}"
