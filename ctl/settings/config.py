"""The settings of a node. Pure.

SETTINGS is the one table: flag, OVNET_* variable and TOML key of a setting all derive
from its row, and are strong in that order. `lease_ttl` is `--lease-ttl`,
`OVNET_LEASE_TTL`, and `lease_ttl = ...` in the file. Where flannel has a flag of the same
name and meaning, its FLANNELD_* variable holds too, weaker than OVNET_*.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

from ctl.core.cni import HOST_LOCAL_DIR, Plugin, parse_plugins
from ctl.core.errors import ConfigError
from ctl.core.model import Bypass, HookMode
from ctl.settings import values
from ctl.settings.endpoint import (
    ANNOTATION_PREFIX,
    ETCD_ENDPOINTS,
    ETCD_PREFIX,
    NET_CONFIG,
    Endpoint,
    format_store_url,
    is_etcd,
    is_kubernetes,
    parse_endpoints,
    parse_store_url,
)

DEFAULT_FILE: Final = Path("/etc/ovnet/ovnet.toml")
"""The settings file that is read if it exists and no other one is named."""

ENV_PREFIX: Final = "OVNET_"
FLANNEL_PREFIX: Final = "FLANNELD_"
FILE_VARIABLE: Final = "OVNET_CONFIG"
"""The environment variable that names the settings file, as `--config` does."""

CONNTRACK_UDP_TIMEOUT: Final = 30.0
"""The kernel forgets a new UDP flow after so many seconds without a packet, unless
net.netfilter.nf_conntrack_udp_timeout says otherwise."""

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a node is told, complete and valid. Times are seconds where not said otherwise."""

    store: str
    """The lease store's URL; an etcd's has all endpoints in it."""
    etcd_endpoints: tuple[Endpoint, ...]
    etcd_prefix: str
    etcd_keyfile: str
    etcd_certfile: str
    etcd_cafile: str
    etcd_username: str
    etcd_password: str = field(repr=False)
    etcd_password_file: str
    kube_subnet_mgr: bool
    """Flannel's way to say that the store is Kubernetes."""
    kubeconfig_file: str
    """The kubeconfig for that; "" in a pod."""
    kube_annotation_prefix: str
    """What the names of a Node's annotations begin with, a `/` or `-` at its end."""
    net_config_path: Path
    """The network's config, where the store is Kubernetes."""
    set_node_network_unavailable: bool
    node_name: str
    """For people; in Kubernetes the Node's, "" where nobody has said which that is."""
    iface: str
    """The uplink's name or one of its IPv4 addresses; "" leaves the choice to the next two."""
    iface_regex: str
    iface_can_reach: IPv4Address | IPv6Address | None
    """A host that the uplink has to reach. The first of these three that is given counts; without any, the
    uplink is the interface of the default route."""
    public_ip: IPv4Address | None
    """The underlay address to publish; None means the uplink's first one."""
    public_ipv6: IPv6Address | None
    """The same of IPv6, where the network has it."""
    bridge: str
    bypass: Bypass
    hook: HookMode
    approval_ttl: float
    state_dir: Path
    bpffs: Path
    subnet_file: Path
    cni_conf: Path | None
    """The CNI configuration that is written when the node takes containers; None: container runtimes are
    configured by someone else."""
    cni_plugins: tuple[Plugin, ...]
    """What it chains behind the plugin that joins a container to the bridge."""
    cni_data_dir: Path
    """Where the plugin `host-local` keeps what it has given out, in a directory for each network."""
    ip_masq: bool
    lease_ttl: float
    subnet_lease_renew_margin: float
    """How many minutes before its end a lease is renewed, in the unit of flannel's flag."""
    metrics_addr: str
    metrics_port: int
    """The metrics server's port; 0 means that there is none."""
    healthz_ip: str
    healthz_port: int
    """The port for flannel's probes; 0 means that nothing answers them."""
    peers_max: int
    endpoints_max: int
    flows_max: int
    resync_interval: float
    probe_interval: float
    """In how many seconds each peer is asked once in the background; 0 means that nobody is."""
    log_level: str

    @property
    def renew_margin(self) -> float:
        """How long before its end a lease is renewed, seconds."""
        return self.subnet_lease_renew_margin * 60


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table. `parse` raises ValueError with a line that needs no context."""

    name: str
    parse: Callable[[str], object]
    default: str
    help: str
    metavar: str
    toml: tuple[type, ...] = (str,)
    """The types that the setting's TOML value may have."""
    flannel: bool = False
    """Whether flannel's flag of this name means the same."""
    secret: bool = False
    """Whether the value must never be shown, not in errors either."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()

    @property
    def variables(self) -> tuple[str, ...]:
        """All that are read, the weaker one first."""
        return (FLANNEL_PREFIX + self.name.upper(), self.variable) if self.flannel else (self.variable,)


INT: Final = (int,)
NUMBER: Final = (int, float)
DECADE: Final = 10 * 365 * 86400

SETTINGS: Final = (
    Setting("store", values.store_url, "sqlite:////var/lib/ovnet/store.db", "the lease store's URL", "URL"),
    Setting(
        "etcd_endpoints",
        parse_endpoints,
        ETCD_ENDPOINTS,
        "members of etcd; given without a store, they are the store",
        "URL,...",
        flannel=True,
    ),
    Setting(
        "etcd_prefix", values.etcd_prefix, ETCD_PREFIX, "where in etcd the network is", "KEY", flannel=True
    ),
    Setting("etcd_keyfile", values.optional_file, "", "key of the client certificate", "FILE", flannel=True),
    Setting("etcd_certfile", values.optional_file, "", "client certificate for etcd", "FILE", flannel=True),
    Setting(
        "etcd_cafile",
        values.optional_file,
        "",
        "CA of etcd's certificates (default: the system's)",
        "FILE",
        flannel=True,
    ),
    Setting("etcd_username", values.any_text, "", "user name for etcd", "NAME", flannel=True),
    Setting(
        "etcd_password",
        values.any_text,
        "",
        "its password; a flag is seen by all users of the host",
        "TEXT",
        flannel=True,
        secret=True,
    ),
    Setting("etcd_password_file", values.optional_file, "", "file whose first line is the password", "FILE"),
    Setting(
        "kube_subnet_mgr",
        values.boolean,
        "false",
        "given without a store, Kubernetes is the store",
        "BOOL",
        (bool,),
        flannel=True,
    ),
    Setting(
        "kubeconfig_file",
        values.optional_file,
        "",
        "with kube-subnet-mgr: the cluster's kubeconfig (default: that of the pod)",
        "FILE",
        flannel=True,
    ),
    Setting(
        "kube_annotation_prefix",
        values.annotation_prefix,
        ANNOTATION_PREFIX,
        "what the names of the Nodes' annotations begin with",
        "PREFIX",
        flannel=True,
    ),
    Setting(
        "net_config_path",
        values.path,
        NET_CONFIG,
        "the network's config, where the store is Kubernetes",
        "FILE",
        flannel=True,
    ),
    Setting(
        "set_node_network_unavailable",
        values.boolean,
        "true",
        "clear the Node's condition NetworkUnavailable when the node is ready",
        "BOOL",
        (bool,),
        flannel=True,
    ),
    Setting(
        "node_name",
        values.node_name,
        "",
        "this node's name, for people (default: the host name); Kubernetes: the Node's (default: $NODE_NAME)",
        "NAME",
    ),
    Setting(
        "iface",
        values.uplink,
        "",
        "the uplink, by name or address (default: the default route's)",
        "DEV|IP",
        flannel=True,
    ),
    Setting(
        "iface_regex",
        values.pattern,
        "",
        "without iface: the first interface with an address, else a name, in which this is found",
        "REGEX",
        flannel=True,
    ),
    Setting(
        "iface_can_reach",
        values.optional_ip,
        "",
        "without these two: the interface through which this host is reached",
        "IP",
        flannel=True,
    ),
    Setting(
        "public_ip",
        values.optional_ipv4,
        "",
        "underlay address to publish (default: the uplink's)",
        "IP",
        flannel=True,
    ),
    Setting(
        "public_ipv6",
        values.optional_ipv6,
        "",
        "its IPv6 address to publish, where the network has IPv6 (default: iface's, or the uplink's first)",
        "IP",
        flannel=True,
    ),
    Setting("bridge", values.ifname, "ovnet0", "bridge of the containers; an existing one is adopted", "DEV"),
    Setting(
        "bypass",
        values.bypass,
        "learned",
        "what eBPF may carry: learned, always, tunnel (nothing past netfilter) or off",
        "MODE",
    ),
    Setting(
        "hook",
        values.hook,
        "tc",
        "where it decapsulates: tc, xdp, or auto (xdp if the driver has it)",
        "HOOK",
    ),
    Setting(
        "approval_ttl", values.number(0.1, 3600, "seconds"), "5", "life of a flow's approval, s", "S", NUMBER
    ),
    Setting("state_dir", values.path, "/run/ovnet", "directory of the agent's lock and state", "DIR"),
    Setting("bpffs", values.path, "/sys/fs/bpf/ovnet", "directory of the pinned maps and programs", "DIR"),
    Setting(
        "subnet_file",
        values.optional_path,
        "",
        "environment file (default: subnet.env in state-dir)",
        "FILE",
        flannel=True,
    ),
    Setting(
        "cni_conf",
        values.optional_path,
        "",
        "CNI configuration to write while the node takes containers, such as "
        "/etc/cni/net.d/10-flannel.conflist (default: none)",
        "FILE",
    ),
    Setting(
        "cni_plugins",
        parse_plugins,
        "portmap",
        "CNI plugins chained in it, or a JSON list of their configurations",
        "NAME,...",
    ),
    Setting(
        "cni_data_dir",
        values.path,
        HOST_LOCAL_DIR,
        "where its plugin host-local keeps what it has given out (change it on a node without containers)",
        "DIR",
    ),
    Setting(
        "ip_masq",
        values.boolean,
        "true",
        "masquerade what containers send outside",
        "BOOL",
        (bool,),
        flannel=True,
    ),
    Setting("lease_ttl", values.number(10, DECADE, "seconds"), "86400", "life of a lease, s", "S", NUMBER),
    Setting(
        "subnet_lease_renew_margin",
        values.number(0, DECADE / 60, "minutes"),
        "60",
        "renew a lease this many minutes before its end, at the latest at half its life",
        "MIN",
        NUMBER,
        flannel=True,
    ),
    Setting("metrics_addr", values.listen_address, "127.0.0.1", "address of the metrics server", "IP"),
    Setting(
        "metrics_port", values.integer(0, 65535), "9475", "port of the metrics server; 0: none", "PORT", INT
    ),
    Setting(
        "healthz_ip",
        values.listen_address,
        "127.0.0.1",
        "address of flannel's /healthz and /readyz (flannel's default: 0.0.0.0)",
        "IP",
        flannel=True,
    ),
    Setting(
        "healthz_port",
        values.integer(0, 65535),
        "0",
        "port of flannel's /healthz and /readyz; 0: none",
        "PORT",
        INT,
        flannel=True,
    ),
    Setting("peers_max", values.integer(1, 1 << 20), "16384", "capacity of map peers", "N", INT),
    Setting("endpoints_max", values.integer(1, 1 << 20), "4096", "capacity of map endpoints", "N", INT),
    Setting("flows_max", values.integer(64, 1 << 24), "65536", "capacity of map flows", "N", INT),
    Setting(
        "resync_interval", values.number(1, 86400, "seconds"), "60", "time between resyncs, s", "S", NUMBER
    ),
    Setting(
        "probe_interval",
        values.number(0, 86400, "seconds"),
        "0",
        "time in which each peer is sent echoes once, for metrics, s; 0: nobody is",
        "S",
        NUMBER,
    ),
    Setting("log_level", values.choice(*LOG_LEVELS), "info", "one of " + ", ".join(LOG_LEVELS), "LEVEL"),
)

BY_NAME: Final[Mapping[str, Setting]] = {setting.name: setting for setting in SETTINGS}

STORE_SETTINGS: Final = (
    "store",
    *(name for name in BY_NAME if name.startswith("etcd_")),
    "kube_subnet_mgr",
    "kubeconfig_file",
    "kube_annotation_prefix",
    "net_config_path",
)
"""The settings that a command needs which opens the store and is no agent."""


def add_options(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Give `parser` the flags of the settings `names`; None: of all.

    The flags store raw text; `resolve` parses it, so all sources fail alike.
    """
    group = parser.add_argument_group("settings", "each is also a variable OVNET_* and a key of the file")
    for name in BY_NAME if names is None else names:
        setting = BY_NAME[name]
        text = setting.help.replace("%", "%%")
        if setting.default:
            text += f" (default: {setting.default})"
        if setting.toml == (bool,):
            # `--ip-masq`, `--ip-masq=false` as with Go's flags, and `--no-ip-masq`.
            group.add_argument(setting.flag, dest=name, nargs="?", const="true", metavar="BOOL", help=text)
            group.add_argument(
                setting.flag.replace("--", "--no-", 1),
                dest=name,
                action="store_const",
                const="false",
                help=f"the same as {setting.flag}=false",
            )
        else:
            group.add_argument(setting.flag, dest=name, metavar=setting.metavar, help=text)


