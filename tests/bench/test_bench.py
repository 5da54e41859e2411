"""The bench runs, and what it makes of its numbers is right."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import astuple
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ctl.kernel.bpf import syscall
from tests import packets
from tests.bench import document, inject, machine, node, programs, rigs
from tests.bench.__main__ import Plan, Side, main, measure, persist, side
from tests.bench.__main__ import document as results_file
from tests.bench.inject import Spread
from tests.bench.measures import (
    RUNS,
    Conditions,
    Measure,
    count,
    percentiles,
    received_rate,
    round_trip,
    tcp_crr,
)
from tests.bench.paths import PATHS, SERVED, SERVICE, Ports, direct, routed, service
from tests.bench.paths import Path as Way
from tests.bench.placement import Placement
from tests.bench.progress import bar
from tests.bench.results import (
    BASES,
    SETTINGS,
    WIRE,
    Collected,
    Series,
    as_json,
    differs,
    from_json,
    ratio,
    ratios,
    table,
)
from tests.bench.targets import TARGETS, WHILE_HALTING, Target, judge
from tests.datapath import MAC, PEER_MAC
from tests.lab import PREFIX, CommandFailed, Lab, leftover_paths
from tests.namespace import REPOSITORY
from tests.process import Process, wait_until

FAST, SLOW = Series((10.0, 11.0, 12.0), "Gb/s"), Series((5.0, 5.5, 6.0), "Gb/s")
NOISY = Series((9.0, 11.0, 14.0), "Gb/s")
CONTRACT = {"tcp_1", "tcp_4", "tcp_rr_p50", "tcp_rr_p99", "udp_rr_p50", "tcp_crr", "udp_pps_64", "cpu_per_gb",
            "svc_tcp_1", "svc_tcp_rr_p50", "svc_tcp_crr", "svc_udp_pps_64",
            "host_tcp_1", "host_tcp_rr_p50"}  # fmt: skip
FACTS = {
    "machine": {"kernel": "6.18", "cpus": 2, "cpu": "some", "congestion_control": "bbr",
                "idle_driver": "haltpoll"},
    "date": "2026-01-01", "quick": False, "family": 4, "rounds": 3, "seconds": 1,
    "busy": {"cpus": 0.0, "limit": 0.1, "busy": False},
}  # fmt: skip


def nobody(what: str) -> None:
    """No progress is shown."""


@pytest.fixture
def sample() -> dict[str, object]:
    """A results file of two paths."""
    results = {"kernel-vxlan": {"tcp_1": SLOW, "tcp_4": NOISY}, "ebpf": {"tcp_1": FAST, "tcp_4": FAST}}
    sides = {"offloads-on": Side(results, {"tx-checksumming": True}, [0.0])}
    crowd = {"100": {"tcp_1": FAST, "encap_random": SLOW}, "100000": {"tcp_1": SLOW, "encap_random": FAST}}
    made: dict[str, object] = json.loads(json.dumps(results_file(sides, {"peers": crowd}, FACTS)))
    return made


def test_a_ratio_is_of_what_was_measured_in_one_round() -> None:
    """Here the machine was slow in the second of three: nothing that one side is to blame for."""
    one, other = Series((20.0, 11.0, 22.0), "Gb/s"), Series((10.0, 5.0, 10.5), "Gb/s")
    assert ratio(one, other).values == (2.0, 2.2, 22 / 10.5)
    assert differs(one, other)
    assert ratio(one, Series((10.0, 5.0), "Gb/s")).values == (20 / 7.5,)


def test_ratios_are_in_the_file(sample: dict[str, object]) -> None:
    results = {"kernel-vxlan": {"tcp_1": SLOW}, "ebpf": {"tcp_1": FAST}}
    assert ratios(results, "ebpf") == {"tcp_1": {"kernel-vxlan": 2.0}}
    assert "(2.00x)" in table(results)[2]
    assert sample["ratios"]["offloads-on/ebpf"]["tcp_1"] == {"kernel-vxlan": 2.0}  # type: ignore[index]


def test_no_difference_is_claimed_within_the_noise(sample: dict[str, object]) -> None:
    assert differs(FAST, SLOW)
    assert not differs(FAST, NOISY)
    assert "(=)" in table({"kernel-vxlan": {"tcp_1": NOISY}, "ebpf": {"tcp_1": FAST}})[2]
    assert sample["within_noise"]["offloads-on/ebpf"] == {  # type: ignore[index]
        "tcp_1": [],
        "tcp_4": ["kernel-vxlan"],
    }


def test_nothing_is_compared_with_nothing() -> None:
    """As the CPU's time of a path can be where others used the machine: the rest of the run stays."""
    results = {"kernel-vxlan": {"tcp_1": SLOW, "cpu_per_gb": Series((0.0, 0.0, 1.0), "s/GB")},
               "ebpf": {"tcp_1": FAST, "cpu_per_gb": FAST}}  # fmt: skip
    written = json.loads(json.dumps(results_file({"offloads-on": Side(results)}, {}, FACTS)))
    assert written["ratios"]["offloads-on/ebpf"] == {"tcp_1": {"kernel-vxlan": 2.0}, "cpu_per_gb": {}}
    assert table(results)[2].split()[-2:] == ["11.0", "±1.0"]
    text = document.renewed(f"{document.BEGIN}{document.END}", written)
    assert "| CPU per gigabyte | kernel-vxlan | ≤ 0.65x |  | not measured |" in text
    assert "| CPU, s/GB | 0 ± 0.577 | 11 ± 1 |" in text


