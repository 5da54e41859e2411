"""`ovctl top` on a node whose containers talk."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.host import Host, ovctl_argv, served
from tests.lab import wait_until
from tests.namespace import REPOSITORY
from tests.netns.conftest import Pair
from tests.stream import TRAFFIC, TcpSink

ONCE = ("--once", "--interval", "0.5")


@pytest.fixture
def busy(pair: Pair) -> Pair:
    """One connection that does not end, from a's container to b's."""
    served(pair.on_a, pair.on_b)
    sink = TcpSink(pair.on_b)
    pair.on_a.popen(*TRAFFIC, "tcp-send", pair.on_b.address, str(sink.port), str(10**15))
    wait_until(lambda: pair.a.json("map", "dump", "flows"), 10, "the connection bypasses")
    return pair


def test_each_view_shows_the_connection(busy: Pair) -> None:
    a, b = busy.a, busy.b
    (peer,) = a.json("top", "--by", "peers", *ONCE)
    assert peer["host"] == b.address
    assert peer["tx_bps"] > peer["rx_bps"] > 0
    flow = a.json("top", "--by", "flows", *ONCE)[0]
    assert (flow["src"], flow["dst"], flow["direction"]) == (busy.on_a.address, busy.on_b.address, "out")
    gears = {(row["direction"], row["gear"]): row for row in a.json("top", "--by", "gears", *ONCE)}
    assert gears["out", "bypass"]["share"] > gears["out", "kernel"]["share"]
    assert sum(row["share"] for (way, _), row in gears.items() if way == "out") == pytest.approx(100, abs=1)


@pytest.mark.parametrize("end", ["a", "b"])
def test_a_container_has_sent_or_got_what_no_interface_of_its_host_saw(busy: Pair, end: str) -> None:
    """redirect_peer brings it to the container's end of the veth past the host's."""
    host, container = {"a": (busy.a, busy.on_a), "b": (busy.b, busy.on_b)}[end]
    rows = host.json("top", "--by", "containers", *ONCE)
    row = next(row for row in rows if row["ip"] == container.address)
    sent, got = row["tx_bps"], row["rx_bps"]
    assert sent > got > 0 if end == "a" else got > sent > 0
    assert row["bypass_pps"] > 0
    assert row["dev"] == container.port


def test_tables_follow_one_another_and_only_the_first_rows_are_shown(busy: Pair) -> None:
    shown = busy.a.ovctl("top", "--by", "gears", "--count", "2", "--interval", "0.1", "--limit", "1").stdout
    assert shown.count("DIR  GEAR") == 2
    assert len(shown.splitlines()) == 2 + 1 + 2


def test_it_needs_no_agent_and_says_where_there_never_was_one(pair: Pair) -> None:
    refused = pair.outside.ovctl("top", *ONCE, check=False)
    assert refused.returncode == 4
    assert refused.stderr.count("\n") == 1


@contextmanager
def terminal(host: Host, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`ovctl top` on a terminal of its own, and the other end of that terminal."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (12, 60))
    running = subprocess.Popen(
        host.argv(*ovctl_argv(), "top", *flags), stdin=theirs, stdout=theirs, stderr=theirs,
        env=host.environment(), cwd=REPOSITORY, start_new_session=True,
    )  # fmt: skip
    try:
        yield running, ours
        running.wait(20)
        assert termios.tcgetattr(theirs)[3] & termios.ECHO, "the terminal is as it was"
    finally:
        running.kill()
        running.wait()
        for end in (ours, theirs):
            os.close(end)


def shows(end: int, text: str) -> None:
    """Wait until it is on the screen."""
    seen = ""

    def there() -> bool:
        nonlocal seen
        while select.select([end], [], [], 0)[0]:
            seen += os.read(end, 4096).decode()
        return text in seen

    wait_until(there, 20, lambda: f"{text!r} is shown: {seen!r}")


def test_on_a_terminal_it_takes_keys_and_fits(busy: Pair) -> None:
    with terminal(busy.a, "--interval", "0.3") as (running, keys):
        shows(keys, "peers by tx_bps")
        os.write(keys, b"f")
        shows(keys, "flows by pps")
        os.write(keys, b"s")
        shows(keys, "flows by src")
        os.write(keys, b"c")
        shows(keys, busy.on_a.port)
        os.write(keys, b"q")
    assert running.returncode == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_terminal_as_it_was(busy: Pair, how: signal.Signals) -> None:
    with terminal(busy.a, "--interval", "0.3") as (running, screen):
        shows(screen, "peers by tx_bps")
        running.send_signal(how)
    assert running.returncode == 0
