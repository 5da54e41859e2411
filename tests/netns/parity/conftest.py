"""The nodes without eBPF that all rows are compared with, and those with it; built once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from tests.netns.parity.site import Site

LEARNED = {"learned": ("--bypass", "learned", "--approval-ttl", "60")}
"""Ways to run the default mode, as flags of the agent: heeding what netfilter does."""
ALWAYS = {"always": ("--bypass", "always")}
"""Ways to run without approvals. Both are compared with --bypass=off."""
Sites = Callable[[tuple[str, ...]], Site]


@pytest.fixture(scope="package")
def sites() -> Iterator[Sites]:
    """A site for these flags of the agents: made when first asked for."""
    with ExitStack() as stack:
        yield cache(lambda flags: stack.enter_context(Site(*flags)))


@pytest.fixture(scope="package")
def kernel(sites: Sites) -> Site:
    """Nodes on which the kernel path carries everything."""
    return sites(("--bypass", "off"))


@pytest.fixture(scope="package", params=LEARNED)
def learned(request: pytest.FixtureRequest, sites: Sites) -> Site:
    """Nodes in the default mode, which heeds what netfilter does."""
    return sites(LEARNED[request.param])


@pytest.fixture(scope="package", params=ALWAYS)
def always(request: pytest.FixtureRequest, sites: Sites) -> Site:
    """Nodes on which eBPF carries what it can, whatever netfilter says."""
    return sites(ALWAYS[request.param])
