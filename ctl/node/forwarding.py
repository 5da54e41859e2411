"""Whether devices forward: the kernel asks it of the device by which a packet comes in.

A new device begins as net.ipv4.conf.default.forwarding says, which hardened hosts set to 0 beside an
ip_forward of 1 (CIS): then our devices would take packets and forward none. Ours are set, and
others' are named: whether these forward is their owner's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ctl.kernel import sysctl


def ensure(ours: Iterable[str], others: Iterable[str], saved: Path) -> tuple[str, ...]:
    """Have devices of ours (names) forward; returns a line for each of the others that does not.

    What they were before is noted in `saved`. KernelError if one of ours cannot be set.
    """
    sysctl.ensure({sysctl.forwarding(name): "1" for name in ours}, saved)
    closed = [name for name in sorted(set(others)) if sysctl.read(sysctl.forwarding(name)) == "0"]
    return tuple(_line(name) for name in closed)


def _line(name: str) -> str:
    setting = sysctl.dotted(sysctl.forwarding(name))
    return (
        f"{name} does not forward: packets to containers and from them that come in by it are lost "
        f"({setting} is 0: sysctl -w {setting}=1)"
    )
