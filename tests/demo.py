"""The product at work, from nothing to nothing: `make demo`, `make demo DOCKER=1`, `make demo STORY=1`.

Two hosts and an outside one in network namespaces, a container on each host, and eight
steps. Each shows the commands that it runs and what they print, and checks what it
claims; the first claim that does not hold ends the demo with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network

from tests.docker import DockerContainer, Dockerd, flags_from_lease
from tests.host import METRICS_PORT, Agent
from tests.lab import CommandFailed, Container, Host, Lab, TimedOut, wait_until
from tests.picture import drawn
from tests.screen import ClaimFailed, expect, heading, show, tell
from tests.story import Story
from tests.stream import UdpStream

NETWORK = IPv4Network("10.77.0.0/16")
REGISTRY_PORT, APP_PORT = 8000, 8080
APPS = ("python3", "tests/apps.py")
METRICS = ("ovnet_packets_total", "ovnet_peer", "ovnet_lease", "ovnet_map_entries")

AnyContainer = Container | DockerContainer


class Demo:
    """The story with containers made by hand, as Docker makes them."""

    bridge = "ovnet0"

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.a, self.b, self.outside = lab.host("a"), lab.host("b"), lab.outside()
        for host in (self.a, self.b):
            host.bridge = self.bridge
        self.agents: dict[str, Agent] = {}
        self.logs: dict[str, Callable[[], str]] = {}
        self.registry = f"{self.outside.address}:{REGISTRY_PORT}"
        self.app_a: AnyContainer
        self.app_b: AnyContainer
        self.app_c: AnyContainer

    # --- how commands are run and shown -------------------------------------------------

    def on_host(self, host: Host, *command: str, lines: int = 12, check: bool = True) -> str:
        """Run a host's command; `ovctl` gets that node's settings."""
        if command[0] == "ovctl":
            done = host.ovctl(*command[1:], check=check)
        else:
            done = host.run(*command, check=check)
        text = done.stdout + done.stderr
        show(host.name, shlex.join(command), text, lines)
        return done.stdout if check else text

    def inside(self, container: AnyContainer, *command: str, lines: int = 12) -> str:
        """Run a command in a container."""
        output = container.run(*command).stdout
        show(container.name, shlex.join(command), output, lines)
        return output

    def app(self, host: Host, name: str, *command: str) -> AnyContainer:
        """A container on the host, with a process if there is a command."""
        container = host.container(name)
        show(host.name, f"ip link add {container.port} type veth peer eth0   # {name}; on {self.bridge}", "")
        if command:
            show(name, shlex.join(command), "")
            self.logs[name] = container.popen(*command).out
        return container

    # --- the eight steps ----------------------------------------------------------------

    def networks(self) -> None:
        """Two hosts, one network: an agent per host leases a subnet."""
        for host in (self.a, self.b, self.outside):
            tell(f"host {host.name}: eth0 {host.address}")
        for key in ("OVNET_STORE", "OVNET_STATE_DIR"):
            tell(f"settings are variables, on host a: {key}={self.a.env[key]}")
        self.on_host(self.a, "ovctl", "network", "init", "--network", str(NETWORK), "--subnet-len", "24")
        for host in (self.a, self.b):
            agent = self.agents[host.name] = host.agent()
            show(host.name, "ovctl agent &", agent.out() + agent.log(), 6)
        self.prepare()
        self.on_host(self.a, "ovctl", "lease", "list")
        subnets = [host.gateway.network for host in (self.a, self.b)]
        expect(subnets[0] != subnets[1] and all(net.subnet_of(NETWORK) for net in subnets),
               f"a has {subnets[0]}, b has {subnets[1]}: different subnets of {NETWORK}")  # fmt: skip

    def prepare(self) -> None:
        """What is needed between the lease and the first container: nothing."""

    def containers(self) -> None:
        """A container on each host, and two on b with the same port."""
        registry = (*APPS, "registry", str(REGISTRY_PORT))
        server = self.outside.serve(*registry, port=REGISTRY_PORT)
        show("outside", f"{shlex.join(registry)} &", server.out())
        self.app_a = self.app(self.a, "app-a")
        self.app_b = self.app(self.b, "app-b", *APPS, "serve", "app-b", str(APP_PORT), self.registry)
        self.app_c = self.app(self.b, "app-c", *APPS, "serve", "app-c", str(APP_PORT), self.registry)
        for container in (self.app_a, self.app_b):
            self.inside(container, "ip", "-br", "address", "show", "eth0")
        addresses = [container.address for container in (self.app_a, self.app_b, self.app_c)]
        expect(len(set(addresses)) == 3, f"app-a, app-b and app-c have {', '.join(addresses)}")

    def story(self) -> None:
        """Applications register their own address, and are found and called there."""
        for name in ("app-b", "app-c"):
            wait_until(self.logs[name], 10, f"{name} registers itself")
            show(name, "(its output)", self.logs[name]())
        for callee in (self.app_b, self.app_c):
            said = self.inside(self.app_a, *APPS, "call", callee.name, self.registry)
            wanted = f"{callee.name} at {callee.address}:{APP_PORT} sees you as {self.app_a.address}\n"
            expect(wanted in said, f"{callee.name} answers at its own address, and sees app-a's own")
        tell(f"both applications of host b use port {APP_PORT}: nothing is mapped, nothing collides")

    def speed(self) -> None:
        """Ping and TCP, and who carried the packets."""
        before = self.a.bypassed(), self.b.bypassed()
        pings = self.inside(self.app_a, "ping", "-c", "5", "-i", "0.2", self.app_b.address)
        expect(" 0% packet loss" in pings, "no ping was lost")
        self.app_b.serve("iperf3", "-s", port=5201)
        show("app-b", "iperf3 -s &", "")
        report = self.app_a.run("iperf3", "-c", self.app_b.address, "-t", "3", "--json").stdout
        end = json.loads(report)["end"]
        show("app-a", f"iperf3 -c {self.app_b.address} -t 3",
             f"{end['sum_received']['bits_per_second'] / 1e9:.2f} Gbit/s, "
             f"{end['sum_sent']['retransmits']} retransmits")  # fmt: skip
        for host, (carried, left) in zip((self.a, self.b), before, strict=True):
            fast, slow = (now - then for now, then in zip(host.bypassed(), (carried, left), strict=True))
            share = 100 * fast / max(1, fast + slow)
            tell(f"host {host.name}: {fast} packets by eBPF ({share:.1f} %), {slow} by the kernel path")
            expect(share > 90, f"eBPF carried most of it on host {host.name}")

    def masquerade(self) -> None:
        """A container reaches the outside, which sees its host."""
        self.outside.serve(*APPS, "serve", "outside", str(APP_PORT), self.registry, port=APP_PORT)
        said = self.inside(self.app_a, *APPS, "call", "outside", self.registry)
        expect(f"sees you as {self.a.address}\n" in said, f"outside saw host a's address: {self.a.address}")

    def insight(self) -> None:
        """Look into the datapath."""
        for command in ("map dump peers", "map dump endpoints", "map dump flows", "map dump counters",
                        f"map get {self.app_b.address}", "status"):  # fmt: skip
            self.on_host(self.a, "ovctl", *command.split(), lines=10)
        found = self.a.json("map", "get", self.app_b.address)
        expect(found["peer"]["host"] == self.b.address, f"host a knows that app-b is behind {self.b.address}")
        for host in (self.a, self.b):
            url = f"http://127.0.0.1:{METRICS_PORT}/metrics"
            status, text = host.http(url)
            rows = [row for row in text.splitlines() if row.startswith(METRICS) and not row.endswith(" 0.0")]
            show(host.name, f"curl -s {url} | grep '^{METRICS[0]}...'", "\n".join(rows), 8)
            expect(status == 200 and rows, f"host {host.name} has metrics")

    def killed(self) -> None:
        """The agent of host a dies by SIGKILL; traffic goes on."""
        stream = UdpStream(self.app_a, self.app_b, self.app_b.address)
        show("app-a", f"{shlex.join(stream.command)} &   # numbered datagrams", "")
        self._flows_on(stream, 1)
        agent = self.agents["a"]
        agent.kill(signal.SIGKILL)
        show("a", f"kill -9 {agent.pid}   # the agent, under traffic", "")
        self.on_host(self.a, "ovctl", "status", check=False)
        expect(self.a.ovctl("status", check=False).returncode == 4, "ovctl status says that it is gone")
        carried = self.a.bypassed()[0]
        self._flows_on(stream, 6)  # longer than an approval lasts, so flows are approved anew meanwhile
        expect(self.a.bypassed()[0] - carried > stream.rate, "eBPF goes on carrying packets without it")
        subnet = self.a.gateway.network
        self.agents["a"] = self.a.agent()
        show("a", "ovctl agent &", "")
        expect(self.a.gateway.network == subnet, f"a new agent takes over, with the same subnet: {subnet}")
        self._flows_on(stream, 1)
        self.on_host(self.a, "ovctl", "status", lines=6)
        sent, tally = stream.finish()
        expect(tally.received == sent, f"of {sent} numbered datagrams, {sent - tally.received} were lost")

    def _flows_on(self, stream: UdpStream, seconds: int) -> None:
        tally = stream.advance(seconds)
        tell(f"app-b has received {tally.received} datagrams, {tally.lost} lost")

    def removal(self) -> None:
        """Everything is removed."""
        self.undo_containers()
        for host in (self.a, self.b):
            self.agents[host.name].stop()
            self.on_host(host, "ovctl", "teardown")
            links = host.ip("-br", "link")
            tables = host.run("nft", "list", "tables").stdout
            expect("ovnet." not in links and "ovnet" not in tables and not host.bpffs.exists(),
                   f"host {host.name} has no device, no rule and no pin of ovnet")  # fmt: skip

    def undo_containers(self) -> None:
        """Remove the containers first, as an operator would."""
        for container in (self.app_a, self.app_b, self.app_c):
            container.remove()

    def steps(self) -> Iterator[Callable[[], None]]:
        """The story's order."""
        yield from (self.networks, self.containers, self.story, self.speed,
                    self.masquerade, self.insight, self.killed, self.removal)  # fmt: skip


