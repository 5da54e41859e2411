"""What BCC makes of the datapath's text is made once, and remembered for the agents that tests start.

To compile takes 1.2 s of CPU time, and each agent of the netns ring that starts on a clean host compiles the
same text: some 600 times, a third of the whole run. So such an agent has a mount namespace, in which
`tests.compiled_bcc` lies over BCC's `__init__.py`. All else of BCC, the child that has it, the verifier and
the maps are as they are. BCC itself is at work wherever else an agent starts: in the other rings, from a
package, an image or a unit of systemd, in the bench and in the demo.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final

from tests import compiled_bcc
from tests.namespace import REPOSITORY

BCC: Final = Path("/usr/lib/python3/dist-packages/bcc/__init__.py")
MEMORY: Final = REPOSITORY / "build" / "compiled"
"""`make clean` takes it away; what is remembered is about one version of BCC."""


def remembering() -> list[str]:
    """What goes before the command of an agent (Host.before_agent). Nothing, where there is no BCC."""
    if not BCC.exists():
        return []
    script = f'mount --bind {_stand_in()} {BCC} && exec "$@"'
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"]


@cache
def _stand_in() -> Path:
    """The module that lies over BCC's."""
    stat = BCC.stat()
    memory = MEMORY / f"{stat.st_size}-{stat.st_mtime_ns}"
    memory.mkdir(parents=True, exist_ok=True)
    original = memory / "original.py"
    _write(original, BCC.read_text())
    place = memory / "__init__.py"
    text = Path(compiled_bcc.__file__).read_text()
    _write(place, f"{text}\nORIGINAL, MEMORY = Path({str(original)!r}), Path({str(memory)!r})\n")
    return place


def _write(path: Path, text: str) -> None:
    """Whole or not at all: another worker may be about to read it."""
    if not path.exists() or path.read_text() != text:
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(text)
        draft.rename(path)
