"""Links at tcx that the kernel does not tell about."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ctl.core.errors import KernelError
from ctl.kernel.bpf import syscall
from ctl.kernel.hooks.tcx import DIRECTORY, Links


def no_memory(_fd: int) -> syscall.LinkInfo:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize(
    "look", [Links.read, lambda links: links.detached((5,))], ids=["all of them", "those that may be off"]
)
def test_a_link_that_cannot_be_looked_at_is_an_error_to_go_on_from(
    look: Callable[[Links], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's loop asks, and takes what is no such error for a bug."""
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / "5-ingress").touch()
    monkeypatch.setattr(syscall, "obj_get", lambda _: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr(syscall, "link_info", lambda _: syscall.LinkInfo(100, 5))
    with closing(Links(tmp_path)) as links:
        links.read()
        monkeypatch.setattr(syscall, "link_info", no_memory)
        with pytest.raises(KernelError, match="cannot look at a link"):
            look(links)
