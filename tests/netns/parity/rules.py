"""The table of firewalls: rules on either node, who talks to whom, and whether eBPF may take part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.kube.services import Endpoint, Service

ONE, TWO, NEAR, FAR = "172.17.20.2", "172.17.30.2", "172.17.20.3", "172.17.30.3"
"""Containers: one and near on node a, two and far on node b."""
A, B = "192.168.77.11", "192.168.77.12"
GATEWAY_A, GATEWAY_B = "172.17.20.1", "172.17.30.1"
SERVICE: Final = "10.96.0.1"
PORT: Final = 9100


@dataclass(frozen=True, slots=True)
class Rules:
    """One row: what both nodes are told, and what is then said."""

    name: str
    on_a: str = ""
    """Chains of a table of family `ip`."""
    on_b: str = ""
    to: tuple[str, int] = (TWO, PORT)
    client: str = "one"
    carried: str = "a b"
    """The nodes on which eBPF carries some of it."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """On both nodes; br_netfilter is off unless it says otherwise."""
    proxy: str = ""
    """Kube-proxy's mode, on both nodes (`tests.kube.cluster.MODES`); empty: there is none."""


def chain(hook: str, priority: str, *rules: str, kind: str = "filter", policy: str = "accept") -> str:
    """A base chain. Its name is the hook's, with the priority."""
    name = f"{hook}_{priority.split(maxsplit=1)[0].replace('-', 'm')}"
    return (f"chain {name} {{ type {kind} hook {hook} priority {priority}; policy {policy};\n"
            + "\n".join(rules) + "\n}\n")  # fmt: skip


def forward(*rules: str, policy: str = "accept") -> str:
    return chain("forward", "filter", *rules, policy=policy)


def dnat(*rules: str) -> str:
    return chain("prerouting", "dstnat", *rules, kind="nat")


def snat(*rules: str) -> str:
    return chain("postrouting", "srcnat - 1", *rules, kind="nat")


def raw(*rules: str) -> str:
    return chain("prerouting", "raw", *rules)


L4: Final = "meta l4proto { tcp, udp }"
TO_SERVICE: Final = f"ip daddr {SERVICE} {L4} th dport 80"
BY_TURNS: Final = f"dnat to numgen inc mod 2 map {{ 0 : {NEAR}, 1 : {FAR} }} : {PORT}"

DEMO: Final = tuple(
    Service("demo", SERVICE, 80, (Endpoint(FAR, PORT, "b"), Endpoint(NEAR, PORT, "a")), protocol, 30080)
    for protocol in ("tcp", "udp")
)
"""What kube-proxy has to serve: a cluster address and a node port, two endpoints."""
CALL_IPTABLES: Final = "net.bridge.bridge-nf-call-iptables"
BRIDGED: Final = {CALL_IPTABLES: "1"}
STRICT_PATH: Final = {"net.ipv4.conf.all.rp_filter": "1", "net.ipv4.conf.default.rp_filter": "1"}

NODE_PORT_A = f"ip daddr {GATEWAY_A} {L4} th dport 30080"
NODE_PORT_B = f"ip daddr {GATEWAY_B} {L4} th dport 30080"
NODE_PORT_HOST = f"ip daddr {B} {L4} th dport 30080"
TO_TWO: Final = f"dnat to {TWO}:{PORT}"
INVALID: Final = forward("ct state invalid drop")
TRACKED: Final = forward("ct state established,new accept", policy="drop")
NO_TRACK: Final = raw("ip saddr 172.17.0.0/16 notrack")
MARKS: Final = chain("prerouting", "mangle", "ct mark set 5", "meta mark set ct mark")
CLUSTER: Final = (SERVICE, 80)
AT_B: Final = (GATEWAY_B, 30080)


def zone(number: int) -> str:
    """Both directions of what concerns node a's containers."""
    return raw(
        f"ip saddr 172.17.20.0/24 ct zone set {number}", f"ip daddr 172.17.20.0/24 ct zone set {number}"
    )


