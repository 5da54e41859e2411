"""Two nodes with pods by CNI and the rules of a kube-proxy, and a host outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address
from typing import Final

from ctl.core.abi import Hook
from ctl.core.reasons import REASONS
from ctl.kernel.bpf.maps import Maps, open_maps
from tests.cni import ConflistContainer, conflist
from tests.host import Agent, Host
from tests.kube import iptables, nftables
from tests.kube.services import Endpoint, Proxy, Service
from tests.lab import Lab, wait_until
from tests.namespace import Netns

POD_NETWORK: Final = "10.244.0.0/16"
PORT: Final = 9100
"""Of what the pods serve, over TCP and UDP."""
HOST_PORT: Final = 18080
"""Of the pod `web`."""
MODES: Final = {"iptables": iptables.rules, "nftables": nftables.rules}
"""Of kube-proxy."""


@dataclass
class Cluster:
    """The nodes n1 (pods client and near) and n2 (pod web), and what kube-proxy serves."""

    lab: Lab
    mode: str
    n1: Host
    n2: Host
    outside: Host
    pods: dict[str, ConflistContainer]
    agents: dict[str, Agent]
    maps: dict[str, Maps[IPv4Address]]
    services: dict[str, list[Service]] = field(default_factory=dict)

    def place(self, name: str) -> Netns:
        """A pod or a host."""
        return {"n1": self.n1, "n2": self.n2, "outside": self.outside, **self.pods}[name]

    def serve(self, name: str, number: int, *pods: str, local: bool = False, affinity: int = 0) -> str:
        """Have a service of that name for the pods, over TCP and UDP, its former self replaced. Its address.

        `number` makes its address, and its node port.
        """
        endpoints = tuple(
            Endpoint(self.pods[each].address, PORT, "n2" if each == "web" else "n1") for each in pods
        )
        made = Service(name, f"10.96.0.{number}", 80, endpoints, node_port=30000 + number,
                       external_local=local, affinity=affinity)  # fmt: skip
        self.services[name] = [replace(made, protocol=protocol) for protocol in ("tcp", "udp")]
        self.sync()
        return made.cluster_ip

    def sync(self) -> None:
        """As kube-proxy does after each change."""
        services = [each for both in self.services.values() for each in both]
        for host in (self.n1, self.n2):
            proxy = Proxy(host.name, (host.address,), POD_NETWORK, in_turn=True)
            load(host, self.mode, MODES[self.mode](proxy, services))

    def counted(self, host: Host) -> Counter[tuple[str, str]]:
        """Packets by (hook, reason)."""
        found: Counter[tuple[str, str]] = Counter()
        for (hook, number), counter in self.maps[host.name].counters().items():
            found[Hook(hook).name.lower(), REASONS[number].label] += counter.packets
        return found

    def carried(self) -> dict[str, int]:
        """Packets that eBPF has sent and delivered, by node."""
        found = {host.name: self.counted(host) for host in (self.n1, self.n2)}
        return {
            name: counted["from_container", "encap"] + counted["from_wire", "decap"]
            for name, counted in found.items()
        }

    def start(self, host: Host, *flags: str) -> Agent:
        """An agent of that node, in place of whichever was."""
        self.agents[host.name] = started_on(host, *flags)
        return self.agents[host.name]

    def revive(self, host: Host) -> None:
        """Have an agent there, if a test that failed has left none."""
        if self.agents[host.name].poll() is not None:
            self.start(host)


def load(host: Host, mode: str, text: str) -> None:
    """Change a host's rules as a kube-proxy does."""
    if mode == "nftables":
        host.nft(text)
    else:
        host.run("iptables-restore", "--noflush", stdin=text)


@contextmanager
def proxied(host: Host, mode: str, proxy: Proxy, services: Sequence[Service]) -> Iterator[None]:
    """A host with the rules of a kube-proxy meanwhile."""
    text = (iptables.JUMPS if mode == "iptables" else "") + MODES[mode](proxy, services)
    load(host, mode, text)
    try:
        yield
    finally:
        load(host, mode, nftables.removal(proxy) if mode == "nftables" else iptables.removal(text))


def started_on(host: Host, *flags: str, wait: bool = True) -> Agent:
    """An agent that tells the runtime, with short approvals."""
    conflist(host).parent.mkdir(exist_ok=True)
    return host.agent("--approval-ttl", "1", "--cni-conf", str(conflist(host)), *flags, wait=wait)


@contextmanager
def cluster(mode: str) -> Iterator[Cluster]:
    """Both nodes with br_netfilter, as Kubernetes demands it, and no service yet."""
    with Lab() as lab, ExitStack() as stack:
        n1, n2, outside = lab.host("n1"), lab.host("n2"), lab.outside()
        lab.init_network(POD_NETWORK)
        for host in (n1, n2):
            host.bridge = "cni0"
            host.sysctl("net.bridge.bridge-nf-call-iptables", "1")
            host.ip("route", "add", "default", "via", outside.address)  # also for what netfilter translates
            if mode == "iptables":
                load(host, mode, iptables.JUMPS)
        agents = {host.name: started_on(host, wait=False) for host in (n1, n2)}
        for agent in agents.values():
            agent.wait_ready()
        for host in (n1, n2):
            wait_until(host.knows_a_peer, 10, f"{host.name} knows its peer")
        maps = {host.name: stack.enter_context(open_maps(host.bpffs)) for host in (n1, n2)}
        pods = _pods(n1, n2)
        for pod, name in (("client", "n1"), ("near", "n1"), ("web", "n2")):
            wait_until(partial(_heard, maps[name], pods[pod]), 10, f"{pod} is known")
        yield Cluster(lab, mode, n1, n2, outside, pods, agents, maps)


def _pods(n1: Host, n2: Host) -> dict[str, ConflistContainer]:
    published = [{"hostPort": HOST_PORT, "containerPort": PORT, "protocol": each} for each in ("tcp", "udp")]
    return {
        name: ConflistContainer(host, name, conflist(host), ports)
        for name, host, ports in (("client", n1, []), ("near", n1, []), ("web", n2, published))
    }


def _heard(maps: Maps[IPv4Address], pod: ConflistContainer) -> bool:
    """Whether its node knows of a pod, which it does when the pod has said something."""
    pod.run("ping", "-c1", "-W1", pod.result["ips"][0]["gateway"], check=False)
    return maps.lookup_endpoint(IPv4Address(pod.address)) is not None
