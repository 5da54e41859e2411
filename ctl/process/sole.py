"""One agent for a network namespace, whatever its state directory."""

from __future__ import annotations

import socket
from typing import Final

from ctl.core.errors import AgentError
from ctl.process import holder

_NAME: Final = "ovnet agent"


def hold_namespace() -> socket.socket:
    """Hold this network namespace until the socket is closed, or the process ends.

    Routes, rules and programs of ours are told from others' by marks that do not say whose
    agent's they are. Abstract socket names belong to a network namespace and vanish with
    their process. AgentError if another agent holds it.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        held.bind(f"\0{_NAME}")
    except OSError as error:
        held.close()
        other = holder.of_name(_NAME)
        which = f" ({other})" if other else ""
        raise AgentError(f"another agent{which} runs in this network namespace: stop it first") from error
    return held
