"""What is pinned: only ours is removed, only what fits together is adopted, what is lost is put back."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ctl.core import abi
from ctl.core.errors import AgentUnreachable, KernelError
from ctl.core.family import IPV4, IPV6
from ctl.kernel.bpf import bpffs, syscall
from ctl.kernel.bpf.maps import (
    create_or_adopt,
    family_root,
    layout_dir,
    mismatch,
    newer_layout,
    open_maps,
    pinned_seed,
    specs,
    unpin_all,
    unpin_older_layouts,
)
from tests.datapath import INET6

SPECS = specs(64, 64, 64)
SPECS_IPV6 = specs(64, 64, 64, 6)


@pytest.fixture
def foreign(pins: Path) -> Iterator[int]:
    """A map of someone else's, to pin; their pins go with the test."""
    with closing(syscall.Map(syscall.map_create("hash", "foreign", 4, 4, 1))) as table:
        yield table.fd
    for parent, folders, files in os.walk(pins, topdown=False):
        for path in (Path(parent) / name for name in (*files, *folders)):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


def test_unpin_all_leaves_nothing_of_any_layout(pins: Path, foreign: int) -> None:
    create_or_adopt(pins, SPECS).close()
    for place in ("v0/maps", "v99/maps", "v99/progs-0123456789abcdef", f"v{abi.LAYOUT}/progs-feed"):
        (pins / place).mkdir(parents=True)
    syscall.obj_pin(foreign, str(pins / "v99" / "maps" / "a_map_of_that_layout"))
    syscall.obj_pin(foreign, str(pins / "v99" / "progs-0123456789abcdef" / "a_program"))
    syscall.obj_pin(foreign, str(layout_dir(pins) / "progs-feed" / "from_wire"))
    assert unpin_all(pins) is True
    assert not pins.exists()
    assert unpin_all(pins) is False


def test_what_an_earlier_version_left_is_removed_and_the_rest_stays(pins: Path, foreign: int) -> None:
    create_or_adopt(pins, SPECS).close()
    for place in ("v0/maps", "v0/progs-0123456789abcdef", "v99/maps", "theirs/maps"):
        (pins / place).mkdir(parents=True)
        syscall.obj_pin(foreign, str(pins / place / "from_wire"))
    unpin_older_layouts(pins)
    assert sorted(path.name for path in pins.iterdir()) == sorted(["theirs", f"v{abi.LAYOUT}", "v99"])
    assert mismatch(pins, SPECS) is None


def test_each_family_has_pins_of_its_own(pins: Path) -> None:
    root = family_root(pins, IPV6)
    assert (family_root(pins, IPV4), root) == (pins, pins / "ipv6")
    create_or_adopt(pins, SPECS).close()
    assert mismatch(root, SPECS_IPV6) is None, "nothing pinned yet"
    with pytest.raises(AgentUnreachable):
        open_maps(pins, IPV6)
    with create_or_adopt(root, SPECS_IPV6, IPV6) as six:
        six.write_node(INET6.node)
        assert mismatch(root, SPECS_IPV6) is None
        with open_maps(pins) as ipv4, open_maps(pins, IPV6) as ipv6:
            assert not ipv4.ids() & ipv6.ids()
            assert (ipv4.node(), ipv6.node()) == (None, INET6.node)
        assert (pinned_seed(pins), pinned_seed(root, 6)) == (0, INET6.node.flow_seed)
        assert unpin_all(root) is True
        assert not root.exists()
        assert mismatch(pins, SPECS) is None, "IPv4 stays"
        assert six.repin(root) is True


def test_where_the_pins_of_ipv4_go_those_of_ipv6_go_too(pins: Path, foreign: int) -> None:
    create_or_adopt(pins, SPECS).close()
    create_or_adopt(family_root(pins, IPV6), SPECS_IPV6, IPV6).close()
    for place in ("v0/maps", "v0/progs-feed", "v99/maps"):
        (pins / "ipv6" / place).mkdir(parents=True)
        syscall.obj_pin(foreign, str(pins / "ipv6" / place / "from_wire"))
    unpin_older_layouts(pins)
    assert sorted(path.name for path in (pins / "ipv6").iterdir()) == sorted([f"v{abi.LAYOUT}", "v99"])
    assert unpin_all(pins) is True
    assert not pins.exists()


def test_directories_of_pins_are_roots_alone_whatever_the_umask(pins: Path) -> None:
    before = os.umask(0)
    try:
        create_or_adopt(family_root(pins, IPV6), SPECS_IPV6, IPV6).close()
    finally:
        os.umask(before)
    made = [path for path in (pins / "ipv6", *(pins / "ipv6").rglob("*")) if path.is_dir()]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in made} == dict.fromkeys(
        ("ipv6", f"v{abi.LAYOUT}", "maps"), 0o700
    )


