"""The Debian package, built from this checkout and looked into. `make deb-test` installs it."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import ctl
from deploy import generated
from tests.process import run
from tests.systemd import UNIT

REPOSITORY = UNIT.parents[1]
HOME = f"usr/lib/ovnet/{ctl.__version__}"


def build(directory: Path) -> Path:
    """The package, in `directory`."""
    done = run([str(REPOSITORY / "scripts/deb.sh"), ctl.__version__, str(directory)], seconds=300)
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What it would install."""
    root = tmp_path_factory.mktemp("tree")
    run(["dpkg-deb", "--extract", str(package), str(root)])
    yield root


def test_lintian_finds_nothing_that_is_not_explained(package: Path) -> None:
    done = run(["lintian", "--allow-root", "--fail-on", "error,warning", str(package)], check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_built_twice_it_is_the_same_bytes(package: Path, tmp_path: Path) -> None:
    again = build(tmp_path)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(package.read_bytes()).digest()


def test_it_has_every_module_of_the_checkout(tree: Path) -> None:
    tracked = run(["git", "-C", str(REPOSITORY), "ls-files", "bpf", "ctl", "metrics"]).stdout.split()
    assert [name for name in tracked if not (tree / HOME / name).exists()] == []


def test_its_ovctl_runs_with_nothing_but_itself_and_pythons_own(tree: Path) -> None:
    """-I and -S in its first line: no PYTHONPATH, no site-packages."""
    script = (tree / "usr/lib/ovnet/ovctl").read_text().replace('"/usr/lib', f'"{tree}/usr/lib')
    (tree / "ovctl").write_text(script)
    (tree / "ovctl").chmod(0o755)
    needed = "import ctl.agent.loop, ctl.store.etcd.store, metrics.server, pyroute2"
    assert run([str(tree / "ovctl"), "--version"]).stdout == f"ovctl {ctl.__version__}\n"
    code = script.replace("    code = main()", f"    {needed}\n    code = 0")
    run(["/usr/bin/python3", "-IS", "-c", code])
    assert list(tree.rglob("__pycache__")) == [], "dpkg would leave these behind"


def test_an_ovctl_without_its_modules_says_so_in_a_line(tree: Path, tmp_path: Path) -> None:
    script = (tree / "usr/lib/ovnet/ovctl").read_text().replace('"/usr/lib', f'"{tmp_path}/usr/lib')
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ovctl: error: ") and done.stderr.count("\n") == 1, done.stderr


def test_ovctl_comes_after_the_modules_of_its_version(package: Path) -> None:
    """These are put in place in this order, so that no moment of an upgrade mixes two versions."""
    listed = [line.split()[5] for line in run(["dpkg-deb", "--contents", str(package)]).stdout.splitlines()]
    modules = [number for number, name in enumerate(listed) if name.startswith(f"./{HOME}/")]
    assert max(modules) < listed.index("./usr/lib/ovnet/ovctl")


def test_settings_are_a_conffile_and_all_that_is_generated_is_there(package: Path, tree: Path) -> None:
    assert run(["dpkg-deb", "--info", str(package), "conffiles"]).stdout == "/etc/ovnet/ovnet.toml\n"
    assert (tree / "etc/ovnet/ovnet.toml").read_text() == generated.settings_file()
    for name in ("man/man1/ovctl.1.gz", "man/man5/ovnet.toml.5.gz", "bash-completion/completions/ovctl",
                 "zsh/vendor-completions/_ovctl", "fish/vendor_completions.d/ovctl.fish"):  # fmt: skip
        assert (tree / "usr/share" / name).stat().st_size > 1000, name


def test_its_unit_is_the_checkouts_but_for_paths(tree: Path) -> None:
    ours, theirs = (
        path.read_text().splitlines() for path in (UNIT, tree / "usr/lib/systemd/system/ovnet.service")
    )
    different = [new for old, new in zip(ours, theirs, strict=True) if old != new]
    assert different == [
        "Documentation=man:ovctl(1) file:/usr/share/doc/ovnet/operating.md",
        "ExecStart=/usr/bin/ovctl agent",
    ]
    assert (tree / "usr/share/doc/ovnet/operating.md").exists()