class DockerDemo(Demo):
    """The same story, with dockerd on both hosts."""

    bridge = "docker0"

    def prepare(self) -> None:
        """Dockerd on both hosts, docker0 set up from the lease."""
        self.dockers = {}
        for host in (self.a, self.b):
            flags = flags_from_lease(host)
            self.dockers[host.name] = Dockerd(host, *flags)
            show(host.name, f"dockerd {shlex.join(flags)} &   # from subnet.env", "")

    def app(self, host: Host, name: str, *command: str) -> AnyContainer:
        """`docker run`."""
        container = self.dockers[host.name].run(name, *(command or ("sleep", "infinity")))
        show(host.name, f"docker run --detach --name {name} IMAGE {shlex.join(command)}", "")
        self.logs[name] = container.logs
        return container

    def inside(self, container: AnyContainer, *command: str, lines: int = 12) -> str:
        """`docker exec`."""
        assert isinstance(container, DockerContainer)
        output = container.execute(*command)
        host = container.docker.host.name
        show(host, f"docker exec {container.name} {shlex.join(command)}", output, lines)
        return output

    def undo_containers(self) -> None:
        """Docker goes before the network under it."""
        super().undo_containers()
        for docker in self.dockers.values():
            docker.remove()


def tell_story(kind: type[Demo] | type[Story], lab: Lab) -> None:
    """All steps on a new lab; it is removed also when one fails."""
    with lab:
        demo = kind(lab)
        for number, step in enumerate(demo.steps(), start=1):
            with heading(number, (step.__doc__ or "").splitlines()[0]):
                step()


def run(kind: type[Demo] | type[Story]) -> int:
    """The demo, then what is left of it; returns the exit code."""
    started, lab, code = time.monotonic(), Lab(), 0
    try:
        tell_story(kind, lab)
    except (ClaimFailed, CommandFailed, TimedOut) as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        code = 130
    left = lab.leftovers()
    if left:
        print(f"demo: FAILED: left behind: {', '.join(left)}", file=sys.stderr)
        return code or 1
    print("everything removed: no namespace, process, pin, control group or file is left", flush=True)
    if code == 0:
        print(f"demo: all steps hold, {time.monotonic() - started:.0f} s", flush=True)
    return code


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=(__doc__ or "").splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--docker", action="store_const", dest="kind", const=DockerDemo, default=Demo,
                       help="containers by dockerd on both hosts")  # fmt: skip
    which.add_argument("--story", action="store_const", dest="kind", const=Story,
                       help="the backends one after the other, and what is on the wire")  # fmt: skip
    parser.add_argument("--picture", action="store_true", help="make docs/demo.svg of it")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("demo: needs root, for network namespaces and BPF: run it as root")
    return drawn(lambda: run(args.kind)) if args.picture else run(args.kind)


if __name__ == "__main__":
    sys.exit(main())
