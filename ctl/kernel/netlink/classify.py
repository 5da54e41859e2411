"""What netlink's messages may have changed. Pure.

Events only make reconciling sooner, so they are not decoded further than to tell which
part of the state to look at, and losing some (ENOBUFS) means to look at all that they can
have been about. A burst of thousands is no rarity, so what is looked at in a message is taken
apart by hand: 6 us an event, where pyroute2 takes 27.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELQDISC,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_DELTFILTER,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWNETCONF,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTM_NEWTFILTER,
    RTM_SETLINK,
)
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import RT_SCOPE_LINK
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from ctl.core.family import IPV4, IPV6, Family
from ctl.core.host import EVERYTHING, OWNER, Change, Devices, Removed, Sender
from ctl.core.model import MacAddress
from ctl.kernel.firewall import SENDERS, TABLE
from ctl.kernel.iptables import CHAIN
from ctl.kernel.netlink.message import attributes, layout, number_of, split, text, to_number
from ctl.kernel.netlink.nft import (
    DELSETELEM,
    LIST_ELEM,
    NEWSETELEM,
    NFGENMSG,
    NFTA_DATA_VALUE,
    NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE,
)
from ctl.kernel.netlink.session import NUD_USABLE
from ctl.kernel.netlink.tables import (
    MAIN_TABLE,
    NDA_DST,
    NDA_LLADDR,
    NDA_MASTER,
    NDMSG,
    ROUTE_PROTOCOL,
    RTA_OIF,
    RTMSG,
    parse_route,
)

_NEWNEXTHOP, _DELNEXTHOP = 104, 105
"""RTM_NEWNEXTHOP and RTM_DELNEXTHOP of linux/rtnetlink.h; pyroute2 does not have them."""

_PARTS: Final = {
    RTM_NEWLINK: frozenset({Change.DEVICES, Change.PORTS}),
    RTM_DELLINK: frozenset({Change.DEVICES, Change.PORTS}),
    RTM_SETLINK: frozenset({Change.DEVICES, Change.PORTS}),
    RTM_NEWADDR: frozenset({Change.DEVICES, Change.HOPS}),
    RTM_DELADDR: frozenset({Change.DEVICES, Change.HOPS}),
    RTM_NEWROUTE: frozenset({Change.HOPS}),
    RTM_DELROUTE: frozenset({Change.HOPS}),
    RTM_NEWQDISC: frozenset({Change.FILTERS}),
    RTM_NEWRULE: frozenset({Change.HOPS}),
    RTM_DELRULE: frozenset({Change.HOPS}),
    _NEWNEXTHOP: frozenset({Change.HOPS}),
    _DELNEXTHOP: frozenset({Change.HOPS}),
    RTM_DELQDISC: frozenset({Change.FILTERS}),
    RTM_NEWTFILTER: frozenset({Change.FILTERS}),
    RTM_DELTFILTER: frozenset({Change.FILTERS}),
}


_FAMILIES: Final[Mapping[int, Family[Any, Any]]] = {socket.AF_INET: IPV4, socket.AF_INET6: IPV6}
"""By rtm_family."""
_IPV6: Final = bytes([socket.AF_INET6])
"""The first byte of a message about an address or a route."""
_LINK: Final = layout(ifinfmsg)
_IFF_UP: Final = 1
"""Of linux/if.h."""
_QDISC: Final = layout(tcmsg)
_TCA_KIND: Final = number_of(tcmsg, "TCA_KIND")
_TCA_INGRESS_BLOCK, _TCA_EGRESS_BLOCK = 13, 14
"""Of linux/rtnetlink.h, like the next, which pyroute2 0.9.7 does not know."""
_NETCONF_HEAD: Final = 4
"""Bytes of struct netconfmsg, padded (linux/netconf.h)."""
_NETCONFA_FORWARDING: Final = 2

Wanted = Callable[[Removed], bool]


class Classifier:
    """What rtnetlink's messages may have changed. One thread's.

    Our own additions (routes, filters) are told apart and change nothing; our own removals
    are those of what is not `wanted`. The kernel reports every step of its reachability
    checks, several a minute for each container: only another MAC, or another port for one,
    is of interest.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.devices = Devices()
        self._wanted = wanted
        self._known: dict[bytes, bytes] = {}
        """MAC by address, of the bridge's neighbours."""
        self._known_on = 0
        """Ifindex of that bridge."""

    def forget(self) -> None:
        """Messages were lost, or are of no use any more: the next ones are all new."""
        self._known.clear()

    def classify(self, kind: int, body: bytes) -> frozenset[Change]:
        """By a message's type and what follows its header."""
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            return self._neighbour(kind, body)
        if kind in (RTM_NEWROUTE, RTM_DELROUTE) and body[5] == ROUTE_PROTOCOL:  # rtm_protocol
            return self._own_route(kind, body)
        if _is_no_news(kind, body):
            return frozenset()
        if kind == RTM_NEWNETCONF:
            return _forwarding_ended(body)
        if kind == RTM_DELLINK and _ifindex(body) == self._known_on:
            self.forget()  # its neighbours may go without a word
        found = _PARTS.get(kind, frozenset())
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            found |= self._routes_of(kind, body)
        if kind == RTM_DELROUTE and self._leads_to_bridge(body):
            found |= {Change.DEVICES}
        return found

    def _leads_to_bridge(self, body: bytes) -> bool:
        oif = attributes(body, RTMSG.size).get(RTA_OIF, b"")
        return to_number(oif) == self.devices.bridge != 0

    def _routes_of(self, kind: int, body: bytes) -> frozenset[Change]:
        """What it means for them that an interface is not as it was, if it carries any.

        One that goes down takes its routes along without a word. One of the underlay is also heard of when
        something is put on it, as our device is, which harms none.
        """
        _, _, ifindex, flags, changed = _LINK.unpack_from(body)
        if ifindex in self.devices.tunnels:
            return frozenset({Change.HOPS, Change.PEERS})
        if ifindex not in (self.devices.uplink, *self.devices.hops):
            return frozenset()
        stayed_up = kind == RTM_NEWLINK and flags & _IFF_UP and not changed & _IFF_UP
        return frozenset({Change.HOPS} if stayed_up else {Change.HOPS, Change.PEERS})

    def _own_route(self, kind: int, body: bytes) -> frozenset[Change]:
        if kind == RTM_NEWROUTE:
            return frozenset()
        return self._peers_if_wanted(parse_route(body, _FAMILIES[body[0]])[0])

    def _peers_if_wanted(self, entry: Removed) -> frozenset[Change]:
        return frozenset({Change.PEERS}) if self._wanted(entry) else frozenset()

    def _own_neighbour(self, kind: int, family: int, found: Mapping[int, bytes]) -> frozenset[Change]:
        if kind == RTM_NEWNEIGH:
            return frozenset()
        if family == socket.AF_BRIDGE:
            return self._peers_if_wanted(MacAddress(found[NDA_LLADDR]))
        # Of IPv6 each device has entries of the kernel's own, which nobody wants.
        address = found.get(NDA_DST, b"")
        return self._peers_if_wanted(ip_address(address)) if len(address) in (4, 16) else frozenset()

    def _neighbour(self, kind: int, body: bytes) -> frozenset[Change]:
        family, ifindex, state, _, _ = NDMSG.unpack_from(body)
        found = attributes(body, NDMSG.size)
        if ifindex in self.devices.tunnels:
            return self._own_neighbour(kind, family, found)
        if family == socket.AF_BRIDGE:
            ours = to_number(found.get(NDA_MASTER, b"")) == self.devices.bridge != 0
            return frozenset({Change.PORTS}) if ours else frozenset()
        key = found.get(NDA_DST, b"")
        if ifindex != self.devices.bridge or not self._is_of_containers(family, key):
            return frozenset()
        if ifindex != self._known_on:
            self._known_on = ifindex
            self.forget()  # what another bridge had, which is gone
        mac = found.get(NDA_LLADDR, b"") if kind == RTM_NEWNEIGH and state & NUD_USABLE else b""
        if self._known.get(key, b"") == mac:
            return frozenset()
        if mac:
            self._known[key] = mac
        else:
            self._known.pop(key, None)
        return frozenset({Change.PORTS})

    def _is_of_containers(self, family: int, address: bytes) -> bool:
        """Whether a neighbour on the bridge is one by which containers are found.

        Of IPv6 each has one of its link beside, and without a tunnel for IPv6 nobody asks for any.
        """
        if family != socket.AF_INET6:
            return family == socket.AF_INET
        return bool(
            self.devices.ipv6_tunnel and len(address) == 16 and not IPv6Address(address).is_link_local
        )


