"""The node agent's loop: store and kernel events in, reconciles out.

One thread decides and applies everything. Others only post what may have changed:
the netlink monitor, the store's watch, signals. Events are hints; the whole state is
reconciled at start, every `resync_interval`, and after any failure.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from ctl.agent.describe import ReportFile, describe
from ctl.agent.drops import DropLog
from ctl.agent.mailbox import Mailbox, Signal
from ctl.backend.site import Site
from ctl.cluster.membership import Membership
from ctl.core.errors import Failures, OvnetError, StoreAway
from ctl.core.host import EVERYTHING, Change, Devices
from ctl.core.model import Bypass, IPv4Network, Network
from ctl.core.ports import Closing, LeaseStore
from ctl.core.report import AgentReport, ReconcileReport
from ctl.core.wire import parse_subnet_env
from ctl.kernel.bpf.maps import RING_BYTES
from ctl.kernel.bpf.ring import Ring
from ctl.kernel.netlink.monitor import Monitor
from ctl.node.node import Node
from ctl.process import statedir
from ctl.process.backoff import BackOff
from ctl.process.claim import claim_namespace
from ctl.process.clock import uptime
from ctl.process.notify import Starting, notify, watchdog_seconds
from ctl.settings.config import Settings

log = logging.getLogger(__name__)

_PEERS: Final = frozenset({Change.LEASES, Change.HOPS, Change.PEERS})
"""Whose changes may mean other entries for peers."""

MIN_GAP_S: Final = 0.1
"""Between a reconcile of the kernel's state and the next one."""
FAILING_GAP_S: Final = 5.0
"""The longest that events wait, where reconciling fails or takes long."""
TICK_S: Final = 5.0
"""The loop turns at least this often: dropped packets are logged, threads are looked at."""
NETWORK_POLL_S: Final = 1.0


