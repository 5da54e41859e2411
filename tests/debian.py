"""The Debian package in fresh Debians: `make deb-test`, or `python -m tests.debian [SUITE...]`.

A minimal system of each suite (debootstrap) is node a of a lab, in a mount namespace of its own, and the
checkout is node b. The package is installed, upgraded under traffic, upgraded with dpkg killed in the
middle, and purged; what is promised is checked, and the first promise that does not hold ends it with
exit code 1. /run of the system is a directory, so that the lab sees it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import ctl
from tests.bootstrap import minimal
from tests.host import Agent, Host
from tests.lab import Lab, remove_cgroup, run, wait_until
from tests.namespace import REPOSITORY
from tests.screen import expect, heading
from tests.stream import traffic
from tests.systemd import TARGETS, cgroup2

SUITES: Final = ("bookworm", "trixie")
PLACE: Final = REPOSITORY / "build" / "debian"
NEXT: Final = f"{ctl.__version__}+next"
BOOKKEEPING: Final = ("var/lib/dpkg", "var/log", "var/cache", "var/lib/apt", "tmp", "proc", "sys", "dev")
"""Where Debian itself writes whatever is installed."""

MOUNTS: Final = """
mount --bind "$0" "$0"
for each in proc sys dev; do mount --rbind /$each "$0/$each"; done
mkdir -p "$0/$1"
mount --bind "$1" "$0/$1"
cp /etc/resolv.conf "$0/etc/resolv.conf"
echo ready
exec sleep infinity
"""
COMPLETE: Final = {
    "bash": r"""
        source /usr/share/bash-completion/completions/ovctl
        COMP_WORDS=(ovctl map d) COMP_CWORD=2 COMP_LINE='ovctl map d' COMP_POINT=11
        $(complete -p ovctl | sed 's/.*-F \([^ ]*\).*/\1/')
        echo "${COMPREPLY[@]}"
    """,
    "fish": "complete -C 'ovctl map d'",
    "zsh": "zsh -n /usr/share/zsh/vendor-completions/_ovctl && echo dump",
}
"""What each shell makes of `ovctl map d` and TAB; of zsh, which needs a terminal, the syntax."""


BOOT: Final = r"""
mount --make-rprivate /
mount -t proc proc "$0/proc"
for part in fs kernel vm; do
    mount --bind "$0/proc/sys/$part" "$0/proc/sys/$part"
    mount -o remount,bind,ro "$0/proc/sys/$part"
done
umount -l "$0/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$0/sys/fs/cgroup"
mount --bind "$0/run" "$0/run"
cd "$0"
pivot_root . mnt
exec chroot . /bin/sh -ec '
    umount -l /mnt
    export container=ovlab SYSTEMD_UNIT_PATH=/run/units:/etc/systemd/system:/usr/lib/systemd/system
    export SYSTEMD_GENERATOR_PATH=/run/generators
    exec /lib/systemd/systemd --system --unit=multi-user.target --log-target=console'