def _is_no_news(kind: int, body: bytes) -> bool:
    """Whether something has come that is our own work, or comes with each interface, a container's too."""
    if kind == RTM_NEWTFILTER:
        return OWNER.encode() + b":" in body  # TCA_BPF_NAME
    if kind == RTM_NEWQDISC:
        return _is_bare(body)
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        return body[:1] == _IPV6 and body[3] == int(RT_SCOPE_LINK)  # ifa_scope
    if kind in (RTM_NEWROUTE, RTM_DELROUTE) and body[:1] == _IPV6:
        to = parse_route(body, IPV6)[0].subnet
        return body[4] != MAIN_TABLE or to.is_link_local or to.is_multicast  # rtm_table
    return False


def _is_bare(body: bytes) -> bool:
    """Whether a qdisc is one for filters and has none yet, as the one that we add ourselves."""
    found = attributes(body, _QDISC.size)
    shared = found.keys() & {_TCA_INGRESS_BLOCK, _TCA_EGRESS_BLOCK}
    return text(found.get(_TCA_KIND, b"")) == "clsact" and not shared


def _forwarding_ended(body: bytes) -> frozenset[Change]:
    """The settings of a device, or all: of these one counts, when it is off (linux/netconf.h)."""
    found = attributes(body, _NETCONF_HEAD)
    ended = _NETCONFA_FORWARDING in found and not to_number(found[_NETCONFA_FORWARDING])
    return frozenset({Change.DEVICES}) if ended else frozenset()


