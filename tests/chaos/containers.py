"""Scenarios: containers come at bad moments, and their runtime is restarted."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Final

from tests.chaos.hosts import batch
from tests.chaos.scenario import Scenario, Sight
from tests.chaos.site import Site
from tests.docker import DockerContainer, Dockerd, flags_from_lease
from tests.host import Container, Host
from tests.lab import Lab, wait_until
from tests.stream import UdpStream

GROUP: Final = "Containers"
PORTS: Final = Sight(metric="`ovnet_ports`, `ovnet_map_entries`")
CROWD: Final = 300


def newcomer(site: Site) -> None:
    """A container on a that b's container sends to from its first moment, by whichever path."""
    number = site.notes["newcomers"] = site.notes.get("newcomers", 0) + 1
    made = site.notes["newcomer"] = site.a.container(f"new{number}")
    # Who has never spoken has to be asked for its MAC, and few packets wait for that.
    made.run("ping", "-c1", "-W5", site.two.address)
    site.notes["stream"] = UdpStream(site.two, made, made.address, port=9500)


def while_away(site: Site) -> None:
    """The agent is dead when a container comes, and has its traffic; then there is an agent again."""
    site.agent().kill(signal.SIGKILL)
    newcomer(site)
    site.notes["stream"].advance(0.5)
    site.start()


def at_a_start(site: Site) -> None:
    """A container comes while the agent starts."""
    site.agent().kill(signal.SIGKILL)
    agent = site.start(wait=False)
    newcomer(site)
    agent.wait_ready()


def taken_in(site: Site) -> bool:
    """The newcomer has its programs, and they know where it is."""
    made: Container = site.notes["newcomer"]
    known = {row["ip"] for row in site.a.json("map", "dump", "endpoints")}
    return made.port in site.a.status()["ports"] and made.address in known and site.healthy()


def leaves(site: Site) -> None:
    """It goes again. Nothing of its stream may have been lost either."""
    stream: UdpStream = site.notes["stream"]
    stream.advance(0.3)
    sent, tally = stream.finish()
    made: Container = site.notes["newcomer"]
    made.remove()
    wait_until(lambda: made.port not in site.a.status()["ports"], 20, "its port is forgotten")
    lost = sent - tally.received
    assert (lost, tally.duplicates) == (0, 0), f"{lost} of the newcomer's {sent} datagrams lost: {tally}"


def crowd(site: Site) -> None:
    """Hundreds of ports come onto the bridge, a hundred at a time, and all go at once."""
    far = site.notes.get("far") or site.notes.setdefault("far", site.lab.namespace("far"))
    names = [f"crowd{number}" for number in range(CROWD)]
    for first in range(0, CROWD, 100):
        lot = names[first : first + 100]
        batch(site, [f"link add {name} type veth peer name {name} netns {far.netns}" for name in lot]
              + [f"link set {name} master {site.a.bridge} up" for name in lot])  # fmt: skip
    wait_until(lambda: len(site.a.status()["ports"]) == CROWD + 1, 60, "all ports have programs")
    batch(site, [f"link del {name}" for name in names])


def alone(site: Site) -> bool:
    """As before."""
    return list(site.a.status()["ports"]) == [site.one.port] and site.healthy()


class Live(DockerContainer):
    """Docker's, as the instrument wants a container."""

    def __init__(self, docker: Dockerd, name: str) -> None:
        super().__init__(docker, name)
        self.host: Host = docker.host
        (link,) = json.loads(self.run("ip", "-j", "link", "show", "eth0").stdout)
        rows = json.loads(self.host.run("ip", "-j", "link").stdout)
        self.port = next(row["ifname"] for row in rows if row["ifindex"] == link["link_index"])

    @property
    def label(self) -> str:
        """Of one life: files of the instrument's programs must not meet."""
        return f"{super().label}-{Path(self.path).parts[2]}"


def with_docker(lab: Lab) -> Site:
    """Two nodes; the container of a is a dockerd's, which leaves it alive when it stops."""
    a, b = lab.host("a"), lab.host("b")
    a.bridge = "docker0"
    lab.init_network()
    site = Site(lab, a, b, None, None)  # type: ignore[arg-type]
    for name in ("a", "b"):
        site.start(name)
    for host in (a, b):
        wait_until(host.knows_a_peer, 10, f"{host.name} knows its peer")
    docker = site.notes["docker"] = Dockerd(a, "--live-restore", *flags_from_lease(a))
    docker.run("one", "sleep", "infinity")
    live = Live(docker, "one")
    lab.at_close(live.stop_processes)
    site.one, site.two = live, b.container("two")  # type: ignore[assignment]
    return site


def docker_restarted(site: Site) -> None:
    """The container is the same process afterwards, on the same port."""
    docker: Dockerd = site.notes["docker"]
    before = Live(docker, "one")
    docker.restart()
    now = Live(docker, "one")
    assert (now.path, now.port, now.address) == (before.path, before.port, before.address)


SCENARIOS: Final = (
    Scenario(
        GROUP,
        "while no agent runs",
        "a container comes while the agent is dead, and has traffic of its own; then the agent starts",
        while_away,
        taken_in,
        PORTS,
        restore=leaves,
    ),
    Scenario(
        GROUP,
        "while it starts",
        "a container comes at the moment of a start, and has traffic of its own",
        at_a_start,
        taken_in,
        PORTS,
        restore=leaves,
    ),
    Scenario(
        GROUP,
        "hundreds",
        f"{CROWD} ports come onto the bridge, a hundred at a time, and go at once",
        crowd,
        alone,
        PORTS,
        times=3,
        limit=60,
    ),
    Scenario(
        GROUP,
        "docker restarted",
        "dockerd is stopped and started again under its running container (`--live-restore`)",
        docker_restarted,
        Site.healthy,
        Sight(),
        build=with_docker,
        limit=60,
    ),
)
