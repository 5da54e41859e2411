"""A host that lacks or forbids a part: what needs it says so in one line, and what does not goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host import meet
from tests.lab import Lab, run, wait_until
from tests.netns.test_confined import NO_BPF, READ_ONLY, start

WITHOUT = "exec setpriv --bounding-set=-{} "
NO_BPFFS = "umount -l /sys/fs/bpf && exec setpriv --bounding-set=-sys_admin "
HIDDEN = "mount -t tmpfs tmpfs {} && "
NFT_WITHOUT_NAT = r"""
printf '#!/bin/sh
case "$*" in
*-f*|*--file*) cat >/dev/null; echo "Error: Could not process rule: No such file" >&2; exit 1 ;;
esac
exec /usr/sbin/nft "$@"\n' >"$TMPDIR/nft"
chmod +x "$TMPDIR/nft"
PATH=$TMPDIR:$PATH exec "$@"
"""
BCC, HEADERS = "/usr/lib/python3/dist-packages", "/usr/include/linux"


PROC_SYS = READ_ONLY.format("/proc/sys"), "net.ipv4.ip_forward must be 1, which cannot be set here: "
NAT = NFT_WITHOUT_NAT, "nft --check --file -: Error: Could not process rule: No such file: the kernel needs "


@pytest.mark.parametrize(
    ("backend", "script", "said"),
    [("host-gw", *PROC_SYS), ("udp", *PROC_SYS), ("host-gw", *NAT), ("vxlan", *NAT)],
    ids=["host-gw, /proc/sys", "udp, /proc/sys", "host-gw, NAT", "vxlan, NAT"],
)
def test_no_backend_starts_where_what_all_need_is_missing(
    lab: Lab, tmp_path: Path, backend: str, script: str, said: str
) -> None:
    lab.init_network("172.17.0.0/16", 24, "--backend", backend)
    host = lab.host("a")
    host.sysctl("net.ipv4.ip_forward", "0")
    before = host.footprint()
    agent = start(host, script, tmp_path)
    assert agent.wait() == 1, agent.log()
    assert agent.log().startswith(f"ovctl: error: {said}"), agent.log()
    assert agent.log().count("\n") == 1
    assert host.footprint() == before
    assert not host.state_dir.exists()
    assert host.json("lease", "list") == []


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [("bpf,-sys_admin", "needs root, or CAP_BPF"), ("net_admin", "needs root, or CAP_NET_ADMIN")],
)
def test_a_capability_that_is_missing_is_named(
    lab: Lab, tmp_path: Path, capabilities: str, said: str
) -> None:
    lab.init_network()
    host = lab.host("a")
    before = host.footprint()
    agent = start(host, WITHOUT.format(capabilities), tmp_path)
    assert agent.wait() == 1, agent.log()
    assert agent.log() == f"ovctl: error: {said}\n"
    assert host.footprint() == before


@pytest.mark.parametrize(
    "script", [HIDDEN.format("/sys/kernel/btf"), "umount -l /sys/fs/bpf && "], ids=["no BTF", "no bpffs yet"]
)
def test_what_is_not_needed_is_not_missed(lab: Lab, tmp_path: Path, script: str) -> None:
    lab.init_network()
    host = lab.host("a")
    agent = start(host, script, tmp_path)
    agent.wait_ready()
    assert host.status()["program"]
    assert "WARNING" not in agent.log() and "ERROR" not in agent.log(), agent.log()


NO_BPF2 = " ".join(NO_BPF) + " "


@pytest.mark.parametrize(
    ("backend", "script", "why"),
    [
        ("vxlan", NO_BPF2, "bpf(2) is forbidden here"),
        ("vxlan", NO_BPFFS, "no bpffs on /sys/fs/bpf"),
        ("host-gw", NO_BPF2, ""),
    ],
    ids=["vxlan, no bpf(2)", "vxlan, no bpffs", "host-gw, no bpf(2)"],
)
def test_without_ebpf_a_node_needs_none_of_it(
    lab: Lab, tmp_path: Path, backend: str, script: str, why: str
) -> None:
    """What the refusal names as the remedy has to be one."""
    lab.init_network("172.17.0.0/16", 24, "--backend", backend)
    a, b = lab.host("a"), lab.host("b")
    agent = start(a, f"{script}env OVNET_BYPASS=off ", tmp_path)
    agent.wait_ready()
    b.agent("--bypass=off")
    meet(a, b)
    one, two = a.container("one"), b.container("two")
    one.run("ping", "-c3", "-i0.05", two.address)
    assert "ERROR" not in agent.log(), agent.log()
    told = [line for line in agent.log().splitlines() if line.startswith("WARNING")]
    assert len(told) == bool(why) and all(why in line for line in told), agent.log()
    assert a.ovctl("status").returncode == 0
    refused = a.ovctl("map", "dump", "flows", check=False)
    assert refused.returncode == 4 and refused.stderr.count("\n") == 1, refused.stderr


@pytest.mark.parametrize(
    ("place", "said"),
    [(BCC, "no BCC for /usr/bin/python3 (Python "), (HEADERS, "install the package linux-libc-dev")],
)
def test_without_what_compiling_takes_the_kernel_path_carries_until_it_is_there(
    lab: Lab, tmp_path: Path, place: str, said: str
) -> None:
    lab.init_network()
    a, b = lab.host("a"), lab.host("b")
    agent = start(a, HIDDEN.format(place), tmp_path)
    b.agent()
    meet(a, b)
    one, two = a.container("one"), b.container("two")
    one.run("ping", "-c3", "-i0.05", two.address)
    wait_until(lambda: said in agent.log(), 30, agent.log)
    status = a.ovctl("status", check=False)
    assert status.returncode == 1 and said in status.stdout, status.stdout
    told = [line for line in agent.log().splitlines() if not line.startswith("INFO")]
    assert len(told) == 1 and told[0].startswith("ERROR compiling the datapath failed: "), agent.log()
    run(["nsenter", f"--mount=/proc/{agent.pid}/ns/mnt", "umount", place])
    a.container("three")  # or it would wait for its time
    agent.wait_ready()
    assert a.status()["program"]
