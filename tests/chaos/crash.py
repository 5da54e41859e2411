"""`ovctl`, killed before its Nth change to the outside world: `python -m tests.chaos.crash N agent ...`.

What changes the world goes through few functions: bpf(2), rtnetlink, programs that are run,
files. They are counted here, in front of the real ones; the product knows nothing of it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

EDGES: Final = (
    ("ctl.kernel.bpf", "_call"),
    ("ctl.kernel.rtnl", "Rtnl._send"),
    ("subprocess", "Popen.__init__"),
    ("ctl.statedir", "write_atomically"),
)
"""Modules and the functions in them. One that is not there any more is an error."""


class Countdown:
    """Ends the process at the Nth call."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted


def install(countdown: Countdown) -> None:
    """Put the countdown in front of all EDGES."""
    for module, path in EDGES:
        *parents, name = path.split(".")
        place: Any = importlib.import_module(module)
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, name, countdown.before(getattr(place, name)))


def main() -> int:
    """Run ovctl; 0 never kills."""
    from ctl.cli.main import main as ovctl

    install(Countdown(int(sys.argv.pop(1))))
    return ovctl()


if __name__ == "__main__":
    sys.exit(main())