"""
"""As tests.systemd starts one: PID 1 of a namespace, with empty targets, so that nothing else is started."""


class System:
    """A fresh Debian, and the host of the lab that it runs on."""

    def __init__(self, host: Host, suite: str) -> None:
        self.host = host
        self.root = host.lab.dir / f"root-{suite}"
        self.root.mkdir()
        run(["tar", "-C", str(self.root), "-xf", str(minimal(suite))], seconds=300)
        self._holder = host.spawn(
            [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-ec",
                MOUNTS,
                str(self.root),
                str(host.lab.dir),
            ]
        )
        wait_until(self._holder.out, 60, lambda: f"mounts of {suite}\n{self._holder.log()}")

    def enter(self) -> tuple[str, ...]:
        """What goes before a command for it to run in here, whatever its network."""
        return ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "chroot", str(self.root))

    def argv(self, *command: str) -> list[str]:
        """`command` in it, on the host's network, with a clean environment."""
        inside = (
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND=noninteractive",
            "HOME=/root",
        )
        return self.host.argv(*self.enter(), *inside, *command)

    def run(self, *command: str, check: bool = True, seconds: float = 900) -> CompletedProcess[str]:
        """Run `command` in it to its end, where it is reached by the machine's own network."""
        argv = self.argv(*command)
        if command[0] == "apt-get":  # the lab's hosts know no mirror
            argv = argv[2:]
        return run(argv, check=check, seconds=seconds)

    def put(self, package: Path) -> str:
        """Copy a file into it; returns its path there."""
        target = self.root / "root" / package.name
        target.write_bytes(package.read_bytes())
        return f"/root/{package.name}"

    def files(self) -> set[str]:
        """Every path in it but for BOOKKEEPING."""
        prune = [word for place in BOOKKEEPING for word in ("-path", str(self.root / place), "-prune", "-o")]
        found = run(["find", str(self.root), "-xdev", *prune, "-print"], seconds=300).stdout.splitlines()
        return {path.removeprefix(str(self.root)) for path in found if "__pycache__" not in path}

    def agent(self) -> Agent:
        """Start the package's agent; returns when it is ready."""
        agent = Agent(
            self.argv("ovctl", "agent"), self.host.lab.dir / f"packaged-{len(self.host._processes)}"
        )
        agent.host = self.host
        self.host._processes.append(agent)
        agent.wait_ready()
        return agent

    def configure(self) -> None:
        """What an administrator would write, and what keeps this node out of other labs' way."""
        file = self.root / "etc/ovnet/ovnet.toml"
        text = file.read_text()
        for key, value in {"iface": "eth0", "node_name": "a", "bpffs": str(self.host.bpffs)}.items():
            before = text
            text = text.replace(f"\n#{key} = ", f'\n{key} = "{value}"\n# was: ')
            expect(text != before, f"ovnet.toml has {key}, commented out")
        file.write_text(text)


def built(version: str) -> Path:
    """The package of this checkout, of that version."""
    done = run([str(REPOSITORY / "scripts/deb.sh"), version, str(PLACE / "packages")], seconds=600)
    return REPOSITORY / done.stdout.strip()


def installed(system: System, package: str) -> set[str]:
    """Install with apt, look, purge, install with dpkg; returns the files that there were without it."""
    system.run("apt-get", "-qq", "update")
    system.run("apt-get", "-qq", "install", "--yes", "--no-install-recommends", package, "zsh", "fish")
    expect(
        system.run("ovctl", "--version").stdout == f"ovctl {ctl.__version__}\n",
        "apt-get install, ovctl --version",
    )
    for shell, script in COMPLETE.items():
        expect("dump" in system.run(shell, "-c", script).stdout, f"{shell} completes ovctl")
    system.run("dpkg", "--purge", "ovnet")
    before = system.files()
    named = sorted(path for path in before if "ovnet" in path or "ovctl" in path)
    expect(
        not [path for path in named if not path.startswith("/root/")],
        f"purged before it ran: nothing left {named}",
    )
    system.run("dpkg", "--install", package)
    return before


def listed(system: System, package: str) -> set[str]:
    """The files of the package's own directory."""
    lines = system.run("dpkg-deb", "--contents", package).stdout.splitlines()
    return {line.split()[5][1:] for line in lines if "/usr/lib/ovnet/" in line and not line.startswith("d")}


