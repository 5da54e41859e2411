"""Each scenario once, shortly: nothing is lost that may not be lost, and the operator sees what he should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from tests.chaos.course import broken_promises, run_course
from tests.chaos.document import key
from tests.chaos.full import small
from tests.chaos.peers import with_room
from tests.chaos.scenario import Scenario
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.site import dual_pair, pair
from tests.lab import Lab

BY_HAND: Final = {
    "Upgrade: other map layout": "tests/netns/test_downgrade.py goes there and back",
    "Upgrade: downgrade": "tests/netns/test_downgrade.py is it, with more to see",
    "Host: XDP removed": "a site of its own; tests/netns/test_xdp.py has it",
    "Containers: hundreds": "as 'a hundred containers', only longer",
    "Containers: docker restarted": "dockerd itself lost its container, once of 20 times on a busy machine",
    "Store: etcd cut off": "half a minute of waiting for a silence to be noticed",
    "Store: etcd slow": "half a minute of waiting for slow replies",
    "Store: etcd compacted": "half a minute of waiting for a silence to be noticed",
    "Store: lease taken": "half a minute of waiting for a silence to be noticed",
    "Peer: moved": "waits for the timeouts of connections that the old address had",
    "Peer: a thousand": "a minute of work",
}
"""Not in CI, and why."""

COURSES: Final = {
    "agent": (dual_pair, ("Agent: ", "Store: SQLite")),
    "upgrade": (pair, ("Upgrade: ",)),
    "host": (pair, ("Host: ", "Containers: while")),
    "etcd": (with_room, ("Store: etcd", "Store: clock", "Peer: ")),
    "maps": (small, ("Maps: ",)),
}
"""What shares a site: how it is built, and how the names of its scenarios begin."""


def course(name: str) -> Sequence[Scenario]:
    """The scenarios of a course, in their order."""
    _, beginnings = COURSES[name]
    return [each for each in SCENARIOS if key(each).startswith(beginnings) and key(each) not in BY_HAND]


def test_each_scenario_is_in_one_course_or_left_to_be_run_by_hand() -> None:
    names = [key(each) for name in COURSES for each in course(name)]
    assert sorted([*names, *BY_HAND]) == sorted(map(key, SCENARIOS))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", COURSES)
def test_what_happens_costs_what_is_promised(name: str) -> None:
    build, _ = COURSES[name]
    with Lab() as lab:
        assert broken_promises(run_course(build(lab), course(name))) == []
