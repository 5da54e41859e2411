"""The programs that the image has for Kubernetes: flannel's names, and what gives a host its CNI plugins."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctl.cli.main import build_parser
from deploy.image.flanneld import CAP_BPF, PASSED_OVER, TEXTS, Refused, translated
from tests.namespace import REPOSITORY
from tests.process import run

PLACE = REPOSITORY / "deploy" / "image"
BPF = 1 << CAP_BPF
MANIFEST = ["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"]
"""The arguments of kube-flannel.yml."""


def test_kube_flannels_arguments_are_ours_with_flannels_defaults() -> None:
    assert set(translated(MANIFEST, BPF)) == {
        "agent", "--ip-masq=true", "--kube-subnet-mgr=true", "--healthz-port=8081", "--healthz-ip=0.0.0.0",
        "--bridge=cni0", "--subnet-file=/run/flannel/subnet.env",
    }  # fmt: skip


def test_without_cap_bpf_the_kernel_path_carries_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest of flannel's gives NET_ADMIN and NET_RAW."""
    assert "--bypass=off" in translated(MANIFEST, 0x3000)
    assert "CAP_BPF" in capsys.readouterr().err
    assert "--bypass=off" not in translated(MANIFEST, BPF)


def test_go_style_flags_and_values_apart_are_taken() -> None:
    words = translated(["-iface", "eth1", "--v", "10", "--ip-masq=false", "--iptables-resync", "5"], BPF)
    assert "--iface=eth1" in words and "--ip-masq=false" in words
    assert not [word for word in words if "resync" in word or word.startswith("--v")]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--public-ipv6=fd00::1"], "--public-ipv6 is no flag"),
        (["--iface=eth0", "--iface=eth1"], "--iface-regex"),
        (["--iface"], "wants a value"),
        (["agent"], "flags only"),
    ],
)
def test_what_it_cannot_do_it_refuses_in_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        translated(argv, BPF)


def test_every_flag_that_is_handed_on_is_one_of_the_agents() -> None:
    known = {name: "1" for name in sorted(TEXTS) if name != "iface"}
    words = translated([*(f"--{name}={text}" for name, text in known.items()), *MANIFEST], 0)
    build_parser(["agent"]).parse_args(words)
    assert not TEXTS & PASSED_OVER.keys()


# --- The shell's ---------------------------------------------------------------


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """Where the image has its plugins."""
    (tmp_path / "image").mkdir()
    for name in ("bridge", "host-local", "loopback", "portmap", "bandwidth", "tuning"):
        (tmp_path / "image" / name).write_text(f"the image's {name}")
    return tmp_path / "image"


def test_plugins_are_installed_where_there_are_none_and_replace_nothing(
    plugins: Path, tmp_path: Path
) -> None:
    host = tmp_path / "bin"
    host.mkdir()
    (host / "bridge").write_text("the host's own")
    for _ in range(2):
        run([str(PLACE / "install-cni-plugins"), str(host)], env={"CNI_PLUGINS": str(plugins)})
    found = {each.name: each.read_text() for each in host.iterdir()}
    assert found.pop("bridge") == "the host's own"
    assert found == {name: f"the image's {name}" for name in found} and len(found) == 5
    assert all(each.stat().st_mode & 0o777 == 0o755 for each in host.iterdir() if each.name != "bridge")


def test_a_directory_that_cannot_be_written_is_one_line(plugins: Path, tmp_path: Path) -> None:
    argv = [str(PLACE / "install-cni-plugins"), str(tmp_path / "absent")]
    done = run(argv, check=False, env={"CNI_PLUGINS": str(plugins)})
    assert done.returncode == 1 and "it has to be root's, and writable" in done.stderr


def test_flannels_configuration_is_put_in_place_with_its_mode(tmp_path: Path) -> None:
    source, destination = tmp_path / "cni-conf.json", tmp_path / "net.d" / "10-flannel.conflist"
    destination.parent.mkdir()
    destination.write_text("old")
    source.write_text("new")
    source.chmod(0o640)
    run([str(PLACE / "install-conf"), str(source), str(destination)])
    assert destination.read_text() == "new" and list(destination.parent.iterdir()) == [destination]
