"""A command that is run on another node, by a command of the operator's that leads there, such as ssh.

Its stdin is held open until it is to end, so the far end hears of it also where we are killed.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue
from threading import Event, Thread
from types import TracebackType
from typing import IO, Final, Self

from ctl.core.errors import AgentUnreachable

LINE_BYTES: Final = 1 << 16
"""A line that is longer comes in parts."""
_LINES: Final = 1024
"""How many are held: a node that floods us has to wait."""
END_S: Final = 5.0
"""How long it has to end by itself."""


class Elsewhere:
    """It runs as long as the block, at the most."""

    def __init__(self, argv: Sequence[str], hear: Callable[[str], None]) -> None:
        """`hear` is told each line of its stderr, by a thread. AgentUnreachable if it cannot be started."""
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise AgentUnreachable(f"{argv[0]}: {error.strerror}") from error
        self.spoke = Event()
        """Set once there was a line of stderr, or there will be none."""
        self._hear = hear
        self._lines: Queue[str | None] = Queue(_LINES)
        self._ended = False
        self._threads = [Thread(target=each, daemon=True) for each in (self._read_words, self._read_lines)]
        for thread in self._threads:
            thread.start()

    def _read_words(self) -> None:
        for line in _each(self._process.stderr):
            self._hear(line.strip())
            self.spoke.set()
        self.spoke.set()

    def _read_lines(self) -> None:
        for line in _each(self._process.stdout):
            self._lines.put(line)
        self._lines.put(None)

    def come(self) -> Iterator[str]:
        """The lines of its stdout that are there now."""
        try:
            while not self._ended:
                yield from self._taken(0)
        except Empty:
            return

    def rest(self, patience_s: float) -> Iterator[str]:
        """Hang up, and the lines up to its end. One that takes longer than `patience_s` is killed."""
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.close()
        end = time.monotonic() + patience_s
        try:
            while not self._ended:
                yield from self._taken(end - time.monotonic())
        except Empty:
            self._process.kill()

    def _taken(self, patience_s: float) -> Iterator[str]:
        """The next line; nothing at the end. Empty if there is none in time."""
        line = self._lines.get(patience_s > 0, max(patience_s, 0))
        self._ended = line is None
        if line is not None:
            yield line

    @property
    def ended(self) -> bool:
        """Whether all that it will ever say was handed out."""
        return self._ended

    def code(self) -> int:
        """Its exit code; one that does not end is killed."""
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        code = self._process.wait()
        for thread in self._threads:
            thread.join(END_S)  # what stays behind, as ssh's master, may hold a pipe open
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self.rest(END_S):
            pass
        self.code()


def _each(pipe: IO[bytes] | None) -> Iterator[str]:
    """The lines of a pipe, which is closed at its end."""
    assert pipe is not None, "it is asked for"
    with pipe:
        while line := pipe.readline(LINE_BYTES):
            yield line.decode(errors="replace")
