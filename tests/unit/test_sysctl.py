"""Kernel settings: noted before they are changed, put back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctl.core.errors import KernelError
from ctl.kernel import sysctl

WANTED = {"net/a": "1", "net/b": "1", "net/c": "1"}


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /proc/sys; `net/b` does not exist yet."""
    root = tmp_path / "proc"
    (root / "net").mkdir(parents=True)
    (root / "net" / "a").write_text("0\n")
    (root / "net" / "c").write_text("1\n")
    monkeypatch.setattr(sysctl, "_ROOT", root)
    return root / "net"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sysctls.json"


def values(proc: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in sorted(proc.iterdir())}


def test_what_comes_later_is_noted_and_set_then(proc: Path, saved: Path) -> None:
    sysctl.ensure(WANTED, saved)
    assert values(proc) == {"a": "1", "c": "1"}
    assert json.loads(saved.read_text()) == {"net/a": "0"}
    (proc / "b").write_text("5\n")
    (proc / "a").write_text("2\n")
    sysctl.ensure(WANTED, saved)
    assert values(proc) == {"a": "1", "b": "1", "c": "1"}
    assert json.loads(saved.read_text()) == {"net/a": "0", "net/b": "5"}, (
        "the first value is the one from before us"
    )


def test_some_can_be_put_back_and_the_others_later(proc: Path, saved: Path) -> None:
    (proc / "b").write_text("5\n")
    sysctl.ensure(WANTED, saved)
    assert sysctl.restore(saved, names=("net/b", "net/c")) is True
    assert sysctl.restore(saved, names=("net/b", "net/c")) is False
    assert values(proc) == {"a": "1", "b": "5", "c": "1"}
    sysctl.ensure({"net/b": "7"}, saved)
    assert json.loads(saved.read_text()) == {"net/a": "0", "net/b": "5"}
    assert sysctl.restore(saved, keep=("net/b",)) is True
    assert values(proc) == {"a": "0", "b": "7", "c": "1"}
    assert not saved.exists()


def test_what_has_gone_is_not_put_back(proc: Path, saved: Path) -> None:
    sysctl.ensure(WANTED, saved)
    (proc / "a").unlink()
    assert sysctl.restore(saved) is False
    assert not (proc / "a").exists()
    assert not saved.exists()


@pytest.mark.parametrize("text", ["", "[]", "null", '{"net/a"', "\udcff"])
def test_a_damaged_note_is_none(proc: Path, saved: Path, text: str) -> None:
    saved.parent.mkdir()
    saved.write_text(text, errors="surrogateescape")
    sysctl.ensure({"net/a": "1"}, saved)
    assert json.loads(saved.read_text()) == {"net/a": "0"}
    saved.write_text(text, errors="surrogateescape")
    assert sysctl.restore(saved) is False
    assert not saved.exists()


def test_nothing_is_changed_that_cannot_be_noted(proc: Path, saved: Path) -> None:
    saved.parent.write_text("a file where the directory should be")
    with pytest.raises(KernelError, match=r"cannot note the kernel's settings in .*sysctls.json: "):
        sysctl.ensure(WANTED, saved)
    assert values(proc) == {"a": "0", "c": "1"}


def test_what_cannot_be_set_is_refused_with_the_remedy(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(
        KernelError, match=r"^net\.a must be 1, which cannot be set here: .*sysctl -w net\.a=1"
    ):
        sysctl.check(WANTED)
    (proc / "a").write_text("1\n")
    sysctl.check(WANTED)  # what is as wanted, or not there, need not be set


def test_what_can_be_set_is_not_refused_and_not_set_yet(proc: Path) -> None:
    sysctl.check(WANTED)
    assert values(proc) == {"a": "0", "c": "1"}


def test_a_container_writes_where_it_was_given_its_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/sys itself is read-only there; what is read is the same."""
    own, given = tmp_path / "own", tmp_path / "given"
    for root in (own, given):
        (root / "net/ipv4").mkdir(parents=True)
        (root / "net/ipv4/ip_forward").write_text("0\n")
    monkeypatch.setattr(sysctl, "_ROOT", own)
    monkeypatch.setattr(sysctl, "_WRITABLE", given)
    sysctl.check(sysctl.FORWARDING)
    sysctl.ensure(sysctl.FORWARDING, tmp_path / "saved")
    assert (given / "net/ipv4/ip_forward").read_text() == "1"
    assert (own / "net/ipv4/ip_forward").read_text() == "0\n"
