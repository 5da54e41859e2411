"""Interfaces that carry programs of others: refused in one line, or lived with; never touched."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from ctl.kernel.bpf import syscall
from tests.host import Host
from tests.lab import Lab
from tests.netns.test_cli_errors import FAILED, refused

XDP_PROGRAM_TYPE = 6
XDP_PASS = 2
MOV_R0, EXIT = 0xB7, 0x95


@pytest.fixture
def host(lab: Lab) -> Host:
    made = lab.host("a")
    lab.init_network()
    return made


def attach_filter(host: Host, priority: int) -> None:
    """A classic BPF filter that matches nothing."""
    host.run("tc", "qdisc", "replace", "dev", "eth0", "clsact")
    host.run("tc", "filter", "add", "dev", "eth0", "ingress", "prio", str(priority), "protocol", "all",
             "bpf", "bytecode", "1,6 0 0 0", "classid", "1:1")  # fmt: skip


@pytest.fixture
def xdp(host: Host) -> Iterator[Host]:
    """The host with an XDP program that passes everything on its uplink."""
    host.bpffs.mkdir()
    pin = host.bpffs / "foreign"
    fd = syscall.prog_load(
        struct.pack("=BBhi BBhi", MOV_R0, 0, 0, XDP_PASS, EXIT, 0, 0, 0), "foreign", XDP_PROGRAM_TYPE
    )
    syscall.obj_pin(fd, str(pin))
    os.close(fd)
    host.run("ip", "link", "set", "dev", "eth0", "xdp", "pinned", str(pin))
    pin.unlink()
    host.bpffs.rmdir()
    yield host


@pytest.mark.parametrize("priority", [49000, 60000])
def test_filter_that_gets_in_our_way_is_named_and_left(host: Host, priority: int) -> None:
    attach_filter(host, priority)
    refused(host, FAILED, "eth0", str(priority))


def test_filter_before_ours_is_lived_with(host: Host) -> None:
    attach_filter(host, 10)
    before = host.run("tc", "filter", "show", "dev", "eth0", "ingress").stdout
    agent = host.agent()
    agent.stop()
    host.teardown()
    assert host.run("tc", "filter", "show", "dev", "eth0", "ingress").stdout == before


@pytest.mark.parametrize("hook", ["tc", "xdp", "auto"])
def test_xdp_program_is_named_and_left(xdp: Host, hook: str) -> None:
    refused(xdp, FAILED, "eth0", "XDP", command=("agent", "--hook", hook))
    assert "xdp" in xdp.ip("link", "show", "eth0")


def test_xdp_program_is_lived_with_when_bypass_is_off(xdp: Host) -> None:
    xdp.agent("--bypass", "off").stop()
    xdp.teardown()
    assert "xdp" in xdp.ip("link", "show", "eth0")
