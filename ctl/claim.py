"""One agent for a network and network namespace, whatever their state directories."""

from __future__ import annotations

import socket

from ctl.errors import AgentError


def claim(what: str) -> socket.socket:
    """Hold the name `what` until the socket is closed, or the process ends.

    Abstract socket names belong to a network namespace, as an agent's devices and programs
    do, and vanish with their process. AgentError if another process holds it.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        held.bind(f"\0ovnet agent {what}")
    except OSError as error:
        held.close()
        raise AgentError(f"another agent serves {what} in this network namespace: stop it first") from error
    return held
