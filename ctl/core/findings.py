"""What a node has found of itself while reconciling, for its report."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctl.core.host import Uplink
from ctl.core.model import HookMode
from ctl.core.report import KernelPort


@dataclass(slots=True)
class Findings:
    """What the last reconciles found. One thread's."""

    uplink: Uplink | None = None
    """The interface of the underlay, and our address on it; None: not looked for yet."""
    mtu: int = 0
    """Size of the largest packet that containers may send, bytes; 0: not known yet."""
    problems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Lines for people about what is wrong now, by the part that noticed. A part without lines is well."""
    operations: dict[str, int] = field(default_factory=dict)
    """How many entries have been put or removed since the start, by the name of the table."""
    peers_ebpf: int = 0
    """Peers' subnets that eBPF carries packets to."""
    peers_kernel_path: int = 0
    """Peers' subnets that only the kernel path leads to."""
    ports: tuple[str, ...] = ()
    """Names of the bridge's ports that have our programs, sorted."""
    kernel_ports: tuple[KernelPort, ...] = ()
    """The bridge's other ports, each with the reason why it has none."""
    program: str = ""
    """Digest of the programs that are loaded; empty: none are."""
    hook: HookMode = HookMode.TC
    """Where packets from the uplink meet our programs first."""
    hook_refused: str = ""
    """Why XDP that was asked for is not; empty if it is, or was not asked for."""

    def count(self, table: str, operations: int) -> None:
        self.operations[table] = self.operations.get(table, 0) + operations
