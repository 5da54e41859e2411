"""scripts/setup.sh on systems that are not this one: what it installs, names, and says in one line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "dirname", "grep", "head", "mktemp", "rm", "sed", "sha256sum", "tail", "touch",
         "chmod", "mkdir", "find")  # fmt: skip
DEBIAN = "ID=debian\nVERSION_ID=13\n"
JAMMY = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\n'
NOBLE = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n'
FEDORA = "ID=fedora\nVERSION_ID=43\n"

PYTHON = r"""
case "$*" in
*bcc*) exit "${WITHOUT_BCC:-0}" ;;
*version_info*) exit "${TOO_OLD:-0}" ;;
-V) echo Python 3.9.2 ;;
'-m venv '*) eval "$VENV" ;;
esac
"""
PIP = r"""
mkdir -p .venv/bin
printf '#!/bin/sh\necho "%s"\nexit 1\n' >.venv/bin/python
chmod +x .venv/bin/python
"""
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
INSTALLS = r"""
mkdir -p .venv/bin
printf "command = $0 -m venv --clear --system-site-packages $PWD/.venv\n" >.venv/pyvenv.cfg
printf '#!/bin/sh\ncase "$*" in *pip*) exit "${PIP:-0}" ;; esac\n' >.venv/bin/python
chmod +x .venv/bin/python
"""
"""An environment in which pip works, unless it is told otherwise."""
APT = r"""
echo "$*" >>"$ASKED"
case "$*" in *install*) echo 'Err:1 http://deb.debian.org'; echo "E: Unable to fetch $7"; exit 100 ;; esac
"""


class System:
    """A checkout, and the programs that its system has."""

    def __init__(self, place: Path) -> None:
        self.root, self.checkout, self.asked = place / "system", place / "checkout", place / "asked"
        for path in ("etc", "usr/bin", "usr/sbin", "usr/include/linux"):
            (self.root / path).mkdir(parents=True)
        (self.checkout / "scripts").mkdir(parents=True)
        shutil.copy(REPOSITORY / "scripts/setup.sh", self.checkout / "scripts")
        shutil.copy(REPOSITORY / "pyproject.toml", self.checkout)
        for tool in TOOLS:
            (self.root / "usr/bin" / tool).symlink_to(str(shutil.which(tool)))
        self.has("python3", PYTHON)
        self.has("id", "echo ${USER_ID:-0}")

    def has(self, name: str, script: str = "") -> None:
        path = self.root / "usr/bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def is_(self, release: str) -> None:
        (self.root / "etc/os-release").write_text(release)
        if "debian" in release:
            self.has("apt-get", APT)
            versions = "echo '  Version table:'; " * 9_000  # more than a pipe holds
            self.has("apt-cache", f'echo "  Candidate: ${{CANDIDATE:-1.0}}"; {versions}')
            self.has("dpkg-query")

    def node_is_there(self) -> None:
        (self.root / "usr/include/linux/if_ether.h").touch()
        for command in ("nft", "ip", "tc"):
            self.has(command)

    def set_up(self, mode: str = "run", **variables: str) -> tuple[int, list[str]]:
        """Exit code and the lines that are said."""
        done = subprocess.run(
            [self.checkout / "scripts/setup.sh", mode],
            env={
                "PATH": f"{self.root}/usr/bin", "SETUP_SYSTEM": str(self.root), "ASKED": str(self.asked),
                "TMPDIR": str(self.root), **variables,
            },
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert not done.stdout
        return done.returncode, done.stderr.splitlines()


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_who_is_not_root_is_told_the_packages_in_one_line(system: System) -> None:
    system.is_(DEBIAN)
    code, said = system.set_up(USER_ID="1000")
    assert code == 1
    (line,) = said
    assert line.startswith("setup: error: not root, and these packages are missing: python3-bpfcc ")
    assert not system.asked.exists()
    (line,) = system.set_up("dev", USER_ID="1000")[1]
    assert " bpftool " in line and "|" not in line


def test_what_apt_cannot_do_is_one_line_with_its_reason(system: System) -> None:
    system.is_(DEBIAN)
    code, said = system.set_up()
    assert code == 1
    assert said[0].startswith("setup: packages: installing python3-bpfcc ")
    (error,) = said[1:]
    assert error.startswith("setup: error: installing packages failed: Unable to fetch ")
    assert error.endswith("is a mirror reachable, and this system's list of mirrors right?")
    assert not (system.root / "usr/sbin/policy-rc.d").exists()


@pytest.mark.parametrize(
    ("release", "candidate", "installed"),
    [
        (DEBIAN, "7.5", {"python3-bpfcc", "python3-venv", "bpftool"}),
        (NOBLE, "(none)", {"python3-bpfcc", "python3-venv", "linux-tools-generic"}),
        (JAMMY, "(none)", {"python3-bpfcc", "python3.11-venv", "linux-tools-generic"}),
    ],
    ids=["Debian", "Ubuntu 24.04", "Ubuntu 22.04"],
)
def test_packages_have_the_names_of_the_distribution(
    system: System, release: str, candidate: str, installed: set[str]
) -> None:
    system.is_(release)
    system.set_up("dev", CANDIDATE=candidate)
    asked = system.asked.read_text().splitlines()[-1].split()
    assert installed <= set(asked)
    assert len({"bpftool", "linux-tools-generic"} & set(asked)) == 1
    assert not [name for name in asked if "|" in name]


@pytest.mark.parametrize(
    ("release", "remedy"),
    [
        (FEDORA, "dnf install python3-bcc kernel-headers nftables"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install python3-bcc"),
        ("ID=arch\n", "pacman -S python-bcc linux-api-headers"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "zypper install python3-bcc"),
        ("ID=alpine\n", "apk add py3-bcc linux-headers"),
        ("ID=plan9\n", "BCC for Python, the UAPI headers of Linux"),
    ],
)
def test_elsewhere_one_line_names_what_is_missing_and_the_packages(
    system: System, release: str, remedy: str
) -> None:
    system.is_(release)
    code, (line,) = system.set_up(WITHOUT_BCC="1")
    assert code == 1
    assert "BCC for " in line
    assert "Linux's UAPI headers, nft, ip, tc" in line
    assert remedy in line


def test_elsewhere_it_goes_on_with_what_is_there(system: System) -> None:
    system.is_(FEDORA)
    system.node_is_there()
    code, said = system.set_up("dev", VENV=PIP % "ERROR: Could not find hatchling")
    assert said[0].startswith("setup: packages: fedora: what a node needs is there; tests would want: ")
    assert said[1].startswith("setup: venv: new, of ")
    assert said[-1].startswith(
        "setup: error: pip install .[dev] failed: Could not find hatchling (all of it: "
    )
    assert said[-1].endswith("is PyPI reachable?")
    assert code == 1


def test_an_environment_that_is_none_is_one_line(system: System) -> None:
    system.is_(FEDORA)
    system.node_is_there()
    code, said = system.set_up(VENV=PIP % "error: externally-managed-environment")
    assert code == 1
    assert said[-1] == (
        f"setup: error: {system.checkout}/.venv is no virtual environment (any more): remove it and try again"
    )


def test_another_python_first_in_path_is_named_and_not_taken(system: System, tmp_path: Path) -> None:
    system.is_(FEDORA)
    system.node_is_there()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(system.root / "usr/bin/python3", other)
    _, said = system.set_up(PATH=f"{other}:{system.root}/usr/bin", VENV=PIP % "ERROR: no")
    (line,) = [line for line in said if "venv: new" in line]
    assert line.startswith(f"setup: venv: new, of {system.root}/usr/bin/python3, with this system's BCC")
    assert f"{other}/python3, which is first in PATH" in line
    _, said = system.set_up(VENV=PIP % "ERROR: no")
    assert f"setup: venv: new, of {system.root}/usr/bin/python3" in said


def test_a_python_that_is_too_old_is_one_line(system: System) -> None:
    system.is_(FEDORA)
    system.node_is_there()
    code, said = system.set_up(TOO_OLD="1")
    assert code == 1
    assert said[-1].endswith(
        "is Python 3.9.2, and 3.11 is the oldest that will do: this release of fedora is too old"
    )


@pytest.mark.parametrize(
    ("said_by_pip", "named"),
    [(FULL, "the disk is full: make room, and run it again"), ("", "without a word; is the disk full?")],
    ids=["pip says so", "there was no room for words"],
)
def test_a_full_disk_is_one_line_and_the_next_run_begins_anew(
    system: System, said_by_pip: str, named: str
) -> None:
    system.is_(FEDORA)
    system.node_is_there()
    pip = PIP % said_by_pip if said_by_pip else PIP.replace('echo "%s"', ":")
    code, said = system.set_up(VENV=pip)
    assert (code, said[-1]) == (1, f"setup: error: pip install . failed: {named}")
    half = system.checkout / ".venv/half"
    half.touch()
    assert system.set_up(VENV=INSTALLS)[0] == 0
    assert not half.exists()


def test_a_full_disk_is_named_also_where_apt_says_it(system: System) -> None:
    system.is_(DEBIAN)
    system.has(
        "apt-get", "echo 'E: You don'\\''t have enough free space in /var/cache/apt/archives/.'; exit 100"
    )
    assert system.set_up()[1][-1] == (
        "setup: error: apt-get update failed: the disk is full: make room, and run it again"
    )


def test_an_upgrade_that_was_interrupted_is_begun_anew_and_one_that_was_not_is_kept(system: System) -> None:
    system.is_(FEDORA)
    system.node_is_there()
    assert system.set_up(VENV=INSTALLS)[0] == 0
    mark = system.checkout / ".venv/mark"
    mark.touch()
    assert system.set_up(VENV=INSTALLS) == (0, []), "there is nothing to do"
    with (system.checkout / "pyproject.toml").open("a") as file:
        file.write("# newer\n")
    assert system.set_up(PIP="1")[0] == 1
    assert mark.exists(), "what there was serves until there is something else"
    assert system.set_up(VENV=INSTALLS)[0] == 0
    assert not mark.exists()