def test_a_newer_version_is_known_by_what_it_has_pinned(pins: Path, foreign: int) -> None:
    assert newer_layout(pins / "missing") is None
    create_or_adopt(pins, SPECS).close()
    for place in ("v0/maps", "v98/maps", "v99/maps", "theirs/maps"):
        (pins / place).mkdir(parents=True)
    (pins / "v97").symlink_to(pins / "theirs")
    for place in ("v0/maps", "theirs/maps"):
        syscall.obj_pin(foreign, str(pins / place / "peers"))
    assert newer_layout(pins) is None, "nothing is pinned in empty directories"
    syscall.obj_pin(foreign, str(pins / "v98" / "maps" / "peers"))
    assert newer_layout(pins) == 98
    (pins / "v99" / "progs-feed").mkdir()
    syscall.obj_pin(foreign, str(pins / "v99" / "progs-feed" / "from_wire"))
    assert newer_layout(pins) == 99


def test_unpin_all_leaves_what_is_not_ours(pins: Path, foreign: int) -> None:
    create_or_adopt(pins, SPECS).close()
    theirs = [
        pins / "their_map",
        pins / "theirs" / "maps" / "peers",
        layout_dir(pins) / "their_map",
        layout_dir(pins) / "maps" / "their_map",
        pins / "v99" / "links" / "their_map",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        syscall.obj_pin(foreign, str(path))
    (pins / "v98").symlink_to(pins / "theirs")
    assert unpin_all(pins) is True
    found = [Path(parent) / name for parent, _, files in os.walk(pins) for name in files]
    assert sorted(found) == sorted(theirs)
    assert unpin_all(pins) is False


def test_unpin_all_touches_no_other_file_system(tmp_path: Path) -> None:
    for place in (f"v{abi.LAYOUT}/maps", "v0/maps", "v0/progs-feed"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "peers").write_text("precious")
    (tmp_path / "v97").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert unpin_all(tmp_path) is False
    assert sorted(tmp_path.rglob("*")) == before
    assert unpin_all(tmp_path / "missing") is False


@pytest.mark.parametrize("lost", [["flows"], list(SPECS), None], ids=["one", "all", "directory"])
def test_programs_without_their_maps_do_not_fit(pins: Path, lost: list[str] | None) -> None:
    create_or_adopt(pins, SPECS).close()
    (layout_dir(pins) / "progs-0123456789abcdef").mkdir()
    assert mismatch(pins, SPECS) is None
    home = layout_dir(pins) / "maps"
    for name in SPECS if lost is None else lost:
        (home / name).unlink()
    if lost is None:
        home.rmdir()
    why = mismatch(pins, SPECS)
    assert why is not None
    assert why.startswith("programs without maps: ")


def test_a_pin_that_is_no_map_does_not_fit(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_or_adopt(pins, SPECS).close()

    def refuse(path: str) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(syscall, "obj_get", refuse)
    code = 22
    assert mismatch(pins, SPECS) == "peers cannot be opened: Invalid argument"
    code = 1
    with pytest.raises(KernelError, match="cannot open .*/peers: Operation not permitted"):
        mismatch(pins, SPECS)


def test_lost_pins_are_put_back(pins: Path) -> None:
    with create_or_adopt(pins, SPECS) as maps:
        assert maps.repin(pins) is False
        (layout_dir(pins) / "maps" / "peers").unlink()
        assert maps.repin(pins) is True
        unpin_all(pins)
        assert not pins.exists()
        assert maps.repin(pins) is True
        assert mismatch(pins, SPECS) is None
        with open_maps(pins) as again:
            assert again.ids() == maps.ids()
            assert len(maps.ids()) == len(SPECS)


def test_what_cannot_be_pinned_is_one_line(pins: Path) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(KernelError, match="cannot pin .*/thing: "):
        bpffs.pin_missing(pins, {"thing": null})
    os.close(null)


@pytest.mark.parametrize("call", ["obj_pin", "map_info"])
def test_maps_that_cannot_be_made_or_opened_leave_nothing_open(
    pins: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It is tried again for ever."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as failing:
        failing.setattr(syscall, call, refuse)
        with pytest.raises(KernelError, match="Cannot allocate memory"):
            create_or_adopt(pins, SPECS)
    create_or_adopt(pins, SPECS).close()
    monkeypatch.setattr(syscall, "map_info", refuse)
    with pytest.raises(KernelError, match="Cannot allocate memory"):
        open_maps(pins)
    assert mismatch(pins, SPECS) == "peers cannot be opened: Cannot allocate memory"
    assert pinned_seed(pins) == 0
    assert len(os.listdir("/proc/self/fd")) == before
