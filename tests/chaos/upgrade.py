"""Scenarios: another build of the agent takes over, newer or older, or with other settings."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ctl.core import abi
from tests.chaos.hosts import event
from tests.chaos.scenario import Scenario, Sight
from tests.chaos.site import Site, complaints
from tests.lab import wait_until
from tests.namespace import REPOSITORY

GROUP: Final = "Upgrade"
MODULE: Final = (sys.executable, "-m", "ctl.cli.main")


def release(directory: Path, name: str, layout: int = abi.LAYOUT) -> Path:
    """A copy of the sources that makes other programs, and other maps if the layout is another."""
    home = directory / f"release-{name}"
    if home.exists():
        return home
    for package in ("bpf", "ctl", "metrics"):
        shutil.copytree(REPOSITORY / package, home / package)
    overlay = home / "bpf/overlay.c"
    overlay.write_text(f"{overlay.read_text()}/* release {name} */\n")
    for path, pattern in (
        ("bpf/abi.h", r"(#define OVNET_LAYOUT )\d+"),
        ("ctl/core/abi.py", r"(LAYOUT: Final = )\d+"),
    ):
        text, count = re.subn(pattern, rf"\g<1>{layout}", (home / path).read_text())
        assert count == 1, f"{path} has no {pattern}"
        (home / path).write_text(text)
    return home


def replaced(name: str, layout: int = abi.LAYOUT) -> Callable[[Site], None]:
    """Stop the agent and start one of another release."""

    def act(site: Site) -> None:
        before = program(site)
        site.agent().stop()
        site.start(program=MODULE, source=release(site.lab.dir, name, layout))
        wait_until(lambda: program(site) != before, 20, "other programs")

    return act


def program(site: Site) -> str:
    """The build in use, by the agent's report."""
    return str(site.a.status().get("program", ""))


def current(site: Site) -> None:
    """Back to what this checkout builds."""
    site.agent().stop()
    site.start()


NEWER: Final = abi.LAYOUT + 1


def downgraded(site: Site) -> None:
    """A newer version has been here, and has pinned what this one cannot read."""
    replaced("newer", NEWER)(site)
    current(site)


def refused(site: Site) -> bool:
    """The agent leaves it alone, and says so."""
    return any("refused, the kernel path carries all" in line for line in complaints(site.a))


def decided(site: Site) -> None:
    """For the version that is there: the newer one's pins go."""
    wait_until(lambda: refused(site), 20, site.log)
    shutil.rmtree(site.a.bpffs / f"v{NEWER}")
    event(site)
    wait_until(site.healthy, 20, site.log)
    wait_until(lambda: bool(program(site)), 20, site.log)


def back(site: Site) -> None:
    """From the newer version to this one."""
    current(site)
    decided(site)


def with_flags(*flags: str) -> Callable[[Site], None]:
    """Stop the agent and start one with other settings."""

    def act(site: Site) -> None:
        site.agent().stop()
        site.start("a", *flags)

    return act


def bypass_off_and_on(site: Site) -> None:
    """Learned, off, learned, always."""
    for mode in ("off", "learned", "always"):
        with_flags("--bypass", mode)(site)


def hook_xdp_and_back(site: Site) -> None:
    """XDP on the uplink, then tc alone."""
    with_flags("--hook", "xdp")(site)
    assert site.a.status()["hook"] == "xdp", site.a.status()
    with_flags("--hook", "tc")(site)


LOADED: Final = Sight(log=r"datapath [0-9a-f]+ of IPv4 loaded", metric="`ovnet_build_info`")

SCENARIOS: Final = (
    Scenario(
        GROUP,
        "other programs",
        "an agent that builds other programs takes over, and the old one again",
        replaced("other"),
        restore=current,
        sight=LOADED,
    ),
    Scenario(
        GROUP,
        "other map layout",
        "an agent of a newer version with another map layout takes over",
        replaced("newer", NEWER),
        restore=back,
        sight=LOADED,
    ),
    Scenario(
        GROUP,
        "downgrade",
        "an agent finds the pins of a newer version; later somebody removes them",
        downgraded,
        refused,
        Sight(log="refused, the kernel path carries all", status="pins of a newer version"),
        restore=decided,
    ),
    Scenario(
        GROUP,
        "other capacities",
        "`--peers-max`, `--endpoints-max` and `--flows-max` are changed",
        with_flags("--peers-max", "3000", "--endpoints-max", "300", "--flows-max", "5000"),
        restore=current,
        sight=Sight(log="pinned maps do not fit"),
    ),
    Scenario(
        GROUP,
        "bypass",
        "`--bypass` off, learned, always, by a restart each",
        bypass_off_and_on,
        restore=current,
    ),
    Scenario(GROUP, "hook", "`--hook` xdp and tc again, by a restart each", hook_xdp_and_back),
)
