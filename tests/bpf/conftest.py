from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.kernel.bpf import bpffs
from ctl.kernel.bpf.maps import unpin_all
from tests.datapath import INET, INET6, Datapath
from tests.lab import Lab, hold_bpffs
from tests.namespace import Namespace

PORT = 77
"""Ifindex of an interface that is nowhere but in the namespace `ports`."""


@pytest.fixture(scope="session", autouse=True)
def bpffs_is_there() -> Iterator[None]:
    """Else the last lab of another ring could unmount it, between two pins of ours."""
    release = hold_bpffs()
    yield
    release()


@pytest.fixture(scope="session")
def loaded() -> Iterator[Datapath]:
    """Programs and maps that tests share, one after the other."""
    with Datapath() as opened:
        yield opened


@pytest.fixture(scope="session")
def loaded_ipv6() -> Iterator[Datapath]:
    """The same for IPv6."""
    with Datapath(cast=INET6) as opened:
        yield opened


@pytest.fixture(params=[INET, INET6], ids=str)
def of_each_family(request: pytest.FixtureRequest) -> Datapath:
    """For one family after the other, programs on empty maps, furnished."""
    opened: Datapath = request.getfixturevalue("loaded" if request.param is INET else "loaded_ipv6")
    return opened.clear().furnish()


@pytest.fixture
def datapath(loaded: Datapath) -> Datapath:
    """Programs on empty maps, furnished with a node, two peers and two containers."""
    return loaded.clear().furnish()


@pytest.fixture
def pins() -> Iterator[Path]:
    """A directory for pins of this test alone."""
    path = Path(f"/sys/fs/bpf/ovnet-test-{os.getpid()}")
    bpffs.ensure(str(path))
    yield path
    unpin_all(path)
    assert not path.exists()


@pytest.fixture(scope="module")
def ports() -> Iterator[Namespace]:
    """A namespace with one more interface than `lo`."""
    with Lab() as lab:
        made = lab.namespace("ports")
        made.ip("link", "add", "name", "port", "index", str(PORT), "type", "bridge")
        yield made
