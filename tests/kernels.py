"""The bpf ring and two nodes on Debian's kernels, in software emulation: `make kernels`.

    python -m tests.kernels [SERIES...] [--only smoke-tc]     6.1 and 6.12 by default

`scripts/setup.sh kernels` has put qemu and virtme-ng there. Kernels are downloaded by name,
unpacked below build/ and never installed. The guest sees this machine's files, and what it
writes stays in its memory. Exit code 1 if anything failed, or could not be tried.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.namespace import REPOSITORY
from tests.process import undisturbed

SERIES: Final = ("6.1", "6.12")
PLACE: Final = REPOSITORY / "build" / "kernels"
LIMIT_S: Final = 3 * 3600
PATIENCE: Final = 20
"""How many times slower than a machine the emulated one may be."""

PARTS: Final = {
    "loading": ("tests/bpf/test_loader.py",),
    "smoke tc": ("tests/netns/test_smoke.py", "-k", "tc"),
    "smoke xdp": ("tests/netns/test_smoke.py", "-k", "xdp"),
    "bpf ring": ("tests/bpf",),
}
"""What pytest is asked for, the quick ones first."""

_MARK: Final = re.compile(r"kernels: (?P<part>[a-z ]+): (?P<said>[^\r\n]+)")
_NOISE: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


@dataclass(slots=True)
class Outcome:
    """What became of one kernel; `error`: why it could not be tried."""

    kernel: str
    said: dict[str, str] = field(default_factory=dict)
    error: str = ""

    def good(self, parts: tuple[str, ...]) -> bool:
        return not self.error and all(self.said.get(part, "").startswith("ok") for part in parts)

    def row(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        missing = self.error or "did not end"
        return self.kernel, *(self.said.get(part, missing) for part in parts)


def newest(names: str, series: str) -> str | None:
    """The newest plain kernel package of a series among apt-cache's lines; None if there is none."""
    wanted = re.compile(rf"linux-image-{re.escape(series)}\.[0-9.]+(-[0-9]+|\+(deb|bpo)[0-9]*)?-amd64")
    found = [name for line in names.splitlines() if wanted.fullmatch(name := line.split(" ")[0])]
    return max(found, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], default=None)


def unpacked(package: str) -> Path:
    """The package's files below build/, downloaded if they are not there."""
    target = PLACE / package
    if not (target / ".complete").exists():
        say(f"downloading {package}")
        PLACE.mkdir(parents=True, exist_ok=True)
        command(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package])
        (archive,) = PLACE.glob(f"{package}_*.deb")
        command(["dpkg-deb", "-x", str(archive), str(target)])
        archive.unlink()
        (target / ".complete").touch()
    return target


def command(argv: list[str]) -> str:
    """Its output; SystemExit with its words if it fails."""
    done = subprocess.run(argv, cwd=PLACE, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"kernels: error: {' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def boot(series: str, parts: tuple[str, ...]) -> Outcome:
    """Run the parts on the newest kernel of a series."""
    package = newest(command(["apt-cache", "search", "--names-only", "^linux-image-"]), series)
    if package is None:
        return Outcome(series, error="not among apt's packages")
    image = next(unpacked(package).glob("boot/vmlinuz-*"))
    outcome = Outcome(image.name.removeprefix("vmlinuz-"))
    log = PLACE / f"{outcome.kernel}.log"
    say(f"booting {outcome.kernel}; all that it says is in {log}")
    guest = f"{sys.executable} -m tests.kernels --guest {','.join(part.replace(' ', '-') for part in parts)}"
    argv = [
        "nice", "-n", "10", "timeout", "--kill-after=10", str(LIMIT_S), str(PLACE / "venv/bin/vng"),
        "--verbose", "--run", str(image), "--disable-kvm", "--disable-microvm", "--force-9p",
        "--memory", "3G", "--cpus", "2", "--cwd", str(REPOSITORY),
        "--overlay-rwdir", str(REPOSITORY), "--overlay-rwdir", "/tmp", "--", guest,
    ]  # fmt: skip
    # virtme-ng looks for its own programs in PATH; output goes by a pipe, for qemu opens it anew.
    env = {**os.environ, "PATH": f"{PLACE / 'venv/bin'}:{os.environ['PATH']}"}
    with log.open("w") as kept:
        child = subprocess.Popen(
            undisturbed(argv), cwd=REPOSITORY, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            kept.write(line)
            kept.flush()
            follow(outcome, _NOISE.sub("", line).rstrip())
        child.wait()
    return outcome


def follow(outcome: Outcome, line: str) -> None:
    """Note results in the guest's output, and show how it gets on."""
    if found := _MARK.search(line):
        outcome.said[found["part"]] = found["said"]
        say(f"{outcome.kernel}: {found['part']}: {found['said']}")
    elif re.search(r"(PASSED|FAILED|ERROR|SKIPPED) .*\[ *\d+%\]|^(FAILED|ERROR|E  ) ", line):
        print(f"    {line}", flush=True)


def guest(parts: list[str]) -> int:
    """Inside the emulated machine: run the parts, one line for each when it is over."""
    from tests.rings import count

    Path("/proc/sys/kernel/printk").write_text("1")  # the console is ours
    env = {**os.environ, "LAB_PATIENCE": str(PATIENCE), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    for part in parts:
        started, junit = time.monotonic(), Path(f"/run/kernels-{part.replace(' ', '-')}.xml")
        argv = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--color=no",
                f"--timeout={120 * PATIENCE}", f"--junitxml={junit}", *PARTS[part]]  # fmt: skip
        code = subprocess.run(argv, cwd=REPOSITORY, env=env, check=False).returncode
        total = count(junit, code)
        verdict = "FAILED" if total.failed or not total.passed else "ok"
        print(f"\nkernels: {part}: {verdict}, {total}, {time.monotonic() - started:.0f} s", flush=True)
    return 0


def table(outcomes: list[Outcome], parts: tuple[str, ...]) -> str:
    rows = [("kernel", *parts), *(outcome.row(parts) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.kernels", description=__doc__)
    parser.add_argument("series", nargs="*", default=SERIES, help="of Debian's kernels")
    parser.add_argument("--only", action="append", choices=[part.replace(" ", "-") for part in PARTS])
    parser.add_argument("--guest", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.guest:
        return guest([part.replace("-", " ") for part in args.guest.split(",")])
    parts = tuple(part for part in PARTS if not args.only or part.replace(" ", "-") in args.only)
    outcomes = [boot(series, parts) for series in args.series]
    print(f"\n{table(outcomes, parts)}", flush=True)
    return 0 if all(outcome.good(parts) for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
