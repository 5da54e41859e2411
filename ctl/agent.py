"""The node agent's loop: store and kernel events in, reconciles out.

One thread decides and applies everything. Others only post what may have changed:
the netlink monitor, the store's watch, signals. Events are hints; the whole state is
reconciled at start, every `resync_interval`, and after any failure.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Final, ParamSpec, TypeVar

from ctl import __version__, statedir
from ctl.claim import claim_namespace
from ctl.clock import JumpWatch, uptime
from ctl.config import Settings
from ctl.errors import ConfigError, KernelError, LeaseConflict, OvnetError, StoreAway, StoreError
from ctl.kernel.events import Ring
from ctl.kernel.maps import RING_BYTES
from ctl.kernel.monitor import EVERYTHING, Change, Devices, Monitor
from ctl.leasing import LeaseHolder
from ctl.model import Bypass, IPv4Network, Lease, Network, Snapshot
from ctl.node import Node
from ctl.notify import notify, watchdog_seconds
from ctl.ports import Closing, LeaseStore
from ctl.reasons import reason
from ctl.report import AgentReport, LeaseReport, ReconcileReport, StoreReport, to_json
from ctl.roster import moves
from ctl.wire import parse_subnet_env

log = logging.getLogger(__name__)

_PEERS: Final = frozenset({Change.LEASES, Change.HOPS, Change.PEERS})
"""Whose changes may mean other entries for peers."""

BACK_OFF_MIN_S: Final = 0.5
BACK_OFF_MAX_S: Final = 30.0
MIN_GAP_S: Final = 0.1
"""Between a reconcile of the kernel's state and the next one."""
TICK_S: Final = 5.0
"""The loop turns at least this often: dropped packets are logged, threads are looked at."""
NETWORK_POLL_S: Final = 1.0


P = ParamSpec("P")
T = TypeVar("T")


class Signal(Enum):
    """What others post beside kernel changes."""

    STORE = "store"
    STOP = "stop"


class Mailbox:
    """Posts from any thread or signal handler, taken together by the loop."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[frozenset[Change] | Signal] = SimpleQueue()

    def post(self, what: frozenset[Change] | Signal) -> None:
        self._queue.put(what)

    def take(self, timeout: float) -> tuple[frozenset[Change], frozenset[Signal]]:
        """All that was posted; waits up to `timeout` seconds for a first post."""
        changes: frozenset[Change] = frozenset()
        signals: set[Signal] = set()
        try:
            item = self._queue.get(timeout=max(timeout, 0.001))
            while True:
                if isinstance(item, Signal):
                    signals.add(item)
                else:
                    changes |= item
                item = self._queue.get_nowait()
        except Empty:
            return changes, frozenset(signals)


class _Steps:
    """Runs steps of which each has its turn, and remembers what failed."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def take(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `step` returns; None if it failed as it may."""
        try:
            return step(*args, **kwargs)
        except OvnetError as error:
            self._errors.append(str(error))
            return None

    def raise_errors(self) -> None:
        """KernelError with a line of all failures, if there are any."""
        if self._errors:
            raise KernelError("; ".join(dict.fromkeys(self._errors)))


