"""A short run of tests.fuzz.pair, always the same packets; `make fuzz-pair` is the long one."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

import pytest

from tests.fuzz.pair import DRAWS, SILENT, differences
from tests.netns.parity.site import Site

SEEDS: Final = range(20240607, 20240607 + 12)


@pytest.fixture(scope="module")
def silent(kernel: Site, learned: Site) -> Iterator[tuple[Site, Site]]:
    """Containers that do not answer what they get."""
    containers = [container for site in (kernel, learned) for container in (site.one, site.two)]
    for container in containers:
        container.nft(SILENT)
    yield kernel, learned
    for container in containers:
        container.nft("delete table ip silent")


@pytest.mark.parametrize("kind", DRAWS)
def test_random_packets_fare_as_by_the_kernel_path(silent: tuple[Site, Site], kind: str) -> None:
    for seed in SEEDS:
        frames = [DRAWS[kind](Random(seed), site) for site in silent]
        assert differences(*silent, kind, frames) == [], f"seed {seed}: see tests/fuzz/pair.py"
