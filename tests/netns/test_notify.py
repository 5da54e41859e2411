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
