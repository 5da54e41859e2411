"""Who has what we want, as /proc tells it."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.backend.udp.underlay import Underlay
from ctl.core.errors import AgentError, ConfigError, KernelError
from ctl.process import holder, sole
from ctl.process.holder import Socket, sockets
from metrics.http import Answer, listen

ME = f"process {os.getpid()} ("

UDP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
 1234: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0
 1235: 0100007F:2119 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 4711
"""
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2503 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99
   1: 0100007F:2503 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 98
   2: 0100007F:9999 0100007F:2503 01 00000000:00000000 00:00000000 00000000     0        0 97
"""


def test_a_port_is_found_among_all_sockets() -> None:
    assert list(sockets(UDP, 8472, "udp")) == [Socket(0, 0)]
    assert list(sockets(UDP, 8473, "udp")) == [Socket(4711, 1000)]
    assert list(sockets(UDP, 8474, "udp")) == []
    assert list(sockets("", 8472, "udp")) == []


def test_of_tcp_who_listens_counts() -> None:
    assert list(sockets(TCP, 9475, "tcp")) == [Socket(99, 0)]
    assert list(sockets(TCP, 0x9999, "tcp")) == []


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine on which process 7 has port 8473, and the kernel 8472."""
    net = tmp_path / "thread-self" / "net"
    net.mkdir(parents=True)
    (net / "udp").write_text(UDP)
    (tmp_path / "7" / "fd").mkdir(parents=True)
    (tmp_path / "7" / "comm").write_text("dnsmasq\n")
    (tmp_path / "7" / "fd" / "3").symlink_to("socket:[4711]")
    (tmp_path / "self").symlink_to("7")
    return tmp_path


def test_a_process_is_named(proc: Path) -> None:
    assert holder.of_port("udp", 8473, proc) == "process 7 (dnsmasq)"


def test_a_process_that_may_not_be_looked_at_is_told_by_its_user(proc: Path) -> None:
    (proc / "7" / "fd" / "3").unlink()
    assert holder.of_port("udp", 8473, proc) == "a socket of user 1000 (see ss -lnp)"


def test_a_socket_of_the_kernel_is_of_no_process(proc: Path) -> None:
    """A vxlan device's, ours perhaps."""
    assert holder.of_port("udp", 8472, proc) == "a socket of user 0 (see ss -lnp)"
    assert holder.process_with_port(8472, proc) == ""
    assert holder.process_with_port(8473, proc) == "process 7 (dnsmasq)"


def test_what_has_gone_meanwhile_is_no_error(proc: Path) -> None:
    assert holder.of_port("udp", 8474, proc) == "another socket"
    assert holder.of_port("tcp", 8473, proc) == "another socket"


@pytest.fixture(params=[(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")], ids=["IPv4", "IPv6"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A UDP port that this process has."""
    family, address = request.param
    with socket.socket(family, socket.SOCK_DGRAM) as held:
        held.bind((address, 0))
        yield held.getsockname()[1]


def test_the_udp_forwarder_says_whose_its_port_is(taken: int) -> None:
    with pytest.raises(
        KernelError, match=rf"UDP 127\.0\.0\.1:{taken}: Address already in use by process"
    ) as caught:
        Underlay("127.0.0.1", taken)
    assert ME in str(caught.value)


def test_the_metrics_server_says_whose_its_port_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use; see --flag") as caught:
            listen("metrics", "127.0.0.1", port, lambda _: Answer(200, b""), "--flag")
    assert ME in str(caught.value)


def test_a_second_agent_is_told_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sole, "_NAME", f"ovnet test {secrets.token_hex(4)}")
    with sole.hold_namespace(), pytest.raises(AgentError, match="another agent") as caught:
        sole.hold_namespace()
    assert ME in str(caught.value)
