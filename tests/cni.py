"""Containers as the CNI plugin `flannel` makes them: subnet.env read as it reads it, its delegates real.

No package carries that plugin, so its half of the work is here, by its source
(flannel-io/cni-plugin, flannel.go and flannel_linux.go): read subnet.env, fill in the
configuration of the delegate, call it. The delegates, `bridge` and `host-local`, are Debian's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from tests.host import Host
from tests.namespace import Namespace

PLUGINS = Path("/usr/lib/cni")

KUBE_FLANNEL: dict[str, Any] = {
    "name": "cbr0",
    "cniVersion": "0.3.1",
    "type": "flannel",
    "delegate": {"hairpinMode": True, "isDefaultGateway": True},
}
"""What kube-flannel.yml puts into /etc/cni/net.d."""


def conflist(host: Host) -> Path:
    """The CNI configuration by which an agent tells the host's runtime."""
    return host.lab.dir / f"{host.name}.net.d" / "10-flannel.conflist"


@dataclass(frozen=True)
class SubnetEnv:
    """What the plugin takes from the file."""

    networks: list[IPv4Network]
    subnet: IPv4Network
    mtu: int
    ip_masq: bool


def load_subnet_env(path: Path) -> SubnetEnv:
    """Line by line, the text after the first `=` as it stands: no quotes, no spaces, no comments."""
    found = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    mtu = found["FLANNEL_MTU"]
    assert mtu.isascii() and mtu.isdigit() and int(mtu) < 1 << 32
    return SubnetEnv(
        [_cidr(text) for text in found["FLANNEL_NETWORK"].split(",")],
        _cidr(found["FLANNEL_SUBNET"]),
        int(mtu),
        found["FLANNEL_IPMASQ"] == "true",
    )


def _cidr(text: str) -> IPv4Network:
    """Go's net.ParseCIDR: host bits are cut off."""
    return IPv4Interface(text).network


def delegate(conf: dict[str, Any], env: SubnetEnv) -> dict[str, Any]:
    """The configuration that the plugin hands on."""
    ipam = {"type": "host-local", **conf.get("ipam", {})}
    ipam["ranges"] = [[{"subnet": str(env.subnet)}]]
    ipam["routes"] = [*ipam.get("routes", []), *({"dst": str(network)} for network in env.networks)]
    filled = {"type": "bridge", "ipMasq": not env.ip_masq, "mtu": env.mtu, **conf.get("delegate", {})}
    if filled["type"] == "bridge":
        filled.setdefault("isGateway", True)
    return filled | {"name": conf["name"], "cniVersion": conf["cniVersion"], "ipam": ipam}


class CniContainer(Namespace):
    """A namespace that the plugins plug in on `host`, by its subnet.env."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(f"{host.lab.id}-{host.name}-{name}", host.lab.dir)
        host.lab.at_close(self.remove)
        self._host, self._name = host, name
        # Hosts of a lab share the file system: the plugin's own default would mix their addresses.
        conf = KUBE_FLANNEL | {"ipam": {"dataDir": str(host.lab.dir / f"cni-{host.name}")}}
        self._conf = delegate(conf, load_subnet_env(host.state_dir / "subnet.env"))
        self.result: dict[str, Any] = json.loads(self._call("ADD"))
        self.address = str(IPv4Interface(self.result["ips"][0]["address"]).ip)

    def unplug(self) -> None:
        """As the runtime does before it removes the namespace."""
        self._call("DEL")

    def _call(self, command: str) -> str:
        return call_plugin(self._host, command, self._name, self.path, self._conf)


class ConflistContainer(Namespace):
    """A namespace that a runtime plugs in on `host` by a CNI configuration with several plugins.

    As libcni does it: one plugin after the other, each given the result of the one before, and of what
    the runtime knows that for which it says `capabilities`.
    """

    def __init__(self, host: Host, name: str, conflist: Path, ports: list[dict[str, Any]]) -> None:
        super().__init__(f"{host.lab.id}-{host.name}-{name}", host.lab.dir)
        host.lab.at_close(self.remove)
        self._host, self._name = host, name
        self._whole = json.loads(conflist.read_text())
        # Hosts of a lab share the file system: the plugin's own default would mix their addresses.
        self._whole["plugins"][0]["ipam"].setdefault("dataDir", str(host.lab.dir / f"cni-{host.name}"))
        self._known = {"portMappings": ports}
        self.result: dict[str, Any] = {}
        for plugin in self._whole["plugins"]:
            self.result = json.loads(self._call("ADD", plugin)) or self.result
        self.address = str(IPv4Interface(self.result["ips"][0]["address"]).ip)

    def unplug(self) -> None:
        """As the runtime does before it removes the namespace: the last plugin first."""
        for plugin in reversed(self._whole["plugins"]):
            self._call("DEL", plugin)

    def _call(self, command: str, plugin: dict[str, Any]) -> str:
        conf = {key: self._whole[key] for key in ("name", "cniVersion")} | plugin
        wanted = plugin.get("capabilities", {})
        conf["runtimeConfig"] = {key: known for key, known in self._known.items() if wanted.get(key)}
        if self.result:
            conf["prevResult"] = self.result
        return call_plugin(self._host, command, self._name, self.path, conf)


def call_plugin(host: Host, command: str, name: str, netns: Path, conf: dict[str, Any]) -> str:
    """What a plugin of Debian's answers; CNI specification, "Execution protocol"."""
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": str(netns),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    return host.run(str(PLUGINS / conf["type"]), stdin=json.dumps(conf), env=env).stdout
