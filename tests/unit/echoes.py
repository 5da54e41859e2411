"""Three nodes, and echoes between them without a socket."""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from ipaddress import IPv4Address, IPv4Network

from ctl.core.model import Lease, MacAddress
from ctl.kernel.echo import Answers, Echo

MAC = MacAddress.parse("02:00:00:00:00:02")
OWN = Lease(IPv4Network("172.17.1.0/24"), IPv4Address("10.0.0.1"), MacAddress.local(bytes(6)), 1)
PEER = Lease(IPv4Network("172.17.2.0/24"), IPv4Address("10.0.0.2"), MAC, 1, node="two")
OTHER = Lease(
    IPv4Network("172.17.3.0/24"),
    IPv4Address("10.0.0.3"),
    MacAddress.parse("02:00:00:00:00:03"),
    1,
    node="three",
)
MTU = 1450


class Path1350(Echo[IPv4Address]):
    """No socket: all answer packets of up to 1350 bytes, but for `deaf`, and those that are lost."""

    def __init__(self, _source: IPv4Address = OWN.vtep_ip) -> None:
        self.asked: list[tuple[Collection[IPv4Address], int, int]] = []
        self.deaf: set[IPv4Address] = set()
        self.lost = 0
        """So many of the next questions are not answered."""

    def close(self) -> None: ...

    def ask(
        self,
        targets: Collection[IPv4Address],
        size: int,
        count: int,
        patience: float,
        step: Callable[[], None] = lambda: None,
        enough: Callable[[], bool] = lambda: False,
    ) -> dict[IPv4Address, Answers]:
        self.asked.append((targets, size, count))
        found = {}
        for target in targets:
            passed = size <= 1350 and target not in self.deaf and not self.lost
            self.lost = max(0, self.lost - 1)
            found[target] = Answers(count, (0.001,) * count if passed else ())
        return found

    def _pass(self, each: Set[tuple[IPv4Address, int]], patience: float) -> set[tuple[IPv4Address, int]]:
        assert len(each) <= 1 << 16, "more than can be told apart"
        return {(target, size) for target, size in each if size <= 1350}