def _suggestion(word: str, known: Iterable[str]) -> str:
    import difflib  # only wanted when something is wrong anyway

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _from_environ(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Setting name -> (text, source). ConfigError on an OVNET_* variable that is none.

    Flannel has variables that we have no setting for, so unknown ones of its are let be.
    """
    known = {setting.variable: setting.name for setting in SETTINGS}
    found = {}
    for setting in SETTINGS:
        for variable in setting.variables:
            if variable in environ and variable != setting.variable:
                found[setting.name] = (environ[variable], variable)
    for variable in sorted(name for name in environ if name.startswith(ENV_PREFIX)):
        if variable in known:
            found[known[variable]] = (environ[variable], variable)
        elif variable != FILE_VARIABLE:
            raise ConfigError(f"{variable}: no such setting{_suggestion(variable, known)}")
    return found


def _toml_text(value: object, setting: Setting, source: str) -> str:
    """TOML has types of its own: hold it to them, then parse its text like the others."""
    if type(value) not in setting.toml:
        wanted = {str: "a string", int: "a number", bool: "true or false"}[setting.toml[0]]
        raise ConfigError(f"{source}: {'the value' if setting.secret else repr(value)} is not {wanted}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _from_toml(text: str | None, file: str) -> dict[str, tuple[str, str]]:
    """Setting name -> (text, source). ConfigError on bad TOML and on unknown keys."""
    if text is None:
        return {}
    import tomllib  # most commands run without a file

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
    found = {}
    for key, value in document.items():
        source = f"{file}: {key}"
        if key not in BY_NAME:
            raise ConfigError(f"{source}: no such setting{_suggestion(key, BY_NAME)}")
        found[key] = (_toml_text(value, BY_NAME[key], source), source)
    return found


def _from_args(args: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """Setting name -> (text, source), of the flags that were given."""
    given = vars(args)
    return {
        setting.name: (str(given[setting.name]), setting.flag)
        for setting in SETTINGS
        if given.get(setting.name) is not None
    }


def resolve(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    toml_text: str | None,
    *,
    file: str = "ovnet.toml",
    hostname: str = "",
) -> Settings:
    """The settings that hold: flag, else variable, else TOML key, else default.

    `toml_text` is the file's content, None if there is no file; `file` names it in errors.
    `hostname` is the default of node_name. `ctl.cli.settings.load` fills all of these in.
    Every source is checked, also where a stronger one wins. ConfigError names the source.
    """
    settled: dict[str, Any] = {setting.name: setting.parse(setting.default) for setting in SETTINGS}
    given: set[str] = set()
    for found in (_from_toml(toml_text, file), _from_environ(environ), _from_args(args)):
        given |= found.keys()
        for name, (text, source) in found.items():
            try:
                settled[name] = BY_NAME[name].parse(text)
            except ValueError as error:
                raise ConfigError(f"{source}: {error}") from error
    # As flannel's users write it.
    if "store" not in given and settled["kube_subnet_mgr"]:
        settled["store"] = f"kubernetes://{settled['kubeconfig_file']}"
    elif "store" not in given and "etcd_endpoints" in given:
        settled["store"] = "etcd:"
    if is_etcd(settled["store"]):
        settled["etcd_endpoints"] = parse_store_url(settled["store"]) or settled["etcd_endpoints"]
        settled["store"] = format_store_url(settled["etcd_endpoints"])
    if is_kubernetes(settled["store"]):
        # A host's name is often not its Node's: nothing is guessed.
        hostname = environ.get("NODE_NAME", "")
    settled["node_name"] = settled["node_name"] or hostname
    settled["subnet_file"] = settled["subnet_file"] or settled["state_dir"] / "subnet.env"
    return Settings(**settled)


def doubts(settings: Settings) -> tuple[str, ...]:
    """Why a node may not keep what its documentation promises, by settings that are valid; a line each.

    Warnings and no errors: the kernel may be set to fit, and a node that runs so must start again.
    """
    learned, ttl = settings.bypass is Bypass.LEARNED, settings.approval_ttl
    if learned and ttl >= CONNTRACK_UDP_TIMEOUT:
        return (
            f"--approval-ttl {ttl:g}: conntrack forgets a new UDP flow that it has not seen for"
            f" {CONNTRACK_UDP_TIMEOUT:g} s (nf_conntrack_udp_timeout), and rules then take it for another:"
            " choose less",
        )
    return ()
