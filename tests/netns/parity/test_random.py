"""A short run of tests.fuzz.pair, always the same packets; `make fuzz-pair` is the long one."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

import pytest

from tests.fuzz.pair import DRAWS, differences, quiet
from tests.netns.parity.site import Site

SEEDS: Final = range(20240607, 20240607 + 12)


@pytest.fixture(scope="module")
def silent(kernel: Site, learned: Site) -> Iterator[tuple[Site, Site]]:
    """Both sites, as the long run has them."""
    with quiet(kernel), quiet(learned):
        yield kernel, learned


@pytest.mark.parametrize("kind", DRAWS)
def test_random_packets_fare_as_by_the_kernel_path(silent: tuple[Site, Site], kind: str) -> None:
    for seed in SEEDS:
        frames = [DRAWS[kind](Random(seed), site) for site in silent]
        assert differences(*silent, kind, frames) == [], f"seed {seed}: see tests/fuzz/pair.py"
