"""Kernel settings of this network namespace, and how they were before us."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ctl.errors import KernelError

_ROOT: Final = Path("/proc/sys")

FORWARDING: Final = {"net/ipv4/ip_forward": "1"}
"""Left on at teardown: other software on the host relies on it by then."""

CONNTRACK: Final = {
    # Conntrack sees only part of a bypassed connection: its window check would call
    # the FIN invalid, and kube-proxy and Docker drop what is invalid.
    "net/netfilter/nf_conntrack_tcp_be_liberal": "1",
    "net/netfilter/nf_conntrack_tcp_ignore_invalid_rst": "1",
}


def read(name: str) -> str | None:
    """None if this kernel, or this namespace, does not have it."""
    with suppress(OSError):
        return (_ROOT / name).read_text().strip()
    return None


def ensure(wanted: Mapping[str, str], saved: Path) -> None:
    """Set what differs, after noting in `saved` (JSON) what it was. KernelError."""
    changes = {name: value for name, value in wanted.items() if read(name) not in (None, value)}
    if not changes:
        return
    before = _saved(saved)
    for name in changes:
        before.setdefault(name, read(name) or "")
    temporary = saved.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(before, sort_keys=True) + "\n")
    temporary.rename(saved)
    for name, value in changes.items():
        _write(name, value)


def restore(saved: Path, keep: Mapping[str, str] = FORWARDING) -> None:
    """Put back what `saved` notes, except `keep`, and forget it."""
    for name, value in _saved(saved).items():
        if name not in keep:
            _write(name, value)
    saved.unlink(missing_ok=True)


def source_ports() -> tuple[int, int]:
    """The range that the kernel takes a flow's outer source port from."""
    low, high = (read("net/ipv4/ip_local_port_range") or "32768 60999").split()
    return int(low), int(high)


def _saved(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        found: dict[str, str] = json.loads(path.read_text())
        return found
    return {}


def _write(name: str, value: str) -> None:
    try:
        (_ROOT / name).write_text(value)
    except OSError as error:
        raise KernelError(f"cannot set {name.replace('/', '.')} to {value}: {error.strerror}") from error
