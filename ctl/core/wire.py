"""What is stored and written for others to read, as text: flannel's formats. Pure.

    network config     JSON, keys in any case as Go reads them
    lease attributes   JSON, byte for byte as Go writes it
    lease key          10.5.52.0-24, with an IPv6 subnet 10.5.52.0-24&fd00:10:244:1::-64
    subnet.env         shell variables, read by the CNI plugin and Docker's set-up

Parsers raise ValueError with a line that names the field; `parse_network`, whose text
a person wrote, raises ConfigError.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Generic, TypeVar

from ctl.core.errors import ConfigError
from ctl.core.model import (
    BACKENDS,
    MIN_MTU,
    NO_HOSTS,
    NO_IPV6_HOSTS,
    VXLAN_OVERHEAD,
    IPv6Lease,
    IPv6Range,
    Lease,
    MacAddress,
    Network,
    host_address,
)

MAX_VNI: Final = (1 << 24) - 1

SHOWN_CHARACTERS: Final = 64
"""How much of a wrong value an error's line shows; no right one is as long."""

Fields = Mapping[str, Any]


def _fold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as Go reads it: keys in any case, the last one wins, null sets nothing.

    Except for Backend, which flannel keeps as raw text: null is one, and no type.
    """
    return {key.lower(): value for key, value in pairs if value is not None or key.lower() == "backend"}


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_fold)
"""One for all: `json.loads` makes a new one for each text, which costs more than a lease's JSON."""


def _object(text: str) -> dict[str, Any]:
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:  # also of a number too long to be read
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _shown(value: object) -> str:
    """A value for an error's line: short, printable, whatever it is."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _integer(fields: Fields, key: str, low: int, high: int, default: int) -> int:
    value = fields.get(key.lower(), default)
    if type(value) is not int:
        raise ValueError(f"{key} must be a whole number, not {_shown(value)}")
    if value != default and not low <= value <= high:
        raise ValueError(f"{key} {_shown(value)} is not between {low} and {high}")
    return value


def _string(fields: Fields, key: str, default: str = "") -> str:
    value = fields.get(key.lower(), default)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string, not {_shown(value)}")
    if len(value) > SHOWN_CHARACTERS:
        raise ValueError(f"{key} is too long: {_shown(value)}")
    return value


def _word(fields: Fields, key: str) -> str:
    """A name of few characters that is printed as it stands; "" if absent."""
    value = _string(fields, key)
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{key} {_shown(value)} is no name")
    return value


def _boolean(fields: Fields, key: str, default: bool) -> bool:
    value = fields.get(key.lower(), default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, not {_shown(value)}")
    return value


Net = TypeVar("Net", IPv4Network, IPv6Network)


@dataclass(frozen=True, slots=True)
class _Family(Generic[Net]):
    """How a family's part of the config is written, and what flannel has for it where nothing is said."""

    name: str
    prefix: str
    """What its keys begin with."""
    kind: type[Net]
    written: str
    """A regular expression for a network."""
    example: str
    usual: int
    """Prefix length of a subnet, where there is room for four of them."""
    longest: int
    """Of a subnet's: a bridge and a container need addresses."""
    nobody: tuple[Net, ...]
    """Networks in which no host is reached."""

    @property
    def bits(self) -> int:
        return self.kind((0, 0)).max_prefixlen


_IPV4: Final = _Family("IPv4", "", IPv4Network, r"[0-9.]+/[0-9]{1,2}", "10.77.0.0/16", 24, 30, NO_HOSTS)
_IPV6: Final = _Family(
    "IPv6", "IPv6", IPv6Network, r"[0-9a-fA-F:.]+/[0-9]{1,3}", "fd00:10:77::/48", 64, 126, NO_IPV6_HOSTS
)


def _cidr(text: str, key: str, family: _Family[Net]) -> Net:
    """`address/length`; host bits are cut off, as flannel does."""
    try:
        if not re.fullmatch(family.written, text):
            raise ValueError
        return family.kind(text, strict=False)
    except ValueError:
        raise ValueError(f"{key} {text!r} is not an {family.name} network such as {family.example}") from None


