"""Stores of leases behind the seam `ctl.core.ports.LeaseStore`, chosen by URL."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ctl.core.errors import ConfigError
from ctl.core.ports import LeaseStore
from ctl.settings.config import Settings
from ctl.settings.endpoint import is_etcd, is_kubernetes, kubeconfig_path, parse_store_url

if TYPE_CHECKING:
    from ctl.store.connection.files import Followed
    from ctl.store.etcd.client import EtcdOptions
    from ctl.store.kubernetes.access import Access


def open_store(
    where: Settings | str,
    clock: Callable[[], float] = time.time,
    *,
    create: bool = False,
    patient: bool = False,
) -> LeaseStore:
    """The store that `where` names; only the chosen kind's module is imported.

    memory:                  of this process, for tests; every call gives an empty one
    sqlite:///PATH           a file that the nodes of one machine share (PATH is absolute)
    etcd://HOST:PORT,...     etcd v3 with flannel's keys; etcds:// with TLS
    kubernetes:              the cluster that this process is a pod of, with flannel's annotations
    kubernetes:///PATH       the cluster that a kubeconfig names
    Settings hold, besides the URL, how etcd is to be spoken to; a URL alone means the defaults.
    `create` makes the file and its directory if they are missing; `clock` gives seconds
    since the epoch; `patient`: who has just started is refused for a while before that is
    believed. ConfigError on a bad URL, StoreError if it cannot be opened.
    """
    url = where if isinstance(where, str) else where.store
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        from ctl.store.memory import MemoryStore

        return MemoryStore(clock)
    if scheme == "sqlite":
        from ctl.store.sqlite.store import SqliteStore

        return SqliteStore(_path(url, rest), clock, create=create)
    if is_etcd(url):
        from ctl.store.etcd.store import EtcdStore

        return EtcdStore(_etcd_options(url, None if isinstance(where, str) else where), clock)
    if is_kubernetes(url):
        return _kubernetes(url, where, clock, patient=patient)
    raise ConfigError(
        f"{url}: unknown kind of store; use sqlite:///PATH, etcd://HOST:PORT,... or kubernetes:"
    )


def _etcd_options(url: str, settings: Settings | None) -> EtcdOptions:
    from ctl.store.etcd.client import EtcdOptions

    try:
        endpoints = parse_store_url(url)
    except ValueError as error:
        raise ConfigError(f"store URL: {error}") from error
    if not endpoints:
        raise ConfigError(f"{url}: no endpoint; write etcd://HOST:PORT,...")
    if settings is None:
        return EtcdOptions(endpoints)
    return EtcdOptions(
        endpoints,
        settings.etcd_prefix,
        settings.etcd_keyfile,
        settings.etcd_certfile,
        settings.etcd_cafile,
        settings.etcd_username,
        settings.etcd_password,
        settings.etcd_password_file,
    )


def _kubernetes(url: str, where: Settings | str, clock: Callable[[], float], *, patient: bool) -> LeaseStore:
    from ctl.store.kubernetes.store import KubernetesOptions, KubernetesStore

    options = KubernetesOptions()
    if not isinstance(where, str):
        options = KubernetesOptions(
            where.kube_annotation_prefix,
            where.net_config_path,
            where.node_name,
            where.set_node_network_unavailable,
        )
    return KubernetesStore(_access(url), options, clock, patient=patient)


def _access(url: str) -> Followed[Access]:
    """How to reach a cluster, as it is written now."""
    import os
    from functools import partial

    from ctl.store.connection.files import Followed
    from ctl.store.kubernetes.access import in_cluster
    from ctl.store.kubernetes.kubeconfig import read_kubeconfig

    try:
        path = kubeconfig_path(url)
    except ValueError as error:
        raise ConfigError(f"store URL: {error}") from error
    return Followed(partial(read_kubeconfig, path) if path else partial(in_cluster, os.environ), (path,))


def with_node_name(settings: Settings) -> Settings:
    """`settings` with this Node's name, where only a pod can tell it. ConfigError if nothing does."""
    if settings.node_name or not is_kubernetes(settings.store):
        return settings
    import os
    from dataclasses import replace

    from ctl.store.kubernetes.client import ApiClient
    from ctl.store.kubernetes.whoami import node_name

    access = _access(settings.store)
    name = node_name(access.now(), lambda: ApiClient(access, "", patient=True), os.environ)
    return replace(settings, node_name=name)


def _path(url: str, rest: str) -> str:
    """Four slashes as SQLAlchemy writes an absolute path, or three as in file URLs."""
    path = "/" + rest.removeprefix("//").lstrip("/")
    if not rest.startswith("///") or path == "/" or "\0" in path:
        raise ConfigError(f"{url}: not a store URL; write sqlite:///PATH with an absolute PATH")
    return path
