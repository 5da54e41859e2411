"""Scenarios: the agent ends, in every way in which it can, and starts again."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from tests.chaos.scenario import Scenario, Sight
from tests.chaos.site import Site
from tests.host import Agent, ovctl_argv
from tests.lab import wait_until
from tests.process import run

GROUP: Final = "Agent"
STARTED: Final = Sight(log="ready: a", metric="`ovnet_ready`, absent while no agent runs")


def ended(number: signal.Signals) -> Callable[[Site], None]:
    """End the agent by a signal and start another."""

    def act(site: Site) -> None:
        site.agent().kill(number)
        site.agent().wait(20)
        site.start()

    return act


CRASH: Final = (sys.executable, "-m", "tests.chaos.crash")


def killed_at_every_step(site: Site) -> None:
    """Each start carries on from what the one before has left; the first has no pins to adopt.

    A few of all steps, and others each time.
    """
    turn = site.notes["turn"] = site.notes.get("turn", -1) + 1
    site.agent().kill(signal.SIGKILL)
    shutil.rmtree(site.a.bpffs)  # then nothing can be adopted: all of it is made and replaced
    for number in range(1 + turn % STRIDE, MOST_STEPS, STRIDE):
        agent = site.start(program=(*CRASH, str(number)), wait=False)
        wait_until(partial(_ended_or_ready, agent), 60, agent.log)
        if agent.poll() is None:  # it has fewer steps
            agent.kill(signal.SIGKILL)
            break
        assert agent.poll() == -signal.SIGKILL, agent.log()
    site.start()


def _ended_or_ready(agent: Agent) -> bool:
    return agent.poll() is not None or agent.ready()


MOST_STEPS: Final = 200
STRIDE: Final = 10


def second_agent(site: Site) -> None:
    """Another one on the same host; and one with a state directory of its own."""
    for env in ({}, {"OVNET_STATE_DIR": str(site.lab.dir / "second"), "OVNET_METRICS_PORT": "0"}):
        done = site.a.ovctl("agent", check=False, env=env)
        assert done.returncode == 1, done.stderr
        assert "another agent" in done.stderr, done.stderr


def out_of_memory(site: Site) -> None:
    """The kernel ends it because its control group is full; its successor has room."""
    memory = Memory(site)
    site.agent().stop()
    agent = site.start(program=("sh", "-c", 'echo $$ > "$0"; exec "$@"', memory.procs, *ovctl_argv()))
    try:
        wait_until(
            lambda: _squeezed_to_death(agent, memory), 30, "the kernel ends an agent that wants more memory"
        )
        assert memory.kills() > 0, "it was the control group that ended it"
    finally:
        memory.remove()
    site.start()


def _squeezed_to_death(agent: Agent, memory: Memory) -> bool:
    """A scrape needs memory. At first there are pages of files to give up for it, so again and again."""
    memory.squeeze()
    agent.ready()
    with suppress(OSError):
        agent.host.http("http://127.0.0.1:9475/metrics", seconds=1)
    return agent.poll() is not None


class Memory:
    """A control group for memory, of version 1 or 2, whichever the machine has."""

    def __init__(self, site: Site) -> None:
        old = Path("/sys/fs/cgroup/memory")
        self.group = (old if old.is_dir() else old.parent) / f"{site.lab.id}-memory"
        self.group.mkdir()
        self.procs = str(self.group / "cgroup.procs")
        self.used, self._limit, self._swap, self._events = (
            f"memory.{name}"
            for name in (
                ("usage_in_bytes", "limit_in_bytes", "memsw.limit_in_bytes", "oom_control")
                if old.is_dir()
                else ("current", "max", "swap.max", "events")
            )
        )

    def squeeze(self) -> None:
        """No more than is in use now. Less than that is refused (version 1): the least that is taken."""
        for _ in range(1000):
            size = int((self.group / self.used).read_text()) // 4096 * 4096
            with suppress(OSError):
                (self.group / self._limit).write_text(str(size))
                break
        with suppress(OSError):  # no swap accounting
            (self.group / self._swap).write_text(str(size) if "memsw" in self._swap else "0")

    def kills(self) -> int:
        lines = (self.group / self._events).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def remove(self) -> None:
        for pid in Path(self.procs).read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: not Path(self.procs).read_text(), 5, "the control group is empty")
        self.group.rmdir()


def full_disk(site: Site) -> None:
    """The state directory is on a disk that fills up; the agent runs on, and another one starts."""
    site.agent().stop()
    directory = site.a.state_dir
    run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)])
    site.start()
    with suppress(OSError), (directory / "ballast").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    site.a.ip("link", "add", "wakes", "type", "bridge")
    site.a.ip("link", "del", "wakes")
    wait_until(lambda: "cannot write the status report" in site.agent().log(), 10, site.agent().log)
    site.agent().kill(signal.SIGKILL)
    site.start()


def free_disk(site: Site) -> None:
    """The disk as it was."""
    site.agent().stop()
    run(["umount", str(site.a.state_dir)])
    site.start()


def closed_log(site: Site) -> None:
    """The reader of its log goes away while it runs, and it has things to say."""
    site.agent().stop()
    fifo = site.lab.dir / "log-pipe"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    agent = site.start(program=("sh", "-c", 'exec "$@" 2>"$0" >"$0"', str(fifo), *ovctl_argv()))
    os.close(reader)
    shutil.rmtree(site.a.bpffs)  # of which it has to tell
    site.a.ip("link", "add", "wakes", "type", "bridge")
    site.a.ip("link", "del", "wakes")
    wait_until(site.a.bpffs.exists, 10, "the agent goes on")
    assert agent.poll() is None


def start_again(site: Site) -> None:
    """One with a log."""
    site.agent().stop()
    site.start()


SCENARIOS: Final = (
    Scenario(GROUP, "stopped", "SIGTERM, and a start", ended(signal.SIGTERM), sight=STARTED, times=20),
    Scenario(GROUP, "killed", "SIGKILL, and a start", ended(signal.SIGKILL), sight=STARTED, times=20),
    Scenario(
        GROUP,
        "killed while it starts",
        "ended before each change that a start makes to kernel, maps and files, one after the other",
        killed_at_every_step,
        sight=STARTED,
        times=STRIDE,
        limit=120,
    ),
    Scenario(
        GROUP,
        "two at once",
        "another is started, with the same state directory and with its own",
        second_agent,
        sight=Sight(),
    ),
    Scenario(
        GROUP,
        "out of memory",
        "the kernel ends it because its control group is full; and a start",
        out_of_memory,
        sight=STARTED,
    ),
    Scenario(
        GROUP,
        "disk full",
        "nothing more fits on the disk of the state directory; a kill and a start",
        full_disk,
        restore=free_disk,
        sight=Sight(log="cannot write the status report"),
        times=3,
    ),
    Scenario(
        GROUP, "log closed", "who reads its log and its output goes away", closed_log, restore=start_again
    ),
)
