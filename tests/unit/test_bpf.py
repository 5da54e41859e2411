"""What ctl.kernel.bpf.syscall makes of what the kernel tells, without asking a kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

import pytest

from ctl.kernel.bpf import syscall


@pytest.mark.parametrize(
    ("cpulist", "count"),
    [("0\n", 1), ("0-1\n", 2), ("0-3,8-11\n", 8), ("0,2,4-5\n", 4), ("0-4095\n", 4096)],
)
def test_a_per_cpu_value_has_no_room_for_cpus_in_the_gaps_of_the_list(cpulist: str, count: int) -> None:
    assert syscall.count_cpus(cpulist) == count


def test_the_verifiers_error_is_told_and_not_that_its_log_was_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before Linux 6.4 a log longer than the buffer is an error of its own."""

    def load(command: int, attr: bytes) -> int:
        level, size, address = struct.unpack_from("=IIQ", attr, 24)
        if not level:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        words = b"R1 invalid mem access"
        assert size > len(words)
        ctypes.memmove(address, words, len(words))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(syscall, "_bpf", load)
    with pytest.raises(syscall.VerifierError, match="Permission denied") as caught:
        syscall.prog_load(bytes(8), "wild")
    assert (caught.value.errno, caught.value.log) == (errno.EACCES, "R1 invalid mem access")


def test_a_descriptor_stays_open_only_for_who_got_it() -> None:
    kept, lost = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    with syscall.passed_on(kept) as fd:
        pass
    os.close(fd)
    with pytest.raises(KeyError), syscall.passed_on(lost):
        raise KeyError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lost)