FIREWALLS: Final = (
    Rules("no rules"),
    Rules("ct state invalid drop, on both nodes", INVALID, INVALID),
    Rules("only established and new connections, policy drop", TRACKED, TRACKED),
    Rules("drop on the sender's node", forward(f"ip daddr {TWO} drop"), carried=""),
    Rules("drop on the receiver's node", on_b=forward(f"ip daddr {TWO} drop"), carried=""),
    Rules("drop of the answers on the sender's node", forward(f"ip daddr {ONE} drop"), carried=""),
    Rules("drop of the answers on the receiver's node", on_b=forward(f"ip saddr {TWO} drop"), carried=""),
    Rules("reject on the sender's node", forward(f"ip daddr {TWO} reject"), carried=""),
    Rules("reject on the receiver's node", on_b=forward(f"ip daddr {TWO} reject"), carried=""),
    Rules("reset on the receiver's node",
          on_b=forward(f"ip daddr {TWO} tcp dport {PORT} reject with tcp reset")),
    Rules("new connections from the other side only", on_b=forward(f"ip saddr {ONE} ct state new drop"),
          carried=""),
    Rules("drop before routing", chain("prerouting", "mangle", f"ip daddr {TWO} drop"), carried=""),
    Rules("drop behind routing", chain("postrouting", "mangle", f"ip daddr {TWO} drop"), carried=""),
    Rules("service on the client's node", dnat(f"{TO_SERVICE} {TO_TWO}"), to=CLUSTER),
    Rules("service on the client's node, two endpoints by turns", dnat(f"{TO_SERVICE} {BY_TURNS}"),
          to=CLUSTER),
    Rules("service whose endpoint is the client (hairpin)", dnat(f"{TO_SERVICE} dnat to {ONE}:{PORT}")
          + snat(f"ip saddr {ONE} ip daddr {ONE} masquerade"), to=CLUSTER, carried=""),
    Rules("node port of the receiver's node", on_b=dnat(f"{NODE_PORT_B} {TO_TWO}"), to=AT_B, carried="a"),
    Rules("node port of the client's node", dnat(f"{NODE_PORT_A} {TO_TWO}"), to=(GATEWAY_A, 30080)),
    Rules("node port that leads back over the overlay (hairpin)",
          on_b=dnat(f"{NODE_PORT_B} dnat to {NEAR}:{PORT}")
          + snat(f"ip daddr {NEAR} masquerade"), to=AT_B, carried="a"),
    Rules("node port, from outside", on_b=dnat(f"{NODE_PORT_HOST} dnat to {NEAR}:{PORT}"), to=(B, 30080),
          client="outside", carried="a"),
    Rules("SNAT on the sender's node", snat(f"ip daddr {TWO} snat to {GATEWAY_A}"), carried="b"),
    Rules("SNAT of ports only", snat(f"ip daddr {TWO} {L4} snat to {ONE}:40000-40100")),
    Rules("SNAT on the receiver's node", on_b=snat(f"ip daddr {TWO} snat to {GATEWAY_B}")),
    Rules("DNAT on both nodes", dnat(f"{TO_SERVICE} dnat to {GATEWAY_B}:30080"),
          dnat(f"{NODE_PORT_B} {TO_TWO}"),
          to=CLUSTER, carried="a"),
    Rules("redirect of a port on the receiver's node",
          on_b=dnat(f"ip daddr {TWO} {L4} th dport 81 dnat to :{PORT}"), to=(TWO, 81)),
    Rules("conntrack zones", zone(7), zone(9)),
    Rules("zones, and invalid dropped", zone(7) + INVALID, zone(9) + INVALID),
    Rules("notrack", NO_TRACK, NO_TRACK),
    Rules("marks on packets and connections", MARKS, MARKS),
    Rules("smaller MSS", forward("tcp flags syn tcp option maxseg size set 536")),
    Rules("rp_filter strict", sysctls=STRICT_PATH),
    Rules("br_netfilter", sysctls=BRIDGED),
    Rules("br_netfilter, and a drop rule", forward(f"ip daddr {TWO} drop"), sysctls=BRIDGED, carried=""),
    Rules("br_netfilter, and a service whose endpoint is the client",
          dnat(f"{TO_SERVICE} dnat to {ONE}:{PORT}")
          + snat(f"ip saddr {ONE} ip daddr {ONE} masquerade"), to=CLUSTER, sysctls=BRIDGED, carried=""),
    Rules("br_netfilter, and a service", dnat(f"{TO_SERVICE} {BY_TURNS}"), to=CLUSTER, sysctls=BRIDGED),
    Rules("br_netfilter, and invalid dropped", INVALID, INVALID, sysctls=BRIDGED),
    Rules("kube-proxy (nftables): service", proxy="nftables", to=CLUSTER),
    Rules("kube-proxy (nftables): straight to an endpoint", proxy="nftables"),
    Rules("kube-proxy (nftables): node port", proxy="nftables", to=AT_B, carried="a"),
    Rules("kube-proxy (nftables): node port from outside", proxy="nftables", to=(A, 30080),
          client="outside", carried="b"),
    Rules("kube-proxy (nftables): an endpoint is the client", proxy="nftables", to=CLUSTER, client="near"),
    Rules("kube-proxy (iptables): service", proxy="iptables", to=CLUSTER),
    Rules("kube-proxy (iptables): straight to an endpoint", proxy="iptables"),
    Rules("kube-proxy (iptables): node port", proxy="iptables", to=AT_B, carried="a"),
    Rules("kube-proxy (iptables): node port from outside", proxy="iptables", to=(A, 30080),
          client="outside", carried="b"),
    Rules("kube-proxy (iptables): an endpoint is the client", proxy="iptables", to=CLUSTER,
          client="near"),
    Rules("kube-proxy (iptables) under br_netfilter", proxy="iptables", to=CLUSTER, sysctls=BRIDGED),
)  # fmt: skip