def _ifindex(body: bytes) -> int:
    """Of a link's message (struct ifinfomsg)."""
    found: int = _LINK.unpack_from(body)[2]
    return found


def quiet_filter(tunnels: Collection[int]) -> bytes:
    """A classic BPF program (struct sock_filter) that keeps our own additions for peers out.

    `tunnels`: ifindexes of our tunnel devices.

    Thousands of them would wake us to say what we know, or overflow the socket. What is
    compared is in the host's byte order, and loaded as if it were the network's.
    """

    def jump_equal(value: int, then: int, otherwise: int) -> bytes:
        return struct.pack("=HBBI", 0x15, then, otherwise, value)

    def load(size: int, offset: int) -> bytes:
        return struct.pack("=HBBI", size, 0, 0, offset)

    half, word, byte = 0x28, 0x20, 0x30
    accept, drop = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF), struct.pack("=HBBI", 0x06, 0, 0, 0)
    count = len(tunnels)
    ours = [jump_equal(socket.htonl(each), 4 + count - at, 0) for at, each in enumerate(sorted(tunnels))]
    return b"".join(
        (
            load(half, 4),  # nlmsg_type
            jump_equal(socket.htons(RTM_NEWNEIGH), 0, 2 + count),
            load(word, 20),  # ndm_ifindex
            *ours,
            accept,
            jump_equal(socket.htons(RTM_NEWROUTE), 0, 2),
            load(byte, 21),  # rtm_protocol
            jump_equal(ROUTE_PROTOCOL, 1, 0),
            accept,
            drop,
        )
    )


@dataclass(frozen=True, slots=True)
class Source:
    """What the messages of one kind of socket mean, and what it means that some were lost.

    nftables reports everybody's rules, so others' work can overflow its socket: what was lost
    there can have been about our rules, and about nothing else.
    """

    heard: Callable[[bytes], frozenset[Change]]
    lost: Callable[[], frozenset[Change]]


def rules(wanted: Wanted) -> Source:
    """Nftables' (nfnetlink): of our rules, and of whom they let in. `wanted` as for Classifier."""

    def heard(data: bytes) -> frozenset[Change]:
        found: frozenset[Change] = frozenset()
        for _, kind, _, body in split(data):
            found |= _rule(kind, body, wanted)
        return found

    return Source(heard, lambda: frozenset({Change.FIREWALL}))


def _rule(kind: int, body: bytes, wanted: Wanted) -> frozenset[Change]:
    """Only what names us counts, or iptables' chain in which we stand with others.

    Whoever is let in by us comes with a message of its own, whoever goes as well.
    """
    if kind == NEWSETELEM:
        return frozenset()
    if kind == DELSETELEM:
        host = _sender(body)
        return frozenset({Change.PEERS}) if host and wanted(Sender(host)) else frozenset()
    ours = any(name.encode() + b"\0" in body for name in (TABLE, CHAIN, "FORWARD"))
    return frozenset({Change.FIREWALL}) if ours else frozenset()


def _sender(body: bytes) -> IPv4Address | IPv6Address | None:
    """Whom a message about an element is about; None: not one that our rules let in."""
    found = attributes(body, NFGENMSG)
    names = [text(found.get(each, b"")) for each in (NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET)]
    if names != [TABLE, SENDERS]:
        return None
    value = found.get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")
    for each in (LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE):
        value = attributes(value).get(each, b"")
    return ip_address(value) if len(value) in (4, 16) else None


def few_elements() -> bytes:
    """A classic BPF program (struct sock_filter) that keeps out who is put into a set, everybody's.

    A first sync of thousands of peers is as many messages; what is wrong with an addition of
    others' shows when the set is read again.
    """
    return b"".join(
        (
            struct.pack("=HBBI", 0x28, 0, 0, 4),  # nlmsg_type, as in quiet_filter
            struct.pack("=HBBI", 0x15, 0, 1, socket.htons(NEWSETELEM)),
            struct.pack("=HBBI", 0x06, 0, 0, 0),
            struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF),
        )
    )


POLICIES: Final = Source(lambda _: frozenset({Change.HOPS}), lambda: frozenset({Change.HOPS}))
"""IPsec's: after any of its messages, which path the peers may take has to be decided anew."""


def routes(classifier: Classifier) -> Source:
    """rtnetlink: of all parts but the rules."""

    def lost() -> frozenset[Change]:
        classifier.forget()
        return EVERYTHING

    return Source(partial(_decode, classifier), lost)


def _decode(classifier: Classifier, data: bytes) -> frozenset[Change]:
    found: frozenset[Change] = frozenset()
    for _, kind, _, body in split(data):
        found |= classifier.classify(kind, body)
    return found
