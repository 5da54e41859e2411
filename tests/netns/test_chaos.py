"""Every scenario of tests/chaos once: what is promised of it is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.__main__ import Sites, chosen
from tests.chaos.run import run
from tests.chaos.scenario import Scenario, broken, row, table


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    """Shared by scenarios of one kind, as far as they leave it whole."""
    made = Sites()
    yield made
    made.close()


@pytest.mark.parametrize("scenario", chosen(""), ids=lambda each: f"{each.group}: {each.name}")
def test_scenario(sites: Sites, scenario: Scenario) -> None:
    with sites.use(scenario.build) as site:
        outcome = run(site, scenario)
        assert not broken(scenario, outcome), "\n".join(
            (*table([row(scenario, outcome)]), *map(str, outcome.figures.ways), outcome.log)
        )