def interrupted(system: System, old: str, new: str) -> None:
    """Kill dpkg where it puts a file in place or takes one away: `ovctl` is always one version, whole."""
    modules = {ctl.__version__: listed(system, old), NEXT: listed(system, new)}
    kills = [
        ("rename", f"/usr/lib/ovnet/{NEXT}/{name}.dpkg-new") for name in ("bpf/abi.h", "ctl/core/errors.py")
    ]
    kills += [
        ("rename", f"{path}.dpkg-new") for path in ("/usr/lib/ovnet/ovctl", "/usr/share/man/man1/ovctl.1.gz")
    ]
    kills += [
        ("unlink", f"/usr/lib/ovnet/{ctl.__version__}/{name}") for name in ("metrics/names.py", "bpf/abi.h")
    ]
    seen = set()
    for call, path in kills:
        inject = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-P", path,
                  "-e", f"inject={call}:signal=KILL")  # fmt: skip
        done = run([*inject, *system.argv("dpkg", "--unpack", new)], check=False, seconds=600)
        said = system.run("ovctl", "--version", check=False)
        version = said.stdout.strip().removeprefix("ovctl ")
        seen.add(version)
        whole = said.returncode == 0 and version in modules and modules[version] <= system.files()
        claim = (
            f"dpkg killed at {call} of {path}: {version}, with all its {len(modules.get(version, ()))} files"
        )
        expect(done.returncode == -9 and whole, f"{claim}{said.stderr.strip()}")
        system.run("dpkg", "--configure", "-a", check=False)
        system.run("dpkg", "--install", "--force-confold", old)
    expect(len(seen) == 2, "both versions were seen")
    expect(system.run("ovctl", "--version").stdout == f"ovctl {ctl.__version__}\n", "dpkg --install heals it")


def purged(system: System, agent: Agent, before: set[str]) -> None:
    """Not under a running agent; then with all that it has made."""
    refused = system.run("dpkg", "--purge", "ovnet", check=False)
    expect(
        refused.returncode != 0 and "another agent" in refused.stderr,
        "dpkg --purge refuses while an agent runs",
    )
    agent.stop()
    for container in list(system.host.containers):
        container.remove()
    system.run("dpkg", "--purge", "ovnet")
    left = sorted(system.files() - before)
    expect(left == [], f"purge leaves no file {left}")


class Booted:
    """The system's own systemd, running the package's unit."""

    def __init__(self, system: System) -> None:
        host = system.host
        units = system.root / "run/units"
        units.mkdir(parents=True)
        for target in TARGETS:
            (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        group = cgroup2() / f"{host.netns}-systemd"
        group.mkdir()
        host.lab.at_close(partial(remove_cgroup, group))
        join = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group))
        unshare = ("unshare", "--cgroup", "--pid", "--fork", "--mount", "--uts", "--ipc")
        mounts = system.enter()[:2]
        self.init = host.spawn(host.argv(*mounts, *join, *unshare, "sh", "-ec", BOOT, str(system.root)))
        wait_until(self._answers, 60, lambda: f"systemd answers\n{self.init.out()}{self.init.log()}")

    def _answers(self) -> bool:
        assert self.init.poll() is None, self.init.out() + self.init.log()
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        self._pid = children[0] if children else ""
        return bool(self._pid) and self.run("systemctl", "show", "-p", "Version", check=False).returncode == 0

    def run(self, *command: str, check: bool = True) -> CompletedProcess[str]:
        """Run a command beside it."""
        env = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive")
        return run(["nsenter", "--target", self._pid, "--all", *env, *command], check=check, seconds=300)

    def told(self) -> str:
        """What it says of the unit, for a failure."""
        said = self.run("systemctl", "--no-pager", "status", "ovnet.service", check=False).stdout
        return f"the upgraded agent is ready\n{said}{self.init.out()}{self.init.log()}"

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.run("systemctl", "show", "ovnet.service", "--property", name, "--value").stdout.strip()


