"""The probes ask the kernel itself, and for all that the programs use."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterable

import pytest

from ctl.kernel.bpf import probe
from ctl.kernel.bpf.probe import FEATURES, Feature
from ctl.kernel.bpf.source import PROGRAMS, XDP
from tests.namespace import REPOSITORY

CALL = 0x85
NEW = 130
"""bpf_func_id from which on helpers are younger than Linux 5.8."""
WITH_RING = {132, 133}
"""What came together with a helper that is probed for: ringbuf's submit and discard."""


DUMP = """
import sys
from ctl.kernel.bpf.compile import compiled
from ctl.kernel.bpf.source import source
unit = compiled(source())
print(*(unit.dump_func(name).hex() for name in sys.argv[1:]))
"""


def bytecode(names: Iterable[str]) -> list[bytes]:
    """What BCC makes of programs."""
    argv = ("/usr/bin/python3", "-B", "-c", DUMP, *names)
    shown = subprocess.run(argv, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [bytes.fromhex(each) for each in shown.split()]


def test_this_kernel_has_what_the_programs_need() -> None:
    assert probe.missing(probe.has) == ()
    probe.check()


@pytest.mark.parametrize(
    "feature", [Feature("helper", (9, 9), helper=9999), Feature("flag", (9, 9), flags=1 << 40)]
)
def test_what_no_kernel_has_is_missed(feature: Feature) -> None:
    assert not probe.has(feature)


def test_every_young_helper_of_the_programs_is_probed_for() -> None:
    """A program that calls a new one needs a line in FEATURES."""
    called = set()
    for code in bytecode(name for name in PROGRAMS if name != XDP):
        called |= {number for opcode, number in struct.iter_unpack("=Bxxxi", code) if opcode == CALL}
    assert {number for number in called if number >= NEW} - WITH_RING == {
        f.helper for f in FEATURES if f.helper
    }
