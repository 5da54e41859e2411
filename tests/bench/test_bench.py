"""The bench runs, its arithmetic is right, and its eBPF path is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.bench.__main__ import WIRE, document, run
from tests.bench.results import Series, differs, ratios, table

FAST, SLOW = Series((10.0, 11.0, 12.0), "Gb/s"), Series((5.0, 5.5, 6.0), "Gb/s")


def test_ratios_are_of_medians() -> None:
    results = {"kernel-vxlan": {"tcp_1": SLOW}, "ebpf": {"tcp_1": FAST}}
    assert ratios(results, "ebpf") == {"tcp_1": {"kernel-vxlan": 2.0}}
    assert document(results)["ratios"] == {"ebpf": {"tcp_1": {"kernel-vxlan": 2.0}}}
    assert "(2.00x)" in table(results)[2]


def test_no_difference_is_claimed_within_the_noise() -> None:
    noisy = Series((9.0, 11.0, 14.0), "Gb/s")
    assert differs(FAST, SLOW)
    assert not differs(FAST, noisy)
    assert "(=)" in table({"kernel-vxlan": {"tcp_1": noisy}, "ebpf": {"tcp_1": FAST}})[2]


def test_a_short_run_yields_every_measure() -> None:
    results = run(["ebpf", "ebpf-xdp"], rounds=1, seconds=1, setting=WIRE)
    for found in results.values():
        assert set(found) == {"tcp_1", "tcp_rr_p50", "tcp_rr_p99", "udp_rr_p50", "udp_pps_64"}
        assert all(series.median > 0 for series in found.values())
    assert "wire/ebpf-xdp" in json.loads(json.dumps(document(results, WIRE)))["paths"]


def test_an_unknown_path_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--paths", "warp"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 2
    assert "warp" in done.stderr.splitlines()[-1]
