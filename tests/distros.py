"""A new user's first day on Debian's suites, each a fresh system: `make distros`.

    python -m tests.distros [SUITE...] [--only setup]     bookworm, trixie and forky by default; Ubuntu's too

`scripts/setup.sh distros` has put debootstrap there. Each suite gets a system of its own below
build/distros/, which sees this machine's kernel, its network and what it needs to reach a mirror
and PyPI: names, certificates of this machine's own, proxies. In it everything is installed and
tried that PARTS names. It is in a mount and a process namespace: when it is over, or interrupted,
nothing of it is left running or mounted, and its files are removed. What it was made of is kept,
so that the next time is quicker: the system as debootstrap has left it, packages, wheels.

The last lines are a table. Exit code 1 if a part has failed on a supported suite; on another one
that is a warning. 2 if `make distros` runs already.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn, TextIO

from tests.bootstrap import UBUNTU, contained, minimal, removed, started
from tests.namespace import REPOSITORY

SUITES: Final = {"bookworm": True, "trixie": True, "forky": False}
"""Debian's, and whether it is supported: of one that is not yet released, a failure is a warning."""
PLACE: Final = REPOSITORY / "build" / "distros"
HOME: Final = "root/ovnet"
"""Where the checkout lies in a fresh system."""

PARTS: Final = {
    "setup": "make setup",
    "demo": "make demo",
    "lint": "make lint",
    "unit": "make test-unit",
    "smoke tc": ".venv/bin/python -m pytest tests/netns/test_smoke.py -k tc",
    "smoke xdp": ".venv/bin/python -m pytest tests/netns/test_smoke.py -k xdp",
    "bpf": "make test-bpf",
}
"""What is run as root in the checkout, in this order."""
FIRST: Final = "setup"
"""Without it none of the others can be tried."""
LIMIT_S: Final = 3600.0
"""For each part."""

VERSIONS: Final = r"""
version() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null | sed -E 's/^[0-9]+://; s/[-+~].*//'; }
llvm=$(ldd /usr/lib/*/libbcc.so.0 2>/dev/null | sed -nE 's/.*libLLVM[-.a-z]*([0-9]+).*/\1/p' | head -n 1)
echo "Python $(version python3), BCC $(version python3-bpfcc), LLVM $llvm"
"""

_ENTER: Final = r"""
set -eu
root=$1 kept=$2; shift 2
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount --rbind /sys sys
mount -t bpf bpf sys/fs/bpf
mount -t tmpfs -o ro tmpfs sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p run/lock var/cache/apt/archives root/.cache/pip "$kept/packages" "$kept/pip"
mount --bind "$kept/packages" var/cache/apt/archives
mount --bind "$kept/pip" root/.cache/pip
exec chroot . "$@"
"""
"""Into a fresh system. bpffs is its own: what a test that is killed has pinned goes with it. Control
groups it has none: it would take those of this machine's labs, whose processes it does not see, for dead."""

_SUM: Final = re.compile(
    r"(?P<counts>\d+ (?:passed|failed)(?:, \d+ (?:passed|failed|skipped|errors?))*)(?:, \d+ deselected)?"
    r"(?: in [\d.]+s.*)?"
)
_TROUBLE: Final = re.compile(r"(FAILED|ERROR|E  ) ?|.*\berror: |make: \*\*\* ")
_PERCENT: Final = re.compile(r".*\[ *(?P<percent>\d+)%\]")
_NOISE: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


@dataclass(slots=True)
class Outcome:
    """What became of one suite; `error`: why it could not be tried."""

    suite: str
    versions: str = ""
    said: dict[str, str] = field(default_factory=dict)
    error: str = ""

    def good(self, parts: Sequence[str]) -> bool:
        return not self.error and all(self.said.get(part, "").startswith("ok") for part in parts)

    def row(self, parts: Sequence[str]) -> tuple[str, ...]:
        missing = self.error or "not tried"
        return self.suite, self.versions or "-", *(self.said.get(part, missing) for part in parts)


@dataclass(slots=True)
class Reader:
    """Reads a part's output: what it comes to, and what of it is worth showing meanwhile."""

    counts: str = ""
    """The last sum of tests that was printed; empty if none was."""
    _quarter: int = 0

    def read(self, line: str) -> str | None:
        """What to show of a line."""
        plain = _NOISE.sub("", line).rstrip()
        if found := _SUM.fullmatch(plain.strip("= ")):
            self.counts = found["counts"]
        if found := _PERCENT.fullmatch(plain):
            before, self._quarter = self._quarter, int(found["percent"]) // 25
            return f"{25 * self._quarter} %" if before != self._quarter else None
        return plain if _TROUBLE.match(plain) else None

    def verdict(self, exit_code: int, seconds: float) -> str:
        counts = f", {self.counts}" if self.counts else ""
        return f"{f'FAILED ({exit_code})' if exit_code else 'ok'}{counts}, {seconds:.0f} s"


# --- A fresh system -------------------------------------------------------------------------


@contextmanager
def fresh(suite: str, log: TextIO) -> Iterator[Path]:
    """A new system of the suite, with this checkout in it."""
    tar, root = minimal(suite), PLACE / f"{suite}.root"
    with removed(root):
        root.mkdir()
        contained(["tar", "-C", str(root), "-xf", str(tar)], log)
        furnish(root, log)
        yield root


