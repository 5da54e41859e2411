"""TLS by files that somebody renews while we run."""

from __future__ import annotations

import os
import ssl

from ctl.core.errors import ConfigError
from ctl.store.connection.files import Followed

Trust = Followed[ssl.SSLContext]
"""How a server is known and how we show who we are, as the files for it are now."""


def system_files() -> tuple[str, ...]:
    """Where the CAs are that count where no others are named: a file, and a directory of files."""
    paths = ssl.get_default_verify_paths()
    file, directory = os.environ.get(paths.openssl_cafile_env), os.environ.get(paths.openssl_capath_env)
    return file or paths.openssl_cafile, directory or paths.openssl_capath


def trust_files(whose: str, cafile: str, certfile: str, keyfile: str) -> Trust:
    """Verifying; "" means the system's CAs, and no client certificate. ConfigError names file and `whose`."""
    cas = (cafile,) if cafile else system_files()
    return Trust(lambda: _load(whose, cafile, certfile, keyfile), (*cas, certfile, keyfile))


def _load(whose: str, cafile: str, certfile: str, keyfile: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for what, files in (("CA", (cafile,)), ("client certificate", (certfile, keyfile))):
        if not files[0]:
            continue
        try:
            if what == "CA":
                # Ours alone: whoever names a CA means that one and not the public ones.
                context = ssl.create_default_context(cafile=cafile)
            else:
                # A key with a passphrase would make OpenSSL ask the terminal.
                context.load_cert_chain(certfile, keyfile, password="")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigError(f"{whose} {what} {' and '.join(files)}: {reason}") from error
    return context
