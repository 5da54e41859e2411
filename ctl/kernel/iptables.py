"""iptables' FORWARD, of both its kinds: our networks are accepted there, which Docker's policy would drop.

iptables comes in two kinds with rules of their own: `nf_tables` (in nftables' table `ip filter`) and
`legacy` (tables of the kernel that nft does not show). A packet has to pass both, so an accept is put
into each that is in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from ctl.core.errors import KernelError
from ctl.kernel.command import find, run, succeeds

CHAIN: Final = "OVNET-FWD"

_LEGACY_TABLES: Final = Path("/proc/thread-self/net/ip_tables_names")
"""Names of legacy's tables that this network namespace has, a line each."""


class Kind(StrEnum):
    """As iptables says at the end of its version."""

    NFT = "nf_tables"
    LEGACY = "legacy"


_COMMANDS: Final = {Kind.NFT: "iptables-nft", Kind.LEGACY: "iptables-legacy"}


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of our accepts."""

    changed: bool = False
    wrong: tuple[str, ...] = ()
    """Why there is none where one may be needed, a line each."""


def ensure(network: IPv4Network, bridge: str) -> Accepted:
    """Have what is forwarded from and to the network accepted by both kinds. KernelError.

    The kind that `iptables` is gets our chain in any case: whoever comes later finds it there.
    """
    tools, usual = _tools(), _usual()
    changed = False
    if Kind.NFT in tools and (usual is Kind.NFT or _nft_in_use()):
        changed = _accept(tools[Kind.NFT], network, bridge)
    if Kind.LEGACY in tools and (usual is Kind.LEGACY or legacy_in_use()):
        try:
            return Accepted(_accept(tools[Kind.LEGACY], network, bridge) or changed)
        except KernelError as error:
            # It takes more of a process than nft does: not all may have it, and not all need it.
            return Accepted(changed, (_unseen(network, str(error)),) if legacy_in_use() else ())
    if legacy_in_use():
        return Accepted(changed, (_unseen(network, "iptables-legacy is not installed"),))
    return Accepted(changed)


def remove() -> None:
    """Take our chain away, of both kinds. What cannot be looked at is left. KernelError."""
    tools, usual = _tools(), _usual()
    for kind, tool in tools.items():
        if kind is usual or (_nft_in_use() if kind is Kind.NFT else legacy_in_use()):
            while succeeds(tool, "-w", "-D", "FORWARD", "-j", CHAIN):
                pass
            succeeds(tool, "-w", "-F", CHAIN)
            succeeds(tool, "-w", "-X", CHAIN)


def rules(network: IPv4Network, bridge: str, forward: Sequence[str]) -> list[str]:
    """Our chain, as iptables lists it, beside these rules of FORWARD.

    dockerd --icc=false appends its drop, which with br_netfilter is about bridged packets
    too: behind our jump, where an accept of ours would forestall it.
    """
    accepts = [f"-A {CHAIN} -{side} {network} -j ACCEPT" for side in "sd"]
    if f"-A FORWARD -i {bridge} -o {bridge} -j DROP" in forward:
        return [f"-A {CHAIN} -i {bridge} -o {bridge} -j RETURN", *accepts]
    return accepts


def _accept(tool: str, network: IPv4Network, bridge: str) -> bool:
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


def _unseen(network: IPv4Network, why: str) -> str:
    return (
        f"iptables-legacy has rules here that we cannot look at ({why}): where its FORWARD drops, containers "
        f"reach no other node: iptables-legacy -A FORWARD -s {network} -j ACCEPT, and the same with -d"
    )


def legacy_in_use(table: str = "filter") -> bool:
    """Whether the kernel has this table of legacy's in this namespace. To ask the tool would make it."""
    with suppress(OSError):
        return table in _LEGACY_TABLES.read_text().split()
    return False


def _nft_in_use() -> bool:
    return succeeds("nft", "list", "chain", "ip", "filter", "FORWARD")


def _tools() -> dict[Kind, str]:
    """The command of each kind that is installed."""
    found = {kind: command for kind, command in _COMMANDS.items() if find(command)}
    usual = _usual()
    return found if usual is None else {**found, usual: "iptables"}


def _usual() -> Kind | None:
    """Which kind `iptables` is; None if it is not installed."""
    path = find("iptables")
    return _kind_of(path, Path(path).resolve()) if path else None


@cache
def _kind_of(iptables: str, _leads_to: Path) -> Kind:
    """By its version, which ends with it; the oldest know one kind and name none."""
    return Kind.NFT if f"({Kind.NFT})" in run(iptables, "--version") else Kind.LEGACY
