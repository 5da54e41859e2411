"""BCC at work in a child of ours, seen from the agent: ctl.kernel.bpf.compile is the other end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self, TextIO

from ctl.core.errors import KernelError
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.compile import LACKING, ORDER_BYTES
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.bpf.source import maps_of

log = logging.getLogger(__name__)

_PYTHON: Final = "/usr/bin/python3"
"""Debian's python3-bpfcc is for this interpreter only."""

_TIMEOUT_S: Final = 120
"""How many seconds compiling, or loading, may take."""
_PATIENCE_S: Final = 60
"""How many seconds a child waits for something to load. Whoever comes later starts another."""
_MAIN: Final = (
    "import sys; sys.path.append(sys.argv.pop(1)); from ctl.kernel.bpf.compile import main; sys.exit(main())"
)
"""Where our package lies comes after the system's own: PyPI's `bcc`, installed beside us, is none."""


class Bcc:
    """BCC in a child of ours (ctl.kernel.bpf.compile): it compiles a C text, and loads programs of it.

    It ends with this process, or when it has waited for something to load for `patience_s` seconds.
    """

    def __init__(self, text: str, patience_s: float = _PATIENCE_S) -> None:
        """KernelError if it cannot be started."""
        if not shutil.which(_PYTHON):
            raise KernelError(f"{_PYTHON} is missing: install python3 and python3-bpfcc")
        spec = find_spec("ctl")
        assert spec is not None and spec.submodule_search_locations
        root = str(Path(next(iter(spec.submodule_search_locations))).parent)
        try:
            self._start(text, ("-c", _MAIN, root), patience_s)
        except OSError as error:
            raise KernelError(f"cannot run {_PYTHON}: {error.strerror}") from error

    def _start(self, text: str, main: Sequence[str], patience_s: float) -> None:
        with ExitStack() as undone:
            self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undone.callback(self._orders.close)
            self._words = _memory("words")
            undone.callback(self._words.close)
            with theirs, _memory("text") as handed:
                handed.write(text)
                handed.seek(0)
                self._child = subprocess.Popen(
                    # Without our environment's packages; and the installed tree is not ours to write to.
                    [_PYTHON, "-I", "-B", *main, str(theirs.fileno()), str(patience_s)],
                    stdin=handed,
                    stdout=self._words,
                    stderr=self._words,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    env={key: os.environ[key] for key in ("PATH", "TMPDIR") if key in os.environ},
                )
            undone.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Its work is done, or not wanted any more."""
        self._orders.close()
        self._words.close()
        self._child.kill()
        self._child.wait()

    def gave_up(self) -> bool:
        """Whether it has ended because there was nothing to load for so long."""
        return self._child.poll() == 0

    def load(self, names: Sequence[str], maps: Maps[Any]) -> dict[str, int]:
        """Load programs on these maps; returns their file descriptors.

        VerifierError for the first that the kernel refuses, and then none is loaded. KernelError with
        the last line that the compiler wrote, if that is what failed; all of them are logged.
        """
        self._orders.settimeout(_TIMEOUT_S)
        used = maps_of(maps.family.version)
        try:
            order = json.dumps([names, used]).encode()
            socket.send_fds(self._orders, [order], [maps.fd(name) for name in used])
            answer, fds, _, _ = socket.recv_fds(
                self._orders, ORDER_BYTES, len(names), socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError as error:
            raise KernelError(f"compiling the datapath took more than {_TIMEOUT_S:g} s") from error
        except OSError:  # it is gone
            answer, fds = b"", []
        if not answer:
            raise self._failure()
        if refusal := json.loads(answer):
            raise _refused(*refusal)
        if len(fds) < len(names):  # the kernel leaves out what there is no room for
            for fd in fds:
                os.close(fd)
            raise KernelError("no file descriptors left for the programs: raise LimitNOFILE (ulimit -n)")
        return dict(zip(names, fds, strict=True))

    def _failure(self) -> KernelError:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_TIMEOUT_S)
        self._words.seek(0)
        lines = self._words.read().splitlines()
        code = self._child.returncode
        if code != LACKING:  # its one line is all there is
            for line in lines:
                log.error("compiler: %s", line)
        return KernelError(f"compiling the datapath failed: {_why(code, lines)}")


def _why(code: int | None, lines: Sequence[str]) -> str:
    """The one line that counts of a child that has ended with `code` (None: it has not) and said `lines`."""
    if code is not None and code < 0:
        remedy = ": is there memory for it (150 MB)?" if -code == signal.SIGKILL else ""
        return f"{_PYTHON} died ({signal.strsignal(-code)}){remedy}"
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


def _memory(name: str) -> TextIO:
    """A file that needs no disk; a pipe would hold up who writes more than it takes."""
    return open(os.memfd_create(f"ovnet-{name}"), "w+", errors="replace")


def _refused(name: str, code: int, words: Sequence[str]) -> syscall.VerifierError:
    """As the child's answer has it; `filename` is the program's name."""
    error = syscall.VerifierError(code, os.strerror(code), name)
    error.log = "\n".join(words)
    return error
