"""The CNI configuration where container runtimes look for it.

Written last of all, when containers that start by it can reach the others, and taken away while no
more may come: without one, kubelet says NotReady and why. It stays when the agent ends, as the
datapath does. A configuration of someone else in its place is set aside, and put back by teardown.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Final

from ctl.core import cni
from ctl.core.errors import AgentError
from ctl.core.wire import SubnetEnv
from ctl.process import statedir
from ctl.settings.config import Settings

log = logging.getLogger(__name__)


class CniConf:
    """The file `--cni-conf`. One thread's."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self._settings, self._path = settings, path
        self._written = ""
        """What we have put there last, as far as it is still to be there; "": nothing."""

    def admit(self, env: SubnetEnv) -> None:
        """Containers may come. AgentError if a runtime cannot be told, or takes another file instead."""
        settings = self._settings
        text = cni.conflist(env, settings.bridge, settings.cni_plugins, str(settings.cni_data_dir))
        try:
            present = _read(self._path)
            if present != text:
                self._replace(present)
                self._write(text)
        except OSError as error:
            raise AgentError(f"cannot write {self._path}: {error.strerror}: {_remedy(error)}") from error
        self._written = text
        if line := shadowed(self._path):
            raise AgentError(line)

    def refuse(self) -> None:
        """No more containers for now. AgentError if a runtime cannot be told."""
        try:
            present = _read(self._path)
            if present is not None and cni.is_ours(present):
                self._path.unlink()
                log.warning("%s taken away: no containers may be added now", self._path)
        except OSError as error:
            raise AgentError(f"cannot remove {self._path}: {error.strerror}: {_remedy(error)}") from error
        self._written = ""

    def _replace(self, present: str | None) -> None:
        """Say and keep what is lost by writing. OSError."""
        if present is not None and not cni.is_ours(present):
            statedir.write_atomically(_aside(self._path), present)
            log.warning("%s was another's: kept as %s", self._path, _aside(self._path).name)
        elif present != (self._written or present):
            what = "removed" if present is None else "changed"
            log.warning("%s was %s by someone: written again", self._path, what)

    def _write(self, text: str) -> None:
        """Into a directory that is there.

        Runtimes make theirs when they start, and watch that one: into another one they would never look.
        """
        if not self._path.parent.is_dir():
            raise AgentError(
                f"cannot write {self._path}: no directory {self._path.parent}: "
                "make it, or point --cni-conf to where the container runtime looks"
            )
        statedir.write_atomically(self._path, text)


def shadowed(path: Path) -> str:
    """Which file beside it a runtime takes instead, a line; "" if it takes it. AgentError."""
    try:
        with os.scandir(path.parent) as found:
            # As libcni does: a directory is passed over, whatever its name.
            names = [each.name for each in found if not each.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise AgentError(f"cannot list {path.parent}: {error.strerror}") from error
    return cni.shadowed(path, names)


def is_there(path: Path) -> bool:
    """Whether runtimes are told of this node, by a configuration of ours. AgentError."""
    try:
        return cni.is_ours(_read(path) or "")
    except OSError as error:
        raise AgentError(f"cannot read {path}: {error.strerror}") from error


_REMEDIES: Final = {
    errno.EROFS: "mount its file system read-write, in a pod as a hostPath that is not readOnly",
    errno.EACCES: "the directory has to be root's, or the agent have CAP_DAC_OVERRIDE",
    errno.ENOSPC: "make room there",
}


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, "container runtimes are not told of this node until it can be")


def restore(path: Path) -> list[str]:
    """Take our configuration away and put back what was there before; returns what was done, a line each.

    OSError.
    """
    present, aside = _read(path), _aside(path)
    if present is not None and not cni.is_ours(present):
        return []  # someone has written it anew: what we kept is older
    if aside.exists():
        aside.rename(path)
        return [f"CNI configuration {path} as it was before"]
    if present is None:
        return []
    path.unlink()
    return [f"CNI configuration {path}"]


def _aside(path: Path) -> Path:
    """Where another's is kept: by its ending no runtime reads it."""
    return path.with_name(path.name + ".before-ovnet")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