def test_a_series_survives_the_file(sample: dict[str, object]) -> None:
    found = Collected()
    for value in FAST.values:
        found.add("ebpf", "tcp_1", "Gb/s", value)
    assert found.results() == {"ebpf": {"tcp_1": FAST}}
    assert from_json(json.loads(json.dumps(as_json(found.results())))) == found.results()
    assert sample["paths"]["offloads-on/ebpf"]["tcp_1"] == {  # type: ignore[index]
        "median": 11.0, "stdev": 1.0, "values": [10.0, 11.0, 12.0], "unit": "Gb/s",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bound", "at_least", "words"),
    [
        (2.0, True, "reached"),
        (2.5, True, "missed by 20 %"),
        (1.6, False, "missed by 25 %"),
        (2.0, False, "reached"),
    ],
)
def test_a_target_says_by_how_much_it_is_missed(bound: float, at_least: bool, words: str) -> None:
    target = Target("t", "x/ebpf", "tcp_1", bound, at_least, "x/kernel-vxlan")
    verdict = judge(target, {"x/ebpf": {"tcp_1": FAST}, "x/kernel-vxlan": {"tcp_1": SLOW}})
    assert (verdict.words(), verdict.shown()) == (words, "2.00x")


def test_a_target_that_was_not_measured_is_not_reached() -> None:
    target = Target("t", "x/ebpf", "tcp_1", 1.0, True, "x/routed")
    assert judge(target, {"x/ebpf": {"tcp_1": FAST}}).words() == "not measured"
    assert judge(target, {}).reached is None
    same = judge(target, {"x/ebpf": {"tcp_1": FAST}, "x/routed": {"tcp_1": NOISY}})
    assert same.shown() == "1.00x, within noise"


def test_every_target_is_of_something_that_is_measured() -> None:
    yields = {name for run in RUNS for name in run.yields} | {"inject_decap", "inject_encap"}
    assert yields >= CONTRACT
    for target in (*TARGETS, *WHILE_HALTING):
        for key in filter(None, (target.path, target.base)):
            kind, _, path = key.partition("/")
            known = {"peers": map(str, rigs.SIZES), "node": ["agent"]}.get(kind, PATHS)
            assert path in set(known)
        known_measures = yields if kind in SETTINGS else {*document.NODE, "tcp_1"}
        assert target.measure in known_measures
        of = [run.paths for run in RUNS if target.measure in run.yields]
        if kind in SETTINGS and of:
            assert {each.partition("/")[2] for each in (target.path, target.base)} <= set(of[0])
    assert set(BASES) <= set(PATHS)


