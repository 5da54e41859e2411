"""Who may send us VXLAN, for the kernel path: a set of hosts in our nftables table.

There is one of each family. The rule that goes by it is the firewall's (ctl.kernel.firewall). The set
is followed peer by peer: a change costs what it changes, and there is never a moment without the others:
it is one transaction, which makes the set where there is none. An earlier version's table has none, and
a set without the rule refuses nobody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Generic

from ctl.core.errors import KernelError
from ctl.core.family import Family
from ctl.core.model import A, N
from ctl.core.plan import Delta
from ctl.kernel.command import run
from ctl.kernel.firewall import SENDERS, declared, elements, table_of

_ELEMENTS: Final = re.compile(r"elements = \{([^}]*)\}")


class Senders(Generic[A, N]):
    """The set as a table for reconciling (ctl.core.ports.Table): host -> True. KernelError."""

    def __init__(self, family: Family[A, N]) -> None:
        self._family = family

    def read(self) -> Mapping[A, bool]:
        """Who is in; nobody where there is no such set."""
        table = table_of(self._family.version).split()
        found = _ELEMENTS.search(run("nft", "list", "set", *table, SENDERS, check=False))
        listed = found[1].replace(",", " ").split() if found else ()
        return dict.fromkeys(map(self._family.address, listed), True)

    def apply(self, delta: Delta[A, bool]) -> None:
        """All of it or nothing."""
        version = self._family.version
        told = changes(version, delta)
        try:
            run("nft", "-f", "-", text=told)
        except KernelError:
            # Perhaps there is no set. Not declared each time: the kernel tells everyone of it, and
            # whoever hears that our rules have changed looks at them.
            run("nft", "-f", "-", text=f"table {table_of(version)} {{\n{declared(version)}}}\n{told}")


def changes(version: int, delta: Delta[A, bool]) -> str:
    """A delta as nft text. Who goes is put in before: to take out what is missing would be an error."""
    new = [*delta.removals, *(host for host, _ in delta.puts)]
    return elements("add", version, new) + elements("delete", version, delta.removals)