def _subnet_len(network: Net, given: int, family: _Family[Net]) -> int:
    """Flannel's rule: at least four subnets, and in each at least four addresses."""
    if given:
        if not network.prefixlen + 2 <= given <= family.longest:
            raise ValueError(
                f"{family.prefix}SubnetLen {given} does not fit {network}: it must be between"
                f" {network.prefixlen + 2} and {family.longest}, so that there are at least four subnets"
            )
        return given
    if network.prefixlen > family.longest - 2:
        raise ValueError(
            f"{family.prefix}Network {network} is too small:"
            f" /{family.longest - 2} is the smallest that holds four subnets"
        )
    return family.usual if network.prefixlen <= family.usual - 2 else network.prefixlen + 2


def _bound(fields: Fields, key: str, network: Net, length: int, default: int, family: _Family[Net]) -> Net:
    """SubnetMin or SubnetMax: an address in the network, on a subnet's boundary."""
    text = _string(fields, key, str(family.kind((0, 0)).network_address))
    try:
        address = type(network.network_address)(text)
    except ValueError:
        raise ValueError(f"{key} {text!r} is not an {family.name} address") from None
    if not int(address):
        return family.kind((default, length))
    if address not in network:
        raise ValueError(f"{key} {address} is not in {family.prefix}Network {network}")
    try:
        return family.kind((int(address), length))
    except ValueError:
        raise ValueError(f"{key} {address} is not on a /{length} boundary") from None


def _whole(fields: Fields, family: _Family[Net]) -> Net:
    """Network, or IPv6Network: it has to be there."""
    key = f"{family.prefix}Network"
    if key.lower() not in fields:
        raise ValueError(f"{key} is missing")
    network = _cidr(_string(fields, key), key, family)
    if any(network.subnet_of(each) for each in family.nobody):
        raise ValueError(f"{key} {network} is no network of hosts")
    return network


def _cut(fields: Fields, network: Net, family: _Family[Net]) -> tuple[Net, int, Net, Net]:
    """Network, length of a subnet, the first one and the last one."""
    prefix = family.prefix
    given = _integer(fields, f"{prefix}SubnetLen", 1, family.longest, 0)
    length = _subnet_len(network, given, family)
    first, size = int(network.network_address), 1 << (family.bits - length)
    # The first subnet is left out: its base is the network's own address, which some
    # systems take for a broadcast.
    low = _bound(fields, f"{prefix}SubnetMin", network, length, first + size, family)
    last = first + network.num_addresses - size
    high = _bound(fields, f"{prefix}SubnetMax", network, length, last, family)
    if int(low.network_address) > int(high.network_address):
        raise ValueError(
            f"{prefix}SubnetMin {low.network_address} is above {prefix}SubnetMax {high.network_address}"
        )
    return network, length, low, high


def _backend(fields: Fields) -> dict[str, Any]:
    """The Backend object as fields of Network. One that is absent means udp."""
    backend = fields.get("backend", {"type": "udp"})
    if not isinstance(backend, dict):
        raise ValueError("Backend must be an object")
    kind = _word(backend, "Type").lower()
    if not kind:
        raise ValueError("Backend has no Type")
    _boolean(backend, "Learning", False)  # flannel's device may learn, ours need not
    if _boolean(backend, "GBP", False):
        raise ValueError("GBP true is not supported: marks would ride in the VXLAN header")
    port = _integer(backend, "Port", 1, 65535, 0) or BACKENDS.get(kind, 0)
    mtu = _integer(backend, "MTU", MIN_MTU + VXLAN_OVERHEAD, 65535, 0) or None
    return {
        "backend": kind,
        "vni": _integer(backend, "VNI", 1, MAX_VNI, 1),
        "port": port,
        "mtu": mtu,
        "direct_routing": _boolean(backend, "DirectRouting", False),
    }


def _network(text: str, given: tuple[int, int] | None) -> Network:
    """`given`: the lengths of subnets of both families, if somebody else gives them out."""
    fields = _object(text)
    if not _boolean(fields, "EnableIPv4", True):
        raise ValueError("a network without IPv4 is not supported: EnableIPv4 must be true")
    dual = _boolean(fields, "EnableIPv6", False)
    whole, whole6 = _whole(fields, _IPV4), _whole(fields, _IPV6) if dual else None
    if given is None:
        cut = _cut(fields, whole, _IPV4)
        ipv6 = _of_hosts(IPv6Range(*_cut(fields, whole6, _IPV6))) if whole6 else None
    else:
        cut = _given_out(whole, given[0], _IPV4)
        ipv6 = IPv6Range(*_given_out(whole6, given[1], _IPV6)) if whole6 else None
    return Network(*cut, **_backend(fields), ipv6=ipv6)


