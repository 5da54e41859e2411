"""From C text to pinned programs, and what is said when that fails."""

from __future__ import annotations

import errno
import gc
import importlib.util
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from ctl.core.errors import KernelError
from ctl.kernel.bpf import compile, loader, syscall
from ctl.kernel.bpf.loader import Programs, compile_ahead, compile_text, drop_others, load, load_program
from ctl.kernel.bpf.maps import Maps, create_or_adopt, layout_dir, specs, unpin_all
from ctl.kernel.bpf.source import PROGRAMS, XDP, digest, source
from tests.datapath import Datapath, sent
from tests.lab import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def maps(pins: Path) -> Iterator[Maps]:
    with create_or_adopt(pins, specs(4, 4, 64)) as opened:
        yield opened


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with the compiled programs in it."""
    return tmp_path_factory.mktemp("state")


def ids(programs: Programs) -> dict[str, int]:
    return {name: program.id for name, program in programs.by_name.items()}


def home(pins: Path, programs: Programs) -> Path:
    return layout_dir(pins) / f"progs-{programs.digest}"


def no_compiler(text: str, programs: object = ()) -> str:
    raise AssertionError("compiled again")


def test_programs_are_pinned_and_run(pins: Path, maps: Maps, cache: Path) -> None:
    programs = load(maps, pins, cache)
    try:
        assert tuple(programs.by_name) == PROGRAMS
        assert {pin.name for pin in home(pins, programs).iterdir()} == set(PROGRAMS)
        for name, program in programs.by_name.items():
            assert syscall.prog_info(program.fd).name == name[:15]
            syscall.prog_test_run(program.fd, sent())
        assert {hook.label for hook, _ in maps.counters()} == set(PROGRAMS)
    finally:
        programs.close()


def test_a_restart_compiles_and_loads_nothing(
    pins: Path, maps: Maps, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(maps, pins, cache)
    monkeypatch.setattr(loader, "compile_text", no_compiler)
    second = load(maps, pins, cache)
    assert ids(second) == ids(first)
    assert second.digest == first.digest
    (home(pins, first) / "from_wire").unlink()
    third = load(maps, pins, cache)
    assert not set(ids(third).values()) & set(ids(first).values()), "a half-filled directory is made anew"
    assert {pin.name for pin in home(pins, third).iterdir()} == set(PROGRAMS)
    for programs in (first, second, third):
        programs.close()


def test_the_compiler_can_start_before_its_work_is_needed(
    pins: Path, maps: Maps, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compile_ahead(pins, cache) is None, "compiled already"
    ahead = compile_ahead(tmp_path / "no-pins", tmp_path)
    assert ahead is not None
    monkeypatch.setattr(loader, "compile_text", no_compiler)
    drop_others(pins, "")
    programs = load(maps, pins, tmp_path, ahead)
    assert set(programs.by_name) == set(PROGRAMS)
    programs.close()


def test_a_compiler_that_does_not_start_ahead_is_told_of_by_loading(
    maps: Maps, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_COMPILER", "/usr/bin/no-such-python")
    drop_others(pins, "")
    ahead = compile_ahead(pins, tmp_path)
    assert ahead is None
    with pytest.raises(KernelError, match="no-such-python is missing"):
        load(maps, pins, tmp_path, ahead)


@pytest.mark.parametrize("which", ["{}", "null", "", "half", "changed"])
def test_a_damaged_cache_is_compiled_anew(
    pins: Path, maps: Maps, cache: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(maps, pins, cache).close()
    (file,) = cache.glob("programs-*.json")
    whole = file.read_text()
    # Compiling is another test's; here it is only that it is asked for.
    monkeypatch.setattr(loader, "compile_text", lambda _: whole.partition("\n")[2])
    file.write_text(
        {"half": whole[: len(whole) // 2], "changed": whole.replace("A", "B", 1)}.get(which, which)
    )
    (cache / "programs-ofanearlierbuild.json").write_text("{}")
    drop_others(pins, "nothing")
    load(maps, pins, cache).close()
    assert [path.name for path in cache.iterdir()] == [file.name]
    assert file.read_text() == whole


def test_without_room_for_the_cache_it_works_all_the_same(
    pins: Path,
    maps: Maps,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    load(maps, pins, cache).close()
    (file,) = cache.glob("programs-*.json")
    monkeypatch.setattr(loader, "compile_text", lambda _: file.read_text().partition("\n")[2])
    drop_others(pins, "nothing")
    (tmp_path / "state").write_text("a file where the directory should be")
    load(maps, pins, tmp_path / "state").close()
    assert "cannot keep the compiled programs" in caplog.text


def test_programs_of_other_maps_are_not_adopted(pins: Path, maps: Maps, cache: Path) -> None:
    first = load(maps, pins, cache)
    used = syscall.prog_info(first.by_name["from_wire"].fd).map_ids
    assert used
    assert used <= maps.ids()
    for pin in (layout_dir(pins) / "maps").iterdir():
        pin.unlink()
    with create_or_adopt(pins, specs(4, 4, 64)) as others:
        second = load(others, pins, cache)
        for program in second.by_name.values():
            assert syscall.prog_info(program.fd).map_ids <= others.ids()
        assert not set(ids(second).values()) & set(ids(first).values())
        second.close()
    first.close()


def test_lost_pins_of_programs_are_put_back(pins: Path, maps: Maps, cache: Path) -> None:
    first = load(maps, pins, cache)
    assert first.repin(pins) is False
    (home(pins, first) / "to_overlay").unlink()
    assert first.repin(pins) is True
    unpin_all(pins)
    assert (first.repin(pins), maps.repin(pins)) == (True, True)
    second = load(maps, pins, cache)
    assert ids(second) == ids(first)
    first.close()
    second.close()


def test_only_programs_of_this_build_stay_pinned(pins: Path, maps: Maps, cache: Path) -> None:
    programs = load(maps, pins, cache)
    old = layout_dir(pins) / "progs-0123456789abcdef"
    old.mkdir()
    syscall.obj_pin(programs.by_name["from_wire"].fd, str(old / "from_wire"))
    drop_others(pins, programs.digest)
    assert not old.exists()
    assert home(pins, programs).exists()
    programs.close()


def test_a_compiler_that_hangs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_TIMEOUT_S", 0)
    with pytest.raises(KernelError, match="compiling the datapath took more than 0 s"):
        compile_text(source())


def test_a_package_bcc_beside_ours_is_not_taken_for_bcc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI has one, of crystal lattices."""
    for name in ("ctl", "bpf"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bcc.py").write_text("LATTICE = 'body-centred cubic'\n")
    spec = importlib.util.spec_from_file_location(
        "ctl", ROOT / "ctl/__init__.py", submodule_search_locations=[str(tmp_path / "ctl")]
    )
    monkeypatch.setattr(loader, "find_spec", lambda _: spec)
    compile_text(source())


def test_another_bcc_in_the_systems_own_place_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("bcc")
    other.__file__ = "/usr/local/lib/python3/dist-packages/bcc.py"
    monkeypatch.setitem(sys.modules, "bcc", other)
    with pytest.raises(SystemExit, match=r"^/usr/local/.*bcc.py is another `bcc` .* python3-bpfcc$"):
        compile.compile_text(source(), PROGRAMS)


def test_a_child_whose_result_nobody_asks_for_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe takes 64 KB, and then holds up who writes."""
    child, ended = tmp_path / "child", tmp_path / "ended"
    child.write_text(f"#!/bin/sh\nhead -c 1000000 /dev/zero\nhead -c 1000000 /dev/zero >&2\ntouch {ended}\n")
    child.chmod(0o755)
    monkeypatch.setattr(loader, "_COMPILER", str(child))
    nobody_reads = loader.Compiler(source())
    wait_until(ended.exists, 60, "the child ends")
    assert len(nobody_reads.result()) == 1_000_000


def test_the_digest_names_text_and_compiler() -> None:
    assert len({digest("a", "x"), digest("b", "x"), digest("a", "y")}) == 3
    assert digest("a", "x") == digest("a", "x")


def broken_at(file: str, needle: str) -> tuple[str, int]:
    """The datapath's text with a syntax error before `needle`, and its line in bpf/`file`."""
    lines = (ROOT / "bpf" / file).read_text().splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if needle in line)
    return source().replace(needle, f"@{needle}", 1), number


