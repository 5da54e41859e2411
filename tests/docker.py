"""Real dockerd on hosts of the lab, set up from the lease as for flannel.

Traps, each met on Debian's docker.io 20.10:
- Docker masquerades everything that leaves its bridge by another device, the vxlan
  device too: peers would see the host's address. With our masquerade on, dockerd gets
  `--ip-masq=false` (what flannel's mk-docker-opts.sh does with FLANNEL_IPMASQ).
- dockerd sets the FORWARD policy to DROP only if it finds ip_forward off and turns it
  on itself. So it matters whether the agent or dockerd was first.
- It writes to /etc/docker, /run/docker and /run/containerd whatever --data-root and
  --exec-root say, and leaves that behind. It runs in a mount namespace of its own,
  with empty file systems over those three.
- `--bip` adopts a docker0 that exists, if the address is the same; else changes it.
- PID 1 of a container has no default action for SIGTERM: `docker rm --force`.
- Control groups stay behind empty: a --cgroup-parent of ours is removed with the lab.
  The systemd driver would want a slice there, so cgroupfs is asked for.
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from tests.host import Host
from tests.lab import remove_path, run, wait_until
from tests.namespace import REPOSITORY, Netns
from tests.process import CommandFailed

IMAGE = "ovnet-lab"
PRIVATE = ("/etc/docker", "/run/docker", "/run/containerd")
DIRECTORIES = ("usr", "etc", "proc", "sys", "dev", "run", "tmp", "ovnet")
LINKS = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}


class DockerContainer(Netns):
    """A container that dockerd made; `run` and `popen` are in its network namespace only."""

    def __init__(self, docker: Dockerd, name: str) -> None:
        self.name, self.docker = name, docker
        self.address, path = self._look()
        super().__init__(path, docker.host.lab.dir)

    def _look(self) -> tuple[str, Path]:
        """Its address (it is on one network only) and its network namespace, now."""
        address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        shown = self.docker.docker("inspect", "--format", f"{address} {{{{.State.Pid}}}}", self.name)
        address, pid = shown.split()
        return address, Path(f"/proc/{pid}/ns/net")

    @property
    def label(self) -> str:
        return f"docker-{self.name}"

    @property
    def id(self) -> str:
        """Docker's, whole."""
        return self.docker.docker("inspect", "--format", "{{.Id}}", self.name).strip()

    def execute(self, *command: str) -> str:
        """`docker exec`; returns its stdout."""
        return self.docker.docker("exec", self.name, *command)

    def logs(self) -> str:
        """What its main process printed on stdout."""
        return self.docker.docker("logs", self.name)

    def stop(self) -> None:
        """Kill its processes; it gives its address back."""
        self.stop_processes()
        self.docker.docker("stop", "--time", "0", self.name)

    def start(self) -> None:
        """Start it again, stopped or running, with the address that is its now."""
        self.docker.docker("restart", "--time", "0", self.name)
        self.address, self.path = self._look()

    def remove(self) -> None:
        self.stop_processes()
        self.docker.docker("rm", "--force", "--volumes", self.name)


