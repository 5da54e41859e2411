"""From C text to pinned programs, and what is said when that fails."""

from __future__ import annotations

import errno
import gc
import importlib.util
import itertools
import logging
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType

import pytest

from ctl.core.errors import KernelError
from ctl.core.family import IPV6
from ctl.kernel.bpf import child, compile, loader, syscall
from ctl.kernel.bpf.child import Bcc
from ctl.kernel.bpf.loader import Programs, compile_ahead, drop_others, hand_over, load
from ctl.kernel.bpf.maps import Maps, create_or_adopt, family_root, layout_dir, specs, unpin_all
from ctl.kernel.bpf.source import PROGRAMS, XDP, XDP_FRAGS, digest, source
from tests.datapath import INET6, Datapath, sent
from tests.lab import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def maps(pins: Path) -> Iterator[Maps[IPv4Address]]:
    with create_or_adopt(pins, specs(4, 4, 64)) as opened:
        yield opened


class Kept(Bcc):
    """A child for several loads."""

    def close(self) -> None:
        pass

    def end(self) -> None:
        super().close()


@contextmanager
def kept(text: str) -> Iterator[Kept]:
    made = Kept(text, patience_s=3600)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def bcc() -> Iterator[Bcc]:
    """A child that has compiled the datapath once for all tests."""
    with kept(source()) as made:
        yield made


def ids(programs: Programs) -> dict[str, int]:
    return {name: program.id for name, program in programs.by_name.items()}


def home(pins: Path, programs: Programs) -> Path:
    return layout_dir(pins) / f"progs-{programs.digest}"


def no_compiler(*_: object) -> Bcc:
    raise AssertionError("compiled again")


def test_programs_are_pinned_and_run(pins: Path, maps: Maps[IPv4Address], bcc: Bcc) -> None:
    programs = load(maps, pins, bcc)
    try:
        assert tuple(programs.by_name) == PROGRAMS
        assert {pin.name for pin in home(pins, programs).iterdir()} == set(PROGRAMS)
        for name, program in programs.by_name.items():
            assert syscall.prog_info(program.fd).name == name[:15]
            syscall.prog_test_run(program.fd, sent())
        assert {hook.label for hook, _ in maps.counters()} == set(PROGRAMS)
    finally:
        programs.close()


