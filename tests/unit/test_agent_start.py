"""How an agent starts: what it waits for, what ends it, and what systemd is told of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ctl.agent.loop import Agent
from ctl.agent.steps import Part
from ctl.core.errors import ConfigError, KernelError, StoreAway, StoreDenied, StoreError
from ctl.process.backoff import BACK_OFF_MAX_S, BACK_OFF_MIN_S
from tests.unit.world import NETWORK, RESYNC, Claims, FlakyStore, MemoryKernel, Posts, World, made


def starting(world: World, *failures: Exception) -> Agent:
    """Another agent, on a store that fails like this at first."""
    store = FlakyStore(world.clock)
    store.write_network(NETWORK)
    store.failures = failures
    return made(world.settings, store, MemoryKernel(world.kernel.identity, world.clock), Claims())


def waits(agent: Agent) -> list[float]:
    """Seconds of each pause that it made."""
    assert isinstance(agent.mailbox, Posts)
    return agent.mailbox.waits


def stop_while_waiting(agent: Agent) -> None:
    assert isinstance(agent.mailbox, Posts)
    agent.mailbox.said = agent.mailbox.stop


def without_a_network_at_first(world: World, times: int) -> Agent:
    """An agent whose store gets its network while it waits."""
    store = FlakyStore(world.clock)
    kernel = MemoryKernel(world.kernel.identity, world.clock)
    agent = made(world.settings, store, kernel, Claims())
    posts = agent.mailbox
    assert isinstance(posts, Posts)

    def init() -> None:
        if len(posts.waits) == times:
            store.write_network(NETWORK)

    posts.said = init
    return agent


def test_an_agent_that_starts_before_its_store_waits_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    away = [StoreAway("etcd unreachable: refused")] * 10
    agent = starting(world, *away, StoreAway("etcd unreachable: no leader"), *away[:2])
    assert agent.start()
    said = [record.getMessage() for record in caplog.records if "waiting for it" in record.getMessage()]
    assert said == [
        f"store: etcd unreachable: {why}; waiting for it" for why in ("refused", "no leader", "refused")
    ]
    assert len(waits(agent)) == 13
    assert 0.75 * BACK_OFF_MIN_S <= waits(agent)[0] <= 1.25 * BACK_OFF_MIN_S
    assert 0.75 * BACK_OFF_MAX_S <= waits(agent)[-1] <= 1.25 * BACK_OFF_MAX_S, "less and less often"


@pytest.mark.parametrize(
    "failure",
    [
        StoreDenied("etcd http://a: authentication failed, invalid user ID or password"),
        ConfigError("etcd key /config: SubnetLen 9 does not fit"),
        StoreError("etcd http://a: database space exceeded"),
    ],
    ids=["denied", "config", "broken"],
)
def test_an_agent_that_waiting_would_not_help_ends(world: World, failure: Exception) -> None:
    agent = starting(world, StoreAway("etcd unreachable"), failure)
    with pytest.raises(type(failure), match=str(failure)):
        agent.start()
    assert len(waits(agent)) == 1


def test_an_agent_that_waits_for_its_store_can_be_stopped(world: World) -> None:
    agent = starting(world, *[StoreAway("etcd unreachable")] * 5)
    stop_while_waiting(agent)
    assert not agent.start()
    assert len(waits(agent)) == 1


def test_a_start_that_fails_leaves_no_watch_of_the_store_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("etcd http://a: database space exceeded")

    agent, before = starting(world), set(threading.enumerate())
    monkeypatch.setattr(FlakyStore, "put", refuse)
    with pytest.raises(StoreError, match="database space exceeded"):
        agent.start()
    assert not set(threading.enumerate()) - before


def test_an_agent_that_waits_for_a_network_can_be_stopped_and_then_takes_no_lease(world: World) -> None:
    agent = without_a_network_at_first(world, 3)
    stop_while_waiting(agent)
    assert not agent.start()
    assert len(waits(agent)) == 1


def test_an_agent_waits_for_a_network_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    assert without_a_network_at_first(world, 3).start()
    said = [record.getMessage() for record in caplog.records if "no network" in record.getMessage()]
    assert len(said) == 1 and "ovctl network init" in said[0]


# --- What systemd is told -------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, str]]]]:
    """What systemd is told, each message by its variables; since the last call."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        listener.setblocking(False)

        def messages() -> list[dict[str, str]]:
            found = []
            with suppress(BlockingIOError):
                while True:
                    lines = listener.recv(4096).decode().splitlines()
                    found.append(dict(line.split("=", 1) for line in lines))
            return found

        yield messages


Told = Callable[[], list[dict[str, str]]]
LOOP_SAYS = {"WATCHDOG": "1"}, {"STOPPING": "1"}
LONGEST_PAUSE_S = 1.25 * BACK_OFF_MAX_S


def test_an_agent_that_waits_for_its_store_is_given_time_by_systemd(world: World, told: Told) -> None:
    agent = starting(world, *[StoreAway("etcd unreachable:\nno leader")] * 8)
    assert agent.start()
    *waiting, last = told()
    assert len(waiting) == 8, "at every try"
    for message, pause in zip(waiting, waits(agent), strict=True):
        assert message["STATUS"] == "waiting for the store: etcd unreachable: no leader"
        assert int(message["EXTEND_TIMEOUT_USEC"]) / 1e6 > pause + LONGEST_PAUSE_S
    assert last == {"STATUS": ""}


def test_an_agent_that_waits_for_a_network_is_given_time_by_systemd(world: World, told: Told) -> None:
    assert without_a_network_at_first(world, 3).start()
    *waiting, last = told()
    assert len(waiting) >= 2
    assert all("ovctl network init" in message["STATUS"] for message in waiting)
    assert all(int(message["EXTEND_TIMEOUT_USEC"]) > 0 for message in waiting)
    assert last == {"STATUS": ""}


def test_an_agent_whose_first_pass_fails_is_given_time_by_systemd(world: World, told: Told) -> None:
    world.kernel.failing[Part.PROGRAMS] = KernelError("no compiler")
    heard: list[dict[str, str]] = []

    def hear() -> None:
        heard.extend(message for message in told() if message not in LOOP_SAYS)

    world.run(RESYNC, each=hear)
    assert len(heard) == world.report.reconcile.failed
    assert {message["STATUS"] for message in heard} == {"not ready: no compiler"}
    assert all(int(message["EXTEND_TIMEOUT_USEC"]) / 1e6 > LONGEST_PAUSE_S for message in heard)
    heard.clear()
    world.kernel.failing.clear()
    world.run(LONGEST_PAUSE_S, each=hear)
    assert heard == [{"READY": "1"}, {"STATUS": ""}]
    world.kernel.failing[Part.PROGRAMS] = KernelError("no compiler")
    world.full()
    hear()
    assert len(heard) == 2, "a running agent does not start"


def test_an_agent_that_starts_at_once_tells_systemd_no_more_than_that(world: World, told: Told) -> None:
    assert starting(world).start()
    world.full()
    assert told() == [{"READY": "1"}]
