"""Who we are to a cluster's API, as it is now: tokens and certificates that others renew while we run.

A token's file is looked at for each request (a stat; kubelet swaps a symbolic link), and read again at
once when the API refuses the token. What an exec plugin printed is good until the time that it gave, or
until the API refuses it.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from ctl.core.errors import ConfigError, StoreDenied
from ctl.store.connection.files import Followed
from ctl.store.connection.tls import Trust, system_files
from ctl.store.kubernetes.access import Access, ExecPlugin

EXEC_S: Final = 30.0
"""How long a plugin may take, seconds."""
LEEWAY_S: Final = 10.0
"""How long before its end a plugin's credential is asked for anew, seconds."""


class Credentials:
    """Of one Access. Not for several threads at once. ConfigError on files that cannot be used.

    `clock` gives seconds since the epoch.
    """

    def __init__(self, access: Access, clock: Callable[[], float] = time.time) -> None:
        self._access, self._clock = access, clock
        file = access.tokenfile
        self._file = Followed(lambda: _read_token(file), (file,)) if file else None
        self._printed: Access = replace(access, plugin=None)
        """The access with what the plugin printed last."""
        self._until = 0.0
        """Until when that is good, seconds since the epoch; 0: it never was asked, or is refused."""
        self._sent = ""
        """The token that was used last; "": none was."""
        self.trust: Trust | None = self._follow_tls() if access.endpoint.tls else None
        """How the server is known; None: without TLS."""

    def headers(self) -> dict[str, str]:
        """For a request. StoreDenied if a plugin fails."""
        self._ask_plugin()
        token = self._sent = self._file.now() if self._file else self._printed.token
        return {"Authorization": f"Bearer {token}"} if token else {}

    def refused(self) -> bool:
        """The API takes them no longer: look for others at once. Whether there may be some."""
        self._until = 0.0
        if self._file is None:
            return self._access.plugin is not None
        self._file.doubt()
        return self._file.now() != self._sent

    def _follow_tls(self) -> Trust:
        access = self._printed
        cas = () if access.cadata else (access.cafile,) if access.cafile else system_files()
        return Trust(lambda: _context(self._printed), (*cas, access.certfile, access.keyfile))

    def _ask_plugin(self) -> None:
        plugin = self._access.plugin
        if plugin is None or self._clock() < self._until - LEEWAY_S:
            return
        status = run_plugin(plugin, self._access)
        token = status.get("token")
        certificate, key = status.get("clientCertificateData"), status.get("clientKeyData")
        self._printed = replace(
            self._access,
            plugin=None,
            token=token if isinstance(token, str) else "",
            certdata=certificate.encode() if isinstance(certificate, str) else b"",
            keydata=key.encode() if isinstance(key, str) else b"",
        )
        self._until = _end(status.get("expirationTimestamp"))
        if self._printed.certdata and self._access.endpoint.tls:
            try:
                self.trust = self._follow_tls()
            except ConfigError as error:
                raise StoreDenied(f"{error} (of exec {plugin.argv[0]})") from error


def _read_token(file: str) -> str:
    try:
        with open(file, encoding="ascii") as opened:
            token = opened.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a token"
        raise ConfigError(f"kubernetes token {file}: {reason}") from error
    if not token or not token.isprintable():
        raise ConfigError(f"kubernetes token {file}: {'no token' if token else 'empty'}")
    return token


def _context(access: Access) -> ssl.SSLContext:
    """ConfigError names what cannot be used."""
    what = "CA"
    try:
        context = ssl.create_default_context(
            cafile=access.cafile or None, cadata=access.cadata.decode("ascii") or None
        )
        what = "client certificate"
        if access.certdata:
            _load_pair(context, access)
        elif access.certfile:
            context.load_cert_chain(access.certfile, access.keyfile, password="")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{access.source}: {what}: {reason}") from error
    if access.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _load_pair(context: ssl.SSLContext, access: Access) -> None:
    """OpenSSL reads certificates from files only: one in memory that nobody else can open."""
    fd = os.memfd_create("client", os.MFD_CLOEXEC)
    try:
        os.write(fd, access.certdata + b"\n" + access.keydata)
        context.load_cert_chain(f"/proc/self/fd/{fd}", password="")
    finally:
        os.close(fd)


def run_plugin(plugin: ExecPlugin, access: Access) -> dict[str, Any]:
    """The `status` of the ExecCredential that it prints. StoreDenied, in one line, if it prints none."""
    asked: dict[str, Any] = {"kind": "ExecCredential", "apiVersion": plugin.version}
    asked["spec"] = {"interactive": False}
    if plugin.provide_cluster:
        cluster = {"server": f"{access.endpoint}{access.path}"}
        asked["spec"]["cluster"] = cluster
    env = {**os.environ, **plugin.env, "KUBERNETES_EXEC_INFO": json.dumps(asked)}
    name = plugin.argv[0]
    try:
        done = subprocess.run(
            plugin.argv, check=False, capture_output=True, stdin=subprocess.DEVNULL, env=env, timeout=EXEC_S
        )
    except subprocess.TimeoutExpired:
        raise StoreDenied(f"{access.source}: exec {name}: did not end in {EXEC_S:g} s") from None
    except OSError as error:
        raise StoreDenied(f"{access.source}: exec {name}: {error.strerror}") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())[-200:]
        raise StoreDenied(f"{access.source}: exec {name}: exit {done.returncode}: {said}")
    try:
        printed = json.loads(done.stdout)
        if printed["kind"] != "ExecCredential" or printed["apiVersion"] != plugin.version:
            raise ValueError
        status = printed["status"]
    except (ValueError, KeyError, TypeError):
        raise StoreDenied(
            f"{access.source}: exec {name}: printed no ExecCredential of {plugin.version}"
        ) from None
    if not isinstance(status, dict) or not (status.get("token") or status.get("clientCertificateData")):
        raise StoreDenied(f"{access.source}: exec {name}: gave no token and no certificate")
    return status


def _end(text: object) -> float:
    """Of an RFC 3339 time, seconds since the epoch; never, if there is none."""
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return float("inf")
