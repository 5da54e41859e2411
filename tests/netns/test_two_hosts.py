"""Two nodes, eBPF on both: everything arrives, most of it by eBPF, and nothing depends on the agent."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest

from tests.host import METRICS_PORT, Host, ovctl_argv
from tests.lab import CommandFailed, Container, Lab, wait_until
from tests.netns.conftest import APPROVAL_TTL, Pair, build
from tests.stream import TcpSink, UdpStream, tcp_send

MEGABYTE = 1_000_000


def both_ways(pair: Pair) -> list[tuple[Container, Container]]:
    return [(pair.on_a, pair.on_b), (pair.on_b, pair.on_a)]


def bypassed_since(host: Host, before: tuple[int, int]) -> int:
    return host.bypassed()[0] - before[0]


def test_nodes_lease_different_subnets_and_say_so(pair: Pair) -> None:
    subnets = [host.gateway.network for host in (pair.a, pair.b)]
    assert subnets[0] != subnets[1]
    leases = pair.a.json("lease", "list")
    assert {lease["host"]: lease["subnet"] for lease in leases} == {
        host.address: str(host.gateway.network) for host in (pair.a, pair.b)
    }


def test_subnet_env_is_flannels(pair: Pair) -> None:
    gateway = pair.a.gateway
    assert (pair.a.state_dir / "subnet.env").read_text() == (
        f"FLANNEL_NETWORK=172.17.0.0/16\nFLANNEL_SUBNET={gateway}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )


def test_ping_both_ways(pair: Pair) -> None:
    for source, sink in both_ways(pair):
        assert " 0% packet loss" in source.run("ping", "-c5", "-i0.05", "-W2", sink.address).stdout


def test_tcp_both_ways_shows_the_containers_own_address(pair: Pair) -> None:
    for source, sink in both_ways(pair):
        before = {host: host.bypassed() for host in (pair.a, pair.b)}
        server = TcpSink(sink)
        assert tcp_send(source, sink.address, 50 * MEGABYTE)["seen_as"] == source.address
        (end,) = server.wait_for(1)
        server.stop()
        assert (end["bytes"], end["end"], end["source"]) == (50 * MEGABYTE, "fin", source.address)
        for host in (pair.a, pair.b):
            assert bypassed_since(host, before[host]) > 100, f"eBPF carried it on host {host.name}"


def test_numbered_udp_both_ways_loses_nothing(pair: Pair) -> None:
    for source, sink in both_ways(pair):
        before = {host: host.bypassed() for host in (pair.a, pair.b)}
        stream = UdpStream(source, sink, sink.address, rate=2000)
        stream.advance(2 * APPROVAL_TTL)
        sent, tally = stream.finish()
        assert (tally.received, tally.duplicates, tally.late) == (sent, 0, 0)
        assert tally.sources == (source.address,)
        for host in (pair.a, pair.b):
            assert bypassed_since(host, before[host]) > sent * 0.9, f"eBPF carried it on host {host.name}"


@pytest.mark.parametrize("payload", [1, 100, 1422])
def test_every_size_up_to_the_mtu_passes_unfragmented(pair: Pair, payload: int) -> None:
    pair.on_a.run("ping", "-c3", "-i0.05", "-W2", "-Mdo", "-s", str(payload), pair.on_b.address)


def test_packets_above_the_mtu_pass_in_fragments(pair: Pair) -> None:
    pair.on_a.run("ping", "-c3", "-i0.05", "-W2", "-Mdont", "-s", "4000", pair.on_b.address)


def test_ttl_falls_by_one_per_host_on_either_path(pair: Pair) -> None:
    echoes = pair.on_a.run("ping", "-c4", "-i0.05", "-W2", pair.on_b.address).stdout
    assert echoes.count("ttl=62") == 4


def test_traceroute_sees_both_hosts(pair: Pair) -> None:
    shown = pair.on_a.run("traceroute", "-n", "-q1", "-w2", pair.on_b.address).stdout
    hops = [line.split()[1] for line in shown.splitlines()[1:]]
    assert hops == [str(pair.a.gateway.ip), str(pair.b.gateway.network.network_address), pair.on_b.address]


def test_flows_of_a_transfer_are_approved_in_both_directions(pair: Pair) -> None:
    stream = UdpStream(pair.on_a, pair.on_b, pair.on_b.address, port=9009)
    stream.advance(1)
    flows = {host.name: [row for row in host.json("map", "dump", "flows") if row["dport"] == 9009]
             for host in (pair.a, pair.b)}  # fmt: skip
    stream.finish()
    assert [row["direction"] for row in flows["a"]] == ["out"]
    assert [row["direction"] for row in flows["b"]] == ["in"]


def test_outside_sees_the_hosts_address(pair: Pair) -> None:
    server = TcpSink(pair.outside)
    assert tcp_send(pair.on_a, pair.outside.address)["seen_as"] == pair.a.address
    assert tcp_send(pair.on_b, pair.outside.address)["seen_as"] == pair.b.address
    server.stop()


def test_hosts_reach_containers_of_the_other_host(pair: Pair) -> None:
    pair.a.run("ping", "-c3", "-i0.05", "-W2", pair.on_b.address)
    pair.on_b.run("ping", "-c3", "-i0.05", "-W2", str(pair.a.gateway.ip))


def test_container_added_and_removed_while_running(pair: Pair) -> None:
    late = pair.b.container("late")
    stream = UdpStream(pair.on_a, late, late.address)
    stream.advance(1)
    before = pair.b.bypassed()
    stream.advance(1)
    assert bypassed_since(pair.b, before) > stream.rate / 2, "the new port has its programs"
    sent, tally = stream.finish()
    assert tally.received == sent
    late.remove()
    wait_until(lambda: late.address not in str(pair.b.json("map", "dump", "endpoints")), 10, "endpoint goes")
    assert pair.on_a.run("ping", "-c1", "-W1", late.address, check=False).returncode != 0
    assert pair.agents["b"].ready()


def test_an_address_that_moves_to_a_new_container_is_found_there(pair: Pair) -> None:
    first = pair.b.container("first", str(pair.b.gateway.ip + 100))
    second_mac = "02:00:00:00:00:64"
    stream = UdpStream(pair.on_a, first, first.address)
    stream.advance(1)
    stream.finish()
    first.remove()
    second = pair.b.container("second", first.address)
    second.sysctl("net.ipv4.conf.eth0.arp_notify", "1")  # announce it, as CNI plugins do
    second.ip("link", "set", "eth0", "address", second_mac)
    stream = UdpStream(pair.on_a, second, second.address)
    stream.advance(3)
    stream.finish()
    rows = [row for row in pair.b.json("map", "dump", "endpoints") if row["ip"] == second.address]
    assert [row["mac"] for row in rows] == [second_mac]
    second.remove()


def test_sigkill_of_an_agent_under_traffic_loses_nothing(pair: Pair) -> None:
    for host in (pair.a, pair.b):
        stream = UdpStream(pair.on_a, pair.on_b, pair.on_b.address, rate=2000)
        stream.advance(1)
        pair.agents[host.name].kill(signal.SIGKILL)
        before = host.bypassed()
        stream.advance(2 * APPROVAL_TTL)
        assert bypassed_since(host, before) > stream.rate, "eBPF goes on without its agent"
        assert host.ovctl("status", check=False).returncode == 4
        subnet = host.gateway
        pair.agents[host.name] = host.agent("--approval-ttl", str(APPROVAL_TTL))
        assert host.gateway == subnet
        stream.advance(1)
        sent, tally = stream.finish()
        assert (tally.received, tally.duplicates) == (sent, 0), f"agent of {host.name} killed and restarted"


def test_sigterm_leaves_the_node_forwarding(pair: Pair) -> None:
    stream = UdpStream(pair.on_b, pair.on_a, pair.on_a.address, rate=2000)
    stream.advance(1)
    assert pair.agents["a"].stop() == 0
    before = pair.a.bypassed()
    stream.advance(2 * APPROVAL_TTL)
    assert bypassed_since(pair.a, before) > stream.rate
    server = TcpSink(pair.on_a)
    tcp_send(pair.on_b, pair.on_a.address, 10 * MEGABYTE)  # a new connection, too
    server.stop()
    pair.agents["a"] = pair.a.agent("--approval-ttl", str(APPROVAL_TTL))
    sent, tally = stream.finish()
    assert (tally.received, tally.duplicates) == (sent, 0)


def test_agent_stays_small(pair: Pair) -> None:
    for name, agent in pair.agents.items():
        status = Path(f"/proc/{agent.pid}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0])
        assert resident < 47_000, f"agent of {name}: {resident} kB"


def test_no_drop_was_counted_in_all_of_this(pair: Pair) -> None:
    for host in (pair.a, pair.b):
        rows = [row for row in host.json("map", "dump", "counters") if row["verdict"] in ("drop", "abort")]
        assert rows == []


@pytest.mark.parametrize("others", [False, True], ids=["no iptables rules", "iptables rules of others"])
def test_teardown_leaves_the_host_as_it_was(lab: Lab, others: bool) -> None:
    """But for ip_forward, on which others rely by then."""
    a = lab.host("a")
    lab.init_network()
    a.sysctl("net.ipv4.ip_forward", "1")
    if others:
        a.run("iptables", "-A", "FORWARD", "-s", "10.9.9.0/24", "-j", "DROP")
    before = a.footprint()
    agent = a.agent()
    a.container("one").remove()
    agent.stop()
    a.teardown()
    assert a.footprint() == before
    assert not (a.state_dir / "subnet.env").exists()


def test_agent_mounts_bpffs_where_nobody_has(lab: Lab) -> None:
    host = lab.host("a")
    lab.init_network()
    without = 'umount --lazy /sys/fs/bpf && exec "$@"'
    host.popen(
        "unshare", "--mount", "sh", "-c", without, "sh", *ovctl_argv(), "agent", env=host.environment()
    )

    def ready() -> bool:
        try:
            return host.http(f"http://127.0.0.1:{METRICS_PORT}/readyz")[0] == 200
        except OSError:
            return False

    wait_until(ready, 30, "the agent is ready")
    assert not host.bpffs.exists()  # its pins are in a mount of its own


def test_teardown_under_a_running_agent_is_refused(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    agent = a.agent()
    before = a.footprint()
    with pytest.raises(CommandFailed, match="exit 1"):
        a.teardown()
    assert agent.ready()
    assert a.footprint() == before


def test_teardown_twice_is_fine(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    a.agent().stop()
    a.teardown()
    assert a.teardown().returncode == 0


@pytest.mark.parametrize("mode", ["off", "always"])
def test_other_modes_carry_the_same_traffic(lab: Lab, mode: str) -> None:
    pair = build(lab, "--bypass", mode)
    for source, sink in both_ways(pair):
        source.run("ping", "-c3", "-i0.05", "-W2", sink.address)
        server = TcpSink(sink)
        assert tcp_send(source, sink.address, 10 * MEGABYTE)["seen_as"] == source.address
        server.stop()
        stream = UdpStream(source, sink, sink.address)
        stream.advance(1)
        sent, tally = stream.finish()
        assert tally.received == sent
    carried = pair.a.bypassed()[0]
    assert carried == 0 if mode == "off" else carried > 1000


def test_a_third_node_joins_and_is_reached(pair: Pair) -> None:
    c = pair.lab.host("c")
    agent = c.agent("--approval-ttl", str(APPROVAL_TTL))
    on_c, subnet = c.container("one"), str(c.gateway.network)
    for host in (pair.a, pair.b):
        wait_until(partial(knows, host, subnet), 10, f"host {host.name} learns of host c")
    for other in (pair.on_a, pair.on_b):
        on_c.run("ping", "-c3", "-i0.05", "-W2", other.address)
        other.run("ping", "-c3", "-i0.05", "-W2", on_c.address)
    agent.stop()
    pair.a.ovctl("lease", "release", subnet)
    wait_until(lambda: not knows(pair.a, subnet), 10, "host a forgets host c")


def knows(host: Host, subnet: str) -> bool:
    return subnet in [row["subnet"] for row in host.json("map", "dump", "peers")]