def _of_hosts(cut: IPv6Range) -> IPv6Range:
    """`cut`, if hosts are reached in all that it hands out: a wide network has IPv4's addresses in it."""
    first, last = int(cut.subnet_min.network_address), int(cut.subnet_max.broadcast_address)
    for each in NO_IPV6_HOSTS:
        if first <= int(each.broadcast_address) and int(each.network_address) <= last:
            raise ValueError(
                f"IPv6Network {cut.network} hands out {cut.subnet_min} to {cut.subnet_max}, and no host is"
                f" reached in {each}: choose another, or IPv6SubnetMin and IPv6SubnetMax"
            )
    return cut


def _given_out(network: Net, length: int, family: _Family[Net]) -> tuple[Net, int, Net, Net]:
    """As `_cut` where others give out the subnets: any of them, the first and an only one too."""
    length = max(length, network.prefixlen)
    first, size = int(network.network_address), 1 << (family.bits - length)
    last = first + network.num_addresses - size
    return network, length, family.kind((first, length)), family.kind((last, length))


def parse_network(
    text: str, source: str = "network config", *, given_out: tuple[int, int] | None = None
) -> Network:
    """The network config from its JSON, with flannel's defaults and checks.

    `given_out`: somebody else gives out the subnets, ours of these lengths, IPv4's and IPv6's; SubnetLen,
    SubnetMin and SubnetMax are not looked at then, as flannel does not on Kubernetes. Any backend type is
    taken as it stands: whether a node can run it, its agent says. ConfigError names `source` and the key.
    """
    try:
        return _network(text, given_out)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def format_network(network: Network) -> str:
    """The JSON of a network config, everything spelt out; `parse_network` gives it back."""
    backend: dict[str, object] = {"Type": network.backend, "VNI": network.vni, "Port": network.port}
    if network.mtu is not None:
        backend["MTU"] = network.mtu
    if network.direct_routing:
        backend["DirectRouting"] = True
    config = _format_cut(network, _IPV4.prefix)
    if network.ipv6 is not None:
        config |= {"EnableIPv6": True, **_format_cut(network.ipv6, _IPV6.prefix)}
    return json.dumps({**config, "Backend": backend}, separators=(",", ":"))


def _format_cut(cut: Network | IPv6Range, prefix: str) -> dict[str, object]:
    """A family's keys, which begin with `prefix`."""
    return {
        f"{prefix}Network": str(cut.network),
        f"{prefix}SubnetLen": cut.subnet_len,
        f"{prefix}SubnetMin": str(cut.subnet_min.network_address),
        f"{prefix}SubnetMax": str(cut.subnet_max.network_address),
    }


def _untyped(backend: str) -> bool:
    """The udp backend publishes neither type nor data."""
    return backend == "udp"


def format_attributes(lease: Lease, *, with_node: bool = False) -> str:
    """The value stored for a lease: who holds it and how to reach it.

    `with_node` puts the node's name into BackendData as a field `Node`. Flannel reads
    over it there, and drops it when it writes the lease itself.
    """
    ipv6 = lease.ipv6
    host6 = str(ipv6.host) if ipv6 is not None and ipv6.host is not None else None
    attributes: dict[str, object] = {"PublicIP": str(lease.host), "PublicIPv6": host6}
    if not _untyped(lease.backend):
        attributes["BackendType"] = lease.backend
    data = _format_data(lease)
    # Only beside data that flannel knows: without a MAC it could not read a vxlan lease.
    if with_node and lease.node and (data or lease.backend != "vxlan"):
        data["Node"] = lease.node
    if data:
        attributes["BackendData"] = data
    if ipv6 is not None and (data6 := _format_data(ipv6)):
        attributes["BackendV6Data"] = data6
    return json.dumps(attributes, separators=(",", ":"))


def _format_data(lease: Lease | IPv6Lease) -> dict[str, object]:
    """How the vxlan device of a family is reached; empty: it has none."""
    if lease.vtep_mac is None or lease.vni is None:
        return {}
    return {"VNI": lease.vni, "VtepMAC": str(lease.vtep_mac)}


