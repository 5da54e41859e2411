"""iptables' FORWARD, of both its kinds: our networks are accepted there, which Docker's policy would drop.

iptables comes in two kinds with rules of their own: `nf_tables` (in nftables' table `ip filter`) and
`legacy` (tables of the kernel that nft does not show). A packet has to pass both, so an accept is put
into each that is in use. IPv6 has commands and tables of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from ctl.core.errors import KernelError
from ctl.kernel.command import find, run, succeeds

CHAIN: Final = "OVNET-FWD"

_LEGACY_TABLES: Final = {
    4: Path("/proc/thread-self/net/ip_tables_names"),
    6: Path("/proc/thread-self/net/ip6_tables_names"),
}
"""Names of legacy's tables that this network namespace has, a line each, by IP version."""


class Kind(StrEnum):
    """As iptables says at the end of its version."""

    NFT = "nf_tables"
    LEGACY = "legacy"


_SUFFIXES: Final = {Kind.NFT: "nft", Kind.LEGACY: "legacy"}


def command(version: int) -> str:
    """What the tool for that IP version is called."""
    return "iptables" if version == 4 else "ip6tables"


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of our accepts."""

    changed: bool = False
    wrong: tuple[str, ...] = ()
    """Why there is none where one may be needed, a line each."""


def ensure(network: IPv4Network | IPv6Network, bridge: str) -> Accepted:
    """Have what is forwarded from and to the network accepted by both kinds. KernelError.

    The kind that `iptables` is gets our chain in any case: whoever comes later finds it there.
    """
    version = network.version
    tools, usual = _tools(version), _usual(version)
    changed = False
    if Kind.NFT in tools and (usual is Kind.NFT or _nft_in_use(version)):
        changed = _accept(tools[Kind.NFT], network, bridge)
    if Kind.LEGACY in tools and (usual is Kind.LEGACY or legacy_in_use(version=version)):
        try:
            return Accepted(_accept(tools[Kind.LEGACY], network, bridge) or changed)
        except KernelError as error:
            # It takes more of a process than nft does: not all may have it, and not all need it.
            return Accepted(
                changed, (_unseen(network, str(error)),) if legacy_in_use(version=version) else ()
            )
    if legacy_in_use(version=version):
        return Accepted(changed, (_unseen(network, f"{command(version)}-legacy is not installed"),))
    return Accepted(changed)


def remove(version: int) -> None:
    """Take our chain away, of both kinds. What cannot be looked at is left. KernelError."""
    tools, usual = _tools(version), _usual(version)
    for kind, tool in tools.items():
        in_use = _nft_in_use(version) if kind is Kind.NFT else legacy_in_use(version=version)
        # What is asked of a tool makes its tables, which a node without IPv6 has no need of.
        if in_use or (kind is usual and version == 4):
            while succeeds(tool, "-w", "-D", "FORWARD", "-j", CHAIN):
                pass
            succeeds(tool, "-w", "-F", CHAIN)
            succeeds(tool, "-w", "-X", CHAIN)


def rules(network: IPv4Network | IPv6Network, bridge: str, forward: Sequence[str]) -> list[str]:
    """Our chain, as iptables lists it, beside these rules of FORWARD.

    dockerd --icc=false appends its drop, which with br_netfilter is about bridged packets
    too: behind our jump, where an accept of ours would forestall it.
    """
    accepts = [f"-A {CHAIN} -{side} {network} -j ACCEPT" for side in "sd"]
    if f"-A FORWARD -i {bridge} -o {bridge} -j DROP" in forward:
        return [f"-A {CHAIN} -i {bridge} -o {bridge} -j RETURN", *accepts]
    return accepts


def _accept(tool: str, network: IPv4Network | IPv6Network, bridge: str) -> bool:
    """Whether anything had to be changed. KernelError with the tool's words."""
    jump = run(tool, "-w", "-S", "FORWARD").splitlines()
    present = run(tool, "-w", "-S", CHAIN, check=False).splitlines()
    wanted = rules(network, bridge, jump)
    if present == [f"-N {CHAIN}", *wanted] and f"-A FORWARD -j {CHAIN}" in jump:
        return False
    text = "\n".join(["*filter", f":{CHAIN} - [0:0]", *wanted, "COMMIT", ""])
    run(f"{tool}-restore", "-w", "--noflush", text=text)
    if f"-A FORWARD -j {CHAIN}" not in jump:
        # Appended: Docker's isolation chains keep their say.
        run(tool, "-w", "-A", "FORWARD", "-j", CHAIN)
    return True


def _unseen(network: IPv4Network | IPv6Network, why: str) -> str:
    tool = f"{command(network.version)}-legacy"
    return (
        f"{tool} has rules here that we cannot look at ({why}): where its FORWARD drops, containers "
        f"reach no other node: {tool} -A FORWARD -s {network} -j ACCEPT, and the same with -d"
    )


def legacy_in_use(table: str = "filter", *, version: int = 4) -> bool:
    """Whether the kernel has this table of legacy's in this namespace. To ask the tool would make it."""
    with suppress(OSError):
        return table in _LEGACY_TABLES[version].read_text().split()
    return False


def _nft_in_use(version: int) -> bool:
    return succeeds("nft", "list", "chain", "ip" if version == 4 else "ip6", "filter", "FORWARD")


def _tools(version: int) -> dict[Kind, str]:
    """The command of each kind that is installed."""
    name = command(version)
    found = {kind: tool for kind, each in _SUFFIXES.items() if find(tool := f"{name}-{each}")}
    usual = _usual(version)
    return found if usual is None else {**found, usual: name}


def _usual(version: int) -> Kind | None:
    """Which kind the tool of that name is; None if it is not installed."""
    path = find(command(version))
    return _kind_of(path, Path(path).resolve()) if path else None


@cache
def _kind_of(iptables: str, _leads_to: Path) -> Kind:
    """By its version, which ends with it; the oldest know one kind and name none."""
    return Kind.NFT if f"({Kind.NFT})" in run(iptables, "--version") else Kind.LEGACY