T = TypeVar("T")


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
        self._membership: Membership | None = None
        """None until `start` has found a network."""
        self._started = clock()
        self._reconciles = ReconcileReport(settings.resync_interval)
        self._report_file = ReportFile(settings.state_dir)
        self._back_off = BackOff()
        """Of what failed in the kernel."""
        self._store_back_off = BackOff()
        """Of a store that did not answer."""
        self._fenced = False
        """Whether the kernel has been told that our subnet is not ours."""
        self._ready = False
        self._starting = Starting()
        self._ring: Ring | None = None
        self._drops = DropLog()
        self._not_before = 0.0
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
        membership = self._membership = Membership(
            self._settings,
            self._store,
            network,
            self._node.identity(network),
            self._node.findings.problems,
            clock=self._clock,
            steady=self._steady,
        )
        # From now on, so that one list of the leases serves for finding one and for the rest.
        self._watching = self._store.watch(lambda: self.mailbox.post(Signal.STORE))
        lease = self._patiently(lambda: membership.join(self._previous()))
        if lease is None:
            return False
        self._say(f"{lease.subnet}")
        log.info("leased %s on %s of %s", lease.subnet, lease.host, network.network)
        return True

    def _patiently(self, step: Callable[[], T]) -> T | None:
        """What `step` returns, however long the store does not answer; None if told to stop."""
        said = ""
        back_off = BackOff()
        while True:
            try:
                result = step()
            except StoreAway as error:
                if str(error) != said:
                    log.error("store: %s; waiting for it", error)
                said = str(error)
            else:
                self._starting.goes_on()
                return result
            self._starting.waits(f"waiting for the store: {said}")
            _, signals = self.mailbox.take(back_off.failed(self._steady()))
            if Signal.STOP in signals:
                return None

    def _wait_for_network(self) -> Network | None:
        network = self._store.read_network()
        if network is None:
            log.warning("no network in %s yet: run ovctl network init", self._settings.store)
        while network is None:
            self._starting.waits("waiting for a network in the store: run ovctl network init")
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
            if self._joined.clock_was_set() or self._next_look_at_store() <= 0:
                signals |= {Signal.STORE}
            if now >= next_resync or self._next_retry() <= 0 or ((changes or signals) and not self._ready):
                changes, signals = EVERYTHING, signals | {Signal.STORE}
                next_resync = now + self._settings.resync_interval
            if changes or signals:
                self._reconcile(changes, Signal.STORE in signals, full=changes == EVERYTHING)
                self._not_before = time.monotonic() + self._gap(changes)
                self._watch(self._devices())
                if changes == EVERYTHING:
                    # A start leaves 16 MB in cycles, and each failure some (an exception and its frames),
                    # which by our thresholds would wait for hours. Peers have grown old: left out.
                    gc.collect(1)
            self._aside("drops", self._log_drops, None)
            notify("WATCHDOG=1")
            changes, signals = self._next(next_resync)
            changes |= self._aside("watching", self._lost, frozenset[Change]())

    def _gap(self, changes: frozenset[Change]) -> float:
        """Seconds until the next reconcile may begin: a storm of events must not become one of reconciles.

        Following the store is cheap: it may take half of the time. What fails may be dear (the
        compiler), and events may be of its own making: it takes a fifth at the most.
        """
        took = self._reconciles.last_duration
        if self._reconciles.error:
            return min(max(self._back_off.wait, 4 * took), FAILING_GAP_S)
        if self._reconciles.ok == 1:
            return (
                MIN_GAP_S  # the first compiles, and containers that are there are not to wait as long again
            )
        return max(MIN_GAP_S, min(took, FAILING_GAP_S)) if changes else min(took, MIN_GAP_S)

    def _next(self, next_resync: float) -> tuple[frozenset[Change], frozenset[Signal]]:
        """What is posted next. A first post counts at once; in a storm they are gathered."""
        changes, signals = self.mailbox.take(self._pause(next_resync))
        while (changes or signals) and Signal.STOP not in signals:
            early = self._not_before - time.monotonic()
            if early <= 0:
                break
            time.sleep(min(early, MIN_GAP_S))
            more_changes, more_signals = self.mailbox.take(0)
            changes, signals = changes | more_changes, signals | more_signals
        return changes, signals

    def _pause(self, next_resync: float) -> float:
        """Seconds until the loop has to turn again."""
        now = self._steady()
        due = [next_resync - now, TICK_S, self._next_retry(), self._next_look_at_store()]
        if (watchdog := watchdog_seconds()) is not None:
            due.append(watchdog)
        return min(due)

    def _next_retry(self) -> float:
        """Seconds until everything is tried again because something failed; inf: nothing did."""
        return self._back_off.left(self._steady()) if self._back_off.pending else math.inf

    def _next_look_at_store(self) -> float:
        """Seconds until the store is asked without a word from it; inf: never.

        It is asked again when it did not answer, else when our lease is to be renewed, or a lease
        that vanished has been kept for long enough. The kernel has no part in any of these.
        """
        if self._store_back_off.pending:
            return self._store_back_off.left(self._steady())
        renewal = self._joined.renewal_in()
        return min(self._joined.doubt_in(), math.inf if renewal is None else renewal)

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
        steps = Failures()
        if Change.DEVICES in changes and steps.take(self._follow_uplink):
            store_changed, changes = True, changes | {Change.FIREWALL}
        if store_changed:
            self._sync_store()
            changes |= {Change.LEASES}
        if full:
            changes |= {Change.FIREWALL}
        self._reconcile_kernel(steps, changes)
        steps.raise_any()

    def _reconcile_kernel(self, steps: Failures, changes: frozenset[Change]) -> None:
        """The kernel path first, so that it is whole whatever becomes of the shortcut."""
        assert self._node.backend is not None, "start() comes first"
        node, backend, snapshot = self._node, self._node.backend, self._joined.snapshot
        network, lease = self._joined.network, self._joined.lease
        if node.fenced is not self._fenced:
            changes |= EVERYTHING
            self._fenced = node.fenced
        if Change.DEVICES in changes:
            before = self._devices()
            steps.take(node.reconcile_devices, network, lease)
            if before != self._devices():
                changes |= EVERYTHING
            self._watch(self._devices())
        site = node.site(network, lease)
        if snapshot and changes & _PEERS:
            steps.take(backend.reconcile_peers, site, snapshot.leases, changes)
        if Change.FIREWALL in changes:
            steps.take(node.reconcile_firewall, network, lease)
        if Change.DEVICES in changes:
            changes |= self._load(steps, site)
        if snapshot and Change.MAPS in changes:
            steps.take(backend.reconcile_peers, site, snapshot.leases, frozenset({Change.MAPS}))
        if changes & {Change.PORTS, Change.FILTERS, Change.DEVICES}:
            steps.take(backend.reconcile_ports, site, changes)

    def _load(self, steps: Failures, site: Site) -> frozenset[Change]:
        """Maps and programs; returns what has to be done because of them: new maps are empty."""
        backend = self._node.backend
        assert backend is not None
        # Where it fails half way the maps may be new all the same.
        found = steps.take(backend.load, site)
        return frozenset({Change.MAPS}) if found is None else found

    def _follow_uplink(self) -> bool:
        """True if our address or the interface changed: the lease and the rules have to say so."""
        node = self._node
        if not node.refresh_uplink():
            return False
        log.warning("uplink is now %s with %s", node.uplink.link.name, node.uplink.address)
        self._joined.present(node.identity(self._joined.network))
        return True

    def _devices(self) -> Devices:
        """New ones come without what hung on the old."""
        node, backend = self._node, self._node.backend
        devices = backend.devices() if backend else Devices()
        return replace(devices, bridge=node.bridge, uplink=node.uplink.link.ifindex)

    @property
    def _joined(self) -> Membership:
        assert self._membership is not None, "start() comes first"
        return self._membership

    def _sync_store(self) -> None:
        """The store being away changes nothing else."""
        if self._joined.sync():
            self._store_back_off.succeeded()
        else:
            self._store_back_off.failed(self._steady())
        self._node.fenced = bool(self._joined.conflict)

    def _succeeded(self, full: bool) -> None:
        if not full and self._reconciles.error:
            return  # the part that failed may not have had its turn
        if self._reconciles.error:
            log.info("reconciled again")
        self._reconciles = replace(
            self._reconciles, ok=self._reconciles.ok + 1, last_success=self._clock(), error=""
        )
        self._back_off.succeeded()
        if full and not self._ready:
            self._ready = True
            log.info("ready: %s", self._node.settings.node_name)
            notify("READY=1")
            self._starting.goes_on()

    def _failed(self, why: str) -> None:
        if why != self._reconciles.error:
            log.error("%s", why)
        self._reconciles = replace(self._reconciles, failed=self._reconciles.failed + 1, error=why)
        self._back_off.failed(self._steady())
        if not self._ready:
            self._starting.waits(f"not ready: {why}")

    def _aside(self, part: str, look: Callable[[], T], otherwise: T) -> T:
        """What `look` returns. A failure is a problem of `part`, said once; the next turn looks again."""
        problems, found, wrong = self._node.findings.problems, otherwise, ""
        try:
            found = look()
        except OvnetError as error:
            wrong = str(error)
        lines = (wrong,) if wrong else ()
        if problems.get(part, ()) != lines:
            problems[part] = lines
            if wrong:
                log.error("%s", wrong)
            self._publish()
        return found

    def _lost(self) -> frozenset[Change]:
        """What has ended or come off without an event."""
        return self._node.backend.lost() if self._node.backend else frozenset()

    # --- What others see -------------------------------------------------------

    def _log_drops(self) -> None:
        maps = self._node.maps
        if maps is None or self._settings.bypass is Bypass.OFF:
            return
        if self._ring is None:
            self._ring = Ring(maps.fd("events"), RING_BYTES)
        for line in self._drops.lines(self._ring.drain(), self._steady()):
            log.warning("%s", line)

    def _publish(self) -> None:
        wait = max(self._back_off.wait, self._store_back_off.wait)
        reconciles = replace(self._reconciles, back_off=wait)
        self.report = describe(
            self._node, self._joined, reconciles, started=self._started, passed=self._ready
        )
        self._report_file.write(self.report)
