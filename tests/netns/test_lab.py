"""The lab itself: it leaves nothing behind, whatever ends it."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.kernel.bpf import syscall
from tests.lab import BPFFS, Lab, leftover_paths
from tests.namespace import REPOSITORY
from tests.process import Process, run, wait_until

SCRIPT = """
import sys, time
from tests.lab import Lab
with Lab() as lab:
    a, b = lab.host("a"), lab.host("b")
    a.popen("sleep", "1000")
    a.bpffs.mkdir()
    a.run("ping", "-c1", "-W2", b.address)
    print(lab.id, flush=True)
    time.sleep(1000)
"""


IGNORING = ("sh", "-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh")
"""Runs a command as nohup and a script's `&` do: what is started ignores these signals, too."""
TEST = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
def test_one():
{textwrap.indent(SCRIPT.replace("flush=True", "flush=True, file=sys.stderr"), "    ")}
def test_two():
    print("went on", file=sys.stderr)
"""


@pytest.fixture
def started(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Process, str]]:
    """A program with a lab, up and running, and the lab's id."""
    shell: tuple[str, ...] = getattr(request, "param", ())
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = Process([*shell, sys.executable, "-c", SCRIPT], tmp_path / "lab", env=env, cwd=REPOSITORY)
    wait_until(lambda: "\n" in process.out(), 60, lambda: f"the lab is up\n{process.log()}")
    yield process, process.out().strip()
    process.stop()


def left_of(lab_id: str) -> list[str]:
    return [str(path) for path in leftover_paths() if path.name.startswith(lab_id)]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_removes_all(started: tuple[Process, str], sig: signal.Signals) -> None:
    process, lab_id = started
    assert len(left_of(lab_id)) == 5  # three namespaces, one pin directory, one of files
    process.kill(sig)
    process.wait(60)
    assert left_of(lab_id) == []


@pytest.mark.parametrize("started", [IGNORING], indirect=True, ids=["nohup"])
def test_sigterm_removes_all_where_the_shell_ignores_sigint(started: tuple[Process, str]) -> None:
    process, lab_id = started
    process.kill(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert left_of(lab_id) == []


def test_a_second_sigterm_does_not_stop_the_removing(started: tuple[Process, str]) -> None:
    """`make` passes on to its children what a whole group has been sent already."""
    process, lab_id = started

    def ended() -> bool:
        process.kill(signal.SIGTERM)
        return process.poll() is not None

    wait_until(ended, 60, "it ends", every=0.01)
    assert left_of(lab_id) == []


@pytest.mark.parametrize("shell", [(), IGNORING], ids=["foreground", "nohup"])
def test_sigterm_ends_a_run_of_tests_and_removes_what_it_made(tmp_path: Path, shell: tuple[str, ...]) -> None:
    (tmp_path / "test_lab.py").write_text(TEST)
    command = [*shell, sys.executable, "-m", "pytest", "-s", "-c", "/dev/null", "-p", "tests.ending",
               str(tmp_path / "test_lab.py")]  # fmt: skip
    process = Process(command, tmp_path / "pytest", cwd=REPOSITORY)
    wait_until(lambda: "\n" in process.log(), 60, lambda: f"the lab is up\n{process.out()}")
    process.kill(signal.SIGTERM)
    assert process.wait(60) == pytest.ExitCode.INTERRUPTED
    lab_id, *rest = process.log().splitlines()
    assert rest == [], "no test is begun after it"
    assert left_of(lab_id) == []


def test_clean_removes_what_a_killed_lab_left_and_no_other(started: tuple[Process, str]) -> None:
    with Lab() as other:
        other.host("a")
        process, lab_id = started
        pin_a_map(BPFFS / f"{lab_id}-pin")
        process.kill(signal.SIGKILL)
        assert left_of(lab_id)
        said = run([sys.executable, "-m", "tests.lab", "clean"], cwd=REPOSITORY).stdout
        assert left_of(lab_id) == []
        assert lab_id in said
        assert len(left_of(other.id)) == 3
    assert other.leftovers() == []


def pin_a_map(path: Path) -> None:
    fd = syscall.map_create("array", "pin", 4, 4, 1)
    syscall.obj_pin(fd, str(path))
    os.close(fd)


def test_direct_pair_carries_traffic() -> None:
    with Lab() as lab:
        a, b = lab.pair()
        a.run("ping", "-c1", "-W2", b.address)
        a.offload("eth0", "tx", False)
        assert "tx-checksumming: off" in a.run("ethtool", "-k", "eth0").stdout


def test_a_control_group_of_another_process_namespace_is_left_alone(tmp_path: Path) -> None:
    group = tmp_path / "ovlab-1-abcd"
    group.mkdir()
    (group / "cgroup.procs").write_text("0\n0\n")  # as the kernel shows processes that we cannot see
    code = (
        f"from pathlib import Path; from tests.lab import remove_cgroup; remove_cgroup(Path({str(group)!r}))"
    )
    process = Process([sys.executable, "-c", code], tmp_path / "clean", cwd=REPOSITORY)
    assert process.wait() == 0, process.log()
    assert group.is_dir()