def test_the_programs_for_ipv6_are_pinned_beside_those_for_ipv4(
    pins: Path, maps: Maps[IPv4Address], bcc: Bcc, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = family_root(pins, IPV6)
    with (
        create_or_adopt(root, specs(4, 4, 64, 6), IPV6) as maps6,
        closing(load(maps, pins, bcc)) as ipv4,
        kept(source(6)) as ahead,
        closing(load(maps6, root, ahead)) as first,
    ):
        assert home(root, first) != home(pins, first)
        assert first.digest != ipv4.digest
        for program in first.by_name.values():
            assert syscall.prog_info(program.fd).map_ids <= maps6.ids()
        monkeypatch.setattr(loader, "Bcc", no_compiler)
        assert compile_ahead(root, 6) is None
        with closing(load(maps6, root)) as second:
            assert ids(second) == ids(first)
        assert hand_over(maps, first.by_name) == "", "those for XDP go together"
        assert {hook.label: ident for hook, ident in maps.handed_over().items()} == ids(first)
        drop_others(root, "")
        assert home(pins, ipv4).exists()
        assert not home(root, first).exists()


def test_a_verifier_takes_the_programs_for_ipv6_too() -> None:
    with Datapath(cast=INET6) as datapath:
        for name in (*PROGRAMS, XDP_FRAGS):
            assert datapath.fd(name)


def test_a_restart_compiles_and_loads_nothing(
    pins: Path, maps: Maps[IPv4Address], bcc: Bcc, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(maps, pins, bcc)
    with monkeypatch.context() as bare:
        bare.setattr(loader, "Bcc", no_compiler)
        assert compile_ahead(pins) is None
        second = load(maps, pins)
    assert ids(second) == ids(first)
    assert second.digest == first.digest
    (home(pins, first) / "from_wire").unlink()
    third = load(maps, pins, bcc)
    assert not set(ids(third).values()) & set(ids(first).values()), "a half-filled directory is made anew"
    assert {pin.name for pin in home(pins, third).iterdir()} == set(PROGRAMS)
    for programs in (first, second, third):
        programs.close()


def test_the_compiler_can_start_before_its_work_is_needed(
    pins: Path, maps: Maps[IPv4Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = compile_ahead(pins)
    assert ahead is not None
    monkeypatch.setattr(loader, "Bcc", no_compiler)
    programs = load(maps, pins, ahead)
    assert set(programs.by_name) == set(PROGRAMS)
    programs.close()


def test_a_child_that_nobody_needed_for_long_ends_and_another_takes_its_place(
    pins: Path, maps: Maps[IPv4Address], bcc: Bcc, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bcc("int nothing(void) { return 0; }", patience_s=0.01) as ahead:
        wait_until(ahead.gave_up, 60, "the child has ended")
        monkeypatch.setattr(loader, "Bcc", lambda _: bcc)
        load(maps, pins, ahead).close()


def test_a_compiler_that_does_not_start_ahead_is_told_of_by_loading(
    maps: Maps[IPv4Address], pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_PYTHON", "/usr/bin/no-such-python")
    ahead = compile_ahead(pins)
    assert ahead is None
    with pytest.raises(KernelError, match="no-such-python is missing: install python3 and python3-bpfcc"):
        load(maps, pins, ahead)


def test_programs_of_other_maps_are_not_adopted(pins: Path, maps: Maps[IPv4Address], bcc: Bcc) -> None:
    first = load(maps, pins, bcc)
    used = syscall.prog_info(first.by_name["from_wire"].fd).map_ids
    assert used
    assert used <= maps.ids()
    for pin in (layout_dir(pins) / "maps").iterdir():
        pin.unlink()
    with create_or_adopt(pins, specs(4, 4, 64)) as others:
        second = load(others, pins, bcc)
        for program in second.by_name.values():
            assert syscall.prog_info(program.fd).map_ids <= others.ids()
        assert not set(ids(second).values()) & set(ids(first).values())
        second.close()
    first.close()


def test_lost_pins_of_programs_are_put_back(pins: Path, maps: Maps[IPv4Address], bcc: Bcc) -> None:
    first = load(maps, pins, bcc)
    assert first.repin(pins) is False
    (home(pins, first) / "to_overlay").unlink()
    assert first.repin(pins) is True
    unpin_all(pins)
    assert (first.repin(pins), maps.repin(pins)) == (True, True)
    second = load(maps, pins, bcc)
    assert ids(second) == ids(first)
    first.close()
    second.close()


def test_only_programs_of_this_build_stay_pinned(pins: Path, maps: Maps[IPv4Address], bcc: Bcc) -> None:
    programs = load(maps, pins, bcc)
    old = layout_dir(pins) / "progs-0123456789abcdef"
    old.mkdir()
    syscall.obj_pin(programs.by_name["from_wire"].fd, str(old / "from_wire"))
    drop_others(pins, programs.digest)
    assert not old.exists()
    assert home(pins, programs).exists()
    programs.close()


def test_a_compiler_that_hangs_is_one_line(maps: Maps[IPv4Address], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_TIMEOUT_S", 0.001)
    with (
        Bcc(source()) as hanging,
        pytest.raises(KernelError, match="compiling the datapath took more than 0.001 s"),
    ):
        hanging.load(PROGRAMS, maps)


def test_a_package_bcc_beside_ours_is_not_taken_for_bcc(
    maps: Maps[IPv4Address], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI has one, of crystal lattices."""
    for name in ("ctl", "bpf"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bcc.py").write_text("LATTICE = 'body-centred cubic'\n")
    spec = importlib.util.spec_from_file_location(
        "ctl", ROOT / "ctl/__init__.py", submodule_search_locations=[str(tmp_path / "ctl")]
    )
    monkeypatch.setattr(child, "find_spec", lambda _: spec)
    with Bcc(source()) as made:
        os.close(made.load(("from_wire",), maps)["from_wire"])


def test_another_bcc_in_the_systems_own_place_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ModuleType("bcc")
    other.__file__ = "/usr/local/lib/python3/dist-packages/bcc.py"
    monkeypatch.setitem(sys.modules, "bcc", other)
    with pytest.raises(SystemExit):
        compile.compiled(source())
    assert capsys.readouterr().err == (
        "/usr/local/lib/python3/dist-packages/bcc.py is not BCC's: remove it, and install python3-bpfcc\n"
    )


def test_a_child_whose_result_nobody_asks_for_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe takes 64 KB, and then holds up who writes."""
    script, ended = tmp_path / "child", tmp_path / "ended"
    script.write_text(f"#!/bin/sh\nhead -c 1000000 /dev/zero\nhead -c 1000000 /dev/zero >&2\ntouch {ended}\n")
    script.chmod(0o755)
    monkeypatch.setattr(child, "_PYTHON", str(script))
    with Bcc(source()):
        wait_until(ended.exists, 60, "the child ends")


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
        ("flow.h", "static __always_inline enum reason approve_flow("),
        ("ecn.h", "static __always_inline __u8 ecn_encapsulate("),
        ("decap.h", "static __always_inline enum reason wire_to_container("),
        ("overlay.c", "int to_container("),
    ],
)
def test_a_syntax_error_is_named_by_file_and_line(
    maps: Maps[IPv4Address], file: str, needle: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, number = broken_at(file, needle)
    with Bcc(text) as broken, caplog.at_level(logging.ERROR), pytest.raises(KernelError) as caught:
        broken.load(PROGRAMS, maps)
    assert str(caught.value).startswith("compiling the datapath failed: ")
    assert "\n" not in str(caught.value)
    assert f"bpf/{file}:{number}:" in caplog.text


def test_every_line_of_the_text_knows_where_it_is_from() -> None:
    place, number = "", 0
    family, *lines = source(6).splitlines()
    assert family == "#define FAMILY 6"
    for line in lines:
        if line.startswith("#line "):
            _, count, name = line.split()
            place, number = name.strip('"'), int(count)
            continue
        original = (ROOT / place).read_text().splitlines()[number - 1]
        # An include of what is there already leaves an empty line.
        assert line == ("" if original.startswith('#include "') else original)
        number += 1


def refused_at(*names: str, how: str) -> str:
    """The datapath, with functions that no verifier takes."""
    text = source()
    for name in names:
        head, found, rest = text.partition(f"int {name}(struct ")
        assert found
        argument, body = rest.split("{", 1)
        text = f'{head}{found}{argument}{{\n#line 1 "refused"\n{how}{body}'
    return text


WILD = "if (skb->len) return *(int *)(long)skb->len;"
WILD_XDP = "if (xdp->data) return *(int *)(long)xdp->ingress_ifindex;"
TOO_LARGE = """
for (int i = 0; i < 1000000; i++) {
	asm volatile("" ::: "memory");
}
"""


def test_the_verifiers_words_are_shown_and_no_program_is_kept(
    pins: Path, maps: Maps[IPv4Address], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        nothing_left_open(),
        Bcc(refused_at("from_wire", how=WILD)) as wild,
        caplog.at_level(logging.ERROR),
        pytest.raises(KernelError) as caught,
    ):
        load(maps, pins, wild)
    assert str(caught.value) == "the kernel refused program from_wire: Permission denied; its log is above"
    assert "invalid mem access" in caplog.text
    assert not list(layout_dir(pins).glob("progs-*")), "none is pinned"


def test_a_kernel_that_refuses_xdp_loses_only_that(
    pins: Path, maps: Maps[IPv4Address], bcc: Bcc, caplog: pytest.LogCaptureFixture
) -> None:
    with kept(refused_at(XDP, XDP_FRAGS, how=WILD_XDP)) as old_verifier:
        first = load(maps, pins, old_verifier)
        again = load(maps, pins, old_verifier)
    assert set(first.by_name) == set(PROGRAMS) - {XDP}
    assert first.xdp_refused == (
        "the kernel refused program from_wire_xdp: Permission denied (R1 invalid mem access 'scalar')"
    )
    assert (ids(again), again.xdp_refused) == (ids(first), first.xdp_refused), "adopted all the same"
    assert not caplog.records, "who asked for it is told, by the hook"
    later = load(maps, pins, bcc)
    assert later.xdp_refused == ""
    assert ids(later).items() > ids(first).items(), "XDP is added to what runs"
    assert ids(load(maps, pins)) == ids(later)


def test_of_a_program_too_large_for_the_verifier_its_words_are_told(maps: Maps[IPv4Address]) -> None:
    """BCC prints a sentence of its own, without them."""
    with Bcc(refused_at(XDP, how=TOO_LARGE)) as large, pytest.raises(syscall.VerifierError) as caught:
        large.load((XDP,), maps)
    assert caught.value.strerror == "Argument list too long"
    assert "BPF program is too large. Processed 1000001 insn" in caught.value.log


def test_before_linux_5_18_xdp_is_loaded_without_frags(pins: Path, maps: Maps[IPv4Address]) -> None:
    with kept(refused_at(XDP_FRAGS, how=WILD_XDP)) as old_kernel:
        programs = load(maps, pins, old_kernel)
    assert (set(programs.by_name), programs.xdp_refused) == (set(PROGRAMS), "")
    programs.close()


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


@pytest.mark.parametrize(("call", "nth"), [("prog_info", 2), ("obj_pin", 1), ("obj_pin", 5)])
def test_a_load_that_fails_leaves_nothing_open(
    pins: Path, maps: Maps[IPv4Address], bcc: Bcc, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    with nothing_left_open(), monkeypatch.context() as failing:
        fail_at(failing, call, nth)
        with pytest.raises(KernelError, match="Cannot allocate memory"):
            load(maps, pins, bcc)
    load(maps, pins, bcc).close()


def test_programs_that_no_descriptor_is_left_for_are_one_line_and_let_go(
    maps: Maps[IPv4Address], bcc: Bcc
) -> None:
    """The kernel hands over as many as there is room for, and says nothing of the others."""
    before = os.listdir("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(KernelError, match="no file descriptors left for the programs"):
            bcc.load(("from_wire", "to_container"), maps)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_adopted_programs_are_let_go_if_the_one_for_xdp_cannot_be_compiled(
    pins: Path, maps: Maps[IPv4Address], bcc: Bcc, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(maps, pins, bcc)
    (home(pins, first) / XDP).unlink()
    monkeypatch.setattr(child, "_PYTHON", "/usr/bin/no-such-python")
    with nothing_left_open(), pytest.raises(KernelError, match="no-such-python is missing"):
        load(maps, pins)
    first.close()


@pytest.mark.parametrize("nth", [1, len(PROGRAMS)])
def test_what_cannot_be_adopted_is_let_go(
    pins: Path, maps: Maps[IPv4Address], bcc: Bcc, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    load(maps, pins, bcc).close()
    with nothing_left_open():
        with monkeypatch.context() as failing:
            fail_at(failing, "prog_info", nth)
            second = load(maps, pins, bcc)
        assert set(second.by_name) == set(PROGRAMS)
        second.close()