def parse_attributes(
    subnet: IPv4Network,
    text: str,
    *,
    ipv6: IPv6Network | None = None,
    expires_at: float | None = None,
    revision: int = 0,
) -> Lease:
    """The lease on `subnet`, and on `ipv6` if it has that too, from its stored value.

    Unknown fields are ignored. A lease without BackendType is udp's; one without
    BackendData (a reservation that nobody uses yet) has no MAC. ValueError names the field.
    """
    fields = _object(text)
    host = _public_ip(fields)
    backend = sys.intern(_word(fields, "BackendType") or "udp")  # a hundred thousand leases have the same
    mac, vni = backend_data(fields.get("backenddata"), backend)
    part = None if ipv6 is None else _parse_ipv6(ipv6, fields, backend)
    return Lease(subnet, host, mac, vni, backend, _node(fields), expires_at, revision, part)


def _parse_ipv6(subnet: IPv6Network, fields: Fields, backend: str) -> IPv6Lease:
    """What the value says of IPv6. What is missing is None, as in a reservation."""
    host = None
    if "publicipv6" in fields:
        try:
            host = host_address(IPv6Address(_string(fields, "PublicIPv6")))
        except ValueError as error:
            raise ValueError(f"PublicIPv6: {error}") from error
    try:
        mac, vni = backend_data(fields.get("backendv6data"), backend)
    except ValueError as error:
        raise ValueError(f"BackendV6Data: {error}") from error
    return IPv6Lease(subnet, host, mac, vni)


def _public_ip(fields: Fields) -> IPv4Address:
    try:
        return host_address(IPv4Address(_string(fields, "PublicIP")))
    except ValueError as error:
        raise ValueError(f"PublicIP: {error}") from error


def _node(fields: Fields) -> str:
    """The node's name, if `format_attributes` put one in; it is printed, so it must be printable."""
    data = fields.get("backenddata")
    name = data.get("node") if isinstance(data, dict) else None
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 253 else ""


def decode(text: str) -> Any:
    """JSON as Go reads it: the names of fields are in lower case. ValueError."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(f"not JSON: {error}") from error


def backend_data(data: Any, backend: str) -> tuple[MacAddress | None, int | None]:
    """(VTEP MAC, VNI) of decoded BackendData; a VNI that is missing is 0. ValueError.

    Only vxlan's has a meaning for us; others may be of any JSON type.
    """
    if backend != "vxlan" or data is None:
        return None, None
    if not isinstance(data, dict):
        raise ValueError("BackendData must be an object")
    mac = MacAddress.parse(_string(data, "VtepMAC"))
    if not mac.is_unicast:
        raise ValueError(f"VtepMAC {mac} is not a unicast address")
    return mac, _integer(data, "VNI", 0, MAX_VNI, 0)


def format_key(subnet: IPv4Network, ipv6: IPv6Network | None = None) -> str:
    """A lease's key, `10.5.52.0-24` or `10.5.52.0-24&fd00:10:244:1::-64`."""
    key = f"{subnet.network_address}-{subnet.prefixlen}"
    return key if ipv6 is None else f"{key}&{ipv6.network_address}-{ipv6.prefixlen}"


def parse_key(text: str) -> tuple[IPv4Network, IPv6Network | None]:
    """The subnets of a lease's key. ValueError if it is none."""
    first, both, second = text.partition("&")
    subnet = _parse_ipv4_key(first)
    if not both:
        return subnet, None
    if not subnet.prefixlen:  # as flannel writes it where IPv4 is off: it would take all of the network
        raise ValueError(f"{text!r} has no IPv4 subnet")
    return subnet, _parse_ipv6_key(second)


def _parse_ipv6_key(text: str) -> IPv6Network:
    base, _, length = text.rpartition("-")
    try:
        if not re.fullmatch("[0-9a-fA-F:]+-[0-9]{1,3}", text):
            raise ValueError
        subnet = IPv6Network(f"{base}/{length}")
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 subnet such as fd00:10:244:1::-64") from None
    if text != f"{subnet.network_address}-{subnet.prefixlen}":
        raise ValueError(f"{text!r} is {subnet}, written in another way")
    return subnet


_IPV4_KEY: Final = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})-([0-9]{1,2})")


