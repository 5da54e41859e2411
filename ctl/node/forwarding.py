"""Whether devices forward: the kernel asks it of the device by which a packet comes in.

A new device begins as net.ipv4.conf.default.forwarding says, which hardened hosts set to 0 beside an
ip_forward of 1 (CIS): then our devices would take packets and forward none. Ours are set, and
others' are named: whether these forward is their owner's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ctl.kernel import sysctl


def ensure(ours: Iterable[str], saved: Path) -> None:
    """Have devices of ours (names) forward; what they did before is noted in `saved`. KernelError."""
    sysctl.ensure({sysctl.forwarding(name): "1" for name in ours}, saved)


def lacking(others: Iterable[str]) -> tuple[str, ...]:
    """A line for each of these devices (names) that does not forward. One that is gone is none."""
    closed = [name for name in sorted(set(others)) if sysctl.read(sysctl.forwarding(name)) == "0"]
    return tuple(_line(name) for name in closed)


def _line(name: str) -> str:
    setting = sysctl.dotted(sysctl.forwarding(name))
    return (
        f"{name} does not forward: packets to containers and from them that come in by it are lost "
        f"({setting} is 0: sysctl -w {setting}=1)"
    )
