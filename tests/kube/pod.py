"""Containers of a pod as kubelet and a runtime make them of its YAML, by runc: no daemon, no image.

The machine's /usr is their file system, with this checkout's ovctl and what the image has beside it put over
it. Rights, mounts, variables and what is masked are the pod's own, and what containerd's CRI plugin gives to
a pod on the host's network: runc's own defaults are wider.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.docker import DIRECTORIES, LINKS
from tests.host import Host
from tests.namespace import REPOSITORY
from tests.process import Process

Json = dict[str, Any]

CHECKOUT: Final = Path("/ovnet")
"""Of this program, in there."""
DEFAULT_MOUNTS: Final = tuple(
    {"destination": place, "type": kind, "source": kind, "options": ["nosuid", *options]}
    for place, kind, options in (
        ("/proc", "proc", ("noexec", "nodev")),
        ("/dev", "tmpfs", ("mode=755",)),
        ("/dev/shm", "tmpfs", ("noexec", "nodev")),
        ("/sys", "sysfs", ("noexec", "nodev", "ro")),
    )
)
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
MASKED: Final = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")
SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


class Pod:
    """A pod's place on a host: what kubelet knows of it."""

    def __init__(
        self,
        host: Host,
        spec: Json,
        volumes: Mapping[str, Path],
        fields: Mapping[str, str],
        env: Mapping[str, str],
    ) -> None:
        """`spec`: of the pod.

        `volumes`: where they are on this machine; its `emptyDir` ones need no place. `fields`: what
        `fieldRef` finds, by path. `env`: what kubelet adds, and the lab.
        """
        self._host, self._spec, self._fields, self._env = host, spec, fields, env
        self._volumes = {**volumes, "serviceaccount": host.lab.dir / "serviceaccount"}
        self._place = host.lab.dir / f"pod-{host.name}"
        self._runc = ("runc", "--root", str(self._place / "runc"))
        self._image = self._place / "image"
        for name in (*DIRECTORIES, "var", "opt", "host"):
            (self._place / "root" / name).mkdir(parents=True)
        for name, target in LINKS.items():
            (self._place / "root" / name).symlink_to(target)
        self._make_image()
        host.lab.at_close(self.remove)

    def _make_image(self) -> None:
        """What lies over the machine's /usr, and /opt."""
        (self._image / "bin").mkdir(parents=True)
        ovctl = self._image / "bin" / "ovctl"
        python = CHECKOUT / Path(sys.executable).relative_to(REPOSITORY)
        ovctl.write_text(f'#!/bin/sh\nPYTHONPATH={CHECKOUT} exec {python} -m ctl.cli.main "$@"\n')
        ovctl.chmod(0o755)
        entries = self._place / "root" / "opt" / "bin"
        entries.mkdir()
        for name in ("install-cni-plugins", "install-conf"):
            shutil.copy(REPOSITORY / "deploy" / "image" / name, entries)
            (entries / name).chmod(0o755)

    def start(self, container: Json) -> Process:
        """One of its containers, by its part of the spec."""
        bundle = self._place / container["name"]
        bundle.mkdir(exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(self._oci(container)))
        self._delete(container["name"])
        return self._host.popen(*self._runc, "run", "--bundle", str(bundle), self._id(container["name"]))

    def execute(self, name: str, *command: str) -> str:
        """As `kubectl exec`: what it prints."""
        return self._host.run(*self._runc, "exec", self._id(name), *command).stdout

    def remove(self) -> None:
        for each in (*self._spec["initContainers"], *self._spec["containers"]):
            self._delete(each["name"])

    def _delete(self, name: str) -> None:
        self._host.run(*self._runc, "delete", "--force", self._id(name), check=False)

    def _id(self, name: str) -> str:
        return f"{self._host.netns}-{name}"

    def _oci(self, container: Json) -> Json:
        """config.json of the OCI's runtime specification."""
        security = container["securityContext"]
        assert security["capabilities"]["drop"] == ["ALL"]
        rights = [f"CAP_{each}" for each in security["capabilities"].get("add", [])]
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": container["command"],
                "env": [f"{name}={value}" for name, value in self._environment(container).items()],
                "cwd": "/",
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights),
                "noNewPrivileges": not security["allowPrivilegeEscalation"],
            },
            "root": {"path": str(self._place / "root"), "readonly": security["readOnlyRootFilesystem"]},
            "mounts": [*DEFAULT_MOUNTS, *self._machine(), *map(self._mount, self._mounts(container))],
            "linux": {
                "namespaces": [{"type": each} for each in ("pid", "ipc", "mount")],
                "cgroupsPath": f"/{self._id(container['name'])}",
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
            },
        }

    def _environment(self, container: Json) -> dict[str, str]:
        found = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **self._env}
        for each in container.get("env", []):
            if "value" in each:
                value = each["value"]
                for name, known in found.items():
                    value = value.replace(f"$({name})", known)
                found[each["name"]] = value
            else:
                found[each["name"]] = self._fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        return found

    def _machine(self) -> list[Json]:
        """What an image would have in it."""
        over = f"lowerdir={self._image}:/usr"
        bind = {"type": "bind", "options": ["rbind", "ro"]}
        return [
            {"destination": "/usr", "type": "overlay", "source": "overlay", "options": ["ro", over]},
            {"destination": str(CHECKOUT), "source": str(REPOSITORY), **bind},
        ]

    def _mounts(self, container: Json) -> list[Json]:
        account = {"name": "serviceaccount", "mountPath": SERVICE_ACCOUNT, "readOnly": True}
        return [*container["volumeMounts"], account]

    def _mount(self, wanted: Json) -> Json:
        if wanted["name"] not in self._volumes:
            return {"destination": wanted["mountPath"], "type": "tmpfs", "source": "tmpfs"}
        options = ["rbind", "ro" if wanted.get("readOnly") else "rw", "rprivate"]
        source = str(self._volumes[wanted["name"]])
        return {"destination": wanted["mountPath"], "type": "bind", "source": source, "options": options}
