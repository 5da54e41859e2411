"""A twin of flanneld: what it puts into etcd and into a host's kernel, in its order and form.

    with Lab() as lab:
        etcd, a = lab.etcd(), lab.host("a")
        daemon = Flanneld(a)        # a process named flanneld in a's namespace
        cni_bridge(a)               # the bridge, which is the CNI plugin's
        daemon.stop()               # leaves everything, as flanneld does

Made after flannel v0.28 (pkg/subnet/etcd, pkg/backend/vxlan and hostgw, pkg/trafficmngr/iptables)
and compared with what that binary leaves. It acquires by PublicIP, previous subnet or the
first free one, on an etcd lease of a day; follows puts and deletes; adopts a compatible
device of its name with its MAC; and removes nothing when it ends.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from ctl.settings.endpoint import parse_store_url
from ctl.store.etcd.client import EtcdClient, EtcdOptions
from tests.host import Host
from tests.process import Process, wait_until

PREFIX = "/coreos.com/network"
SUBNETS = f"{PREFIX}/subnets"
RENEWED_FOR = 86400
READY = "flanneld is ready"


class Flanneld:
    """A running twin, seen from a test."""

    def __init__(self, host: Host, *flags: str, wait: bool = True) -> None:
        """Start it on the host, with its subnet.env where the host's agent would write its own."""
        self.host = host
        host.state_dir.mkdir(exist_ok=True)
        self.process: Process = host.popen(
            sys.executable, "-m", "tests.flannel", "--store", host.lab.store_url, "--public-ip", host.address,
            "--subnet-file", str(host.state_dir / "subnet.env"), *flags,
        )  # fmt: skip
        if wait:
            wait_until(self._ready, 20, lambda: f"flanneld of {host.name} is ready\n{self.process.log()}")

    def _ready(self) -> bool:
        assert self.process.poll() is None, f"flanneld of {self.host.name} ended\n{self.process.log()}"
        return READY in self.process.out()

    @property
    def pid(self) -> int:
        """Of the daemon itself: `nsenter` becomes it."""
        return self.process.pid

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        return self.process.stop()


def cni_bridge(host: Host, name: str = "cni0") -> None:
    """The bridge as CNI's plugin `bridge` makes it for the host's lease."""
    host.sysctl("net.ipv4.ip_forward", "1")
    host.ip("link", "add", name, "mtu", host.subnet_env()["FLANNEL_MTU"], "type", "bridge")
    host.ip("address", "add", str(host.gateway), "dev", name)
    host.ip("link", "set", name, "up")
    host.bridge = name


# --- The process -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    subnet: IPv4Network
    host: str
    kind: str
    mac: str