class Agent:
    """A running node. `run` returns when it is told to stop, with the datapath in place."""

    def __init__(
        self,
        settings: Settings,
        store: LeaseStore,
        node: Node,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = uptime,
        say: Callable[[str], None],
    ) -> None:
        self.mailbox: Final = Mailbox()
        self.report: AgentReport | None = None
        self._settings, self._store, self._node = settings, store, node
        self._clock, self._steady, self._say = clock, steady, say
        self._jumps = JumpWatch(clock, steady)
        self._doubt_until = 0.0
        """Until when (by `steady`) leases that vanish may have done so because the clock was set."""
        self._started = clock()
        self._network: Network | None = None
        self._holder: LeaseHolder | None = None
        self._reconciles = ReconcileReport(settings.resync_interval)
        self._store_report = StoreReport(settings.store)
        self._snapshot: Snapshot | None = None
        """The leases last read; None: never yet, which must not be taken for no leases."""
        self._conflict = ""
        self._fenced = False
        """Whether the kernel has been told that our subnet is not ours."""
        self._suspicious_since: float | None = None
        """Since when (by `steady`) the store lacks most leases that we know."""
        self._retry_at = 0.0
        self._ready = False
        self._ring: Ring | None = None
        self._not_before = 0.0
        self._report_failed = False
        self._claim: Closing | None = None
        self._watching: Closing | None = None
        self._watch: Callable[[Devices], None] = lambda _: None
        """Tells the monitor which devices are ours."""

    # --- Start -----------------------------------------------------------------

    def start(self) -> bool:
        """Find the network and a lease; False if told to stop while waiting."""
        network = self._patiently(self._wait_for_network)
        if network is None:
            return False
        self._node.preflight(network)
        self._claim = claim_namespace()
        self._network = network
        self._holder = LeaseHolder(
            self._store,
            self._node.identity(network),
            ttl=self._settings.lease_ttl,
            margin=self._settings.renew_margin,
            clock=self._clock,
        )
        holder = self._holder
        # From now on, so that one list of the leases serves for finding one and for the rest.
        self._watching = self._store.watch(lambda: self.mailbox.post(Signal.STORE))
        lease = self._patiently(lambda: holder.acquire(network, self._previous()))
        if lease is None:
            return False
        self._say(f"{lease.subnet}")
        log.info("leased %s on %s of %s", lease.subnet, lease.host, network.network)
        return True

    def _patiently(self, step: Callable[[], T]) -> T | None:
        """What `step` returns, however long the store does not answer; None if told to stop."""
        said = ""
        wait = BACK_OFF_MIN_S
        while True:
            try:
                return step()
            except StoreAway as error:
                if str(error) != said:
                    log.error("store: %s; waiting for it", error)
                said = str(error)
            _, signals = self.mailbox.take(wait * random.uniform(0.75, 1.25))
            if Signal.STOP in signals:
                return None
            wait = min(wait * 2, BACK_OFF_MAX_S)

    def _wait_for_network(self) -> Network | None:
        network = self._store.read_network()
        if network is None:
            log.warning("no network in %s yet: run ovctl network init", self._settings.store)
        while network is None:
            _, signals = self.mailbox.take(NETWORK_POLL_S)
            if Signal.STOP in signals:
                return None
            network = self._store.read_network()
        return network

    def _previous(self) -> IPv4Network | None:
        """The subnet of an earlier life: flanneld's if its datapath is here, or from subnet.env.

        While fenced, what is kept of that file.
        """
        if self._node.takeover.subnet:
            return self._node.takeover.subnet
        for path in (self._settings.subnet_file, self._settings.state_dir / statedir.FENCED):
            with suppress(OSError, ValueError):
                return parse_subnet_env(path.read_text()).subnet
        return None

    # --- Loop ------------------------------------------------------------------

    def run(self) -> None:
        """Reconcile until told to stop. Anything but OvnetError is a bug and ends the process."""
        monitor = Monitor(self.mailbox.post, self._node.wants)
        try:
            self._loop(monitor)
        finally:
            notify("STOPPING=1")
            if self._watching:
                self._watching.close()
            monitor.close()

    def _loop(self, monitor: Monitor) -> None:
        changes: frozenset[Change] = EVERYTHING
        signals: frozenset[Signal] = frozenset({Signal.STORE})
        self._watch = monitor.watch
        next_resync = 0.0
        while Signal.STOP not in signals:
            now = self._steady()
            retry = self._retry_at and now >= self._retry_at
            if (
                self._clock_was_set()
                or now >= next_resync
                or retry
                or self._renewal_due(self._clock())
                or ((changes or signals) and not self._ready)
            ):
                changes, signals = EVERYTHING, signals | {Signal.STORE}
                next_resync = now + self._settings.resync_interval
            if changes or signals:
                self._reconcile(changes, Signal.STORE in signals, full=changes == EVERYTHING)
                self._not_before = time.monotonic() + self._gap(changes)
                self._watch(self._devices())
            self._log_drops()
            notify("WATCHDOG=1")
            changes, signals = self._next(next_resync)
            if self._node.backend and not self._node.backend.intact():
                changes |= {Change.PEERS}

    def _gap(self, changes: frozenset[Change]) -> float:
        """Seconds until the next reconcile may begin: a storm of events must not become one of reconciles.

        Following the store is cheap: it may take half of the time.
        """
        return MIN_GAP_S if changes else min(self._reconciles.last_duration, MIN_GAP_S)

    def _next(self, next_resync: float) -> tuple[frozenset[Change], frozenset[Signal]]:
        """What is posted next. A first post counts at once; in a storm they are gathered."""
        changes, signals = self.mailbox.take(self._pause(next_resync))
        early = self._not_before - time.monotonic()
        if early > 0 and (changes or signals) and Signal.STOP not in signals:
            time.sleep(early)
            more_changes, more_signals = self.mailbox.take(0)
            return changes | more_changes, signals | more_signals
        return changes, signals

    def _pause(self, next_resync: float) -> float:
        """Seconds until the loop has to turn again."""
        now = self._steady()
        due = [next_resync - now, TICK_S]
        if self._retry_at:
            due.append(self._retry_at - now)
        if self._holder and not self._conflict and not self._retry_at:
            due.append(self._holder.next_renewal() - self._clock())
        if (watchdog := watchdog_seconds()) is not None:
            due.append(watchdog)
        return min(due)

    def _clock_was_set(self) -> bool:
        """Ends of leases are by the wall clock: ours is written anew, others' are doubted for a while."""
        jump = self._jumps.jumped()
        if jump:
            log.warning("the wall clock was set by %+.0f s", jump)
            self._doubt_until = self._steady() + self._settings.resync_interval
            if self._holder is not None:
                self._holder.distrust_end()
        return bool(jump)

    def _renewal_due(self, now: float) -> bool:
        """A failed one has its turn when the back-off says so. `now`: the wall clock's."""
        waiting = self._holder is None or bool(self._conflict or self._retry_at)
        return not waiting and self._holder is not None and now >= self._holder.next_renewal()

    # --- Reconcile -------------------------------------------------------------

    def _reconcile(self, changes: frozenset[Change], store_changed: bool, *, full: bool) -> None:
        """One pass; a failure is logged once, shown, and tried again with back-off."""
        started = time.monotonic()
        try:
            self._pass(changes, store_changed, full)
        except OvnetError as error:
            self._failed(str(error))
        else:
            self._succeeded(full)
        self._reconciles = replace(self._reconciles, last_duration=time.monotonic() - started)
        self._publish()

    def _pass(self, changes: frozenset[Change], store_changed: bool, full: bool) -> None:
        """Every part gets its turn, whatever became of the others; KernelError sums up."""
        steps = _Steps()
        if Change.DEVICES in changes:
            store_changed |= steps.take(self._follow_uplink) or False
        if store_changed:
            self._sync_store()
            changes |= {Change.LEASES}
        if full:
            changes |= {Change.FIREWALL}
        self._reconcile_kernel(steps, changes)
        steps.raise_errors()

    def _reconcile_kernel(self, steps: _Steps, changes: frozenset[Change]) -> None:
        """The kernel path first, so that it is whole whatever becomes of the shortcut."""
        assert self._network is not None and self._node.backend is not None, "start() comes first"
        node, network, backend, lease = self._node, self._network, self._node.backend, self._lease()
        if node.fenced is not self._fenced:
            changes |= EVERYTHING
            self._fenced = node.fenced
        if Change.FILTERS in changes:
            backend.forget_filters()
        if Change.DEVICES in changes:
            before = self._devices()
            steps.take(node.reconcile_devices, network, lease)
            if before != self._devices():
                changes |= EVERYTHING
            self._watch(self._devices())
        site = node.site(network, lease)
        peers = changes & _PEERS if self._snapshot is not None else frozenset()
        if peers and self._snapshot:
            steps.take(backend.reconcile_routes, site, self._snapshot.leases, changes)
        if Change.FIREWALL in changes:
            steps.take(node.reconcile_firewall, network, lease)
        if Change.DEVICES in changes:
            steps.take(backend.load, site)
        if peers:
            steps.take(backend.reconcile_maps, site)
        if changes & {Change.PORTS, Change.FILTERS, Change.DEVICES}:
            steps.take(backend.reconcile_ports, site)

    def _follow_uplink(self) -> bool:
        """True if our address changed, so that the lease has to say so."""
        assert self._network is not None and self._holder is not None
        node = self._node
        if not node.refresh_uplink():
            return False
        log.warning("uplink is now %s with %s", node.uplink.link.name, node.uplink.address)
        self._holder.identity = node.identity(self._network)
        return True

    def _devices(self) -> Devices:
        """New ones come without what hung on the old."""
        node = self._node
        return Devices(node.backend.device if node.backend else 0, node.bridge, node.uplink.link.ifindex)

    def _lease(self) -> Lease:
        assert self._holder is not None and self._holder.lease is not None
        return self._holder.lease

    def _sync_store(self) -> None:
        """Our lease kept, everyone's leases read. The store being away changes nothing else."""
        assert self._holder is not None
        try:
            self._keep_lease(self._holder)
            self._snapshot = self._believe(self._store.snapshot())
            self._check_network()
        except StoreError as error:
            if str(error) != self._store_report.error:
                log.error("store: %s; going on with the leases known", error)
            self._store_report = replace(self._store_report, up=False, error=str(error))
            self._back_off()
            return
        if not self._store_report.up and self._store_report.error:
            log.info("store is back")
        self._store_report = StoreReport(self._settings.store, True, self._clock())

    def _keep_lease(self, holder: LeaseHolder) -> None:
        try:
            holder.keep()
        except LeaseConflict as error:
            if str(error) != self._conflict:
                log.critical("lease conflict: %s; fenced: no new containers here", error)
            self._conflict = str(error)
        else:
            if self._conflict:
                log.warning("%s is ours again: not fenced any more", self._lease().subnet)
            self._conflict = ""
        self._node.fenced = bool(self._conflict)

    def _believe(self, snapshot: Snapshot) -> Snapshot:
        """Many peers gone at once: kept until the store says the same for a while.

        A store that was restored empty, or a broken one, must not take the network down, nor
        a wall clock that was set: then all leases of a file may have ended at once.
        """
        before = self._snapshot.leases if self._snapshot else ()
        changes = moves(before, snapshot.leases)
        new = {lease.subnet for lease in changes.new} if changes.gone else set()
        gone = tuple(lease for lease in changes.gone if lease.subnet not in new)
        now = self._steady()
        if len(gone) <= (max(3, len(before) // 2) if now >= self._doubt_until else 0):
            self._suspicious_since = None
        elif self._suspicious_since is None:
            self._suspicious_since = now
            log.critical("%d of %d leases are gone at once: not believed yet", len(gone), len(before))
        if self._suspicious_since is None or now >= self._suspicious_since + self._settings.resync_interval:
            believed = self._suspicious_since is not None
            self._suspicious_since = None
            self._node.seen.problems["mass removal"] = ()
            return self._store.snapshot(fresh=True) if believed else snapshot
        text = f"{len(gone)} of {len(before)} leases are gone from the store at once: kept for now"
        self._node.seen.problems["mass removal"] = (text,)
        return replace(
            snapshot, leases=tuple(sorted((*snapshot.leases, *gone), key=lambda each: each.subnet))
        )

    def _check_network(self) -> None:
        text = "the network in the store has changed: restart this agent to follow it"
        try:
            stored = self._store.read_network()
            changed = stored is not None and stored != self._network
        except ConfigError as error:
            changed, text = True, f"the network in the store is not usable any more: {error}"
        if changed and not self._node.seen.problems.get("network"):
            log.error("%s", text)
        self._node.seen.problems["network"] = (text,) if changed else ()

    def _succeeded(self, full: bool) -> None:
        if not full and self._reconciles.error:
            return  # the part that failed may not have had its turn
        if self._reconciles.error:
            log.info("reconciled again")
        self._reconciles = replace(
            self._reconciles, ok=self._reconciles.ok + 1, last_success=self._clock(), error=""
        )
        if self._store_report.up:
            self._retry_at = 0.0
            self._reconciles = replace(self._reconciles, back_off=0.0)
        if full and not self._ready:
            self._ready = True
            log.info("ready: %s", self._node.settings.node_name)
            notify("READY=1")

    def _failed(self, why: str) -> None:
        if why != self._reconciles.error:
            log.error("%s", why)
        self._reconciles = replace(self._reconciles, failed=self._reconciles.failed + 1, error=why)
        self._back_off()

    def _back_off(self) -> None:
        """Twice as long after every failure in a row, with jitter: nodes must not march in step."""
        wait = min(max(self._reconciles.back_off * 2, BACK_OFF_MIN_S), BACK_OFF_MAX_S)
        self._reconciles = replace(self._reconciles, back_off=wait)
        self._retry_at = self._steady() + wait * random.uniform(0.75, 1.25)

    # --- What others see -------------------------------------------------------

    def _log_drops(self) -> None:
        maps = self._node.maps
        if maps is None or self._settings.bypass is Bypass.OFF:
            return
        if self._ring is None:
            self._ring = Ring(maps.fd("events"), RING_BYTES)
        for event in self._ring.drain():
            why = reason(event.reason).caption
            where = f"{event.hook.label}, interface {event.ifindex}"
            log.warning("dropped at %s: %s; %d bytes: %s", where, why, event.packet_len, event.data.hex())

    def _publish(self) -> None:
        self.report = self._make_report()
        try:
            statedir.write_atomically(self._settings.state_dir / statedir.REPORT, to_json(self.report))
            self._report_failed = False
        except OSError as error:
            if not self._report_failed:
                log.error("cannot write the status report: %s", error.strerror)
            self._report_failed = True

    def _make_report(self) -> AgentReport:
        node, seen, settings = self._node, self._node.seen, self._settings
        backend = node.backend
        network, lease = self._network, self._holder.lease if self._holder else None
        leases = self._snapshot or Snapshot((), 0)
        wrong = [line for lines in seen.problems.values() for line in lines]
        not_ready = list(seen.problems.get("bridge", ()))
        if not self._ready:
            not_ready.append(self._reconciles.error or "starting")
        if self._conflict:
            not_ready.append(f"lease conflict: {self._conflict}")
        return AgentReport(
            version=__version__,
            pid=os.getpid(),
            node=settings.node_name,
            started_at=self._started,
            host=node.uplink.address,
            store=self._store_report,
            reconcile=replace(self._reconciles, operations=dict(seen.operations)),
            network=network.network if network else None,
            backend=network.backend if network else "",
            lease=self._lease_report(lease) if lease else None,
            vni=network.vni if network else 0,
            port=network.port if network else 0,
            mtu=node.mtu,
            bridge=settings.bridge,
            uplink=node.uplink.link.name,
            bypass=settings.bypass,
            approval_ttl=settings.approval_ttl,
            hook=seen.hook.value,
            hook_refused=seen.hook_refused,
            program=backend.programs.digest if backend and backend.programs else "",
            ready=not not_ready,
            not_ready=tuple(not_ready),
            leases=len(leases.leases),
            peers_ebpf=seen.peers_ebpf,
            peers_kernel_path=seen.peers_kernel_path,
            ports=seen.ports,
            kernel_ports=seen.kernel_ports,
            problems=(*wrong, *leases.problems),
        )

    def _lease_report(self, lease: Lease) -> LeaseReport:
        assert self._holder is not None
        renew_at = self._holder.next_renewal() if lease.expires_at is not None else None
        return LeaseReport(lease.subnet, lease.expires_at, renew_at, self._conflict)
