"""A host of the lab: its underlay address, its node's settings, its containers."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any, ClassVar

from ctl.kernel.hooks.listing import Hooked, listing
from ctl.kernel.netlink.session import Netlink
from tests.namespace import REPOSITORY, Namespace
from tests.process import CommandFailed, Process, run, wait_until

if TYPE_CHECKING:
    from tests.lab import Lab

METRICS_PORT = 9475
READY_SECONDS = 60
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv4.conf.all.forwarding",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.eth0.rp_filter",
    "net.netfilter.nf_conntrack_tcp_be_liberal",
    "net.netfilter.nf_conntrack_tcp_ignore_invalid_rst",
)
ELSEWHERE = {"not_ipv4", "not_overlay", "not_routed", "vlan", "vxlan_header"}
"""Reasons of packets that no overlay carries."""


def ovctl_argv() -> list[str]:
    """The `ovctl` of the Python that runs the lab; without an installed one, its module."""
    script = Path(sys.executable).parent / "ovctl"
    return [str(script)] if script.exists() else [sys.executable, "-m", "ctl.cli.main"]


class Container(Namespace):
    """A container as a runtime makes it: own namespace, veth to the node's bridge."""

    def __init__(self, lab: Lab, host: Host, name: str, address: IPv4Interface, gateway: IPv4Address) -> None:
        super().__init__(f"{lab.id}-{host.name}-{name}", lab.dir)
        self.name, self.host = name, host
        self.address = str(address.ip)
        self.port = f"veth{secrets.token_hex(4)[:7]}"
        # Docker's rule: the MAC address follows from the IP address.
        self.mac = "02:42:" + address.ip.packed.hex(":")
        mtu = host.subnet_env()["FLANNEL_MTU"]
        host.ip("link", "add", self.port, "mtu", mtu, "type", "veth",
                "peer", "name", "eth0", "address", self.mac, "mtu", mtu, "netns", self.netns)  # fmt: skip
        host.ip("link", "set", self.port, "master", host.bridge, "up")
        self.ip("addr", "add", str(address), "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        self.ip("route", "add", "default", "via", str(gateway))

    def remove(self) -> None:
        """End its processes, delete it; the veth goes with the namespace, at once."""
        if self.path.exists() and self.host.path.exists():
            run(["ip", "-n", self.host.netns, "link", "del", self.port], check=False)
        super().remove()


class Agent(Process):
    """A running `ovctl agent`."""

    host: Host

    def ready(self) -> bool:
        """Whether /readyz says 200."""
        try:
            return self.host.http(f"http://127.0.0.1:{METRICS_PORT}/readyz", seconds=1)[0] == 200
        except OSError:
            return False

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when ready; CommandFailed with the log if it ends, or is not ready in time."""

        def settled() -> bool:
            return self.poll() is not None or self.ready()

        wait_until(settled, seconds, lambda: f"agent of {self.host.name} is ready\n{self.log()}")
        if self.poll() is not None:
            raise CommandFailed(f"agent of {self.host.name} ended: {self.poll()}\n{self.out()}{self.log()}")


class Host(Namespace):
    """A host on the underlay. It becomes a node when `agent` is called."""

    before_agent: ClassVar[Sequence[str]] = ()
    """What the command of each agent follows."""

    def __init__(self, lab: Lab, name: str, address: IPv4Address, prefix_len: int) -> None:
        super().__init__(f"{lab.id}-{name}", lab.dir)
        self.lab, self.name, self.address = lab, name, str(address)
        self._prefix_len = prefix_len
        self.bridge = "ovnet0"
        self.state_dir = lab.dir / name
        self.bpffs = Path("/sys/fs/bpf") / f"{lab.id}-{name}"
        self._next = 0
        self.containers: list[Container] = []

    def up(self, device: str) -> None:
        """Give the device the host's address and set it up."""
        self.ip("addr", "add", f"{self.address}/{self._prefix_len}", "dev", device)
        self.ip("link", "set", device, "up")

    def like_a_wire(self) -> None:
        """Let eth0 send what a wire can carry: finished checksums, no super-packets; and merge what comes."""
        self.run("ethtool", "-K", "eth0", "tx", "off", "gro", "on")

    @property
    def env(self) -> dict[str, str]:
        """The node's settings, as every ovctl command on this host gets them."""
        return {
            "OVNET_CONFIG": str(self.lab.settings),
            "OVNET_STORE": self.lab.store_url,
            "OVNET_IFACE": "eth0",
            "OVNET_NODE_NAME": self.name,
            "OVNET_BRIDGE": self.bridge,
            "OVNET_STATE_DIR": str(self.state_dir),
            "OVNET_BPFFS": str(self.bpffs),
            "OVNET_METRICS_PORT": str(METRICS_PORT),
        }

    def agent(self, *flags: str, wait: bool = True, env: Mapping[str, str] | None = None) -> Agent:
        """Start `ovctl agent` here; returns when it is ready if `wait`."""
        stem = self.lab.dir / f"agent-{self.name}-{len(self._processes)}"
        agent = Agent(
            self.argv(*self.before_agent, *ovctl_argv(), "agent", *flags),
            stem,
            env=self.environment(env),
            cwd=REPOSITORY,
        )
        agent.host = self
        self._processes.append(agent)
        if wait:
            agent.wait_ready()
        return agent

    def ovctl(
        self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> CompletedProcess[str]:
        """Run ovctl with this node's settings."""
        return self.run(*ovctl_argv(), *arguments, check=check, env=self.environment(env))

    def json(self, *arguments: str) -> Any:
        """What `ovctl ... -o json` says, parsed."""
        return json.loads(self.ovctl(*arguments, "-o", "json").stdout)

    def status(self) -> dict[str, Any]:
        """The agent's own file; empty if it has written none."""
        try:
            parsed: dict[str, Any] = json.loads((self.state_dir / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return parsed

    def subnet_env(self) -> dict[str, str]:
        """What the agent tells container runtimes."""
        lines = (self.state_dir / "subnet.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def gateway(self) -> IPv4Interface:
        """The bridge's address and the node's subnet."""
        return IPv4Interface(self.subnet_env()["FLANNEL_SUBNET"])

    def container(self, name: str, address: str | None = None) -> Container:
        """A container on this node; without an address, with the next one of its subnet."""
        gateway = self.gateway
        self._next += 1
        chosen = IPv4Address(address) if address else gateway.ip + self._next
        made = Container(
            self.lab,
            self,
            name,
            IPv4Interface((chosen, gateway.network.prefixlen)),
            gateway.ip,
        )
        self.containers.append(made)
        self.lab.at_close(made.remove)
        return made

    def counters(self) -> dict[tuple[str, str], int]:
        """Packets by (hook, reason), of both families, from `ovctl map dump counters`."""
        found: Counter[tuple[str, str]] = Counter()
        for row in self.json("map", "dump", "counters"):
            found[row["hook"], row["reason"]] += row["packets"]
        return dict(found)

    def bypassed(self) -> tuple[int, int]:
        """Packets of containers that eBPF carried, and that it left to the kernel path."""
        rows = [row for row in self.json("map", "dump", "counters")
                if row["hook"] in ("from_container", "from_wire")
                and row["reason"] not in ELSEWHERE]  # fmt: skip
        carried = sum(row["packets"] for row in rows if row["verdict"] == "bypass")
        return carried, sum(row["packets"] for row in rows if row["verdict"] == "pass")

    def ifindex(self, device: str) -> int:
        """Of an interface of this host."""
        return self.call(lambda: socket.if_nametoindex(device))

    def footprint(self) -> dict[str, str]:
        """Everything of this host that an agent may change, to compare before and after."""
        shown = {
            command: self.run(*command.split()).stdout
            for command in ("ip -br link", "ip -br address", "ip -4 route show table all", "ip rule",
                            "ip -6 route", "ip neigh show nud permanent", "bridge fdb show", "tc qdisc show",
                            "tc filter show dev eth0 ingress", "nft list ruleset")
        }  # fmt: skip
        shown["programs"] = "\n".join(
            str((each.dev, each.hook, each.at, each.name, each.ours)) for each in self.hooks()
        )
        for name in SYSCTLS:
            try:
                shown[name] = self.sysctl(name)
            except FileNotFoundError:
                shown[name] = "absent"
        shown["pins"] = str(sorted(self.bpffs.rglob("*")) if self.bpffs.exists() else None)
        return shown

    def hooks(self) -> list[Hooked]:
        """What runs on the hooks of its interfaces, whoever put it there."""

        def read() -> list[Hooked]:
            with Netlink() as netlink:
                return listing(netlink, self.bpffs)

        return self.call(read)

    def serves(self, container: Container) -> bool:
        """Whether eBPF can carry what the container sends and gets: its port's programs run, and they
        know its address.
        """
        running = {each.hook for each in self.hooks() if each.dev == container.port and each.ours}
        known = {row["ip"] for row in self.json("map", "dump", "endpoints")}
        return running == {"ingress", "egress"} and container.address in known

    def knows_a_peer(self) -> bool:
        """Whether another node's lease has become a route."""
        return bool(self.ip("route", "show", "proto", "147"))

    def reaches(self, peer: Host) -> bool:
        """Whether the other node's gateway answers over the overlay."""
        ping = self.run("ping", "-c1", "-W1", str(peer.gateway.ip), check=False)
        return ping.returncode == 0

    def teardown(self) -> CompletedProcess[str]:
        """`ovctl teardown`."""
        return self.ovctl("teardown")

    def remove(self) -> None:
        """End its agent, delete the namespace, its pins and its state."""
        for process in self._processes:
            process.kill(signal.SIGKILL)  # an agent has nothing to tidy: the namespace goes
        super().remove()
        shutil.rmtree(self.bpffs, ignore_errors=True)
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The lab's own environment with the node's settings, and `extra` over them."""
        ours = {key: value for key, value in os.environ.items() if not key.startswith("OVNET_")}
        ours["TMPDIR"] = str(self.lab.dir)  # what a killed compiler leaves goes with the lab
        return {**ours, **self.env, **(extra or {})}


def started(hosts: Iterable[Host], *flags: str) -> dict[str, Agent]:
    """Agents of several hosts, by the host's name, started at once; returns when all are ready."""
    agents = {host.name: host.agent(*flags, wait=False) for host in hosts}
    for agent in agents.values():
        agent.wait_ready()
    return agents


def served(*containers: Container) -> None:
    """Wait until a flow between them can bypass from its first packets on, where a test counts them."""
    for each in containers:
        each.run("ping", "-c1", "-W5", str(each.host.gateway.ip))
        wait_until(partial(each.host.serves, each), 30, f"{each.host.name} serves {each.name}")


def meet(one: Host, other: Host) -> None:
    """Wait until each has heard of the other's lease as it is now: being ready is only about its own."""
    for host, peer in ((one, other), (other, one)):
        wait_until(partial(host.reaches, peer), 30, f"{host.name} reaches {peer.name}")