def test_every_measure_has_a_row_in_the_document() -> None:
    assert {name for run in RUNS for name in run.yields} <= set(document.COLUMNS)


def test_a_run_is_of_its_paths_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Settled:
        """Whatever the CPUs do."""

        apart = 0

        def __init__(self, directory: Path) -> None: ...

        def settled(self, run: Callable[[], dict[str, float]], polling: bool) -> dict[str, float]:
            return run()

    monkeypatch.setattr("tests.bench.__main__.Placement", Settled)
    monkeypatch.setattr(machine, "background", lambda seconds: 0.0)

    def run(path: Way, how: Conditions) -> dict[str, float]:
        return {"it": 1.0}

    runs = (Measure("some", {"it": "x"}, run, ("routed", "ebpf")), Measure("all", {"it": "x"}, run))
    ways = [Way(name, None, None, "") for name in ("direct", "routed")]  # type: ignore[arg-type]
    ticks: list[str] = []
    measure(ways, 2, Conditions(1, Path("crr")), runs, ticks.append, polling=False)
    assert [tick.partition(": ")[2] for tick in ticks] == [
        "some, routed", "all, direct", "all, routed", "some, routed", "all, routed", "all, direct",
    ]  # fmt: skip
    assert len(ticks) == 2 * count(runs, ["direct", "routed"])


def test_the_document_shows_targets_tables_and_plots(sample: dict[str, object], tmp_path: Path) -> None:
    page = f"# by hand\n{document.BEGIN}what was{document.END}## also by hand\n"
    text = document.renewed(page, sample)
    assert text.startswith("# by hand\n")
    assert text.endswith("## also by hand\n")
    assert "what was" not in text
    assert "| TCP, one flow | kernel-vxlan | ≥ 1.60x | 2.00x | reached |" in text
    assert "11 ± 1 (within noise)" in text
    assert "| TCP, one flow | routed | ≥ 1.15x |  | not measured |" in text
    assert document.renewed(text, sample) == text
    files = document.draw(sample, tmp_path)
    assert {file.name for file in files} == {"performance-offloads-on.svg", "performance-peers.svg"}
    for file in files:
        assert f"({file.name})" in text
        first = file.read_text()
        document.draw(sample, tmp_path)
        assert file.read_text() == first, "the same figures give the same file"


def test_figures_of_ipv6_have_a_place_of_their_own(sample: dict[str, object]) -> None:
    page = f"{document.BEGIN}of IPv4{document.END}{document.BEGIN_IPV6}what was{document.END}by hand"
    text = document.renewed(page, {**sample, "family": 6})
    assert text.startswith(f"{document.BEGIN}of IPv4{document.END}")
    assert text.endswith("by hand")
    assert "what was" not in text
    assert "| TCP, one flow | kernel-vxlan | ≥ 1.60x | 2.00x | reached |" in text
    assert "not measured" not in text, "of IPv6 not all is"
    assert "`make bench ARGS='--family 6'`" in text


def test_the_document_has_its_marks() -> None:
    text = document.PERFORMANCE.read_text()
    for begin in (document.BEGIN, document.BEGIN_IPV6):
        assert text.count(begin) == 1
        assert document.END in text.partition(begin)[2]
    with pytest.raises(ValueError, match="no begin and end marks"):
        document.renewed("nothing", {})


