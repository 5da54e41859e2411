from __future__ import annotations

import argparse
from dataclasses import fields
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.errors import ConfigError
from ctl.core.model import Bypass, HookMode
from ctl.settings.config import BY_NAME, SETTINGS, Setting, Settings, add_options, doubts, resolve
from ctl.settings.endpoint import Endpoint, parse_endpoints


def settings(
    *flags: str, environ: dict[str, str] | None = None, toml: str | None = None, hostname: str = "host"
) -> Settings:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return resolve(parser.parse_args(flags), environ or {}, toml, hostname=hostname)


def refused(*flags: str, environ: dict[str, str] | None = None, toml: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(*flags, environ=environ, toml=toml)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_table_has_a_row_per_field() -> None:
    assert [field.name for field in fields(Settings)] == [setting.name for setting in SETTINGS]


def test_a_node_that_is_told_nothing_goes_by_these_defaults() -> None:
    assert settings() == Settings(
        store="sqlite:////var/lib/ovnet/store.db",
        etcd_endpoints=(Endpoint("127.0.0.1", 4001), Endpoint("127.0.0.1", 2379)),
        etcd_prefix="/coreos.com/network",
        etcd_keyfile="",
        etcd_certfile="",
        etcd_cafile="",
        etcd_username="",
        etcd_password="",
        etcd_password_file="",
        kube_subnet_mgr=False,
        kubeconfig_file="",
        kube_annotation_prefix="flannel.alpha.coreos.com/",
        net_config_path=Path("/etc/kube-flannel/net-conf.json"),
        set_node_network_unavailable=True,
        node_name="host",
        iface="",
        iface_regex="",
        iface_can_reach=None,
        public_ip=None,
        public_ipv6=None,
        bridge="ovnet0",
        bypass=Bypass.LEARNED,
        hook=HookMode.TC,
        approval_ttl=5.0,
        state_dir=Path("/run/ovnet"),
        bpffs=Path("/sys/fs/bpf/ovnet"),
        subnet_file=Path("/run/ovnet/subnet.env"),
        cni_conf=None,
        cni_plugins=({"type": "portmap", "capabilities": {"portMappings": True}},),
        cni_data_dir=Path("/var/lib/cni/networks"),
        ip_masq=True,
        lease_ttl=86_400.0,
        subnet_lease_renew_margin=60.0,
        metrics_addr="127.0.0.1",
        metrics_port=9475,
        healthz_ip="127.0.0.1",
        healthz_port=0,
        peers_max=16384,
        endpoints_max=4096,
        flows_max=65536,
        resync_interval=60.0,
        probe_interval=0.0,
        log_level="info",
    )
    assert settings().renew_margin == 3600.0


VALUES = {
    "store": ("memory:", "sqlite:///a", "sqlite:///b"),
    "etcd_endpoints": ("http://a:1", "https://b:2,http://c:3", "http://[::1]:4"),
    "etcd_prefix": ("/a", "/b", "c/d"),
    "etcd_keyfile": ("/a", "/b", "/c"),
    "etcd_certfile": ("/a", "/b", "/c"),
    "etcd_cafile": ("/a", "/b", "/c"),
    "etcd_username": ("a", "b", "c"),
    "etcd_password": ("a", "b", "c"),
    "etcd_password_file": ("/a", "/b", "/c"),
    "kube_subnet_mgr": ("true", "false", "true"),
    "kubeconfig_file": ("/a", "/b", "/c"),
    "kube_annotation_prefix": ("a.b", "c.d/e", "f.g"),
    "net_config_path": ("/a", "/b", "/c"),
    "set_node_network_unavailable": ("false", "true", "false"),
    "node_name": ("a", "b", "c"),
    "iface": ("eth0", "fd77::1", "10.0.0.1"),
    "iface_regex": ("eth.", "^10[.]", "a|b"),
    "iface_can_reach": ("10.0.0.1", "fd77::2", "10.0.0.3"),
    "public_ip": ("10.0.0.1", "10.0.0.2", "10.0.0.3"),
    "public_ipv6": ("fd00::1", "fd00::2", "fd00::3"),
    "bridge": ("docker0", "br1", "br2"),
    "bypass": ("off", "always", "learned"),
    "hook": ("xdp", "auto", "tc"),
    "approval_ttl": ("1", "2.5", "3"),
    "state_dir": ("/a", "/b", "/c"),
    "bpffs": ("/a", "/b", "/c"),
    "subnet_file": ("/a", "/b", "/c"),
    "cni_conf": ("/a", "/b", "/c"),
    "cni_plugins": ("a", "b,a", "c,d"),
    "cni_data_dir": ("/a", "/b", "/c"),
    "ip_masq": ("false", "true", "false"),
    "lease_ttl": ("10", "11", "12"),
    "subnet_lease_renew_margin": ("1", "2", "3"),
    "metrics_addr": ("0.0.0.0", "10.0.0.1", "::1"),
    "metrics_port": ("0", "1", "2"),
    "healthz_ip": ("0.0.0.0", "10.0.0.1", "::1"),
    "healthz_port": ("10254", "1", "2"),
    "peers_max": ("1", "2", "3"),
    "endpoints_max": ("1", "2", "3"),
    "flows_max": ("64", "65", "66"),
    "resync_interval": ("1", "2", "3"),
    "probe_interval": ("1", "2", "3"),
    "log_level": ("debug", "error", "warning"),
}


def as_toml(setting: Setting, text: str) -> str:
    return f"{setting.name} = " + (f'"{text}"' if setting.toml == (str,) else text)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_flag_beats_a_variable_beats_the_file(setting: Setting) -> None:
    flag, variable, key = VALUES[setting.name]
    flags = [f"{setting.flag}={flag}"]
    environ = {setting.variable: variable, "PATH": "/bin"}
    toml = as_toml(setting, key)

    def value(*flags: str, environ: dict[str, str] | None = None, toml: str | None = None) -> Any:
        return getattr(settings(*flags, environ=environ, toml=toml), setting.name)

    assert value(toml=toml) == setting.parse(key)
    assert value(toml=toml, environ=environ) == setting.parse(variable)
    assert value(*flags, toml=toml, environ=environ) == setting.parse(flag)


def test_ip_masq_is_written_as_a_switch_too() -> None:
    assert settings("--ip-masq", environ={"OVNET_IP_MASQ": "false"}).ip_masq
    assert not settings("--no-ip-masq").ip_masq
    assert not settings("--ip-masq=false").ip_masq
    assert not settings(toml="ip_masq = false").ip_masq


def test_paths_follow_the_state_directory() -> None:
    assert settings("--state-dir", "/run/n1").subnet_file == Path("/run/n1/subnet.env")
    assert settings("--state-dir", "/run/n1", "--subnet-file", "/x").subnet_file == Path("/x")


def test_a_variable_that_is_empty_means_the_default_where_there_is_one() -> None:
    found = settings(environ={"OVNET_PUBLIC_IP": "", "OVNET_IFACE": "", "OVNET_NODE_NAME": ""})
    assert (found.public_ip, found.iface, found.node_name) == (None, "", "host")


def test_a_node_of_kubernetes_is_named_by_its_pod_and_never_by_its_host() -> None:
    kube = ("--store", "kubernetes:")
    assert settings(*kube).node_name == ""
    assert settings(*kube, environ={"NODE_NAME": "n1"}).node_name == "n1"
    assert settings(*kube, "--node-name", "n2", environ={"NODE_NAME": "n1"}).node_name == "n2"
    assert settings(environ={"NODE_NAME": "n1"}).node_name == "host"


def test_flannels_flags_for_kubernetes_name_the_store_where_no_other_is_named() -> None:
    assert settings("--kube-subnet-mgr").store == "kubernetes://"
    assert settings("--kube-subnet-mgr", "--kubeconfig-file", "/k").store == "kubernetes:///k"
    assert settings(environ={"FLANNELD_KUBE_SUBNET_MGR": "true", "NODE_NAME": "n"}).node_name == "n"
    assert settings("--kube-subnet-mgr", "--store", "memory:").store == "memory:"
    assert settings("--kubeconfig-file", "/k").store == settings().store


def test_addresses_are_parsed() -> None:
    assert settings("--public-ip", "192.0.2.7").public_ip == IPv4Address("192.0.2.7")


BAD = [
    ("store", "store.db", "no store URL"),
    ("store", "kubernetes://host", "of a kubeconfig"),
    ("kube_annotation_prefix", "x", "no prefix of annotations"),
    ("node_name", "a\nb", "no node name"),
    ("iface", "eth0/1", "no interface name"),
    ("iface", "sixteen-letters-", "no interface name"),
    ("iface", "fe80::1", "is not the IPv6 address of a host"),
    ("iface", "::ffff:10.0.0.1", "is not the IPv6 address of a host"),
    ("iface_can_reach", "fd77::x", "is not the IPv6 address of a host"),
    ("iface_can_reach", "eth0", "is not an IPv4 address"),
    ("public_ip", "10.0.0", "not an IPv4 address"),
    ("public_ip", "224.0.0.1", "not a host's address"),
    ("public_ipv6", "192.0.2.7", "not the IPv6 address of a host"),
    ("public_ipv6", "fe80::1", "not the IPv6 address of a host"),
    ("public_ipv6", "::ffff:192.0.2.7", "not the IPv6 address of a host"),
    ("bridge", "", "no interface name"),
    ("bypass", "sometimes", "none of off, tunnel, learned, always"),
    ("approval_ttl", "0", "not between 0.1 and 3600 seconds"),
    ("approval_ttl", "nan", "not a number of seconds"),
    ("approval_ttl", "1e9", "not between"),
    ("state_dir", "run", "not an absolute path"),
    ("bpffs", "", "not an absolute path"),
    ("subnet_file", "x", "not an absolute path"),
    ("cni_conf", "x", "not an absolute path"),
    ("cni_plugins", "a//b", "no name of a CNI plugin"),
    ("ip_masq", "maybe", "neither true nor false"),
    ("lease_ttl", "9", "not between 10"),
    ("lease_ttl", "1d", "not a number of seconds"),
    ("subnet_lease_renew_margin", "-1", "not between 0"),
    ("metrics_addr", "localhost", "not an IP address"),
    ("metrics_port", "65536", "not between 0 and 65535"),
    ("metrics_port", "9475.0", "not a whole number"),
    ("metrics_port", "٣", "not a whole number"),
    ("peers_max", "0", "not between 1"),
    ("endpoints_max", "many", "not a whole number"),
    ("flows_max", "1", "not between 64"),
    ("resync_interval", "0", "not between 1"),
    ("probe_interval", "-1", "not between 0"),
    ("log_level", "INFO", "none of debug"),
]


@pytest.mark.parametrize(("name", "text", "complaint"), BAD)
def test_a_bad_value_is_refused_with_its_source(name: str, text: str, complaint: str) -> None:
    setting = BY_NAME[name]
    by_flag = refused(f"{setting.flag}={text}")
    assert by_flag.startswith(f"{setting.flag}: ")
    assert complaint in by_flag
    assert refused(environ={setting.variable: text}).startswith(f"{setting.variable}: ")


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("metrics_port = 70000", "ovnet.toml: metrics_port: 70000 is not between 0 and 65535"),
        ('metrics_port = "9475"', "ovnet.toml: metrics_port: '9475' is not a number"),
        ("metrics_port = true", "ovnet.toml: metrics_port: True is not a number"),
        ('ip_masq = "yes"', "ovnet.toml: ip_masq: 'yes' is not true or false"),
        ("iface = 3", "ovnet.toml: iface: 3 is not a string"),
        ('[store]\nurl = "x"', "ovnet.toml: store: {'url': 'x'} is not a string"),
        ("lease_ttl = inf", "ovnet.toml: lease_ttl: 'inf' is not a number of seconds"),
        ("metric_port = 1", "ovnet.toml: metric_port: no such setting (did you mean metrics_port?)"),
        ("zzz = 1", "ovnet.toml: zzz: no such setting"),
    ],
)
def test_a_bad_file_is_refused_by_key(toml: str, complaint: str) -> None:
    assert refused(toml=toml) == complaint


