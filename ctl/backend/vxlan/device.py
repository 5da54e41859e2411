"""The vxlan device as it has to be: what it is called, which MAC it has."""

from __future__ import annotations

import hashlib
from ipaddress import IPv6Address, ip_interface

from ctl.backend.site import Site
from ctl.core.family import Family
from ctl.core.host import VxlanDevice
from ctl.core.model import A, IPv4Address, MacAddress, N, Network


def device_name(network: Network, version: int = 4) -> str:
    """What the device of that IP version is called."""
    return f"ovnet.{network.vni}" if version == 4 else f"ovnet-v6.{network.vni}"


def vtep_mac(host: IPv4Address | IPv6Address, vni: int) -> MacAddress:
    """The VTEP MAC of a node: a function of what is unique, so that it survives reboots."""
    return MacAddress.local(hashlib.sha256(f"ovnet vtep {host} {vni}".encode()).digest()[:6])


def published_mac(site: Site, family: Family[A, N]) -> MacAddress:
    """The MAC that the lease says the device has: peers send to nothing else."""
    own = family.member(site.lease)
    mac = own.vtep_mac if own else None
    return mac or vtep_mac(family.source(site.uplink, site.lease), site.network.vni)


def wanted_device(site: Site, family: Family[A, N]) -> VxlanDevice:
    """The device of a node that stands there, and has this family."""
    network, own = site.network, family.member(site.lease)
    assert own is not None, f"our lease has no {family}"
    return VxlanDevice(
        name=device_name(network, family.version),
        vni=network.vni,
        port=network.port,
        local=family.source(site.uplink, site.lease),
        uplink=site.uplink.link.ifindex,
        mac=published_mac(site, family),
        mtu=site.mtu,
        address=ip_interface(own.vtep_ip),
    )
