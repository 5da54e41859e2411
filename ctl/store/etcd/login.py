"""The user as whom etcd is asked."""

from __future__ import annotations

from typing import Final

from ctl.core.errors import ConfigError
from ctl.store.connection.files import Followed


class Login:
    """A name and a password, which may be changed in its file while we run."""

    def __init__(self, username: str, password: str, file: str) -> None:
        """`username` "": nobody logs in. A `password` that is given counts, and no file. ConfigError."""
        self.username: Final = username
        files = () if password else (file,)
        self._password = Followed(lambda: password or read_password(file), files)

    def password(self) -> str:
        """As it is now; as it was, while its file cannot be read."""
        return self._password.now()


def read_password(path: str) -> str:
    """The file's first line; "" without a file. ConfigError names it."""
    if not path:
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"etcd password file {path}: {reason}") from error
