"""The probes ask the kernel itself, and for all that the programs use."""

from __future__ import annotations

import base64
import struct

import pytest

from ctl.kernel.bpf import probe
from ctl.kernel.bpf.probe import FEATURES, Feature
from ctl.kernel.bpf.source import PROGRAMS, XDP
from tests.datapath import objects

CALL = 0x85
NEW = 130
"""bpf_func_id from which on helpers are younger than Linux 5.8."""
WITH_RING = {132, 133}
"""What came together with a helper that is probed for: ringbuf's submit and discard."""


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
    for name in PROGRAMS:
        if name == XDP:
            continue
        code = base64.b64decode(objects()[name]["insns"])
        called |= {number for opcode, number in struct.iter_unpack("=Bxxxi", code) if opcode == CALL}
    assert {number for number in called if number >= NEW} - WITH_RING == {
        f.helper for f in FEATURES if f.helper
    }
