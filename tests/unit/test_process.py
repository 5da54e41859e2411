"""What tests start is not told by the shell around them which signals to ignore."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.namespace import REPOSITORY
from tests.process import run

SHELL = ("sh", "-c", "trap '' HUP INT QUIT TERM USR1; exec \"$@\"", "sh")
"""Runs a command with signals ignored, as nohup does, and a script for its background jobs."""
GLIBCS_OWN = 0b11 << 31
"""Signals 32 and 33, which only glibc can set: its posix_spawn, by which make starts us, ignores them."""
RUN = """
from tests.process import run
print(run(["grep", "SigIgn", "/proc/self/status"]).stdout)
"""
PROCESS = """
import sys
from pathlib import Path
from tests.process import Process
process = Process(["grep", "SigIgn", "/proc/self/status"], Path(sys.argv[1], "grep"))
assert process.wait() == 0
print(process.out())
"""


@pytest.mark.parametrize("program", [RUN, PROCESS], ids=["run", "Process"])
def test_what_is_started_ignores_no_signal_whatever_the_shell_ignores(tmp_path: Path, program: str) -> None:
    said = run([*SHELL, sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY).stdout
    assert int(said.split()[1], 16) & ~GLIBCS_OWN == 0


def test_a_program_that_does_not_exist_is_not_found_in_such_a_shell_either(tmp_path: Path) -> None:
    program = "from tests.process import run; run(['/nonexistent/program'])"
    done = run([*SHELL, sys.executable, "-c", program], cwd=REPOSITORY, check=False)
    assert "/nonexistent/program" in done.stderr.splitlines()[-1]
