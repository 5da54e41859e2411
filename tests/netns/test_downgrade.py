"""An agent that finds the pins of a version that is newer than itself."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from ctl.core import abi
from tests.chaos.upgrade import release
from tests.host import Agent, Host
from tests.lab import Container, Lab, wait_until
from tests.netns.conftest import Pair, build
from tests.stream import UdpStream

SOON = 20.0
NEWER = abi.LAYOUT + 1
REFUSED = f"(layout {NEWER}, this one has {abi.LAYOUT}): refused, the kernel path carries all"


def newer_agent(pair: Pair, *flags: str) -> Agent:
    """The next version's, ready: it has another map layout."""
    a = pair.a
    source = release(pair.lab.dir, "newer", NEWER)
    argv = a.argv(sys.executable, "-m", "ctl.cli.main", "agent", *flags)
    agent = Agent(argv, pair.lab.dir / "agent-newer", env=a.environment(), cwd=source)
    agent.host = a
    pair.lab.at_close(agent.kill)
    agent.wait_ready()
    return agent


def pins(host: Host, layout: int) -> list[Path]:
    return sorted((host.bpffs / f"v{layout}").rglob("*"))


def carries(host: Host, source: Container, sink: Container) -> bool:
    """Whether eBPF on `host` takes part in a ping from one container to the other."""
    before = host.bypassed()[0]
    source.run("ping", "-c4", "-i0.05", "-W1", sink.address, check=False)
    return host.bypassed()[0] > before


def test_pins_of_a_newer_version_are_refused_and_the_kernel_path_carries(lab: Lab) -> None:
    pair = build(lab)
    a = pair.a
    streams = [UdpStream(pair.on_a, pair.on_b, pair.on_b.address, port=9001),
               UdpStream(pair.on_b, pair.on_a, pair.on_a.address, port=9002)]  # fmt: skip
    for stream in streams:
        stream.advance(1)
    pair.agents["a"].stop()
    newer = newer_agent(pair, "--hook", "xdp")
    assert not pins(a, abi.LAYOUT), "an upgrade takes the older version's pins away"
    newers = pins(a, NEWER)
    assert newers
    newer.stop()

    agent = a.agent()
    for stream in streams:
        stream.advance(1)
    assert agent.log().count(REFUSED) == 1
    status = a.ovctl("status", check=False)
    assert status.returncode == 1
    assert REFUSED in status.stdout + status.stderr
    assert f"remove {a.bpffs}/v{NEWER}" in status.stdout + status.stderr
    assert agent.ready(), "containers can come: the kernel path is whole"
    assert pins(a, NEWER) == newers, "they are not ours to remove"
    assert not pins(a, abi.LAYOUT)
    assert "xdp" not in a.ip("link", "show", "eth0")
    late = a.container("late")
    late.run("ping", "-c3", "-i0.05", "-W2", pair.on_b.address)
    wait_until(pair.b.knows_a_peer, SOON, "b knows a")

    # Somebody decides for this version: it need not be started again.
    a.run("rm", "-r", f"{a.bpffs}/v{NEWER}")
    a.ip("link", "add", "wakes", "type", "bridge")
    a.ip("link", "del", "wakes")
    wait_until(lambda: bool(pins(a, abi.LAYOUT)), SOON, agent.log)
    wait_until(lambda: a.ovctl("status", check=False).returncode == 0, SOON, agent.log)
    wait_until(partial(carries, a, pair.on_a, pair.on_b), SOON, agent.log)
    for stream in streams:
        stream.advance(1)
        sent, tally = stream.finish()
        assert (sent - tally.received, tally.duplicates) == (0, 0)