class Registry:
    """etcd as flannel's registry.go uses it."""

    def __init__(self, store: str) -> None:
        self._client = EtcdClient(EtcdOptions(parse_store_url(store)))

    def config(self) -> dict[str, Any]:
        (found,) = self._client.call("/v3/kv/range", {"key": _b64(f"{PREFIX}/config")})["kvs"]
        parsed: dict[str, Any] = json.loads(b64decode(found["value"]))
        return parsed

    def leases(self) -> tuple[dict[str, Any], int]:
        """Attributes by key, and the revision."""
        found = self._client.call("/v3/kv/range", _span())
        kvs = {
            b64decode(kv["key"]).decode(): json.loads(b64decode(kv["value"])) for kv in found.get("kvs", [])
        }
        return kvs, int(found["header"]["revision"])

    def put(self, key: str, attributes: dict[str, Any]) -> None:
        """Unconditional, on a new etcd lease."""
        grant = self._client.call("/v3/lease/grant", {"TTL": str(RENEWED_FOR)})["ID"]
        value = json.dumps(attributes, separators=(",", ":"))
        self._client.call("/v3/kv/put", {"key": _b64(key), "value": _b64(value), "lease": grant})

    def watch(self, revision: int) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Key and attributes of each put, key and None of each delete."""
        stream = self._client.stream(
            "/v3/watch", {"create_request": {**_span(), "start_revision": str(revision)}}
        )
        stream.patient()
        for message in stream:
            for event in message["result"].get("events", []):
                key = b64decode(event["kv"]["key"]).decode()
                gone = event.get("type") == "DELETE"
                yield key, None if gone else json.loads(b64decode(event["kv"]["value"]))


def _b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _span() -> dict[str, str]:
    """All that begins with the prefix, a slash behind it or not."""
    return {"key": _b64(SUBNETS), "range_end": _b64(SUBNETS[:-1] + chr(ord(SUBNETS[-1]) + 1))}


def peer(key: str, attributes: dict[str, Any]) -> Peer:
    """A lease as the backends see it."""
    base, _, length = key.removeprefix(f"{SUBNETS}/").partition("-")
    data = attributes.get("BackendData") or {}
    kind = attributes.get("BackendType", "")
    return Peer(IPv4Network(f"{base}/{length}"), attributes["PublicIP"], kind, data.get("VtepMAC", ""))


def sh(*command: str, stdin: str | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, input=stdin).stdout


class Daemon:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.registry = Registry(args.store)
        config = self.registry.config()
        self.network = IPv4Network(config["Network"])
        self.length = config.get("SubnetLen", 24)
        backend = config["Backend"]
        self.kind = backend["Type"]
        self.vni, self.port = backend.get("VNI", 1), backend.get("Port", 8472)
        self.device = f"flannel.{self.vni}"
        (uplink,) = json.loads(sh("ip", "-j", "link", "show", args.iface))  # /sys shows another namespace
        self.mtu: int = uplink["mtu"]
        self.attributes: dict[str, Any] = {"PublicIP": args.public_ip, "PublicIPv6": None}
        self.own = IPv4Network("0.0.0.0/0")

    def run(self) -> None:
        self.attributes["BackendType"] = self.kind
        if self.kind == "vxlan":
            self.mtu -= 50
            mac = self.ensure_device()
            self.attributes["BackendData"] = {"VNI": self.vni, "VtepMAC": mac}
        self.acquire()
        if self.kind == "vxlan":
            self.configure_device()
        if self.args.ip_masq:
            self.masquerade()
        self.forward()
        self.write_subnet_env()
        leases, revision = self.registry.leases()
        for key, attributes in leases.items():
            self.added(peer(key, attributes))
        print(READY, flush=True)
        remembered = {key: peer(key, attributes) for key, attributes in leases.items()}
        for key, attributes in self.registry.watch(revision + 1):
            if attributes is not None:
                remembered[key] = peer(key, attributes)
                self.added(remembered[key])
            elif key in remembered:
                self.removed(remembered.pop(key))

    def acquire(self) -> None:
        leases, _ = self.registry.leases()
        held = {peer(key, attributes).subnet for key, attributes in leases.items()}
        mine = [key for key in leases if leases[key]["PublicIP"] == self.args.public_ip]
        before = self.previous()
        if mine:
            self.own = peer(mine[0], leases[mine[0]]).subnet
        elif before and before not in held:
            self.own = before
        else:
            free = (each for each in self.network.subnets(new_prefix=self.length) if each not in held)
            next(free)  # the first one is skipped
            self.own = next(free)
        self.registry.put(f"{SUBNETS}/{self.own.network_address}-{self.own.prefixlen}", self.attributes)

    def previous(self) -> IPv4Network | None:
        try:
            text = Path(self.args.subnet_file).read_text()
        except FileNotFoundError:
            return None
        values = dict(line.split("=", 1) for line in text.splitlines())
        return IPv4Network(values["FLANNEL_SUBNET"], strict=False)

    # pkg/backend/vxlan

    def ensure_device(self) -> str:
        """Make it, or adopt one of this name and these attributes; its MAC."""
        mac = "02" + "".join(f":{random.randrange(256):02x}" for _ in range(5))
        try:
            sh("ip", "link", "add", self.device, "address", mac, "mtu", str(self.mtu), "type", "vxlan",
               "id", str(self.vni), "dev", self.args.iface, "local", self.args.public_ip,
               "dstport", str(self.port), "nolearning", "udpcsum")  # fmt: skip
        except subprocess.CalledProcessError as error:
            if "File exists" not in error.stderr:
                raise
            (link,) = json.loads(sh("ip", "-d", "-j", "link", "show", self.device))
            data = link["linkinfo"]["info_data"]
            assert (data["id"], data["port"], data["local"], data["link"]) == (
                self.vni, self.port, self.args.public_ip, self.args.iface)  # fmt: skip
            return str(link["address"])
        return mac

    def configure_device(self) -> None:
        base = self.own.network_address
        if f"inet {base}/32" not in sh("ip", "address", "show", "dev", self.device):
            sh("ip", "address", "add", f"{base}/32", "dev", self.device)
        sh("ip", "link", "set", self.device, "up")

    def added(self, lease: Peer) -> None:
        if lease.subnet == self.own or lease.kind != self.kind:
            return
        base = str(lease.subnet.network_address)
        if self.kind == "host-gw":
            sh("ip", "route", "replace", str(lease.subnet), "via", lease.host, "dev", self.args.iface)
            return
        sh("ip", "neigh", "replace", base, "lladdr", lease.mac, "dev", self.device, "nud", "permanent")
        sh("bridge", "fdb", "replace", lease.mac, "dev", self.device, "dst", lease.host, "self", "permanent")
        sh("ip", "route", "replace", str(lease.subnet), "via", base, "dev", self.device, "onlink")

    def removed(self, lease: Peer) -> None:
        if lease.subnet == self.own or lease.kind != self.kind:
            return
        if self.kind == "vxlan":
            sh("ip", "neigh", "del", str(lease.subnet.network_address), "dev", self.device)
            sh("bridge", "fdb", "del", lease.mac, "dev", self.device, "dst", lease.host, "self")
        sh("ip", "route", "del", str(lease.subnet))

    # pkg/trafficmngr/iptables

    def masquerade(self) -> None:
        note, masq = '-m comment --comment "flanneld masq"', "MASQUERADE --random-fully"
        all_, own = self.network, self.own
        self.restore("nat", "POSTROUTING", "FLANNEL-POSTRTG", note, [
            f"-m mark --mark 0x4000/0x4000 {note} -j RETURN",
            f"-s {own} -d {all_} {note} -j RETURN",
            f"-s {all_} -d {own} {note} -j RETURN",
            f"! -s {all_} -d {own} {note} -j RETURN",
            f"-s {all_} ! -d 224.0.0.0/4 {note} -j {masq}",
            f"! -s {all_} -d {all_} {note} -j {masq}",
        ])  # fmt: skip

    def forward(self) -> None:
        note = '-m comment --comment "flanneld forward"'
        rules = [f"-{side} {self.network} {note} -j ACCEPT" for side in "sd"]
        self.restore("filter", "FORWARD", "FLANNEL-FWD", note, rules)

    def restore(self, table: str, base: str, chain: str, note: str, rules: list[str]) -> None:
        """The chain cleared, then filled; the jump appended if it is not there."""
        present = subprocess.run(
            f"iptables -w -t {table} -C {base} {note} -j {chain}",
            shell=True,
            capture_output=True,
            check=False,
        )
        text = self.restore_text(table, base, chain, note, rules, jump=present.returncode != 0)
        sh("iptables-restore", "-w", "--noflush", stdin=text)

    @staticmethod
    def restore_text(table: str, base: str, chain: str, note: str, rules: list[str], *, jump: bool) -> str:
        lines = [f"*{table}", f":{chain} - [0:0]", *(f"-A {chain} {rule}" for rule in rules)]
        lines += [f"-A {base} {note} -j {chain}"] if jump else []
        return "\n".join([*lines, "COMMIT", ""])

    def write_subnet_env(self) -> None:
        Path(self.args.subnet_file).write_text(
            f"FLANNEL_NETWORK={self.network}\n"
            f"FLANNEL_SUBNET={self.own.network_address + 1}/{self.own.prefixlen}\n"
            f"FLANNEL_MTU={self.mtu}\n"
            f"FLANNEL_IPMASQ={str(self.args.ip_masq).lower()}\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="A twin of flanneld.")
    parser.add_argument("--store", required=True)
    parser.add_argument("--public-ip", required=True, type=lambda text: str(IPv4Address(text)))
    parser.add_argument("--iface", default="eth0")
    parser.add_argument("--subnet-file", required=True)
    parser.add_argument("--ip-masq", action="store_true")
    args = parser.parse_args()
    Path("/proc/self/comm").write_text("flanneld")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Daemon(args).run()


if __name__ == "__main__":
    main()