def test_what_is_not_toml_is_refused_with_its_line() -> None:
    assert refused(toml="bridge = ").startswith("ovnet.toml: Invalid value (at ")


def test_an_unknown_variable_is_refused_with_a_guess() -> None:
    assert refused(environ={"OVNET_BRIGDE": "x"}) == (
        "OVNET_BRIGDE: no such setting (did you mean OVNET_BRIDGE?)"
    )
    assert settings(environ={"OVNET_CONFIG": "/x"}) == settings()


def test_a_bad_value_is_refused_also_where_a_flag_overrides_it() -> None:
    assert refused("--bridge", "br0", environ={"OVNET_BRIDGE": "a/b"}).startswith("OVNET_BRIDGE: ")


@given(st.sampled_from(SETTINGS), st.text())
def test_any_text_is_a_value_or_a_config_error(setting: Setting, text: str) -> None:
    try:
        resolve(argparse.Namespace(**{setting.name: text}), {}, None)
    except ConfigError as error:
        assert str(error).startswith(setting.flag)
        assert "\n" not in str(error)


@given(st.text())
def test_any_file_is_settings_or_a_config_error(text: str) -> None:
    try:
        resolve(argparse.Namespace(), {}, text)
    except ConfigError as error:
        assert str(error).startswith("ovnet.toml: ")


