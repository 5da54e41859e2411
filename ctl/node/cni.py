"""The CNI configuration where container runtimes look for it.

Written last of all, when containers that start by it can reach the others, and taken away while no
more may come: without one, kubelet says NotReady and why. It stays when the agent ends, as the
datapath does. A configuration of someone else in its place is set aside, and put back by teardown.
"""

from __future__ import annotations

import logging
from pathlib import Path

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

    def admit(self, env: SubnetEnv) -> None:
        """Containers may come. AgentError if a runtime cannot be told, or takes another file instead."""
        text = cni.conflist(env, self._settings.bridge, self._settings.cni_plugins)
        try:
            present = _read(self._path)
            if present != text:
                if present is not None and not cni.is_ours(present):
                    statedir.write_atomically(_aside(self._path), present)
                    log.warning("%s was another's: kept as %s", self._path, _aside(self._path).name)
                self._write(text)
            names = [each.name for each in self._path.parent.iterdir()]
        except OSError as error:
            raise AgentError(f"cannot write {self._path}: {error.strerror}") from error
        if first := cni.ahead_of(self._path.name, names):
            raise AgentError(
                f"{self._path.parent / first} sorts before {self._path.name}: container runtimes take that "
                "one: remove it, or choose a --cni-conf that sorts before it"
            )

    def refuse(self) -> None:
        """No more containers for now. AgentError if a runtime cannot be told."""
        try:
            present = _read(self._path)
            if present is not None and cni.is_ours(present):
                self._path.unlink()
                log.warning("%s taken away: no containers may be added now", self._path)
        except OSError as error:
            raise AgentError(f"cannot remove {self._path}: {error.strerror}") from error

    def _write(self, text: str) -> None:
        """Into a directory that is there: a runtime that looks elsewhere would wait for ever."""
        if not self._path.parent.is_dir():
            raise AgentError(
                f"cannot write {self._path}: no directory {self._path.parent}: "
                "make it, or point --cni-conf to where the container runtime looks"
            )
        statedir.write_atomically(self._path, text)


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
