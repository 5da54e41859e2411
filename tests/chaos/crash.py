"""`ovctl`, killed before its Nth change to the outside world: `python -m tests.chaos.crash N agent ...`.

What changes the world goes through few functions: bpf(2), the child that loads programs,
rtnetlink, programs that are run, files. They are counted here, in front of the real ones; the
product knows nothing of it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from ctl.kernel.bpf import syscall

_BPF_CHANGES: Final = {
    syscall.MAP_CREATE, syscall.MAP_UPDATE, syscall.MAP_DELETE, syscall.PROG_LOAD, syscall.OBJ_PIN,
    syscall.MAP_UPDATE_BATCH, syscall.MAP_DELETE_BATCH,
}  # fmt: skip


def _asks(kind: int) -> bool:
    """Whether a message of rtnetlink changes nothing (RTM_GET*)."""
    return kind % 4 == 2


EDGES: Final[dict[tuple[str, str], Callable[..., bool]]] = {
    ("ctl.kernel.bpf.syscall", "_call"): lambda command, *_: command in _BPF_CHANGES,
    ("ctl.kernel.bpf.child", "Bcc.load"): lambda *_: True,
    ("ctl.kernel.netlink.socket", "Bulk._send"): lambda _, messages, **__: (
        not all(_asks(each.kind) for each in messages)
    ),
    ("ctl.kernel.netlink.socket", "Rtnl._call"): lambda _, __, command, *___: (
        isinstance(command, str) or not _asks(command[0])
    ),
    ("subprocess", "Popen.__init__"): lambda *_, **__: True,
    ("ctl.process.statedir", "write_atomically"): lambda *_: True,
}
"""Modules and the functions in them, and which calls change something. A name that is gone is an error."""


class Countdown:
    """Ends the process at the Nth call that changes something."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def before(self, function: Callable[..., Any], changes: Callable[..., bool]) -> Callable[..., Any]:
        """The function, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if changes(*args, **kwargs):
                self._left -= 1
                if not self._left:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted


def install(countdown: Countdown) -> None:
    """Put the countdown in front of all EDGES."""
    for (module, path), changes in EDGES.items():
        *parents, name = path.split(".")
        place: Any = importlib.import_module(module)
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, name, countdown.before(getattr(place, name), changes))


def main() -> int:
    """Run ovctl; 0 never kills."""
    from ctl.cli.main import main as ovctl

    install(Countdown(int(sys.argv.pop(1))))
    return ovctl()


if __name__ == "__main__":
    sys.exit(main())