def test_a_subset_of_options_leaves_the_others_to_the_other_sources() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, ["store"])
    found = resolve(parser.parse_args(["--store", "memory:"]), {"OVNET_BRIDGE": "br7"}, None)
    assert (found.store, found.bridge) == ("memory:", "br7")
    with pytest.raises(SystemExit):
        parser.parse_args(["--bridge", "br0"])


FLANNEL = {
    "FLANNELD_ETCD_ENDPOINTS": "http://a:1",
    "FLANNELD_ETCD_PREFIX": "/p",
    "FLANNELD_ETCD_KEYFILE": "/k",
    "FLANNELD_ETCD_CERTFILE": "/c",
    "FLANNELD_ETCD_CAFILE": "/ca",
    "FLANNELD_ETCD_USERNAME": "u",
    "FLANNELD_ETCD_PASSWORD": "pw",
    "FLANNELD_IFACE": "eth7",
    "FLANNELD_PUBLIC_IP": "10.9.8.7",
    "FLANNELD_SUBNET_FILE": "/run/flannel/subnet.env",
    "FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "30",
    "FLANNELD_IP_MASQ": "false",
    "FLANNELD_IFACE_REGEX": "eth[0-9]",
    "FLANNELD_IFACE_CAN_REACH": "10.9.8.1",
    "FLANNELD_HEALTHZ_IP": "0.0.0.0",
    "FLANNELD_HEALTHZ_PORT": "8471",
}


