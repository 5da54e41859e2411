"""What the agent asks of its process before it changes anything: open files."""

from __future__ import annotations

import resource

import pytest

from ctl.cli.agent import DESCRIPTORS, require_descriptors
from ctl.core.errors import AgentError

Limits = tuple[int, int]


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """The limits (soft, hard), the last one as they are now."""
    limits = [(40, 40)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    return limits


def test_too_few_open_files_are_refused_in_one_line(allowed: list[Limits]) -> None:
    with pytest.raises(AgentError, match=r"^40 open files are allowed, and 256 needed.*LimitNOFILE"):
        require_descriptors()
    assert allowed == [(40, 40)]


@pytest.mark.parametrize("most", [DESCRIPTORS, 65536, resource.RLIM_INFINITY])
def test_as_many_are_taken_as_may_be(allowed: list[Limits], most: int) -> None:
    allowed.append((40, most))
    require_descriptors()
    assert allowed[-1] == (most, most)
