"""What an agent tells systemd over its life (sd_notify(3)), heard at the socket."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from tests.lab import Lab

PATIENCE_S = 60.0


@pytest.fixture
def listener(lab: Lab) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(lab.dir / "notify"))
        bound.settimeout(PATIENCE_S)
        yield bound


def heard_until(listener: socket.socket, last: str) -> list[str]:
    """What is said, to the message `last`."""
    messages: list[str] = []
    while messages[-1:] != [last]:
        messages.append(listener.recv(4096).decode())
    return messages


def test_an_agent_that_waits_extends_its_start_and_says_what_it_waits_for(
    lab: Lab, listener: socket.socket
) -> None:
    lab.etcd()
    a = lab.host("a")
    agent = a.agent(wait=False, env={"NOTIFY_SOCKET": listener.getsockname()})
    waiting = dict(line.split("=", 1) for line in listener.recv(4096).decode().splitlines())
    assert waiting["STATUS"] == "waiting for a network in the store: run ovctl network init"
    assert int(waiting["EXTEND_TIMEOUT_USEC"]) > 60e6, "longer than until it says so again"
    lab.init_network()
    heard = heard_until(listener, "READY=1")
    assert heard[-2] == "STATUS=", "nothing is waited for any more"
    agent.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_agent_says_ready_then_that_it_lives_then_that_it_stops(
    lab: Lab, listener: socket.socket, number: signal.Signals
) -> None:
    a = lab.host("a")
    lab.init_network()
    agent = a.agent(wait=False, env={"NOTIFY_SOCKET": listener.getsockname()})
    assert heard_until(listener, "READY=1") == ["READY=1"], "nothing before"
    assert (a.state_dir / "subnet.env").exists(), "what READY promises"
    heard_until(listener, "WATCHDOG=1")
    agent.kill(number)
    messages = heard_until(listener, "STOPPING=1")
    assert set(messages[:-1]) <= {"WATCHDOG=1"}
    assert agent.wait() == 0
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.recv(4096)
