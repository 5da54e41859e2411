"""The lease store in Kubernetes, shared with flannel: its annotations, their meaning.

- A Node is a lease. Kubernetes gives it its subnet, and it lives as long as the Node: nothing is chosen,
  renewed or contended for.
- Only our own Node's annotations are written, and one of its conditions, through `nodes/status`: that is
  what flannel's role allows. A patch carries the Node's uid, so that it cannot meet a Node that was
  created anew, and only what differs; where nothing does there is no request.
- The network's config is a file, mounted from a ConfigMap.
- While a watch runs, reads come from its cache and cost no request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ctl.core.errors import ConfigError, LeaseConflict, Unassigned
from ctl.core.lease import clash, in_words, inside, span
from ctl.core.model import Addresses, Lease, Network, Snapshot, Subnets
from ctl.core.ports import Closing
from ctl.core.wire import parse_network
from ctl.settings.endpoint import ANNOTATION_PREFIX, NET_CONFIG
from ctl.store.connection.files import FileWatch, Followed
from ctl.store.kubernetes.access import Access
from ctl.store.kubernetes.cache import Cache
from ctl.store.kubernetes.client import ApiClient, Missing
from ctl.store.kubernetes.list import NODES, read_list
from ctl.store.kubernetes.schema import Entry, Schema, chosen_addresses
from ctl.store.kubernetes.watch import Pace, Watch, entry_of

NO_NODE: Final = "kubernetes: which Node this is has not been said: set NODE_NAME or --node-name"
LENGTHS: Final = 24, 64
"""Of subnets of IPv4 and IPv6 for who asks from outside of a node; kube-controller-manager's own defaults."""
WITHOUT_IPV6: Final = (
    "has no podCIDR for IPv6, which the network has: its pods have IPv4 only. A Node keeps what it has: give"
    " kube-controller-manager's --cluster-cidr both families, and register the Node anew"
)


@dataclass(frozen=True, slots=True)
class KubernetesOptions:
    """How to take part in a cluster."""

    prefix: str = f"{ANNOTATION_PREFIX}/"
    """Of annotations, to its last character."""
    net_config: Path = Path(NET_CONFIG)
    node: str = ""
    """Our Node's name; "" for who only looks."""
    clear_unavailable: bool = True
    """Whether the condition NetworkUnavailable is ours to clear."""


