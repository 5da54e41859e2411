"""subnet.env, which container runtimes wait for (ctl.core.wire)."""

from __future__ import annotations

from contextlib import suppress

from ctl.core.errors import AgentError
from ctl.core.model import Subnets
from ctl.core.wire import SubnetEnv, format_subnet_env, parse_subnet_env
from ctl.process import statedir
from ctl.settings.config import Settings


class EnvFile:
    """Where it is, and where its text is while the node is fenced. One thread's."""

    def __init__(self, settings: Settings) -> None:
        self._places = settings.subnet_file, settings.state_dir / statedir.FENCED

    def subnets(self) -> Subnets | None:
        """Those that it names, of an earlier life, fenced or not; None if it names none."""
        for path in self._places:
            with suppress(OSError, ValueError):
                env = parse_subnet_env(path.read_text())
                return Subnets(env.subnet, env.ipv6[1] if env.ipv6 else None)
        return None

    def write(self, env: SubnetEnv, *, fenced: bool) -> None:
        """Say this. AgentError.

        A fenced node takes it away, and keeps the text for itself: the CNI plugin adds no
        container without the file, and an agent that starts later asks for the same subnet.
        """
        wanted, other = reversed(self._places) if fenced else self._places
        text = format_subnet_env(env)
        try:
            if not wanted.exists() or wanted.read_text() != text:
                statedir.write_atomically(wanted, text)
            other.unlink(missing_ok=True)
        except OSError as error:
            raise AgentError(f"cannot write {wanted}: {error.strerror}") from error
