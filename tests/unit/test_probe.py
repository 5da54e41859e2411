"""What an agent says on a kernel that is too old for the programs."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from ctl.core.errors import KernelError
from ctl.kernel.bpf import probe
from ctl.kernel.bpf.probe import Feature
from ctl.process import capabilities


@pytest.fixture
def linux(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """A kernel of that version, without anything carried back."""
    version: tuple[int, int] = request.param
    monkeypatch.setattr(probe, "has", lambda feature: feature.since <= version)
    monkeypatch.setattr(probe, "_map", lambda: None)
    monkeypatch.setattr("platform.release", lambda: f"{version[0]}.{version[1]}.0-test")
    return version


@pytest.mark.parametrize("linux", [(5, 13), (5, 15), (6, 1)], indirect=True)
def test_a_kernel_that_has_it_all_is_taken(linux: tuple[int, int]) -> None:
    probe.check()


@pytest.mark.parametrize(
    ("linux", "named"),
    [
        ((5, 12), "BPF_F_ADJ_ROOM_ENCAP_L2_ETH (Linux 5.13)"),
        (
            (5, 10),
            "bpf_ktime_get_coarse_ns (Linux 5.11), bpf_check_mtu (Linux 5.12), "
            "BPF_F_ADJ_ROOM_ENCAP_L2_ETH (Linux 5.13)",
        ),
        ((5, 4), "bpf_redirect_peer (Linux 5.10)"),
    ],
    indirect=["linux"],
)
def test_one_that_is_too_old_is_named_with_the_remedy(linux: tuple[int, int], named: str) -> None:
    with pytest.raises(KernelError) as caught:
        probe.check()
    text = str(caught.value)
    assert text.startswith(f"this kernel ({linux[0]}.{linux[1]}.0-test) lacks ")
    assert named in text
    assert text.endswith("eBPF needs Linux 5.13 or newer; run a newer one, or with --bypass=off")
    assert "\n" not in text


def test_what_was_carried_back_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old number alone is no reason."""
    monkeypatch.setattr(probe, "_map", lambda: None)
    monkeypatch.setattr(probe, "has", lambda feature: True)
    monkeypatch.setattr("platform.release", lambda: "4.18.0-553.el8.x86_64")
    probe.check()


def test_where_the_kernel_will_not_say_it_is_left_to_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("ctl.kernel.bpf.syscall.prog_load", refuse)
    assert probe.has(Feature("any", (5, 10), helper=155))
    assert probe.has(Feature("any", (5, 13), flags=1))


def failing(code: int) -> Callable[[], None]:
    def attempt() -> None:
        raise OSError(code, os.strerror(code))

    return attempt


@pytest.fixture
def uid_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /proc/self/uid_map, outside of all user namespaces."""
    path = tmp_path / "uid_map"
    path.write_text("         0          0 4294967295\n")
    monkeypatch.setattr(probe, "_UID_MAP", path)
    return path


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (
            errno.EPERM,
            "bpf(2) is forbidden here, whatever the capabilities: allow it in the seccomp profile ",
        ),
        (errno.ENOSYS, f"this kernel ({platform.release()}) has no bpf(2): run one with CONFIG_BPF_SYSCALL"),
    ],
)
def test_a_bpf_that_may_not_be_called_is_named_with_the_remedy(
    code: int, named: str, uid_map: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_map", failing(code))
    monkeypatch.setattr(capabilities, "effective", lambda: 1 << capabilities.BPF)
    with pytest.raises(KernelError) as caught:
        probe.check()
    said = str(caught.value)
    assert said.startswith(named) and said.endswith(", or run with --bypass=off") and "\n" not in said


def test_without_the_capability_no_profile_is_blamed(uid_map: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with kube-flannel's rights, where nothing is bypassed."""
    monkeypatch.setattr(probe, "_map", failing(errno.EPERM))
    monkeypatch.setattr(capabilities, "effective", lambda: 1 << capabilities.NET_ADMIN)
    assert probe.forbidden() == "bpf(2) takes CAP_BPF, or CAP_SYS_ADMIN, and there is neither"


def test_in_a_user_namespace_no_profile_is_blamed(uid_map: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid_map.write_text("         0       1000          1\n")
    monkeypatch.setattr(probe, "_map", failing(errno.EPERM))
    with pytest.raises(KernelError, match=r"^bpf\(2\) is forbidden in a user namespace .* --bypass=off$"):
        probe.check()


@pytest.mark.parametrize("attempt", [failing(errno.ENOMEM), lambda: None])
def test_a_bpf_that_fails_otherwise_is_left_to_loading(
    attempt: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_map", attempt)
    assert probe.forbidden() == ""
