"""What the host's own tools show of its network, for a bug report. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ctl.core.errors import KernelError
from ctl.kernel.command import find, run

COMMANDS: Final = (
    "uname -a",
    "dpkg-query -W bpftool docker.io iproute2 libbpfcc nftables ovnet python3-bpfcc",
    "ip -d -s link",
    "ip -d address",
    "ip -d route show table all",
    "ip -d rule",
    "ip -s neighbour",
    "ip -s xfrm policy",
    "bridge -d fdb show",
    "bridge -d link show",
    "tc -s qdisc show",
    "nft list ruleset",
    "iptables-save -c",
    "iptables-legacy-save -c",
    "bpftool net show",
    "bpftool prog show",
    "ss -lnup",
    "nstat -asz",
    "journalctl -u ovnet -n 5000 --no-pager -o short-iso-precise",
)
"""Not among them: `ip xfrm state`, which shows keys, and what dumps the memory of maps."""
_SYSCTLS: Final = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/*/*",
    "net/netfilter/nf_conntrack_[cmt]*",
    "net/core/bpf*",
)


def host_files() -> Iterator[tuple[str, str]]:
    """(name of a file, its text): of each command, of the kernel's settings and of the distribution."""
    for command in COMMANDS:
        yield f"host/{command.replace(' ', '_')}.txt", _said(*command.split())
    yield "host/sysctl.txt", "".join(_settings())
    yield "host/os-release.txt", _read(Path("/etc/os-release"))


def _said(name: str, *arguments: str) -> str:
    if find(name) is None:
        return f"{name} is not installed\n"
    try:
        return run(name, *arguments, check=False)
    except KernelError as error:
        return f"{error}\n"


def _settings() -> Iterator[str]:
    root = Path("/proc/sys")
    for path in sorted(path for pattern in _SYSCTLS for path in root.glob(pattern)):
        yield f"{path.relative_to(root)} = {_read(path).strip()}\n"


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""