def by_systemd(suite: str, old: Path, new: Path) -> None:
    """The unit: not started by the installation, restarted by an upgrade, stopped by a removal."""
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        untouched = a.footprint()
        system = System(a, suite)
        packages = [system.put(package) for package in (old, new)]
        system.run("apt-get", "-qq", "update")
        system.run("apt-get", "-qq", "install", "--yes", "--no-install-recommends", packages[0], "systemd")
        system.configure()
        lab.store_url = f"sqlite://{system.root}/var/lib/ovnet/store.db"
        a.state_dir = system.root / "run/ovnet"
        booted = Booted(system)
        expect(
            booted.run("systemctl", "is-enabled", "ovnet", check=False).stdout == "disabled\n", "not enabled"
        )
        system.run("ovctl", "network", "init", "--network", "10.77.0.0/16", "--subnet-len", "24")
        booted.run("systemctl", "enable", "--now", "ovnet")
        expect(booted.show("ActiveState") == "active", "systemctl enable --now waits until the node is ready")
        b.agent()
        for host in (a, b):
            wait_until(host.knows_a_peer, 20, f"{host.name} knows its peer")
        one, two = a.container("one"), b.container("two")
        with traffic(one, two) as counted:
            booted.run("dpkg", "--install", packages[1])
            wait_until(lambda: a.status().get("version") == NEXT, 120, booted.told)
            wait_until(lambda: booted.show("ActiveState") == "active", 120, booted.told)
        expect(counted.lost == 0, f"upgraded by systemd: {counted.lost} of {counted.sent} datagrams lost")
        for container in (one, two):
            container.remove()
        booted.run("dpkg", "--purge", "ovnet")
        expect(booted.show("ActiveState") == "inactive", "purge has stopped it")
        files = sorted(path for path in system.files() if "ovnet" in path and not path.startswith("/root/"))
        now = a.footprint()
        left = files + [key for key in now if now[key] != untouched[key] and "forward" not in key]
        expect(left == [], f"and taken everything away {left}")


def one_suite(suite: str, old: Path, new: Path) -> None:
    """All of it for one Debian."""
    with heading(SUITES.index(suite) + 1, f"Debian {suite}"), Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        untouched = a.footprint()
        system = System(a, suite)
        packages = [system.put(package) for package in (old, new)]
        before = installed(system, packages[0])
        system.configure()
        lab.store_url = f"sqlite://{system.root}/var/lib/ovnet/store.db"
        a.state_dir = system.root / "run/ovnet"
        system.run("ovctl", "network", "init", "--network", "10.77.0.0/16", "--subnet-len", "24")
        agent = system.agent()
        b.agent()
        for host in (a, b):
            wait_until(host.knows_a_peer, 20, f"{host.name} knows its peer")
        one, two = a.container("one"), b.container("two")
        with traffic(one, two) as counted:
            wait_until(lambda: b.bypassed()[0] > 100, 20, "eBPF carries it")
        expect(counted.lost == 0, f"installed: 0 of {counted.sent} datagrams lost")
        with traffic(one, two) as counted:
            system.run("dpkg", "--install", packages[1])
            expect(agent.poll() is None, "the old agent goes on until it is restarted")
            agent.stop()
            agent = system.agent()
        expect(
            counted.lost == 0, f"upgraded, agent restarted: {counted.lost} of {counted.sent} datagrams lost"
        )
        expect(system.run("ovctl", "--version").stdout == f"ovctl {NEXT}\n", "the new version")
        expect(
            '\niface = "eth0"\n' in (system.root / "etc/ovnet/ovnet.toml").read_text(), "the settings stay"
        )
        with traffic(one, two) as counted:
            system.run("dpkg", "--install", packages[0])
            interrupted(system, *packages)
        expect(
            counted.lost == 0, f"downgraded, upgrades killed: {counted.lost} of {counted.sent} datagrams lost"
        )
        purged(system, agent, before)
        now = a.footprint()
        different = [key for key in now if now[key] != untouched[key] and key != "net.ipv4.ip_forward"]
        expect(
            [key for key in different if "forwarding" not in key] == [],
            f"nothing in the kernel is left {different}",
        )


def main() -> int:
    """Every suite that was asked for; returns 1 if none of the promises could be looked at."""
    parser = argparse.ArgumentParser(prog="tests.debian", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", default=SUITES, choices=(*SUITES, SUITES))
    suites = parser.parse_args().suites
    old, new = built(ctl.__version__), built(NEXT)
    clean = subprocess.run(["lintian", "--fail-on", "error,warning", str(old)], check=False, text=True,
                           capture_output=True)  # fmt: skip
    expect(clean.returncode == 0, f"lintian finds nothing {clean.stdout}")
    for suite in suites:
        one_suite(suite, old, new)
        by_systemd(suite, old, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