def _parse_ipv4_key(text: str) -> IPv4Network:
    match = _IPV4_KEY.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a lease key such as 10.5.52.0-24")
    one, two, three, four, length = map(int, match.groups())
    if max(one, two, three, four) > 255:
        raise ValueError(f"{text!r} is not an IPv4 subnet")
    subnet = IPv4Network((one << 24 | two << 16 | three << 8 | four, length))
    if text != f"{one}.{two}.{three}.{four}-{length}":
        raise ValueError(f"{text!r} is {format_key(subnet)}, written in another way")
    return subnet


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What a node tells the CNI plugin or Docker; `mtu` is the containers', in bytes."""

    network: IPv4Network
    subnet: IPv4Network
    mtu: int
    ip_masq: bool
    ipv6: tuple[IPv6Network, IPv6Network] | None = None
    """Network and subnet; None: the node has IPv4 only."""


def env_of(network: Network, lease: Lease, mtu: int, *, ip_masq: bool) -> SubnetEnv:
    """What the node that holds this lease tells; `mtu`: the containers', bytes."""
    ipv6 = (network.ipv6.network, lease.ipv6.subnet) if network.ipv6 and lease.ipv6 else None
    return SubnetEnv(network.network, lease.subnet, mtu, ip_masq, ipv6)


def format_subnet_env(env: SubnetEnv) -> str:
    """The text of subnet.env. FLANNEL_SUBNET is the bridge's address and prefix length."""
    ipv6 = ""
    if env.ipv6 is not None:
        network, subnet = env.ipv6
        ipv6 = (
            f"FLANNEL_IPV6_NETWORK={network}\n"
            f"FLANNEL_IPV6_SUBNET={subnet.network_address + 1}/{subnet.prefixlen}\n"
        )
    return (
        f"FLANNEL_NETWORK={env.network}\n"
        f"FLANNEL_SUBNET={env.subnet.network_address + 1}/{env.subnet.prefixlen}\n"
        f"{ipv6}"
        f"FLANNEL_MTU={env.mtu}\n"
        f"FLANNEL_IPMASQ={str(env.ip_masq).lower()}\n"
    )


def docker_options(env: SubnetEnv) -> dict[str, str]:
    """Dockerd's options for a node, by flannel's names of them, in its order.

    Either we masquerade or Docker does: twice would hide containers from the overlay.
    """
    ipv6 = {}
    if env.ipv6 is not None:  # which mk-docker-opts.sh leaves out
        ipv6 = {"DOCKER_OPT_IPV6": f"--ipv6 --fixed-cidr-v6={env.ipv6[1]}"}
    return {
        "DOCKER_OPT_BIP": f"--bip={env.subnet.network_address + 1}/{env.subnet.prefixlen}",
        "DOCKER_OPT_IPMASQ": f"--ip-masq={str(not env.ip_masq).lower()}",
        "DOCKER_OPT_MTU": f"--mtu={env.mtu}",
        **ipv6,
    }


def _decimal(text: str, key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError(f"{key} {text!r} is not a number")
    return int(text)


def parse_subnet_env(text: str) -> SubnetEnv:
    """subnet.env, ours or flannel's. ValueError if incomplete."""
    pairs = (line.partition("=") for line in text.splitlines())
    values = {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}
    try:
        return SubnetEnv(
            # A list where flannel has several networks: the first is ours to compare with.
            network=_cidr(values["FLANNEL_NETWORK"].partition(",")[0], "FLANNEL_NETWORK", _IPV4),
            subnet=_cidr(values["FLANNEL_SUBNET"], "FLANNEL_SUBNET", _IPV4),
            mtu=_decimal(values["FLANNEL_MTU"], "FLANNEL_MTU"),
            ip_masq=values["FLANNEL_IPMASQ"] == "true",
            ipv6=_env_ipv6(values),
        )
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error


def _env_ipv6(values: Mapping[str, str]) -> tuple[IPv6Network, IPv6Network] | None:
    """Network and subnet; None: the file does not name both, as of a node without IPv6."""
    if "FLANNEL_IPV6_NETWORK" not in values or "FLANNEL_IPV6_SUBNET" not in values:
        return None
    return (
        _cidr(values["FLANNEL_IPV6_NETWORK"].partition(",")[0], "FLANNEL_IPV6_NETWORK", _IPV6),
        _cidr(values["FLANNEL_IPV6_SUBNET"], "FLANNEL_IPV6_SUBNET", _IPV6),
    )
