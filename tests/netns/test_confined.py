"""A start where something is missing or forbidden: one line that says what to do, and nothing half done."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

import pytest

from tests.host import Agent, Host, ovctl_argv
from tests.lab import Lab, wait_until
from tests.namespace import REPOSITORY

NO_BPF = (sys.executable, "-m", "tests.netns.test_confined")
"""Before a command: it runs without bpf(2)."""
SECCOMP_ERRNO, SECCOMP_ALLOW = 0x00050000, 0x7FFF0000
"""linux/seccomp.h"""
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
"""linux/prctl.h"""
SYS_BPF = {"x86_64": 321, "aarch64": 280}

HIDE_NFT = 'mount --bind /dev/null /usr/sbin/nft && exec "$@"'  # nothing that can be executed
NFT_FAILS = r"""
printf '#!/bin/sh\necho "cache initialization failed: Protocol not supported" >&2\nexit 1\n' >"$TMPDIR/nft"
chmod +x "$TMPDIR/nft"
PATH=$TMPDIR:$PATH exec "$@"
"""
READ_ONLY = "mount --bind {0} {0} && mount -o remount,bind,ro {0} && "
CASES = {
    "bpffs is read-only": (
        "mount -o remount,bind,ro /sys/fs/bpf && ",
        "the bpffs on /sys/fs/bpf is read-only here",
    ),
    "no bpffs, and mounting one is forbidden": (
        "umount -l /sys/fs/bpf && exec setpriv --bounding-set=-sys_admin ",
        "no bpffs on /sys/fs/bpf, and mounting one failed: Operation not permitted (try, on the host: mount",
    ),
    "/proc/sys is read-only": (
        READ_ONLY.format("/proc/sys"),
        "must be 1, which cannot be set here: set it outside (sysctl -w net.",
    ),
    "a seccomp profile forbids bpf(2)": (
        " ".join(NO_BPF) + " ",
        "bpf(2) is forbidden here, whatever the capabilities",
    ),
    "nft is not installed": (HIDE_NFT, "nft is not installed: install nftables"),
    "the kernel has no nftables": (NFT_FAILS, "cache initialization failed: Protocol not supported"),
}
"""What is wrong: a shell's words before the agent, or all of them; what the line says."""


@pytest.fixture
def host(lab: Lab, tmp_path: Path) -> Host:
    lab.init_network()
    return lab.host("a")


def start(host: Host, script: str, tmp_path: Path, *unshare: str) -> Agent:
    """`ovctl agent` in mounts of its own, after what the script does to them."""
    script = script if '"$@"' in script else f'{script}"$@"'
    argv = host.argv("unshare", "--mount", "--propagation", "private", *unshare,
                     "sh", "-ec", script, "sh", *ovctl_argv(), "agent")  # fmt: skip
    env = {**host.environment(), "TMPDIR": str(tmp_path)}
    agent = Agent(argv, host.lab.dir / "confined", env=env, cwd=REPOSITORY)
    agent.host = host
    host._processes.append(agent)
    return agent


@pytest.mark.parametrize("case", CASES)
def test_it_ends_with_one_line_and_has_changed_nothing(host: Host, tmp_path: Path, case: str) -> None:
    script, said = CASES[case]
    before = host.footprint()
    agent = start(host, script, tmp_path)
    assert agent.wait() == 1, agent.log()
    assert agent.log().startswith("ovctl: error: ") and agent.log().count("\n") == 1, agent.log()
    assert said in agent.log()
    assert host.footprint() == before
    assert not host.state_dir.exists()
    assert host.json("lease", "list") == []


@pytest.mark.parametrize(
    "script",
    [
        READ_ONLY.format("/sys") + "mount --rbind /sys/fs/bpf /sys/fs/bpf && ",
        "mount -t bpf bpf /sys/fs/bpf && ",
    ],
)
def test_a_read_only_sys_and_a_bpffs_mounted_twice_are_no_obstacle(
    host: Host, tmp_path: Path, script: str
) -> None:
    agent = start(host, script, tmp_path)
    agent.wait_ready()
    assert "WARNING" not in agent.log() and "ERROR" not in agent.log(), agent.log()
    agent.stop()
    host.teardown()


def test_what_an_outer_mount_has_pinned_is_used_again_once_it_is_seen(host: Host, tmp_path: Path) -> None:
    """With a second bpffs over the first an agent makes another datapath; without it the first is adopted."""
    first = host.agent()
    program = host.status()["program"]
    first.stop()
    second = start(host, "mount -t bpf bpf /sys/fs/bpf && ", tmp_path)
    second.wait_ready()
    second.stop()
    third = host.agent()
    assert host.status()["program"] == program
    assert "ERROR" not in third.log()


def test_a_bpffs_that_ends_with_the_container_is_told(host: Host, tmp_path: Path) -> None:
    agent = start(host, "umount -l /sys/fs/bpf && ", tmp_path, "--pid", "--fork", "--mount-proc")
    agent.wait_ready()
    wait_until(
        lambda: "hand it the host's (docker run --volume /sys/fs/bpf:/sys/fs/bpf)" in agent.log(),
        10,
        agent.log,
    )
    assert agent.log().count("WARNING") == 1, agent.log()


def forbid_bpf() -> None:
    """Let bpf(2) fail with EPERM from here on, in this process and its children."""
    number = SYS_BPF[os.uname().machine]
    load, equal, reject, allow = (
        struct.pack("=HBBI", *each)
        for each in (
            (0x20, 0, 0, 0),
            (0x15, 0, 1, number),
            (0x06, 0, 0, SECCOMP_ERRNO | 1),
            (0x06, 0, 0, SECCOMP_ALLOW),
        )
    )
    code = ctypes.create_string_buffer(load + equal + reject + allow, 32)
    program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program
    ):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid_bpf()
    os.execvp(sys.argv[1], sys.argv[1:])
