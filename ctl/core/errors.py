"""Everything that can go wrong and is not a bug of ours.

    OvnetError                  exit code 1: failed or unhealthy
    |- ConfigError              2: usage, settings or network config
    |- NotFound                 3: no such network, lease, entry
    |- StoreError               4: store unreachable or unreadable
    |  |- LeaseConflict         1: another node holds what we want to write
    |  |- StoreDenied           2: the store refuses our credentials; waiting does not help
    |  `- StoreAway             4: the store does not answer; waiting may help
    |     `- Unassigned         4: it answers, and has no subnet for this node (yet)
    |- NetworkExhausted         1: no free subnet
    |- AgentError               1: the agent's own preconditions (root, lock)
    |- AgentUnreachable         4: no agent runs for this state directory
    `- KernelError              1: netlink, bpf(2), nft or compiler refused
       |- ForeignProgram        1: an interface carries someone else's program
       `- Unapplied             1: some entries of a table were refused, and it is known which

Each is one line that names the thing and, where there is one, the remedy.
Anything else that escapes is a bug and shows a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class OvnetError(Exception):
    """Base of all expected failures: `str(error)` is one line for a person."""

    exit_code: ClassVar[int] = 1


class ConfigError(OvnetError):
    """A flag, variable, file or network config is wrong."""

    exit_code = 2


class NotFound(OvnetError):
    """What was asked for does not exist."""

    exit_code = 3


class StoreError(OvnetError):
    """The lease store cannot be reached, read or written."""

    exit_code = 4


class LeaseConflict(StoreError):
    """A compare-and-swap lost: the stored lease is not the one we expected."""

    exit_code = 1


class StoreDenied(StoreError):
    """The store is there and refuses us: user, password, rights or certificates are wrong."""

    exit_code = 2


class StoreAway(StoreError):
    """A store on the network does not answer now."""


class Unassigned(StoreAway):
    """The store gives out the subnets, and this node has none (yet)."""


class NetworkExhausted(OvnetError):
    """No subnet of the network is free."""


class AgentError(OvnetError):
    """The agent cannot run here: no root, second agent, unusable uplink."""


class AgentUnreachable(OvnetError):
    """No agent answers for this state directory."""

    exit_code = 4


class KernelError(OvnetError):
    """The kernel, nft or the compiler refused what we asked."""


class ForeignProgram(KernelError):
    """A hook that we need is taken by a program that is not ours."""


class Unapplied(KernelError):
    """Some entries of a table could not be put or removed; all the others were."""

    def __init__(self, why: str, keys: Iterable[object]) -> None:
        super().__init__(why)
        self.keys: frozenset[object] = frozenset(keys)
        """Keys of the entries that are as they were before."""


class Failures:
    """What went wrong in parts of which each has its turn, whatever became of the others."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def take(self, part: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `part` returns; None if it fails with an OvnetError, which is noted."""
        try:
            return part(*args, **kwargs)
        except OvnetError as error:
            self._lines.append(str(error))
            return None

    def __str__(self) -> str:
        """Each failure once, in one line; empty if there was none."""
        return "; ".join(dict.fromkeys(self._lines))

    def raise_any(self) -> None:
        """KernelError if there was a failure."""
        if self._lines:
            raise KernelError(str(self))