def furnish(root: Path, log: TextIO) -> None:
    """What every machine here has been given: names, certificates; and the checkout as it is now."""
    resolver = root / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    resolver.write_text(Path("/etc/resolv.conf").read_text())
    # A mirror that lags behind is the mirror's trouble; debootstrap does not look at it either.
    (root / "etc/apt/apt.conf.d/90mirror").write_text('Acquire::Check-Valid-Until "false";\n')
    for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        shutil.copy(certificate, root / "usr/local/share/ca-certificates")
    contained(entering(root, "update-ca-certificates"), log)
    contained(
        entering(root, "apt-get -qq update && apt-get -qq install --yes --no-install-recommends git make"),
        log,
    )
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.split("\0"):
        origin, target = REPOSITORY / name, root / HOME / name
        if name and (origin.is_file() or origin.is_symlink()):  # not one that is removed, and still listed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, target, follow_symlinks=False)


# --- In it --------------------------------------------------------------------------------


def entering(root: Path, shell: str) -> list[str]:
    """The command that runs lines of shell in the checkout of a fresh system."""
    kept = PLACE / f"{root.stem}.kept"
    # The shell has to stay: some programs will not be the first process, for example forky's timeout.
    lines = f"cd /{HOME} 2>/dev/null || cd /\n{shell}\nexit $?"
    inner = ["env", "-i", *environment(os.environ), "bash", "-c", lines]
    return ["bash", "-c", _ENTER, "enter", str(root), str(kept), *inner]


def environment(outer: Mapping[str, str]) -> list[str]:
    """A new user's; of this machine's own only how PyPI and mirrors are reached."""
    handed = re.compile(r"(?i)(https?|no|all|ftp)_proxy|PIP_(INDEX_URL|TRUSTED_HOST|DEFAULT_TIMEOUT)")
    return [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb", "NO_COLOR=1",
        "CI=true",  # a test that is skipped has failed
        "PIP_CERT=/etc/ssl/certs/ca-certificates.crt",
        *(f"{name}={value}" for name, value in outer.items() if handed.fullmatch(name)),
    ]  # fmt: skip


def attempt(root: Path, part: str, log: TextIO) -> str:
    """Run a part in a fresh system; its verdict."""
    say(f"{root.stem}: {part}")
    log.write(f"\n===== {part}: {PARTS[part]}\n")
    reader, start = Reader(), time.monotonic()
    command = f"timeout --kill-after=10 {LIMIT_S:.0f} {PARTS[part]}"
    with started(entering(root, command), subprocess.PIPE) as child:
        assert child.stdout is not None
        for line in child.stdout:
            log.write(line)
            log.flush()
            if shown := reader.read(line):
                print(f"    {shown}", flush=True)
        child.wait()
    verdict = reader.verdict(child.returncode, time.monotonic() - start)
    say(f"{root.stem}: {part}: {verdict}")
    return verdict


def try_suite(suite: str, parts: Sequence[str]) -> Outcome:
    """A fresh system, the parts in it, and everything removed."""
    outcome, path = Outcome(suite), PLACE / f"{suite}.log"
    say(f"{suite}: all that is said goes to {path}")
    try:
        with path.open("w") as log, fresh(suite, log) as root:
            for part in (FIRST, *(part for part in parts if part != FIRST)):
                outcome.said[part] = attempt(root, part, log)
                if part == FIRST and not outcome.good([FIRST]):
                    break
                outcome.versions = outcome.versions or _output(entering(root, VERSIONS)).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        outcome.error = f"no system: {error}"
        say(f"{suite}: {outcome.error}")
    return outcome


def _output(argv: Sequence[str]) -> str:
    with started(argv, subprocess.PIPE) as child:
        return child.communicate()[0]


# --- All of them ----------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def table(outcomes: Sequence[Outcome], parts: Sequence[str]) -> str:
    rows = [("suite", "with", *parts), *(outcome.row(parts) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def judge(outcomes: Sequence[Outcome], parts: Sequence[str]) -> tuple[int, list[str]]:
    """Exit code, and a warning for each suite that failed and need not be good."""
    bad = [outcome.suite for outcome in outcomes if not outcome.good(parts)]
    warnings = [
        f"warning: {suite} failed; it is not supported (yet)" for suite in bad if not SUITES.get(suite)
    ]
    return int(len(bad) > len(warnings)), warnings


@contextmanager
def alone() -> Iterator[None]:
    """While nobody else makes systems in the same place."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("distros: error: make distros runs already", file=sys.stderr)
            sys.exit(2)
        yield


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # removing must not be stopped
    sys.exit(128 + number)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.distros", description=__doc__)
    parser.add_argument(
        "suite", nargs="*", default=list(SUITES), help="of Debian, or of Ubuntu: " + ", ".join(UBUNTU)
    )
    parser.add_argument("--only", action="append", choices=[part.replace(" ", "-") for part in PARTS])
    args = parser.parse_args(arguments)
    if os.geteuid():
        print("distros: error: needs root", file=sys.stderr)
        return 2
    parts = [part for part in PARTS if not args.only or part.replace(" ", "-") in args.only]
    # Also in the background of a script, where a shell has SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    with alone():
        outcomes = [try_suite(suite, parts) for suite in args.suite]
    code, warnings = judge(outcomes, parts)
    print("\n".join(["", table(outcomes, parts), *warnings]), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
