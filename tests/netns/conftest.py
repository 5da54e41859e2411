"""Labs that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.compiled import remembering
from tests.host import Agent, started
from tests.lab import Container, Host, Lab
from tests.process import wait_until

APPROVAL_TTL = 1.0
"""Seconds; short, so that tests of what happens when it ends are short."""


@dataclass
class Pair:
    """Two nodes with a container each, and a host outside."""

    lab: Lab
    a: Host
    b: Host
    outside: Host
    on_a: Container
    on_b: Container
    agents: dict[str, Agent] = field(default_factory=dict)


def build(lab: Lab, *flags: str) -> Pair:
    """Two nodes whose agents run with `flags`."""
    a, b, outside = lab.host("a"), lab.host("b"), lab.outside()
    lab.init_network()
    agents = started((a, b), "--approval-ttl", str(APPROVAL_TTL), *flags)
    for host in (a, b):
        wait_until(host.knows_a_peer, 10, f"{host.name} knows its peer")
    return Pair(lab, a, b, outside, a.container("one"), b.container("one"), agents)


@pytest.fixture(scope="package", autouse=True)
def compiled_once() -> Iterator[None]:
    """Agents of this ring do not compile what others have compiled before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "before_agent", remembering())
        yield


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab of the test's own."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    """Two nodes in learned mode, shared by the module."""
    with Lab() as made:
        yield build(made)


@pytest.fixture
def pair(nodes: Pair) -> Iterator[Pair]:
    """The module's two nodes; what the test has started in them ends with the test."""
    yield nodes
    for place in (nodes.on_a, nodes.on_b, nodes.outside):
        place.stop_processes()
