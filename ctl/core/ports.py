"""The seams: what the agent needs of each outside world.

The edges (ctl.store, ctl.kernel) implement them, tests use in-memory twins, and
the core knows only these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ctl.core.abi import Event
from ctl.core.findings import Findings
from ctl.core.host import Change, Identity
from ctl.core.losing import Way
from ctl.core.model import Addresses, Lease, Network, Snapshot, Subnets
from ctl.core.plan import Delta
from ctl.core.wire import SubnetEnv

K = TypeVar("K")
V = TypeVar("V")


class Closing(Protocol):
    """Something that runs until it is closed."""

    def close(self) -> None: ...


class LeaseStore(Closing, Protocol):
    """Where nodes find the network and each other; whoever opens one closes it.

    Every method raises StoreError when the store cannot be reached or read.
    """

    def read_network(self) -> Network | None:
        """The network's config; None if there is none yet."""

    def write_network(self, network: Network, *, replace: bool = False) -> None:
        """Store the config. LeaseConflict if another is stored and not `replace`."""

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        """All leases that have not expired, and the revision they belong to.

        Never older than what this client wrote. While a watch runs it may be what the
        watch was told; `fresh` asks the store itself.
        """

    def put(self, lease: Lease, expected: Lease | None) -> Lease:
        """Compare-and-swap; returns the lease as stored, with its revision.

        The revision may stay the same where nothing but the end has moved.
        `expected` None: create only where no live lease overlaps the subnet.
        Else: replace only the entry that has `expected.revision`.
        LeaseConflict if another one was quicker.
        """

    def delete(self, lease: Lease) -> None:
        """Remove the entry that has `lease.revision`. LeaseConflict if it changed."""

    def watch(self, changed: Callable[[], None]) -> Closing:
        """Call `changed` from a thread of the store's own, soon after any change."""

    def assigned(self, node: str) -> Subnets | None:
        """The subnets that the store has for the node of this name; None: nodes choose for themselves.

        Unassigned if it has none for it now.
        """

    def addresses_of(self, node: str) -> Addresses:
        """Those that the store has for the host of that node.

        Unassigned if the node is none of the store's; ConfigError if what it has there is no address.
        """

    def in_service(self) -> None:
        """Tell whoever waits for it that this node carries packets, if he has not heard it yet.

        To be called again and again: it costs nothing where there is nothing to tell.
        """


@dataclass(frozen=True, slots=True)
class Holding:
    """What a node has of the network, as the store tells it."""

    lease: Lease
    """Its own, or what it had of one while another host holds the subnet."""
    fenced: bool = False
    """Another host holds our subnet: containers that are here stay, and none is added."""


class Runtimes(Protocol):
    """The container runtimes of a node, which are told whether it takes containers.

    Told the same twice, nothing is done. Raises AgentError.
    """

    def admit(self, env: SubnetEnv) -> None:
        """Containers may come, and this is what they are to be like."""

    def refuse(self) -> None:
        """No more may come for now; those that are here stay."""


class Kernel(Protocol):
    """A host that is to be as the network asks, looked after part by part.

    Each part is read, compared with what is wanted, and changed where it differs: doing it twice
    does nothing the second time. Raises KernelError or AgentError; the other parts may be done
    all the same. What is returned as changes has to be looked at because of what was done.
    """

    @property
    def findings(self) -> Findings:
        """What was found while looking, for the report."""

    def preflight(self, network: Network) -> tuple[Identity, Subnets | None]:
        """What this node publishes of itself, and the subnets that it had in an earlier life, if any.

        Refuses everything that can be refused before anything is changed: ConfigError, too.
        """

    def find_uplink(self, addresses: Addresses) -> None:
        """Look which interface is the uplink, and which of its addresses are ours; before `preflight`.

        `addresses` are what the store has for us. AgentError if there is none, or none with these.
        """

    def follow_network(self, network: Network) -> None:
        """From now on the network's config is this one, which differs by what a running node can follow.

        Refuses, with nothing changed, what this host cannot be.
        """

    def follow_uplink(self) -> Identity | None:
        """What the node publishes from now on; None: neither our address nor its interface is another."""

    def reconcile_devices(self, holding: Holding) -> frozenset[Change]:
        """Kernel settings, tunnel device and bridge. EVERYTHING if one of them is a new one."""

    def reconcile_peers(self, holding: Holding, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        """The ways to the nodes that have these leases. `changes`: why it is looked at."""

    def reconcile_firewall(self, holding: Holding) -> None:
        """Masquerade, forwarding, and what may come in from the underlay."""

    def load_programs(self, holding: Holding) -> frozenset[Change]:
        """The maps, and the programs that go by them. MAPS if the maps are new."""

    def reconcile_ports(self, holding: Holding, changes: frozenset[Change]) -> None:
        """Containers, and programs on interfaces. `changes`: why it is looked at."""


class Events(Protocol):
    """What is heard of a host between two looks at it. Raises KernelError."""

    def watch(self, changed: Callable[[frozenset[Change]], None]) -> Closing:
        """Call `changed` from a thread of its own with what may have changed in the kernel."""

    def lost(self) -> frozenset[Change]:
        """What has ended or come off without an event. Asked every few seconds: it must be cheap."""

    def look_in(self) -> float:
        """Seconds until `lost` has to be asked again, if that is before the next turn; inf: it is not."""

    def drops(self) -> Iterable[Event]:
        """Samples of the packets that our programs have dropped since the last call."""

    def losing(self) -> Mapping[Way, str]:
        """Where all packets are lost at present, a line each. Asked every few seconds: it must be cheap."""


class Table(Protocol[K, V]):
    """One kind of kernel state that reconciling keeps as desired: a BPF map, routes.

    Raises KernelError. `apply` goes on after a failing entry and raises at the end: Unapplied, if
    all entries but those that it names are as the delta has them.
    """

    def read(self) -> Mapping[K, V]:
        """What is there now, of ours."""

    def apply(self, delta: Delta[K, V]) -> None:
        """Put and remove entries, in the order given."""
