"""Kernel settings of this network namespace, and how they were before us."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ctl.core.errors import KernelError
from ctl.core.model import DEFAULT_TTL
from ctl.process import statedir

_ROOT: Final = Path("/proc/sys")
_WRITABLE: Final = Path("/host/proc/sys")
"""Where a container may be given `net` of it to write: /proc/sys itself is read-only in most. What is
written there is of the writer's network namespace, as here."""

FORWARDING: Final = {"net/ipv4/ip_forward": "1"}
"""What forwarding needs. It is left on at teardown: other software on the host relies on it by then."""
IPV6_FORWARDING: Final = {"net/ipv6/conf/all/forwarding": "1"}
"""The same of IPv6. No device is asked for a setting of its own."""

CONNTRACK: Final = {
    # Conntrack sees only part of a bypassed connection: its window check would call
    # the FIN invalid, and kube-proxy and Docker drop what is invalid.
    "net/netfilter/nf_conntrack_tcp_be_liberal": "1",
    "net/netfilter/nf_conntrack_tcp_ignore_invalid_rst": "1",
}


def forwarding(device: str) -> str:
    """The setting of a device: whether what comes in by it is forwarded."""
    return f"net/ipv4/conf/{device}/forwarding"


def accept_ra(device: str) -> str:
    """The setting of a device: whether it heeds router advertisements; 1: as a host, 2: as a router too."""
    return f"net/ipv6/conf/{device}/accept_ra"


def disable_ipv6(device: str) -> str:
    """The setting of a device: whether it may have no IPv6 address."""
    return f"net/ipv6/conf/{device}/disable_ipv6"


def has_ipv6() -> bool:
    """Whether this kernel has any IPv6."""
    return (_ROOT / "net/ipv6/conf").is_dir()


def arp_notify(device: str) -> str:
    """The setting of a device: whether its neighbours are told when its MAC changes (gratuitous ARP)."""
    return f"net/ipv4/conf/{device}/arp_notify"


def dotted(name: str) -> str:
    """A setting as sysctl(8) takes it: a dot of a device's name stands as a slash."""
    return name.translate(str.maketrans("/.", "./"))


def read(name: str) -> str | None:
    """None if this kernel, or this namespace, does not have it."""
    with suppress(OSError):
        return (_ROOT / name).read_text().strip()
    return None


def _place(name: str) -> Path:
    """The file to write a setting to: where it can be, if it can be anywhere."""
    given = _WRITABLE / name
    return given if os.access(given, os.W_OK) else _ROOT / name


def check(wanted: Mapping[str, str]) -> None:
    """KernelError if something of `wanted` differs and may not be set, as in most containers."""
    for name, value in wanted.items():
        if read(name) not in (None, value) and not os.access(_place(name), os.W_OK):
            raise KernelError(
                f"{dotted(name)} must be {value}, which cannot be set here: "
                f"set it outside (sysctl -w {dotted(name)}={value}), "
                "or let the container (docker run --security-opt systempaths=unconfined; "
                f"elsewhere the host's /proc/sys/net as {_WRITABLE}/net)"
            )


def ensure(wanted: Mapping[str, str], saved: Path) -> None:
    """Set what differs, after noting in `saved` (JSON) what it was. KernelError.

    A name that does not exist is left out, and noted when it does: conntrack's come
    with its module.
    """
    found = {name: read(name) for name in wanted}
    changes = {name: was for name, was in found.items() if was is not None and was != wanted[name]}
    if not changes:
        return
    _note(saved, changes | _saved(saved))
    for name in changes:
        _write(name, wanted[name])


def put(wanted: Mapping[str, str]) -> None:
    """Set what differs of a device of ours, with which the settings go: nothing is noted. KernelError."""
    for name, value in wanted.items():
        if read(name) not in (None, value):
            _write(name, value)


@contextmanager
def meanwhile(name: str, value: str) -> Iterator[None]:
    """Have a setting be so for as long as the block lasts. Where it cannot be set it stays as it is."""
    before = read(name)
    with suppress(KernelError):
        _write(name, value)
    try:
        yield
    finally:
        if before is not None:
            with suppress(KernelError):
                _write(name, before)


def before(saved: Path, name: str) -> str | None:
    """What a setting was before us; None: we have not changed it."""
    return _saved(saved).get(name)


def _stays(name: str) -> bool:
    """Whether a setting goes with forwarding: where that is left on, an uplink has to heed routers still."""
    return name in IPV6_FORWARDING or name.endswith("/accept_ra")


def restore(saved: Path, names: Collection[str] | None = None, keep: Collection[str] = FORWARDING) -> bool:
    """Put back what `saved` notes of `names` (None: of all), except `keep` and IPv6's, and forget it.

    True if something was put back. KernelError.
    """
    noted = _saved(saved)
    chosen = {name: was for name, was in noted.items() if names is None or name in names}
    changes = {
        name: was
        for name, was in chosen.items()
        if name not in keep and not _stays(name) and read(name) not in (None, was)
    }
    for name, was in changes.items():
        _write(name, was)
    if chosen or names is None:
        _note(saved, {name: was for name, was in noted.items() if name not in chosen})
    return bool(changes)


def _note(saved: Path, values: Mapping[str, str]) -> None:
    try:
        if values:
            statedir.write_atomically(saved, json.dumps(values, sort_keys=True) + "\n")
        elif saved.exists():
            saved.unlink()
    except OSError as error:
        raise KernelError(f"cannot note the kernel's settings in {saved}: {error.strerror}") from error


def source_ports() -> tuple[int, int]:
    """The range that the kernel takes a flow's outer source port from."""
    low, high = (read("net/ipv4/ip_local_port_range") or "32768 60999").split()
    return int(low), int(high)


def default_ttl(version: int, device: str) -> int:
    """The TTL, or hop limit, of packets whose route by that device says none."""
    name = "net/ipv4/ip_default_ttl" if version == 4 else f"net/ipv6/conf/{device}/hop_limit"
    return int(read(name) or DEFAULT_TTL)


def _saved(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return {str(name): str(value) for name, value in found.items()}
    return {}


def _write(name: str, value: str) -> None:
    try:
        _place(name).write_text(value)
    except OSError as error:
        raise KernelError(f"cannot set {dotted(name)} to {value}: {error.strerror}") from error
