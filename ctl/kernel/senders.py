"""Who may send us VXLAN, for the kernel path: a set of hosts in our nftables table.

The rule that goes by it is the firewall's (ctl.kernel.firewall). The set is followed peer by peer:
a change costs what it changes, and there is never a moment without the others: it is one transaction,
which makes the set where there is none. An earlier version's table has none, and a set without the rule
refuses nobody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Final

from ctl.core.errors import KernelError
from ctl.core.plan import Delta
from ctl.kernel.command import run
from ctl.kernel.firewall import SENDERS, TABLE, declared, elements

_ADDRESS: Final = re.compile(r"\d+\.\d+\.\d+\.\d+")


class Senders:
    """The set as a table for reconciling (ctl.core.ports.Table): host -> True. KernelError."""

    def read(self) -> Mapping[IPv4Address, bool]:
        """Who is in; nobody where there is no such set."""
        listed = run("nft", "list", "set", "ip", TABLE, SENDERS, check=False)
        return dict.fromkeys(map(IPv4Address, _ADDRESS.findall(listed)), True)

    def apply(self, delta: Delta[IPv4Address, bool]) -> None:
        """All of it or nothing."""
        told = changes(delta)
        try:
            run("nft", "-f", "-", text=told)
        except KernelError:
            # Perhaps there is no set. Not declared each time: the kernel tells everyone of it, and
            # whoever hears that our rules have changed looks at them.
            run("nft", "-f", "-", text=f"table ip {TABLE} {{\n{declared()}}}\n{told}")


def changes(delta: Delta[IPv4Address, bool]) -> str:
    """A delta as nft text. Who goes is put in before: to take out what is missing would be an error."""
    new = [*delta.removals, *(host for host, _ in delta.puts)]
    return elements("add", new) + elements("delete", delta.removals)
