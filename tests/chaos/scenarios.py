"""All scenarios, in the order of the table."""

from __future__ import annotations

from typing import Final

from tests.chaos import agents, containers, full, hosts, peers, stores, upgrade
from tests.chaos.scenario import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *agents.SCENARIOS,
    *upgrade.SCENARIOS,
    *hosts.SCENARIOS,
    *containers.SCENARIOS,
    *stores.SCENARIOS,
    *peers.SCENARIOS,
    *full.SCENARIOS,
)