def test_results_that_are_none_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = document.PERFORMANCE.read_text()
    (tmp_path / "bad.json").write_text("{}")
    assert document.main([str(tmp_path / "bad.json")]) == 2
    assert document.main([str(tmp_path / "absent.json")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("run `make bench`" in line for line in lines)
    assert document.PERFORMANCE.read_text() == before


def test_what_the_tools_print_is_read() -> None:
    printed = (
        "x: ---> percentile 99.900 =   90.5\n---> percentile 99.000 = 70.25\n---> percentile 50.000 = 55.0"
    )
    assert percentiles(printed) == {"p50": 55.0, "p99": 70.25, "p99.9": 90.5}
    tenths = [{"sum": {"start": n / 10, "seconds": 0.1, "bytes": 1e9 if n < 3 else 125e6}} for n in range(10)]
    assert received_rate({"server_output_json": {"intervals": tenths}}) == pytest.approx(10.0)
    whole = {
        "server_output_json": {"intervals": tenths[:4]},
        "end": {"sum_received": {"bits_per_second": 5e9}},
    }
    assert received_rate(whole) == 5.0
    stat = "cpu  10 20 30 4000 500 60 70 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"
    assert machine.unused(stat) == 45.08
    assert machine.Usage(5.0, 12.0).used_since(machine.Usage(1.0, 10.0), cpus=3) == 2.0


def test_the_bar() -> None:
    assert bar(0.5, 75, "x") == f"[{'#' * 15}{' ' * 15}]  50 % 1:15 left  x"
    assert bar(0, None, "x").endswith("  0 %  x")


def test_cpus_are_kept_awake_as_long_as_it_takes(tmp_path: Path) -> None:
    def wanted() -> int:
        """us, as the kernel has it from all who ask."""
        value: int = struct.unpack("=i", machine.LATENCY.read_bytes())[0]
        return value

    before = wanted()
    with pytest.raises(ZeroDivisionError), machine.awake():
        assert wanted() == 0
        raise ZeroDivisionError
    assert wanted() == before
    with machine.awake(tmp_path / "absent"):
        assert not (tmp_path / "absent").exists()


def test_the_distance_of_cpus_is_measured_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = Placement(tmp_path)
    assert placement.settled(lambda: "value", polling=False) == "value"
    assert placement.apart in (0, 1)
    places = iter([False, True, False, True, True])  # apart, moved together, parted meanwhile, fine
    taken = iter([1, 2])
    placement.together = lambda: next(places)  # type: ignore[method-assign]
    assert placement.settled(lambda: next(taken)) == 2
    assert next(places, None) is None
    before = placement.apart
    monkeypatch.setattr("tests.bench.placement.PATIENCE_S", 0)
    placement.together = lambda: False  # type: ignore[method-assign]
    assert placement.settled(iter([3, 4]).__next__) == 3, "nothing is gained by another try"
    assert placement.apart == before + 1


def test_a_missing_tool_is_named_with_its_package() -> None:
    assert machine.obstacle(lambda tool: None if tool in ("cc", "sockperf") else tool, 0) == (
        "missing: sockperf, cc; `make setup` installs them (Debian: apt-get install sockperf gcc)"
    )
    assert "not root" in (machine.obstacle(str, 1000) or "")
    assert machine.obstacle(str, 0) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--paths", "warp"],
        ["--paths", "udp", "--family", "6"],
        ["--family", "5"],
        ["--setting", "windy"],
        ["--rounds", "0"],
        ["--seconds", "1.5"],
    ],
    ids=lambda each: each[1],
)
def test_a_wrong_argument_is_refused(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 2
    assert arguments[1] in done.stderr.splitlines()[-1]


def test_results_are_written_and_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of paths that have not all the same measures, as those without injected packets."""
    results = {"udp": {"tcp_1": SLOW}, "kernel-vxlan": {"tcp_1": SLOW, "inject_decap": SLOW},
               "ebpf": {"tcp_1": FAST, "inject_decap": FAST}}  # fmt: skip
    extra = {"node": {"agent": {"rss": FAST}}, "peers": {"100": {"tcp_1": FAST, "encap_random": SLOW}},
             "programs": {"ebpf, UDP 64 bytes": {"from_wire": SLOW}}}  # fmt: skip
    monkeypatch.setattr("tests.bench.__main__._run", lambda *_: ({"offloads-on": Side(results)}, extra))
    output = tmp_path / "results.json"
    assert main(["--output", str(output)]) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "inject_decap Gb/s" in shown["path"]
    assert shown["ebpf"].count("(2.00x)") == 2
    assert shown["udp"].rstrip().endswith("(=)")
    written = json.loads(output.read_text())
    assert set(written["machine"]) >= {"kernel", "cpus", "cpu", "congestion_control"}
    text = document.renewed(f"{document.BEGIN}{document.END}", written)
    assert "| RSS of the agent | 11 ± 1 Gb/s |" in text
    assert "| RSS of the agent, MB |  | ≤ 46 | 11.00 | reached |" in text
    assert "| injected decap, packets/s | 5.5 ± 0.5 | 11 ± 1 (2.00x) |  |" in text
    assert document.draw(written, tmp_path)


def test_a_run_that_fails_is_tried_again_and_that_is_noted() -> None:
    left = [CommandFailed("sockperf: exit 1\nno answer"), None]

    def run() -> dict[str, float]:
        if error := left.pop(0):
            raise error
        return {"tcp_1": 1.0}

    assert persist(run) == ({"tcp_1": 1.0}, ["sockperf: exit 1 ... no answer"])
    left[:] = [CommandFailed(str(number)) for number in range(3)]
    with pytest.raises(CommandFailed, match="2"):
        persist(run)
    with pytest.raises(CommandFailed, match="no answers"):
        percentiles("sockperf: Test ended\n")


def test_a_failed_measurement_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CommandFailed("ip link add: exit 2\nmuch\n  no veth today\n")

    monkeypatch.setattr("tests.bench.__main__.side", fail)
    output = tmp_path / "results.json"
    assert main(["--paths", "direct", "--output", str(output)]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "bench: a measurement failed: ip link add: exit 2 ... no veth today"
    )
    assert not output.exists()


def test_an_interrupt_removes_everything(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "tests.bench", "--paths", "direct", "--output", str(output)]
    bench = Process(command, tmp_path / "bench", cwd=REPOSITORY)
    try:
        wait_until(lambda: "round 1" in bench.log(), 60, lambda: f"it measures\n{bench.log()}")
        bench.kill(signal.SIGINT)
        assert bench.wait(60) == 130, bench.log()
    finally:
        bench.stop()
    assert bench.log().splitlines()[-1] == "bench: interrupted; everything it made is removed"
    assert [path for path in leftover_paths() if path.name.startswith(f"{PREFIX}-{bench.pid}-")] == []
    assert not output.exists()


# --- In the kernel ------------------------------------------------------------------------

FRAME = packets.ether(
    packets.ipv4(packets.udp(bytes(22), 1, 2), IPv4Address("10.0.0.1"), IPv4Address("10.1.0.1"), packets.UDP),
    MAC, PEER_MAC,
)  # fmt: skip


@pytest.fixture
def spread() -> Iterator[int]:
    fd = syscall.prog_load(inject.generator(FRAME, Spread(100_000, 128)), "generate", syscall.PROG_TYPE_XDP)
    with closing(open(fd, "rb")):
        yield fd


def test_the_generator_writes_the_frame_anew() -> None:
    fd = syscall.prog_load(inject.generator(FRAME), "generate", syscall.PROG_TYPE_XDP)
    with closing(open(fd, "rb")):
        assert syscall.prog_test_run(fd, bytes(len(FRAME)))[:2] == (2, FRAME)
        assert syscall.prog_test_run(fd, bytes(len(FRAME) - 1))[0] == 0


def test_the_generator_goes_on_in_the_program_of_the_device() -> None:
    drops = inject.instruction(0xB7, 0, imm=1) + inject.instruction(0x95)  # what it never does itself
    device = syscall.prog_load(drops, "device", syscall.PROG_TYPE_XDP, syscall.XDP_HAS_FRAGS)
    with closing(open(device, "rb")), inject.loaded(FRAME, None, syscall.prog_info(device).id) as fd:
        assert syscall.prog_test_run(fd, bytes(len(FRAME)))[:2] == (1, FRAME)


def test_random_destinations_have_a_right_checksum(spread: int) -> None:
    seen = set()
    for _ in range(200):
        action, frame, _, _ = syscall.prog_test_run(spread, bytes(len(FRAME)))
        ip = packets.Ip.parse(frame[packets.ETH_LEN :])
        assert (action, ip.valid) == (2, True)
        number, rest = divmod(int(ip.dst) - int(IPv4Address("10.1.0.1")), 128)
        assert (rest, 0 <= number < 100_000) == (0, True)
        assert frame[: packets.ETH_LEN] + frame[packets.ETH_LEN + 20 :] == FRAME[:14] + FRAME[34:]
        seen.add(ip.dst)
    assert len(seen) > 100


def test_a_batch_changes_many_entries() -> None:
    with closing(syscall.Map(syscall.map_create("hash", "batch", 4, 8, 1000))) as table_:
        keys = [number.to_bytes(4, "big") for number in range(1000)]
        rigs.change_batch(table_.fd, syscall.MAP_UPDATE_BATCH, keys, [bytes(8)] * 1000)
        assert table_.count() == 1000
        rigs.change_batch(table_.fd, syscall.MAP_DELETE_BATCH, keys[:990])
        assert {key for key, _ in table_.items()} == set(keys[990:])


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_is_translated_for_as_long_as_it_is_measured(version: int) -> None:
    with Lab() as lab:
        path, address = routed(lab, version), SERVICE[version]
        with service(path) as called:
            assert tcp_crr(called, Conditions(1, machine.compiled("crr", lab.dir)))["tcp_crr"] > 0
            tracked = path.hosts[0].run(
                "conntrack", "-L", "-f", f"ipv{version}", "-d", address, "--reply-src", path.server_address
            )
            assert f"dst={address}" in tracked.stdout
        assert path.hosts[0].run("nft", "list", "ruleset").stdout == ""


def test_round_trips_are_measured_by_ipv6_too() -> None:
    with Lab() as lab:
        machine.compiled("echo", lab.dir)
        how = Conditions(1, machine.compiled("crr", lab.dir))
        path = direct(lab, 6)
        for protocol in ("tcp", "udp"):
            found = round_trip(path, how, protocol)
            assert 0 < found[f"{protocol}_rr_p50"] <= found[f"{protocol}_rr_p99"]


def test_a_service_is_behind_ports_that_no_other_run_has_used() -> None:
    assert not set(astuple(SERVED)) & set(astuple(Ports()))


@pytest.mark.timeout(400)
def test_packets_are_injected_both_ways_and_to_many_peers() -> None:
    found = rigs.injected(1, 0.05, nobody, {"ebpf": ()}).results()
    assert set(found) == {"direct", "ebpf"}
    for path in found.values():
        assert all(path[name].median > 0 for name in ("inject_decap", "inject_encap"))


@pytest.mark.timeout(400)
def test_a_short_run_yields_every_measure() -> None:
    plan = Plan(rounds=1, seconds=1, node_rounds=1, idle_s=0.2)
    made = side(["ebpf-xdp"], WIRE, plan, nobody, whole=True)
    found = made.results["ebpf-xdp"]
    assert set(found) == {name for run in RUNS for name in run.yields}
    assert all(series.median > 0 for name, series in found.items() if name != "cpu_per_gb")
    assert not made.offloads["tx-checksumming"]
    assert made.offloads["generic-receive-offload"]
    assert made.extra["node"]["agent"]["rss"].median > 1
    under_load = made.extra["programs"]["ebpf-xdp, UDP 64 bytes"]
    assert {"from_container", "from_wire", "from_wire_xdp"} <= set(under_load)
    written = json.loads(json.dumps(results_file({WIRE: made}, {}, FACTS)))
    assert set(written["paths"]["wire/ebpf-xdp"]["tcp_1"]) == {"median", "stdev", "values", "unit"}


@pytest.mark.timeout(400)
def test_starts_are_timed_to_the_first_packet_by_ebpf() -> None:
    with Lab() as lab:
        host = node.Starting(lab)
        assert host.cold() > 0
        assert host.restart() > 0


def test_an_empty_program_costs_something_only_with_statistics() -> None:
    with programs.statistics():
        assert 0 < programs.overhead(1000) < 1e6
