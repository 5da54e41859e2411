"""A kubeconfig, as far as it says how to reach one cluster. Pure, but for the paths in it.

YAML, of which JSON is a part: PyYAML is asked only where it is no JSON, and imported only then.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any, Final

from ctl.core.errors import ConfigError
from ctl.store.kubernetes.access import Access, ExecPlugin, server

EXEC_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")

_REFUSED: Final = {
    "auth-provider": "auth-provider is not supported: use exec",
    "username": "username and password are not supported: Kubernetes has dropped them in 1.19",
    "as": "impersonation (as) is not supported",
    "proxy-url": "proxy-url is not supported: the API has to be reached without a proxy",
}


def read_kubeconfig(path: str) -> Access:
    """Of its current context. ConfigError names the file and the key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"kubeconfig {path}: {reason}") from error
    try:
        return parse_kubeconfig(text, Path(path))
    except ValueError as error:
        raise ConfigError(f"kubeconfig {path}: {error}") from error


def parse_kubeconfig(text: str, path: Path) -> Access:
    """Its current context. ValueError names the key; ConfigError if the server is no URL."""
    config = _Section(_load(text), "", path.parent)
    context = config.named("contexts", "context", config.text("current-context"))
    cluster = config.named("clusters", "cluster", context.text("cluster"))
    user = config.named("users", "user", context.text("user", ""), _Section({}, "user", path.parent))
    for section in (cluster, user):
        for key, why in _REFUSED.items():
            if key in section:
                raise ValueError(why)
    endpoint, below = server(cluster.text("server"), f"kubeconfig {path}")
    certfile, keyfile = user.file("client-certificate"), user.file("client-key")
    certdata, keydata = user.data("client-certificate-data"), user.data("client-key-data")
    if bool(certfile or certdata) != bool(keyfile or keydata):
        raise ValueError("client-certificate and client-key go together")
    return Access(
        f"kubeconfig {path}",
        endpoint,
        below,
        cluster.text("tls-server-name", ""),
        cluster.flag("insecure-skip-tls-verify"),
        cluster.file("certificate-authority"),
        cluster.data("certificate-authority-data"),
        certfile,
        keyfile,
        certdata,
        keydata,
        user.text("token", ""),
        user.file("tokenFile"),
        _plugin(user),
    )


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        import yaml
    except ImportError:
        raise ValueError("it is YAML, which needs PyYAML (Debian: python3-yaml)") from None
    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())[:200]}") from error


class _Section:
    """A mapping of the file, and where in it that is."""

    def __init__(self, content: Any, place: str, directory: Path) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{place or 'the file'} is no mapping")
        self._content, self._place, self._directory = content, place, directory

    def __contains__(self, key: str) -> bool:
        return bool(self._content.get(key))

    def _name(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def text(self, key: str, default: str | None = None) -> str:
        """ValueError if it is no text, or missing and has no `default`."""
        value = self._content.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not (value or default is not None):
            raise ValueError(f"{self._name(key)} is {'missing' if not value else 'no text'}")
        return value

    def flag(self, key: str) -> bool:
        value = self._content.get(key, False)
        if not isinstance(value, bool):
            raise ValueError(f"{self._name(key)} is neither true nor false")
        return value

    def file(self, key: str) -> str:
        """A path, relative ones to the kubeconfig; "" without one."""
        path = self.text(key, "")
        return str(self._directory / path) if path else ""

    def data(self, key: str) -> bytes:
        try:
            return base64.b64decode(self.text(key, ""), validate=False)
        except (binascii.Error, ValueError):
            raise ValueError(f"{self._name(key)} is not base64") from None

    def list(self, key: str) -> list[Any]:
        value = self._content.get(key) or []
        if not isinstance(value, list):
            raise ValueError(f"{self._name(key)} is no list")
        return value

    def named(self, key: str, what: str, name: str, default: _Section | None = None) -> _Section:
        """The entry of this name in a list of `{name: ..., <what>: {...}}`."""
        if not name and default is not None:
            return default
        for each in self.list(key):
            if isinstance(each, dict) and each.get("name") == name:
                return _Section(each.get(what) or {}, f"{what} {name}", self._directory)
        raise ValueError(f"there is no {what} {name!r} in {key}")


def _plugin(user: _Section) -> ExecPlugin | None:
    if "exec" not in user:
        return None
    section = _Section(user._content["exec"], f"{user._place}.exec", user._directory)
    version = section.text("apiVersion")
    if version not in EXEC_VERSIONS:
        raise ValueError(f"exec's apiVersion {version!r} is none of {', '.join(EXEC_VERSIONS)}")
    if section.text("interactiveMode", "") == "Always":
        raise ValueError("exec's interactiveMode is Always: a node has no terminal")
    command = section.text("command")
    if "/" in command:
        command = str(user._directory / command)
    env = {}
    for each in section.list("env"):
        pair = _Section(each, "exec.env", user._directory)
        env[pair.text("name")] = pair.text("value", "")
    arguments = section.list("args")
    if not all(isinstance(each, str) for each in arguments):
        raise ValueError("exec.args has something that is no text")
    return ExecPlugin(version, (command, *arguments), env, section.flag("provideClusterInfo"))
