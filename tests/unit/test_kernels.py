"""Which kernels `make kernels` takes, and what it makes of what they say."""

from __future__ import annotations

from tests.kernels import Outcome, follow, newest, table

PARTS = ("smoke tc", "bpf ring")
APT = """\
linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-56-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-57-amd64-unsigned - Linux 6.1 for 64-bit PCs
linux-image-6.1.0-58-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.12.100+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.12+bpo-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.117+deb12-rt-amd64 - Linux 6.12 for 64-bit PCs (signed), PREEMPT_RT
linux-image-6.12-amd64 - Linux for 64-bit PCs (meta-package)
"""


def test_the_newest_plain_kernel_of_a_series_is_taken() -> None:
    assert newest(APT, "6.1") == "linux-image-6.1.0-56-amd64"
    assert newest(APT, "6.12") == "linux-image-6.12.100+deb12-amd64"
    assert newest(APT, "5.10") is None


def test_only_a_kernel_on_which_all_parts_ended_well_is_good() -> None:
    outcome = Outcome("6.1.0-56-amd64")
    follow(outcome, "[  3.1] something of the kernel's")
    follow(outcome, "kernels: smoke tc: ok, 1 passed, 0 failed, 80 s")
    assert not outcome.good(PARTS), "the other part never ended"
    follow(outcome, "kernels: bpf ring: FAILED, 7 passed, 1 failed, 80 s")
    assert not outcome.good(PARTS)
    follow(outcome, "kernels: bpf ring: ok, 8 passed, 0 failed, 80 s")
    assert outcome.good(PARTS)
    assert not Outcome("5.10", error="not among apt's packages").good(PARTS)


def test_the_table_names_what_was_not_tried() -> None:
    tried = Outcome("6.1.0-56-amd64", {"smoke tc": "ok, 1 passed, 0 failed, 80 s"})
    lines = table([tried, Outcome("5.10", error="not among apt's packages")], PARTS).splitlines()
    assert lines[0].split() == ["kernel", "smoke", "tc", "bpf", "ring"]
    assert lines[1].startswith("6.1.0-56-amd64  ok, 1 passed, 0 failed, 80 s")
    assert lines[1].endswith("did not end")
    assert lines[2].split("  ")[0] == "5.10"
    assert lines[2].endswith("not among apt's packages")
