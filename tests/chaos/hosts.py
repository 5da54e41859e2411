"""Scenarios: something or someone changes the host under the agent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Final

from ctl.kernel.bpf.source import PROGRAMS, maps_of
from tests.chaos.datagrams import SERVICE
from tests.chaos.scenario import ALL, KERNEL_PATH, Scenario, Sight
from tests.chaos.service import serve
from tests.chaos.site import Site, pair, rule_handles
from tests.hooks import detach, programs, put_foreign_filter
from tests.lab import Lab, wait_until

GROUP: Final = "Host"
DEVICE: Final = "ovnet.1"
HUNDRED: Final = 100
OPERATIONS: Final = "`ovnet_reconcile_operations_total`"
DEACTIVATED: Final = (
    "the kernel stops a device's sending for a moment when a clsact qdisc comes or goes (dev_deactivate)"
)
NO_WAY: Final = "nothing carries the kernel path meanwhile, nor an approved flow's packet that is due there"


def on_a(*command: str) -> Callable[[Site], None]:
    """A command on the host."""
    return lambda site: void(site.a.run(*command))


def void(_: object) -> None:
    """Nothing of it is wanted."""


def bridge_deleted(site: Site) -> None:
    """The bridge goes; when there is another, the container runtime's part: the port is put on it."""
    a = site.a
    address = str(a.gateway)
    a.ip("link", "del", a.bridge)
    wait_until(
        lambda: address in a.run("ip", "addr", "show", a.bridge, check=False).stdout, 20, site.log, every=0.01
    )
    a.ip("link", "set", site.one.port, "master", a.bridge)


def whole(site: Site) -> bool:
    """Devices, programs and routes are there, and nothing is named as wrong."""
    a = site.a
    places = (("eth0", 1), (DEVICE, 1), (site.one.port, 2))
    return (
        all(len(programs(a, device)) == count for device, count in places)
        and bool(a.ip("route", "show", "proto", "147"))
        and "masquerade" in rule_handles(a)
        and site.healthy()
    )


def devices(site: Site) -> tuple[str, str, str]:
    """Those with programs of ours."""
    return "eth0", DEVICE, site.one.port


def detached(site: Site) -> None:
    """All programs everywhere, as `bpftool link detach` does it."""
    detach(site.a, *devices(site))


def put_filters(site: Site) -> None:
    """Filters of someone, which pass everything, before all programs of ours."""
    for device, side in zip(devices(site), ("ingress", "egress", "ingress"), strict=True):
        site.a.run("tc", "qdisc", "add", "dev", device, "clsact")
        put_foreign_filter(site.a, device, side, 10)


def filtered(site: Site) -> bool:
    """Ours have gone behind them."""
    return whole(site) and {each.at for each in programs(site.a, DEVICE)} == {"clsact"}


def filters_come_and_go(site: Site) -> None:
    """Ours go behind them, and forward again."""
    put_filters(site)
    wait_until(lambda: filtered(site), 20, site.log)
    for device in devices(site):
        site.a.run("tc", "qdisc", "del", "dev", device, "clsact")


def linked(site: Site) -> bool:
    """Ours are where they were."""
    return whole(site) and {each.at for each in programs(site.a, DEVICE)} == {"tcx"}


def taken_by_someone(site: Site) -> None:
    """Someone's filter, which passes everything, would come behind ours; later it goes."""
    port = site.one.port
    site.a.run("tc", "qdisc", "add", "dev", port, "clsact")
    put_foreign_filter(site.a, port, "ingress", 50000)
    wait_until(lambda: left_alone(site), 20, site.log)
    site.a.run("tc", "qdisc", "del", "dev", port, "clsact")


def left_alone(site: Site) -> bool:
    """The port is named as the kernel path's: that is all that the agent may do."""
    ports = [port["name"] for port in site.a.status()["kernel_ports"]]
    return ports == [site.one.port]


def event(site: Site) -> None:
    """Something that makes the agent look at its devices: else it does so every `--resync-interval`."""
    site.a.ip("addr", "add", "10.99.9.9/32", "dev", "lo")
    site.a.ip("addr", "del", "10.99.9.9/32", "dev", "lo")