class KubernetesStore:
    """A LeaseStore in the cluster that `access` leads to. Any thread may call it.

    Nothing is asked of the API before the first call. ConfigError on unusable files. `clock` gives seconds
    since the epoch; `patient`: see ApiClient.
    """

    def __init__(
        self,
        access: Followed[Access],
        options: KubernetesOptions,
        clock: Callable[[], float] = time.time,
        *,
        pace: Pace | None = None,
        timeout: float = 5.0,
        patient: bool = False,
    ) -> None:
        self._client = ApiClient(access, options.node, timeout=timeout, patient=patient)
        self._schema = Schema(options.prefix, options.node)
        self._options, self._clock = options, clock
        self._pace = pace or Pace()
        self._watch: Watch | None = None
        self._given: Subnets | None = None
        """What our Node had when we first looked; None: we have not."""
        self._without_ipv6 = ""
        """Why our Node has no part in the network's IPv6, one line; empty: it has, or there is none."""
        self._published: Lease | None = None
        """Our own as others read it, where an administrator's address may stand in place of ours."""
        self._told = False
        """Whether we have said that our Node has a network."""
        self._lease: Lease | None = None
        """Our own as it was written last; None: it was not."""

    # --- Network ---------------------------------------------------------------

    def read_network(self) -> Network | None:
        ours = self._ours() if self._options.node else None
        path = self._options.net_config
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(
                f"{path}: {reason}: mount flannel's ConfigMap there, or set --net-config-path"
            ) from error
        network = parse_network(text, str(path), given_out=self._lengths(ours))
        if ours is None:
            return network
        self._require_within(network, ours)
        lacks = network.ipv6 is not None and ours.ipv6 is None  # to wait for it is to wait for ever
        self._without_ipv6 = f"node {self._options.node} {WITHOUT_IPV6}" if lacks else ""
        return replace(network, ipv6=None) if lacks else network

    def _lengths(self, ours: Subnets | None) -> tuple[int, int]:
        """Of subnets of IPv4 and IPv6; the first that our Node had: others later are no other network."""
        given = [each for each in (self._given, ours) if each]
        ipv6 = next((each.ipv6 for each in given if each.ipv6), None)
        return given[0].ipv4.prefixlen if given else LENGTHS[0], ipv6.prefixlen if ipv6 else LENGTHS[1]

    def _require_within(self, network: Network, subnets: Subnets) -> None:
        """ConfigError if one of our subnets is not in the network."""
        families: list[tuple[str, IPv4Network | IPv6Network, IPv4Network | IPv6Network]] = [
            ("Network", network.network, subnets.ipv4)
        ]
        if network.ipv6 is not None and subnets.ipv6 is not None:
            families.append(("IPv6Network", network.ipv6.network, subnets.ipv6))
        for key, whole, subnet in families:
            if not inside(span(subnet), span(whole)):
                raise ConfigError(
                    f"{self._options.net_config}: {key} {whole} does not contain {subnet}, the podCIDR of"
                    f" node {self._options.node}: it has to be kube-controller-manager's --cluster-cidr"
                )

    def _ours(self) -> Subnets:
        """Our Node's subnets, or those that it had if it has gone. Unassigned."""
        try:
            subnets = self.assigned(self._options.node)
        except Unassigned:
            if self._given is None:
                raise
            return self._given
        self._given = self._given or subnets
        return subnets

    def write_network(self, network: Network, *, replace: bool = False) -> None:
        raise ConfigError(
            "kubernetes: the network is net-conf.json of flannel's ConfigMap: change it there, and restart"
            " the agents"
        )

    # --- Leases ----------------------------------------------------------------

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        if self._watch is not None:
            if fresh:
                self._watch.refresh()
            found, unwatched = self._watch.read(Cache.snapshot), self._watch.unwatched()
            problems = tuple(filter(None, (*found.problems, unwatched, self._without_ipv6)))
            return self._ours_as_known(replace(found, problems=problems))
        cache = Cache(self._options.node)
        cache.load(read_list(self._client, self._schema, {}))
        return self._ours_as_known(cache.snapshot())

    def _ours_as_known(self, found: Snapshot) -> Snapshot:
        """Where an administrator has another address published in place of ours, ours is still ours."""
        ours, published = self._lease, self._published
        if ours is None or published is None or _with_hosts(published, published, ours) == published:
            return found
        leases = tuple(
            _with_hosts(each, published, ours) if each.node == ours.node else each for each in found.leases
        )
        return replace(found, leases=leases)

    def put(self, lease: Lease, expected: Lease | None) -> Lease:
        if not lease.node or lease.node != self._options.node:
            raise ConfigError(
                "kubernetes: a node publishes its own lease, of the subnet that it is given: there is nothing"
                " to reserve"
            )
        own = self._own()
        if own.subnets is None or not _is_given(lease, own.subnets):
            raise LeaseConflict(
                f"{lease.subnet} is not the podCIDR of node {own.name}, which has {own.subnets}"
            )
        if expected is None:
            self._require_free(lease)
        wanted = self._schema.annotations(lease, own.annotations)
        if wanted:
            own = self._patch(own, {"metadata": {"uid": own.uid, "annotations": wanted}})
        self._published = own.lease
        self._lease = replace(lease, expires_at=None, revision=own.version)
        return self._lease

    def _require_free(self, lease: Lease) -> None:
        other = clash(lease, (each for each in self.snapshot().leases if each.node != lease.node))
        if other is not None:
            raise LeaseConflict(f"{in_words(other)} has a podCIDR that overlaps ours: not published")

    def delete(self, lease: Lease) -> None:
        raise ConfigError(f"kubernetes: a lease is a Node: kubectl delete node {lease.node or 'NAME'}")

    def watch(self, changed: Callable[[], None]) -> Closing:
        watch = self._watch = Watch(self._client, self._schema, changed, self._pace)
        watch.start()  # only now: its callback reads what is ours
        return _Watching(self, watch, FileWatch(str(self._options.net_config), changed, self._pace.file))

    def ended(self, watch: Watch) -> None:
        """`watch` is closed: its cache grows old from now on."""
        if self._watch is watch:
            self._watch = None

    def close(self) -> None:
        """Close the connections; another call opens them again."""
        self._client.close()

    # --- Our Node --------------------------------------------------------------

    def assigned(self, node: str) -> Subnets:
        own = self._own()
        if own.subnets is None:
            raise Unassigned(
                f"node {node} has no podCIDR for IPv4: kube-controller-manager needs"
                " --allocate-node-cidrs=true and --cluster-cidr (kubeadm: --pod-network-cidr)"
            )
        return own.subnets

    def addresses_of(self, node: str) -> Addresses:
        try:
            return chosen_addresses(self._own().annotations)
        except ValueError as error:
            raise ConfigError(f"node {node}: {error}") from error

    def in_service(self) -> None:
        again = self._watch is not None and self._watch.unavailable()
        if not self._options.clear_unavailable or (self._told and not again):
            return
        now = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": "NetworkUnavailable",
            "status": "False",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
            "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
        }
        self._patch(self._own(), {"status": {"conditions": [condition]}})
        self._told = True

    def _own(self) -> Entry:
        """Our Node, as it is known. Unassigned if there is none, ConfigError if nobody has said which."""
        name = self._options.node
        if not name:
            raise ConfigError(NO_NODE)
        if self._watch is not None:
            entry = self._watch.read(lambda cache: cache.entries.get(name))
        else:
            entry = self._asked(name)
        if entry is None:
            raise Unassigned(
                f"there is no node {name} in the API (not registered yet, deleted, or another name)"
            )
        return entry

    def _asked(self, name: str) -> Entry | None:
        """A Node, as the API has it now; None: there is none."""
        try:
            return entry_of(self._schema, self._client.get(f"{NODES}/{quote(name)}"))
        except Missing:
            return None

    def _patch(self, own: Entry, body: dict[str, object]) -> Entry:
        """Write to our Node's status, as flannel does. LeaseConflict if it is another Node by now."""
        try:
            answer = self._client.patch(f"{NODES}/{quote(own.name)}/status", body)
        except (Missing, LeaseConflict) as error:
            if self._watch is not None:  # which has not told us yet
                self._watch.learn(own.name, self._asked(own.name))
            raise LeaseConflict(str(error)) from error
        entry = entry_of(self._schema, answer)
        if self._watch is not None:
            self._watch.learn(own.name, entry)
        return entry


def _is_given(lease: Lease, subnets: Subnets) -> bool:
    """Whether these are the lease's; it may do without IPv6."""
    return lease.subnet == subnets.ipv4 and (lease.ipv6 is None or lease.ipv6.subnet == subnets.ipv6)


def _with_hosts(lease: Lease, published: Lease, ours: Lease) -> Lease:
    """`lease` with our own addresses in place of those that are published for them."""
    if lease.host == published.host:
        lease = replace(lease, host=ours.host)
    if lease.ipv6 and published.ipv6 and ours.ipv6 and lease.ipv6.host == published.ipv6.host:
        lease = replace(lease, ipv6=replace(lease.ipv6, host=ours.ipv6.host))
    return lease


class _Watching:
    """What is watched of the API and of the network's file, for the one who asked for it."""

    def __init__(self, store: KubernetesStore, watch: Watch, file: FileWatch) -> None:
        self._store, self._watch, self._file = store, watch, file

    def close(self) -> None:
        self._store.ended(self._watch)
        self._file.close()
        self._watch.close()
