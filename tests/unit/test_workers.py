"""What a worker is given as a whole, and in which order."""

from __future__ import annotations

from pathlib import Path

from tests.namespace import REPOSITORY
from tests.workers import APART, LONG, TOGETHER, begin, scope


def test_a_files_tests_stay_together() -> None:
    assert scope("tests/netns/test_xdp.py::test_one[a::b]") == scope("tests/netns/test_xdp.py::test_two")
    assert scope("tests/netns/test_xdp.py::test_one") != scope("tests/netns/test_tcx.py::test_one")


def test_tests_of_a_directory_that_shares_its_nodes_stay_together() -> None:
    first, second = "tests/netns/parity/test_mtu.py::test_one", "tests/netns/parity/test_xdp.py::test_two"
    assert scope(first) == scope(second)


def test_what_shares_nothing_goes_where_there_is_time() -> None:
    assert scope("tests/chaos/test_x.py::test_one[a]") != scope("tests/chaos/test_x.py::test_one[b]")


def test_long_files_are_begun_first() -> None:
    files = [Path("tests/netns/test_notify.py"), Path(LONG[1], "test_mtu.py"), Path(LONG[0])]
    assert sorted(files, key=begin) == files[::-1]


def test_all_of_it_exists() -> None:
    assert all((REPOSITORY / each).exists() for each in (*TOGETHER, *APART, *LONG))