class Dockerd:
    """A Docker daemon in a host's network namespace, with all its files in the lab's directory."""

    def __init__(self, host: Host, *flags: str) -> None:
        """Start it with the flags given; see `flags_from_lease`. Returns when it answers."""
        self.host = host
        self.containers: list[DockerContainer] = []
        self.root = host.lab.dir / f"docker-{host.name}"
        self.root.mkdir()
        (self.root / "daemon.json").write_text("{}")  # not the machine's own
        host.lab.at_close(self.remove)
        # The mount points exist outside too, empty; what we made of them goes with the lab.
        made = [Path(place) for place in PRIVATE if not Path(place).exists()]
        for place in made:
            place.mkdir()
            host.lab.at_close(place.rmdir)
        hide = "".join(f"mount -t tmpfs tmpfs {place} && " for place in PRIVATE)
        self._arguments = (
            "--host", self.socket,
            "--config-file", str(self.root / "daemon.json"),
            "--data-root", str(self.root / "data"),
            "--exec-root", str(self.root / "exec"),
            "--pidfile", str(self.root / "pid"),
            "--cgroup-parent", f"/{host.lab.id}",
            "--exec-opt", "native.cgroupdriver=cgroupfs",
            "--shutdown-timeout", "1",
            *flags,
        )  # fmt: skip
        self._start("unshare", "--mount", "sh", "-c", f'{hide}exec dockerd "$@"', "dockerd")
        self._import_image()

    def _start(self, *program: str) -> None:
        """Run dockerd by `program`, to which its arguments are added; returns when it answers."""
        self.daemon = self.host.popen(*program, *self._arguments)
        wait_until(self._answers, 60, lambda: f"dockerd on {self.host.name} answers\n{self.daemon.log()}")

    def restart(self) -> None:
        """As systemd does it. Containers live on if the daemon runs with `--live-restore`."""
        # What it goes on with, containerd's sockets, is in the mount namespace that it had.
        mounts = os.open(f"/proc/{self.daemon.pid}/ns/mnt", os.O_RDONLY)
        try:
            self.daemon.stop()
            self._start("nsenter", f"--mount=/proc/{os.getpid()}/fd/{mounts}", "dockerd")
        finally:
            os.close(mounts)

    @property
    def socket(self) -> str:
        """What `docker --host` takes."""
        return f"unix://{self.root}/sock"

    def docker(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run the docker client against this daemon; returns its stdout."""
        argv = ["docker", "--config", str(self.root / "client"), "--host", self.socket, *arguments]
        if stdin is None:
            return run(argv).stdout
        file = self.root / "stdin"
        file.write_bytes(stdin)
        return run(["sh", "-c", '"$@" < "$0"', str(file), *argv]).stdout

    def run(self, name: str, *command: str, options: tuple[str, ...] = ()) -> DockerContainer:
        """`docker run --detach`; the host's /usr and this repository are in it, read-only."""
        self.docker("run", "--detach", "--name", name,
                    "--volume", "/usr:/usr:ro", "--volume", f"{REPOSITORY}:/ovnet:ro", "--workdir", "/ovnet",
                    *options, IMAGE, *command)  # fmt: skip
        self.containers.append(DockerContainer(self, name))
        return self.containers[-1]

    def remove(self) -> None:
        """Remove its containers, stop it, delete its files and control groups. Twice is fine."""
        for container in self.containers:
            container.stop_processes()  # these are in its network namespace only
        if self.daemon.poll() is None:
            names = self.docker("ps", "--all", "--quiet").split()
            if names:
                self.docker("rm", "--force", "--volumes", *names)
        self.daemon.stop()
        others = [
            host for host in self.host.lab.hosts if (self.host.lab.dir / f"docker-{host.name}").exists()
        ]
        remove_path(self.root)
        if others == [self.host]:
            for group in Path("/sys/fs/cgroup").glob(f"**/{self.host.lab.id}"):
                remove_path(group)

    def _answers(self) -> bool:
        if self.daemon.poll() is not None:
            raise CommandFailed(f"dockerd ended\n{self.daemon.log()}")
        argv = ["docker", "--config", str(self.root / "client"), "--host", self.socket, "version"]
        return run(argv, check=False).returncode == 0

    def _import_image(self) -> None:
        """An image of empty directories: `run` mounts the machine's own /usr over its."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name in DIRECTORIES:
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            for name, target in LINKS.items():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
        self.docker("import", "-", IMAGE, stdin=archive.getvalue())


def flags_from_lease(host: Host) -> tuple[str, ...]:
    """Dockerd's flags for the node's lease, from the agent's subnet.env."""
    lease = host.subnet_env()
    return (
        f"--bip={lease['FLANNEL_SUBNET']}",
        f"--mtu={lease['FLANNEL_MTU']}",
        f"--ip-masq={'false' if lease['FLANNEL_IPMASQ'] == 'true' else 'true'}",
    )
