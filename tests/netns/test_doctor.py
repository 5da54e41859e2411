"""`ovctl doctor` on two nodes, with one fault at a time: it names this one and no other.

DOCTOR_TIMES=1: how long each answer has taken is written to docs/faults.json, for the table of the docs.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ctl.kernel.bpf.maps import pinned_seed
from tests.host import Host, meet
from tests.lab import Lab, wait_until
from tests.netns.faults import (
    FAULTS,
    TIMES,
    WITHOUT_AGENT,
    Fault,
    Ward,
    a_chain_of_somebody,
    addressed,
    agent,
    findings,
    lost_on_the_way,
)


@pytest.fixture(scope="module")
def ward() -> Iterator[Ward]:
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")  # on a switch, which can lose packets
        lab.init_network()
        for host in (a, b):
            agent(host)
        meet(a, b)
        yield Ward(a, b, a.container("one"), a.container("two"), b.container("one"))


@pytest.fixture(scope="module")
def times() -> Iterator[dict[str, float]]:
    """For how long the doctor was waited for, seconds, by the name of the fault."""
    found: dict[str, float] = {}
    yield found
    if os.environ.get("DOCTOR_TIMES"):
        TIMES.write_text(json.dumps(json.loads(TIMES.read_text()) | found, indent=1, sort_keys=True) + "\n")


def traced(ward: Ward) -> str:
    """Where a packet of the one container to the other ends, if `ovctl trace` says that it does."""
    ends = (ward.on_a.address, ward.on_b.address)
    done = ward.a.ovctl("trace", *ends, "--dport", "7", "-o", "json", check=False)
    last = json.loads(done.stdout)[-1]
    assert done.returncode == (last["fate"] == "lost"), done.stderr
    return str(last["seen"]) if last["fate"] == "lost" else ""


def timed(ward: Ward, fault: Fault, times: dict[str, float]) -> list[str]:
    """What is found while the fault is there."""
    files = fault.files(ward) if fault.files else None
    begun = time.monotonic()
    found = findings(ward, *fault.flags, files=files)
    times[fault.name] = round(time.monotonic() - begun, 1)
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_is_named_with_its_remedy_and_no_other_is(
    ward: Ward, fault: Fault, times: dict[str, float]
) -> None:
    """That one before is not named any more is seen by this, too."""
    with fault.inject(ward):
        (line,) = timed(ward, fault, times)
        assert not fault.traced or fault.traced in traced(ward)
    assert fault.seen in line and fault.remedy in line


def test_an_address_that_two_containers_have_is_named_at_both(ward: Ward) -> None:
    doubled = f"{ward.beside.address}/{ward.a.gateway.network.prefixlen}"
    with addressed(ward.on_a, doubled):
        lines = findings(ward)
    assert len(lines) == 2 and all(f"another one have {ward.beside.address}" in line for line in lines)
    assert findings(ward) == []


def test_a_well_node_shows_what_was_looked_at(ward: Ward) -> None:
    text = ward.a.ovctl("doctor").stdout
    assert all(line.split()[0] in ("LEVEL", "ok") for line in text.splitlines())
    for check in ("agent", "store", "lease", "entries", "forwarding", "mtu", "programs", "peers"):
        assert f" {check} " in text


def test_looking_changes_nothing_here_or_there(ward: Ward) -> None:
    before = [node.footprint() for node in (ward.a, ward.b)]
    for command in (["doctor"], ["map", "diff"], ["trace", ward.on_a.address, ward.on_b.address]):
        ward.a.ovctl(*command)
    assert [node.footprint() for node in (ward.a, ward.b)] == before


def test_one_peer_is_asked_by_host_node_or_subnet(ward: Ward) -> None:
    for name in (ward.b.address, "b", str(ward.b.gateway.network)):
        assert findings(ward, "--peer", name) == []
    done = ward.a.ovctl("doctor", "--peer", "nobody", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


def test_without_probes_nothing_is_sent_to_another_node(ward: Ward) -> None:
    with lost_on_the_way((ward.b, "counter drop")):
        assert findings(ward, "--no-probe") == []
        sent = ward.a.lab.wire.run("nft", "list", "table", "bridge", "somebody").stdout
    assert "counter packets 0 bytes 0" in sent
    assert findings(ward) == []


def archived(node: Host, path: Path, env: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """What `ovctl report` has written, by name below its directory."""
    assert node.ovctl("report", "--write", str(path), env=env).stdout == f"{path}\n"
    unpacked = subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        members = {each.name.split("/", 1)[1]: archive.extractfile(each) for each in archive}
        return {name: file.read() for name, file in members.items() if file}


def test_a_report_has_what_was_asked_for_and_no_secret(ward: Ward, tmp_path: Path) -> None:
    """Secrets of settings, of the datapath, and of what somebody else has written into the host's rules."""
    (tmp_path / "password").write_text("hunter3\n")
    env = {"OVNET_ETCD_PASSWORD": "hunter2", "OVNET_ETCD_PASSWORD_FILE": str(tmp_path / "password")}
    seed = pinned_seed(ward.a.bpffs)
    notes = f"etcd://root:hunter4@192.0.2.1 {seed} {seed:x} hunter3"
    with a_chain_of_somebody(ward, f'counter comment "{notes}";'):
        files = archived(ward.a, tmp_path / "report", env)
    everything = b"".join(files.values())
    forbidden = [b"hunter", str(seed).encode(), b"%x" % seed, seed.to_bytes(8), seed.to_bytes(8, "little")]
    assert [each for each in forbidden if each in everything] == []
    assert b"192.0.2.1" in files["host/nft_list_ruleset.txt"]
    assert b"healthy" in files["ovctl/status_-o_json.txt"] and b"exit 0" in files["ovctl/status_-o_json.txt"]
    assert ward.b.address.encode() in files["ovctl/map_dump_-o_json.txt"]
    assert b"ovnet.1" in files["host/ip_-d_route_show_table_all.txt"]
    assert b"etcd_password = [left out]" in files["settings.txt"]


def test_a_store_that_is_away_is_named(ward: Ward) -> None:
    (line,) = findings(ward, "--store", "sqlite:////nonexistent/store.db")
    assert "/nonexistent/store.db" in line


def test_a_dead_agent_and_what_went_wrong_since_are_named(
    ward: Ward, tmp_path: Path, times: dict[str, float]
) -> None:
    a = ward.a
    a.stop_processes()
    (dead,) = findings(ward)
    assert "no agent runs here" in dead and "systemctl start ovnet" in dead
    for fault in WITHOUT_AGENT:
        with fault.inject(ward):
            (also,) = set(timed(ward, fault, times)) - {dead}
            assert not fault.traced or fault.traced in traced(ward)
        assert fault.seen in also and fault.remedy in also
    assert findings(ward) == [dead]
    files = archived(a, tmp_path / "report")
    assert b"no agent runs here" in files["ovctl/doctor_-o_wide_--no-probe.txt"]
    for link in sorted((a.bpffs / "links").iterdir()):
        a.run("bpftool", "link", "detach", "pinned", str(link))
    lines = findings(ward)
    assert all(
        "none of ours at" in line and "systemctl restart ovnet" in line for line in lines if line != dead
    )
    assert any("ingress of eth0" in line for line in lines)
    a.ip("link", "del", "ovnet.1")
    assert any("ovnet.1 is not here" in line for line in findings(ward))
    a.agent()
    wait_until(lambda: not findings(ward), 20, "all is well")
    a.stop_processes()
    a.ovctl("lease", "release", str(a.gateway.network))
    assert any("the store has no lease of" in line for line in findings(ward))
