"""Scenarios: the agent ends, in every way in which it can, and starts again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.chaos.scenario import Scenario, Sight
from tests.chaos.site import Site
from tests.lab import wait_until
from tests.process import run

GROUP: Final = "Agent"
STARTED: Final = Sight(log="ready: a", status="", metric="`ovnet_ready`")


def ended(number: signal.Signals, times: int = 1) -> Callable[[Site], None]:
    """End the agent by a signal and start another, so many times."""

    def act(site: Site) -> None:
        for _ in range(times):
            site.agent().kill(number)
            site.agent().wait(20)
            site.start()

    return act


def second_agent(site: Site) -> None:
    """Another one on the same host; and one with a state directory of its own."""
    for env in ({}, {"OVNET_STATE_DIR": str(site.lab.dir / "second"), "OVNET_METRICS_PORT": "0"}):
        done = site.a.ovctl("agent", check=False, env=env)
        assert done.returncode == 1, done.stderr
        assert "another agent" in done.stderr, done.stderr


def out_of_memory(site: Site) -> None:
    """The kernel ends it because its control group is full."""
    group = Path("/sys/fs/cgroup") / f"{site.lab.id}-oom"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(site.agent().pid))
        (group / "memory.max").write_text("1M")
        (group / "memory.swap.max").write_text("0")
        wait_until(lambda: site.agent().poll() is not None, 20, "the agent is out of memory")
        assert "oom_kill 0" not in (group / "memory.events").read_text()
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 5, "the group is empty")
        group.rmdir()
    site.start()


def full_disk(site: Site) -> None:
    """Nothing can be written to the state directory any more, and the agent is started again."""
    directory = site.a.state_dir
    run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)])
    try:
        (directory / "ballast").write_bytes(bytes(64 << 10))
    except OSError:
        pass
    site.notes["mounted"] = directory


SCENARIOS: Final = (
    Scenario(GROUP, "stopped", "SIGTERM, and a start", ended(signal.SIGTERM), sight=STARTED),
    Scenario(GROUP, "killed", "SIGKILL, and a start", ended(signal.SIGKILL), sight=STARTED),
    Scenario(GROUP, "second agent", "another agent is started on the host, and one with a state directory of its own",
             second_agent),
    Scenario(GROUP, "out of memory", "its control group is full: the kernel ends it; and a start", out_of_memory,
             sight=STARTED),
)  # fmt: skip
