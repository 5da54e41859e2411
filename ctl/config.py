"""The settings of a node. Pure.

SETTINGS is the one table: flag, OVNET_* variable and TOML key of a setting all derive
from its row, and are strong in that order. `lease_ttl` is `--lease-ttl`,
`OVNET_LEASE_TTL`, and `lease_ttl = ...` in the file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any, Final

from ctl.errors import ConfigError
from ctl.model import Bypass

DEFAULT_FILE: Final = Path("/etc/ovnet/ovnet.toml")
"""Read if it exists and no other file is named."""

ENV_PREFIX: Final = "OVNET_"
FILE_VARIABLE: Final = "OVNET_CONFIG"
"""The variable that names the file, like `--config`."""

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a node is told, complete and valid. Times are seconds where not said otherwise."""

    store: str
    node_name: str
    iface: str
    """Uplink's name; "": the interface of the default route."""
    public_ip: IPv4Address | None
    """Underlay address; None: the uplink's first one."""
    bridge: str
    bypass: Bypass
    approval_ttl: float
    state_dir: Path
    bpffs: Path
    subnet_file: Path
    ip_masq: bool
    lease_ttl: float
    subnet_lease_renew_margin: float
    """Minutes, as flannel's flag has it; see `renew_margin`."""
    metrics_addr: str
    metrics_port: int
    """0: no metrics server."""
    peers_max: int
    endpoints_max: int
    flows_max: int
    resync_interval: float
    log_level: str

    @property
    def renew_margin(self) -> float:
        """How long before its end a lease is renewed, seconds."""
        return self.subnet_lease_renew_margin * 60


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise ValueError(f"{text!r} is not a whole number")
        if not low <= int(text) <= high:
            raise ValueError(f"{text} is not between {low} and {high}")
        return int(text)

    return parse


def _number(low: float, high: float, unit: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            raise ValueError(f"{text!r} is not a number of {unit}")
        if not low <= float(text) <= high:
            raise ValueError(f"{text} is not between {low:g} and {high:g} {unit}")
        return float(text)

    return parse


def _choice(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"{text!r} is none of {', '.join(values)}")
        return text

    return parse


def _boolean(text: str) -> bool:
    """As Go's flags, which flannel's users write."""
    lowered = text.lower()
    if lowered in ("true", "t", "1", "yes", "on"):
        return True
    if lowered in ("false", "f", "0", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _bypass(text: str) -> Bypass:
    return Bypass(_choice(*Bypass)(text))


def _ifname(text: str) -> str:
    """An interface name as the kernel takes it: IFNAMSIZ, no slash, no space, no colon."""
    if not re.fullmatch(r"[^\s/:]{1,15}", text) or text in (".", ".."):
        raise ValueError(f"{text!r} is no interface name (1 to 15 characters, no '/', ':' or space)")
    return text


def _optional_ifname(text: str) -> str:
    return _ifname(text) if text else ""


def _optional_ipv4(text: str) -> IPv4Address | None:
    if not text:
        return None
    try:
        address = IPv4Address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 address") from None
    if address.is_multicast or address.is_unspecified or address == IPv4Address("255.255.255.255"):
        raise ValueError(f"{text} is not a host's address")
    return address


def _listen_address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address to listen on") from None


def _path(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def _optional_path(text: str) -> Path | None:
    return _path(text) if text else None


def _node_name(text: str) -> str:
    """A name for people; it is printed, so it must stay on one line."""
    if len(text) > 253 or not (text.isprintable() or not text):
        raise ValueError(f"{text!r} is no node name (printable, at most 253 characters)")
    return text


def _store_url(text: str) -> str:
    if not re.match(r"[a-z0-9+]+:", text):
        raise ValueError(f"{text!r} is no store URL (such as sqlite:///var/lib/ovnet/store.db)")
    return text


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table. `parse` raises ValueError with a line that needs no context."""

    name: str
    parse: Callable[[str], object]
    default: str
    help: str
    metavar: str
    toml: tuple[type, ...] = (str,)
    """Types that the TOML value may have."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()


INT: Final = (int,)
NUMBER: Final = (int, float)
DECADE: Final = 10 * 365 * 86400

SETTINGS: Final = (
    Setting("store", _store_url, "sqlite:////var/lib/ovnet/store.db", "the lease store's URL", "URL"),
    Setting("node_name", _node_name, "", "this node's name, for people (default: the host name)", "NAME"),
    Setting("iface", _optional_ifname, "", "the uplink (default: the default route's)", "DEV"),
    Setting("public_ip", _optional_ipv4, "", "underlay address to publish (default: the uplink's)", "IP"),
    Setting("bridge", _ifname, "ovnet0", "bridge of the containers; an existing one is adopted", "DEV"),
    Setting("bypass", _bypass, "learned", "what eBPF may carry: learned, always or off", "MODE"),
    Setting("approval_ttl", _number(0.1, 3600, "seconds"), "5", "life of a flow's approval, s", "S", NUMBER),
    Setting("state_dir", _path, "/run/ovnet", "directory of the agent's lock and state", "DIR"),
    Setting("bpffs", _path, "/sys/fs/bpf/ovnet", "directory of the pinned maps and programs", "DIR"),
    Setting("subnet_file", _optional_path, "", "environment file (default: subnet.env in state-dir)", "FILE"),
    Setting("ip_masq", _boolean, "true", "masquerade what containers send outside", "BOOL", (bool,)),
    Setting("lease_ttl", _number(10, DECADE, "seconds"), "86400", "life of a lease, s", "S", NUMBER),
    Setting(
        "subnet_lease_renew_margin",
        _number(0, DECADE / 60, "minutes"),
        "60",
        "renew a lease this many minutes before its end, at the latest at half its life",
        "MIN",
        NUMBER,
    ),
    Setting("metrics_addr", _listen_address, "127.0.0.1", "address of the metrics server", "IP"),
    Setting("metrics_port", _integer(0, 65535), "9475", "port of the metrics server; 0: none", "PORT", INT),
    Setting("peers_max", _integer(1, 1 << 20), "16384", "capacity of map peers", "N", INT),
    Setting("endpoints_max", _integer(1, 1 << 20), "4096", "capacity of map endpoints", "N", INT),
    Setting("flows_max", _integer(64, 1 << 24), "65536", "capacity of map flows", "N", INT),
    Setting("resync_interval", _number(1, 86400, "seconds"), "60", "time between resyncs, s", "S", NUMBER),
    Setting("log_level", _choice(*LOG_LEVELS), "info", "one of " + ", ".join(LOG_LEVELS), "LEVEL"),
)

BY_NAME: Final[Mapping[str, Setting]] = {setting.name: setting for setting in SETTINGS}


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
    """Setting name -> (text, source). ConfigError on an OVNET_* variable that is none."""
    known = {setting.variable: setting.name for setting in SETTINGS}
    found = {}
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
        raise ConfigError(f"{source}: {value!r} is not {wanted}")
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
    values: dict[str, Any] = {setting.name: setting.parse(setting.default) for setting in SETTINGS}
    for found in (_from_toml(toml_text, file), _from_environ(environ), _from_args(args)):
        for name, (text, source) in found.items():
            try:
                values[name] = BY_NAME[name].parse(text)
            except ValueError as error:
                raise ConfigError(f"{source}: {error}") from error
    values["node_name"] = values["node_name"] or hostname
    values["subnet_file"] = values["subnet_file"] or values["state_dir"] / "subnet.env"
    return Settings(**values)
