"""The node agent's loop: store and kernel events in, passes out.

One thread decides and applies everything. Others only post what may have changed: the
netlink monitor, the store's watch, signals. Events are hints; the whole state is looked at
at start, every `resync_interval`, and after any failure. When a pass begins is decided in
`ctl.agent.schedule`, which steps it takes stands in `ctl.agent.steps`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Final, TypeVar

from ctl.agent.describe import ReportFile, counted, describe
from ctl.agent.drops import DropLog
from ctl.agent.mailbox import Mailbox
from ctl.agent.schedule import MIN_GAP_S, Schedule
from ctl.agent.steps import NOTHING, Part, Pass
from ctl.cluster.membership import Membership
from ctl.core.errors import AgentError, OvnetError, StoreAway, StoreError, Unassigned
from ctl.core.findings import Concern
from ctl.core.host import EVERYTHING, Change
from ctl.core.model import Addresses, Network
from ctl.core.ports import Closing, Events, Kernel, LeaseStore, Runtimes
from ctl.core.report import AgentReport, ReconcileReport
from ctl.core.wire import env_of
from ctl.process.backoff import BackOff
from ctl.process.clock import uptime
from ctl.process.notify import Starting, notify, watchdog_seconds
from ctl.settings.config import Settings

log = logging.getLogger(__name__)

NETWORK_POLL_S: Final = 1.0
"""How often a store without a network is asked for one, while the agent waits to start."""

UNASSIGNED_POLL_S: Final = 2.0
"""How often a store that gives out the subnets is asked for ours, at the least, while the agent waits."""

T = TypeVar("T")


class Agent:
    """A running node. `run` returns when it is told to stop, with the datapath in place.

    `hold` takes this network namespace for one agent; `clock` gives seconds since the epoch,
    `steady` seconds that nobody sets; `say` is told the leased subnet; `rest` is called after each
    look at everything, when there is time; `runtimes` are told when containers may come.
    """

    def __init__(
        self,
        settings: Settings,
        store: LeaseStore,
        kernel: Kernel,
        events: Events,
        *,
        hold: Callable[[], Closing],
        mailbox: Mailbox | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = uptime,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None],
        rest: Callable[[], None] = lambda: None,
        runtimes: Runtimes | None = None,
    ) -> None:
        self.mailbox: Final = mailbox or Mailbox()
        self.report: AgentReport | None = None
        """What it knew of itself after the last pass; None: there was none yet."""
        self._settings, self._store, self._kernel, self._events = settings, store, kernel, events
        self._clock, self._steady, self._sleep = clock, steady, sleep
        self._say, self._rest = say, rest
        self._runtimes = runtimes
        """None: someone else configures them."""
        self._hold = hold
        self._held: Closing | None = None
        """Holds the network namespace for as long as it is referred to."""
        self._membership: Membership | None = None
        """Our place among the other nodes; None: `start` has not found a network yet."""
        self._pass: Pass
        self._schedule: Final = Schedule(settings.resync_interval, watchdog_seconds())
        self._started = clock()
        self._reconciles = ReconcileReport(settings.resync_interval)
        self._report_file = ReportFile(settings.state_dir)
        self._starting = Starting()
        self._drops = DropLog()
        self._untold = ""
        """Why the store could not be told that this node is in service; empty: it could, or has not to be."""
        self._watching: Closing | None = None
        """The store's watch, from `start` to the end of `run`."""

    # --- Start -----------------------------------------------------------------

    def start(self) -> bool:
        """Find the network and a lease; False if told to stop while waiting."""
        addresses = self._patiently(lambda: self._store.addresses_of(self._settings.node_name))
        if addresses is None:
            return False
        self._find_uplink(addresses)
        network = self._patiently(self._wait_for_network)
        if network is None:
            return False
        identity, previous = self._kernel.preflight(network)
        self._held = self._hold()
        membership = self._membership = Membership(
            self._settings,
            self._store,
            network,
            identity,
            self._kernel.findings.problems,
            clock=self._clock,
            steady=self._steady,
        )
        self._pass = Pass(self._kernel, membership, self.mailbox.arrived)
        # From now on, so that one list of the leases serves for finding one and for the rest.
        self._watching = self._store.watch(lambda: self.mailbox.post(frozenset({Change.LEASES})))
        with ExitStack() as unless_joined:
            unless_joined.callback(self._watching.close)
            around = self._kernel.findings.surroundings
            lease = self._patiently(lambda: membership.join(previous, around))
            if lease is None:
                return False
            unless_joined.pop_all()
        self._say(f"{lease.subnet}")
        log.info("leased %s on %s of %s", lease.subnet, lease.host, network.network)
        return True

    def _patiently(self, step: Callable[[], T]) -> T | None:
        """What `step` returns, however long the store does not answer; None if told to stop."""
        said = ""
        back_off = BackOff()
        while not self.mailbox.stopped:
            try:
                result = step()
            except StoreAway as error:
                if str(error) != said:
                    log.error("store: %s; waiting for it", error)
                said, unassigned = str(error), isinstance(error, Unassigned)
            else:
                self._starting.goes_on()
                return result
            self._starting.waits(f"waiting for the store: {said}")
            most = UNASSIGNED_POLL_S if unassigned else math.inf
            self.mailbox.take(min(back_off.failed(self._steady()), most))
        return None

    def _find_uplink(self, addresses: Addresses) -> None:
        """AgentError if there is none, or the addresses that the store has for us are none of this host."""
        told = str(addresses)
        if told:
            log.info("the store has %s for this node", told)
        try:
            self._kernel.find_uplink(addresses)
        except AgentError as error:
            if not told:
                raise
            raise AgentError(f"the store has {told} for this node, and {error}") from error

    def _wait_for_network(self) -> Network | None:
        """None if told to stop while waiting."""
        network = self._store.read_network()
        if network is None:
            log.warning("no network in %s yet: run ovctl network init", self._settings.store)
        while network is None:
            self._starting.waits("waiting for a network in the store: run ovctl network init")
            self.mailbox.take(NETWORK_POLL_S)
            if self.mailbox.stopped:
                return None
            network = self._store.read_network()
        return network

    # --- Loop ------------------------------------------------------------------

    def run(self) -> None:
        """Reconcile until told to stop. Anything but OvnetError is a bug and ends the process."""
        monitor = self._events.watch(self.mailbox.post)
        try:
            self._loop()
        finally:
            notify("STOPPING=1")
            if self._watching:
                self._watching.close()
            monitor.close()

    def _loop(self) -> None:
        membership, posted = self._joined, NOTHING
        while not self.mailbox.stopped:
            if membership.clock_was_set():
                posted |= {Change.LEASES}
            changes = self._schedule.due(self._steady(), posted, membership.look_in())
            if changes:
                self.reconcile(changes)
            else:  # what runtimes are told is a file, and no event says that somebody has changed it
                self._aside(Concern.CNI, self._tell_runtimes, None)
            if changes >= EVERYTHING:
                self._rest()
            self._aside(Concern.DROPS, self._log_drops, None)
            self._aside(Concern.COUNTING, self._look_for_losses, None)
            notify("WATCHDOG=1")
            posted = self._posted()
            posted |= self._aside(Concern.WATCHING, self._events.lost, NOTHING)

    def _posted(self) -> frozenset[Change]:
        """What is posted next. A first post counts at once; in a storm they are gathered."""
        pause = self._schedule.pause(self._steady(), self._joined.look_in())
        changes = self.mailbox.take(min(pause, self._events.look_in()))
        while changes and not self.mailbox.stopped:
            early = self._schedule.gather(self._steady())
            if early <= 0:
                break
            self._sleep(min(early, MIN_GAP_S))
            changes |= self.mailbox.take(0)
        return changes

    @property
    def _joined(self) -> Membership:
        assert self._membership is not None, "start() comes first"
        return self._membership

    # --- Reconcile -------------------------------------------------------------

    def reconcile(self, changes: frozenset[Change]) -> None:
        """One pass; a failure is logged once, shown, and tried again with back-off."""
        started, before = self._steady(), self._reconciles
        outcome = self._pass.run(changes)
        if outcome.left:
            self.mailbox.post(outcome.left)
        now = self._steady()
        whole = outcome.about >= EVERYTHING
        self._reconciles = counted(before, outcome, whole=whole, took=now - started, now=self._clock())
        if Part.STORE in outcome.parts:
            # What is due still, for whatever reason, is not asked for without a pause.
            self._schedule.asked(now, answered=self._joined.report.up and self._joined.look_in() > 0)
        was_ready = self._schedule.ready
        self._schedule.passed(now, outcome.about, outcome, self._reconciles)
        if outcome.error and outcome.error != before.error:
            log.error("%s", outcome.error)
        if before.error and not self._reconciles.error:
            log.info("reconciled again")
        self._publish()  # first: who is told that it is ready may look at once
        self._tell_readiness(outcome.error, was_ready=was_ready)
        if Part.STORE in outcome.parts:
            self._tell_store()
        self._aside(Concern.CNI, self._tell_runtimes, None)

    def _tell_readiness(self, error: str, *, was_ready: bool) -> None:
        if self._schedule.ready and not was_ready:
            log.info("ready: %s", self._settings.node_name)
            notify("READY=1")
            self._starting.goes_on()
        elif error and not was_ready:
            self._starting.waits(f"not ready: {error}")

    def _tell_runtimes(self) -> None:
        """Not before a start is whole; what an earlier life told them stays until then."""
        findings, membership, settings = self._kernel.findings, self._joined, self._settings
        if self._runtimes is None:
            return
        if membership.holding.fenced or findings.problems.get(Concern.BRIDGE):
            self._runtimes.refuse()
        elif self._schedule.ready:
            network, lease = membership.network, membership.holding.lease
            self._runtimes.admit(env_of(network, lease, findings.mtu, ip_masq=settings.ip_masq))

    def _tell_store(self) -> None:
        """That this node is in service, once it is: no more than a hint, so what fails is only said, once."""
        before, self._untold = self._untold, ""
        if not self._schedule.ready or not self._joined.report.up:
            return
        try:
            self._store.in_service()
        except StoreError as error:
            self._untold = str(error)
            if self._untold != before:
                log.warning("cannot tell that this node is in service: %s", error)

    def _aside(self, concern: Concern, look: Callable[[], T], otherwise: T) -> T:
        """What `look` returns. A failure is a problem, said once by `concern`; the next turn looks again."""
        problems, found, wrong = self._kernel.findings.problems, otherwise, ""
        try:
            found = look()
        except OvnetError as error:
            wrong = str(error)
        lines = (wrong,) if wrong else ()
        if problems.get(concern, ()) != lines:
            problems[concern] = lines
            if wrong:
                log.error("%s", wrong)
            self._publish()
        return found

    # --- What others see -------------------------------------------------------

    def _log_drops(self) -> None:
        for line in self._drops.lines(self._events.drops(), self._steady()):
            log.warning("%s", line)

    def _look_for_losses(self) -> None:
        """Said once, when it begins and when it is over; how many they are is in the report."""
        found = self._kernel.findings
        before, silent = found.losing, found.problems.get(Concern.SILENT)
        losing = found.losing = self._events.losing()
        for way in losing.keys() - before.keys():
            log.error("%s", losing[way])
        for way in before.keys() - losing.keys():
            log.info("packets are not lost any more (%s)", way)
        if (losing, found.problems.get(Concern.SILENT)) != (before, silent):
            self._publish()

    def _publish(self) -> None:
        report = describe(
            self._settings,
            self._kernel.findings,
            self._joined,
            replace(self._reconciles, back_off=self._schedule.back_off),
            started=self._started,
            passed=self._schedule.ready,
        )
        self._report_file.write(report)  # first: who hears by HTTP that it is ready may look into the file
        self.report = report
