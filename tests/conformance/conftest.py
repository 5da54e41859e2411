"""A running etcd of each version, shared by the tests that leave it as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from ctl.settings.endpoint import parse_store_url
from ctl.store.etcd.client import EtcdOptions
from ctl.store.etcd.store import EtcdStore
from ctl.store.etcd.watch import Pace
from tests.etcd import SERVERS, Etcd

Opener = Callable[..., EtcdStore]

_prefixes = count(1)


@pytest.fixture(scope="session", params=sorted(SERVERS))
def etcd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(request.param, tmp_path_factory.mktemp(f"ovlab-etcd-{request.param}")) as server:
        yield server.start()


@pytest.fixture(params=sorted(SERVERS))
def own_etcd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Etcd]:
    """One that the test may stop, fill and break; not started yet."""
    with Etcd(request.param, tmp_path / "etcd") as server:
        yield server


@pytest.fixture(params=sorted(SERVERS))
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Etcd]:
    """Three members that the test may stop; running."""
    with Etcd(request.param, tmp_path / "etcd", members=3) as server:
        yield server.start()


@pytest.fixture
def prefix() -> str:
    """Where no other test writes."""
    return f"/test/{next(_prefixes)}/network"


@pytest.fixture
def opened(prefix: str) -> Iterator[Opener]:
    """`opened(url, ...)`: a store on `prefix` with a quick pace; closed after the test."""
    stores: list[EtcdStore] = []

    def open_one(
        url: str,
        *,
        clock: Callable[[], float] = time.time,
        timeout: float = 2.0,
        pace: Pace | None = None,
        **options: str,
    ) -> EtcdStore:
        chosen = EtcdOptions(parse_store_url(url), **{"prefix": prefix, **options})
        stores.append(EtcdStore(chosen, clock, pace=pace or Pace(probe=0.5), timeout=timeout))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()