def test_flannels_variables_hold_where_they_mean_the_same() -> None:
    found = settings(environ={**FLANNEL, "FLANNELD_V": "10"})
    assert found.store == "etcd://a:1"
    for variable, text in FLANNEL.items():
        name = variable.removeprefix("FLANNELD_").lower()
        assert getattr(found, name) == BY_NAME[name].parse(text)


def test_flannels_variables_are_stronger_than_the_file_and_weaker_than_ours() -> None:
    environ = {"FLANNELD_IFACE": "eth1"}
    assert settings(environ=environ, toml='iface = "eth2"').iface == "eth1"
    assert settings(environ={**environ, "OVNET_IFACE": "eth0"}).iface == "eth0"
    assert refused(environ={"FLANNELD_PUBLIC_IP": "here"}).startswith("FLANNELD_PUBLIC_IP: ")


@pytest.mark.parametrize(
    ("flags", "store"),
    [
        (["--store", "etcd://h1,h2:4001"], "etcd://h1:2379,h2:4001"),
        (["--store", "etcds://h1"], "etcds://h1:2379"),
        (["--store", "etcd:"], "etcd://127.0.0.1:4001,127.0.0.1:2379"),
        (["--store", "etcd:", "--etcd-endpoints", "https://[::1]"], "etcds://[::1]:2379"),
        (["--etcd-endpoints", "http://a,https://b"], "etcd:http://a:2379,https://b:2379"),
        (["--etcd-endpoints", "http://a", "--store", "sqlite:///a"], "sqlite:///a"),
        (["--etcd-endpoints", "http://a", "--store", "etcd://b"], "etcd://b:2379"),
    ],
)
def test_the_store_names_etcds_endpoints(flags: list[str], store: str) -> None:
    found = settings(*flags)
    assert found.store == store
    if store.startswith("etcd"):
        assert settings("--store", store).etcd_endpoints == found.etcd_endpoints


@pytest.mark.parametrize(
    "text",
    ["", ",", "h:2379", "ftp://h", "http://", "http://h:0", "http://h:x", "http://h:70000", "http://h/path",
     "http://h?x", "http://u:secret@h", "http://a b", "http://h,x"],
)  # fmt: skip
def test_an_endpoint_that_is_none_is_refused(text: str) -> None:
    line = refused("--etcd-endpoints", text)
    assert line.startswith("--etcd-endpoints: ")
    assert "secret" not in line


def test_the_password_is_not_shown() -> None:
    assert "hunter2" not in repr(settings("--etcd-password", "hunter2"))
    assert "4711" not in refused(toml="etcd_password = 4711")


def test_endpoints_are_the_same_however_they_are_written() -> None:
    assert parse_endpoints("http://a:2379/, http://a") == (Endpoint("a"),)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ()),
        (("--approval-ttl", "29.9"), ()),
        (("--approval-ttl", "30"), ("--approval-ttl 30", "nf_conntrack_udp_timeout")),
        (("--approval-ttl", "3600"), ("--approval-ttl 3600", "30 s")),
        (("--approval-ttl", "3600", "--bypass", "always"), ()),
        (("--approval-ttl", "3600", "--bypass", "off"), ()),
    ],
)
def test_an_approval_that_outlasts_conntracks_memory_is_doubted(
    flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    lines = doubts(settings(*flags))
    assert len(lines) == bool(words)
    assert all(word in line and "\n" not in line for line in lines for word in words)