def rules_flushed(site: Site) -> None:
    """Everybody's; and those of services again, as kube-proxy does it."""
    site.a.run("nft", "flush", "ruleset")
    serve(site.one, site.two)


def pins_removed(site: Site) -> None:
    shutil.rmtree(site.a.bpffs)
    event(site)


def pinned(site: Site) -> bool:
    return (
        len([*site.a.bpffs.glob("v*/maps/*")]) == len(maps_of(4))
        and len([*site.a.bpffs.glob("v*/progs-*/*")]) == len(PROGRAMS)
        and len(programs(site.a)) == 4
    )


def routes_flushed(site: Site) -> None:
    """All of the main table; then what belongs to the devices, as whoever runs the host restores it."""
    a = site.a
    # All of it, or what is shown lacks what it was asked by, and comes back without.
    kept = [line for line in a.ip("-4", "route", "show", "table", "main").splitlines() if "dev eth0" in line]
    a.ip("route", "flush", "table", "main")
    for line in kept:
        a.ip("route", "add", *line.replace(" linkdown", "").split())


def uplink_bounced(site: Site) -> None:
    site.a.ip("link", "set", "eth0", "down")
    site.a.ip("link", "set", "eth0", "up")


def moved(site: Site) -> None:
    """The uplink gets another address, and the old one goes."""
    a = site.a
    old, new = a.address, site.notes.get("old address", "192.168.77.99")
    a.ip("addr", "del", f"{old}/24", "dev", "eth0")
    a.ip("addr", "add", f"{new}/24", "dev", "eth0")
    a.address, site.notes["old address"] = new, old


def followed(site: Site) -> bool:
    """The lease says so, and the other node has followed."""
    rows = site.b.json("map", "dump", "peers")
    return [row["host"] for row in rows] == [site.a.address] and whole(site)


def mtu(value: int) -> Callable[[Site], None]:
    return lambda site: void(site.a.ip("link", "set", "eth0", "mtu", str(value)))


def has_mtu(value: int) -> Callable[[Site], bool]:
    """Devices and subnet.env follow."""
    return lambda site: site.a.subnet_env()["FLANNEL_MTU"] == str(value - 50) and site.healthy()


def crowd(site: Site) -> None:
    """A hundred ports come onto the bridge at once, get programs, and go again."""
    far = site.notes.get("far") or site.notes.setdefault("far", site.lab.namespace("far"))
    names = [f"crowd{number}" for number in range(HUNDRED)]
    batch(site, [f"link add {name} type veth peer name {name} netns {far.netns}" for name in names]
          + [f"link set {name} master {site.a.bridge} up" for name in names])  # fmt: skip
    wait_until(lambda: len(site.a.status()["ports"]) == HUNDRED + 1, 30, "all ports have programs")
    batch(site, [f"link del {name}" for name in names])


def batch(site: Site, lines: list[str]) -> None:
    site.a.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))


def alone(site: Site) -> bool:
    return list(site.a.status()["ports"]) == [site.one.port] and site.healthy()


def port_renamed(site: Site) -> None:
    new = f"x{site.one.port}"[:15] if not site.one.port.startswith("x") else site.one.port[1:]
    site.a.ip("link", "set", "dev", site.one.port, "name", new)
    site.one.port = new


def mtu_restored(site: Site) -> None:
    wait_until(lambda: has_mtu(1500)(site), 20, "the MTU is as it was")


def nameless(site: Site) -> bool:
    """The agent has missed its uplink's name, and goes on with its new one."""
    named = any("uplink eth0 does not exist" in line for line in site.a.status()["problems"])
    return named and site.a.status()["uplink"] == "up0" and '"up0"' in rule_handles(site.a)


def uplink_renamed(site: Site) -> None:
    """It goes by a name that the agent was not told, and then by the old one again."""
    site.a.ip("link", "set", "dev", "eth0", "name", "up0")
    wait_until(lambda: nameless(site), 40, site.log)
    site.a.ip("link", "set", "dev", "up0", "name", "eth0")


def with_xdp(lab: Lab) -> Site:
    return pair(lab, "--hook", "xdp")


def has_xdp(site: Site) -> bool:
    return "xdp" in site.a.ip("link", "show", "eth0") and site.a.status()["hook"] == "xdp"


