from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ctl.core.plan import Delta, diff

tables = st.dictionaries(st.integers(0, 9), st.integers(0, 3))


def applied(actual: dict[int, int], delta: Delta[int, int]) -> dict[int, int]:
    result = dict(actual)
    for key in delta.removals:
        del result[key]
    result.update(delta.puts)
    return result


@given(tables, tables)
def test_applying_the_delta_gives_the_desired_state(desired: dict[int, int], actual: dict[int, int]) -> None:
    assert applied(actual, diff(desired, actual)) == desired


@given(tables, tables)
def test_the_delta_touches_only_what_differs(desired: dict[int, int], actual: dict[int, int]) -> None:
    delta = diff(desired, actual)
    assert len(delta) == len(desired.items() - actual.items()) + len(actual.keys() - desired.keys())


@given(tables)
def test_nothing_to_do_is_false(table: dict[int, int]) -> None:
    assert not diff(table, table)
