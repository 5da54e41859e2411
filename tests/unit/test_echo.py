"""What echoes of several sizes tell."""

from __future__ import annotations

import pytest

from ctl.kernel.echo import between, narrowed


@pytest.mark.parametrize("largest", [84, 85, 1349, 1350, 1449])
def test_the_largest_size_that_passes_is_found_in_two_rounds(largest: int) -> None:
    limits, rounds = (84, 1450), 0
    while limits[1] - limits[0] > 1:
        sizes = between(*limits)
        limits, rounds = narrowed(limits, sizes, {size for size in sizes if size <= largest}), rounds + 1
    assert (limits[0], rounds) == (largest, 2)


def test_a_size_whose_answer_was_lost_does_not_hide_a_larger_one_that_passes() -> None:
    assert narrowed((0, 50), [10, 20, 30, 40], {10, 30}) == (30, 40)
    assert narrowed((0, 50), [10, 20, 30, 40], set()) == (0, 10)
    assert narrowed((0, 50), [10, 20, 30, 40], {40}) == (40, 50)