@pytest.mark.parametrize(
    ("file", "needle"),
    [
        ("abi.h", "struct peer_stats {"),
        ("flow.h", "static __always_inline void forget_flow("),
        ("ecn.h", "static __always_inline __u8 ecn_encapsulate("),
        ("decap.h", "static __always_inline enum reason wire_to_container("),
        ("overlay.c", "int to_container("),
    ],
)
def test_a_syntax_error_is_named_by_file_and_line(
    file: str, needle: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, number = broken_at(file, needle)
    with caplog.at_level(logging.ERROR), pytest.raises(KernelError) as caught:
        compile_text(text)
    assert str(caught.value).startswith("compiling the datapath failed: ")
    assert "\n" not in str(caught.value)
    assert f"bpf/{file}:{number}:" in caplog.text


def test_every_line_of_the_text_knows_where_it_is_from() -> None:
    place, number = "", 0
    for line in source().splitlines():
        if line.startswith("#line "):
            _, count, name = line.split()
            place, number = name.strip('"'), int(count)
            continue
        original = (ROOT / place).read_text().splitlines()[number - 1]
        # An include of what is there already leaves an empty line.
        assert line == ("" if original.startswith('#include "') else original)
        number += 1


def test_the_verifiers_words_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    text = source() + "\nint wild(struct __sk_buff *skb) { return *(int *)(long)skb->len; }\n"
    program = json.loads(compile_text(text, ("wild",)))["programs"]["wild"]
    with Datapath() as datapath, caplog.at_level(logging.ERROR), pytest.raises(KernelError) as caught:
        load_program("wild", program, datapath.maps)
    assert str(caught.value) == "the kernel refused program wild: Permission denied; its log is above"
    assert "invalid mem access" in caplog.text


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_COMPILER", "/usr/bin/no-such-python")
    with pytest.raises(KernelError, match=r"no-such-python is missing: install python3 and python3-bpfcc"):
        compile_text(source())


def refusing(monkeypatch: pytest.MonkeyPatch, refuses: Callable[[int, int], bool]) -> None:
    """A kernel that refuses some programs, by type and flags."""
    load_ = syscall.prog_load

    def prog_load(insns: bytes, name: str, kind: int = syscall.PROG_TYPE_SCHED_CLS, flags: int = 0) -> int:
        if refuses(kind, flags):
            error = syscall.VerifierError(22, "Invalid argument")
            error.log = "0: (b7) r0 = 0\nBPF program is too large\nprocessed 1 insns\n"
            raise error
        return load_(insns, name, kind, flags)

    monkeypatch.setattr(syscall, "prog_load", prog_load)


def test_a_kernel_that_refuses_xdp_loses_only_that(
    pins: Path, maps: Maps, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as old_verifier:
        refusing(old_verifier, lambda kind, flags: kind == syscall.PROG_TYPE_XDP)
        first = load(maps, pins, cache)
        again = load(maps, pins, cache)
    assert set(first.by_name) == set(PROGRAMS) - {XDP}
    assert first.xdp_refused == (
        "the kernel refused program from_wire_xdp: Invalid argument (BPF program is too large)"
    )
    assert (ids(again), again.xdp_refused) == (ids(first), first.xdp_refused), "adopted all the same"
    assert not caplog.records, "who asked for it is told, by the hook"
    later = load(maps, pins, cache)
    assert later.xdp_refused == ""
    assert ids(later).items() > ids(first).items(), "XDP is added to what runs"
    assert ids(load(maps, pins, cache)) == ids(later)


def test_before_linux_5_18_xdp_is_loaded_without_frags(
    pins: Path, maps: Maps, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, lambda kind, flags: flags != 0)
    programs = load(maps, pins, cache)
    assert (set(programs.by_name), programs.xdp_refused) == (set(PROGRAMS), "")


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Fails unless as many descriptors are open after the block as before it."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, nth: int) -> None:
    """A kernel that does all but the `nth` of the calls of one kind."""
    does, count = getattr(syscall, call), itertools.count(1)

    def call_(*args: object) -> object:
        if next(count) == nth:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return does(*args)

    monkeypatch.setattr(syscall, call, call_)


CALLS = [("prog_load", 3), ("prog_info", 2), ("obj_pin", 1), ("obj_pin", 5)]


@pytest.mark.parametrize(("call", "nth"), CALLS)
def test_a_load_that_fails_leaves_nothing_open(
    pins: Path, maps: Maps, cache: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    load(maps, pins, cache).close()
    drop_others(pins, "nothing")
    with nothing_left_open(), monkeypatch.context() as failing:
        fail_at(failing, call, nth)
        with pytest.raises(KernelError, match="Cannot allocate memory"):
            load(maps, pins, cache)
    load(maps, pins, cache).close()


def test_adopted_programs_are_let_go_if_the_one_for_xdp_cannot_be_compiled(
    pins: Path, maps: Maps, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(maps, pins, cache)
    (home(pins, first) / XDP).unlink()
    monkeypatch.setattr(loader, "_COMPILER", "/usr/bin/no-such-python")
    with nothing_left_open(), pytest.raises(KernelError, match="no-such-python is missing"):
        load(maps, pins, tmp_path)
    first.close()


@pytest.mark.parametrize("nth", [1, len(PROGRAMS)])
def test_what_cannot_be_adopted_is_let_go(
    pins: Path, maps: Maps, cache: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    load(maps, pins, cache).close()
    with nothing_left_open():
        with monkeypatch.context() as failing:
            fail_at(failing, "prog_info", nth)
            second = load(maps, pins, cache)
        assert set(second.by_name) == set(PROGRAMS)
        second.close()