SCENARIOS: Final = (
    Scenario(
        GROUP,
        "bridge deleted",
        "`ip link del ovnet0`; the container runtime puts its port on the new one",
        bridge_deleted,
        whole,
        Sight(metric=OPERATIONS),
        ALL,
        "containers hang on the bridge: they have no way until they hang on the new one",
    ),
    Scenario(
        GROUP,
        "vxlan device deleted",
        "`ip link del ovnet.1`",
        on_a("ip", "link", "del", DEVICE),
        whole,
        Sight(metric=OPERATIONS),
        KERNEL_PATH,
        NO_WAY,
    ),
    Scenario(
        GROUP,
        "programs removed",
        "`bpftool link detach` on uplink, vxlan device and port",
        detached,
        whole,
        Sight(metric=OPERATIONS),
    ),
    Scenario(
        GROUP,
        "others' filters",
        "someone's filters come, with a qdisc `clsact`, on uplink, vxlan device and port, and go",
        filters_come_and_go,
        linked,
        Sight(metric=OPERATIONS),
        ALL,
        DEACTIVATED,
    ),
    Scenario(
        GROUP,
        "program in the way",
        "someone's filter comes on a port, at a priority behind ours, and goes",
        taken_by_someone,
        linked,
        Sight(status="would not see what our program redirects"),
        ALL,
        DEACTIVATED,
    ),
    Scenario(
        GROUP,
        "XDP removed",
        "`ip link set eth0 xdp off`, with `--hook xdp`",
        on_a("ip", "link", "set", "dev", "eth0", "xdp", "off"),
        has_xdp,
        Sight(log="XDP attached to eth0"),
        build=with_xdp,
    ),
    Scenario(
        GROUP, "pins removed", "all of `--bpffs`", pins_removed, pinned, Sight(log="were gone: pinned again")
    ),
    Scenario(
        GROUP,
        "rules flushed",
        "`nft flush ruleset`; who runs services makes their rules again",
        rules_flushed,
        whole,
        Sight(metric=OPERATIONS),
        frozenset({SERVICE}),
        "a service is its rules",
    ),
    Scenario(
        GROUP,
        "our routes flushed",
        "`ip route flush proto 147`",
        on_a("ip", "route", "flush", "proto", "147"),
        whole,
        Sight(metric=OPERATIONS),
        KERNEL_PATH,
        NO_WAY,
    ),
    Scenario(
        GROUP,
        "all routes flushed",
        "`ip route flush table main`; the administrator restores the underlay's",
        routes_flushed,
        whole,
        Sight(metric=OPERATIONS),
        ALL,
        "there is no route to other hosts meanwhile",
    ),
    Scenario(
        GROUP,
        "uplink down and up",
        "`ip link set eth0 down`, up",
        uplink_bounced,
        whole,
        Sight(metric=OPERATIONS),
        ALL,
        "there is no wire meanwhile",
    ),
    Scenario(
        GROUP,
        "uplink's address changed",
        "another address, the old one goes; peers follow by the lease",
        moved,
        followed,
        Sight(log="uplink is now eth0 with"),
        ALL,
        "peers send to the old address until they have read the lease",
    ),
    Scenario(
        GROUP,
        "MTU changed",
        "the uplink's MTU from 1500 to 1400",
        mtu(1400),
        has_mtu(1400),
        Sight(metric=OPERATIONS),
        restore=mtu(1500),
        finish=mtu_restored,
    ),
    Scenario(
        GROUP,
        "a hundred containers",
        "a hundred ports come onto the bridge at once, and go",
        crowd,
        alone,
        Sight(metric="`ovnet_ports`"),
    ),
    Scenario(GROUP, "conntrack flushed", "`conntrack -F`", on_a("conntrack", "-F"), whole, Sight()),
    Scenario(GROUP, "port renamed", "`ip link set dev PORT name ...`", port_renamed, alone, Sight()),
    Scenario(
        GROUP,
        "uplink renamed",
        "`ip link set dev eth0 name up0`, which `--iface` does not name; and back",
        uplink_renamed,
        whole,
        Sight(log="uplink is now up0", status="uplink eth0 does not exist"),
        KERNEL_PATH,
        "VXLAN is taken from the uplink by its name, until the rules say the new one",
    ),
)
