"""ovctl as its users have it: what it prints where, and its exit codes."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from ctl.cli import main as cli
from ctl.cli.output import Column, duration, emit, emit_one, shown, table
from ctl.core.errors import AgentUnreachable, ConfigError, NotFound, OvnetError
from ctl.core.model import IPv6Lease, Lease, MacAddress
from ctl.store import open_store

REPOSITORY = Path(__file__).parents[2]
Ovctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of the commands; no file, no variables of the machine's own."""
    for variable in [name for name in os.environ if name.startswith("OVNET_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr("ctl.cli.settings.DEFAULT_FILE", tmp_path / "none.toml")
    monkeypatch.setattr("ctl.cli.network._clash", lambda *_: "")  # nor addresses of it
    monkeypatch.setenv("OVNET_STORE", f"sqlite://{tmp_path}/store.db")
    return tmp_path / "store.db"


@pytest.fixture
def ovctl(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ovctl:
    """Run ovctl in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # main sets its own

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            code = cli.main(argv)
        except SystemExit as stopped:  # argparse's way
            code = int(stopped.code or 0)
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def network(ovctl: Ovctl) -> None:
    assert ovctl("network", "init", "--network", "172.17.0.0/16", "--subnet-len", "24")[0] == 0


def test_init_makes_the_store_and_show_shows_the_network(ovctl: Ovctl, path: Path) -> None:
    code, out, err = ovctl(
        "network", "init", "--network", "10.5.0.0/16", "--subnet-len", "26", "--subnet-min", "10.5.1.0",
        "--subnet-max", "10.5.2.0", "--vni", "7", "--port", "4789", "--mtu", "9000",
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert err == f"ovctl: network 10.5.0.0/16 stored in sqlite://{path}\n"
    code, out, err = ovctl("network", "show", "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "network": "10.5.0.0/16",
        "subnet_len": 26,
        "subnet_min": "10.5.1.0",
        "subnet_max": "10.5.2.0",
        "backend": "vxlan",
        "vni": 7,
        "port": 4789,
        "mtu": 9000,
        "direct_routing": False,
    }
    code, out, _ = ovctl("network", "show")
    assert out.splitlines()[0].split()[:2] == ["NETWORK", "SUBNET_LEN"]
    assert out.splitlines()[1].split()[:2] == ["10.5.0.0/16", "26"]


def test_a_network_of_both_families_is_made_and_shown(ovctl: Ovctl, path: Path) -> None:
    argv = ("network", "init", "--network", "10.5.0.0/16", "--ipv6-network", "fd00:10:77::/48")
    code, _, err = ovctl(*argv, "--ipv6-subnet-min", "fd00:10:77:8::")
    assert (code, err) == (0, f"ovctl: network 10.5.0.0/16 and fd00:10:77::/48 stored in sqlite://{path}\n")
    shown = json.loads(ovctl("network", "show", "-o", "json")[1])
    assert {key: shown[key] for key in shown if key.startswith("ipv6")} == {
        "ipv6_network": "fd00:10:77::/48",
        "ipv6_subnet_len": 64,
        "ipv6_subnet_min": "fd00:10:77:8::",
        "ipv6_subnet_max": "fd00:10:77:ffff::",
    }
    assert ovctl(*argv)[0] == 1, "without that first subnet it is another network"


@pytest.mark.usefixtures("network")
def test_init_again_is_fine_and_another_network_needs_force(ovctl: Ovctl, path: Path) -> None:
    code, _, err = ovctl("network", "init", "--network", "172.17.0.0/16")
    assert code == 0
    assert err.endswith("already, unchanged\n")

    code, _, err = ovctl("network", "init", "--network", "172.18.0.0/16")
    assert code == 1
    assert "--force replaces it" in err
    assert '"172.17.0.0/16"' in ovctl("network", "show", "-o", "json")[1]

    with closing(open_store(f"sqlite://{path}")) as store:
        store.put(Lease(IPv4Network("172.17.9.0/24"), IPv4Address("10.0.0.1"), node="a"), None)
    code, _, err = ovctl("network", "init", "--network", "172.18.0.0/16", "--force")
    assert code == 0
    assert "warning: 172.17.9.0/24 of a at 10.0.0.1 fits the new network no longer" in err


def test_a_network_over_this_hosts_link_is_refused_and_makes_no_store(
    ovctl: Ovctl, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctl.cli.network._clash", lambda *_: "it covers eth0")
    code, _, err = ovctl("network", "init", "--network", "172.17.0.0/16")
    assert (code, err) == (2, "ovctl: error: it covers eth0 (--force stores it all the same)\n")
    assert not path.exists()
    assert ovctl("network", "init", "--network", "172.17.0.0/16", "--force")[0] == 0
    code, _, err = ovctl("network", "init", "--network", "172.17.0.0/16")
    assert (code, err.endswith("already, unchanged\n")) == (0, True), "a script that runs again"
    assert ovctl("network", "init", "--network", "172.18.0.0/16")[0] == 2


@pytest.mark.usefixtures("network")
def test_a_subnet_is_not_reserved_for_a_host_in_it(ovctl: Ovctl) -> None:
    code, _, err = ovctl("lease", "reserve", "172.17.9.0/24", "--host", "172.17.9.7")
    assert code == 2
    assert "172.17.9.0/24 covers 172.17.9.7 itself" in err


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("--network", "172.17.0.0/16", "--subnet-len", "31"), "SubnetLen 31"),
        (("--network", "172.17.0.0/16", "--subnet-len", "17"), "SubnetLen 17 does not fit 172.17.0.0/16"),
        (("--network", "172.17.0.0/16", "--subnet-len", "x"), "--subnet-len"),
        (("--network", "172.17.3.0/16"), "did you mean 172.17.0.0/16?"),
        (("--network", "172.17.0.0"), "not an IPv4 network"),
        (("--network", "172.17.0.0/16", "--mtu", "100"), "MTU 100"),
        (("--network", "172.17.0.0/16", "--vni", "-1"), "VNI -1"),
        (("--network", "172.17.0.0/16", "--port", "65536"), "Port 65536"),
        (("--network", "172.17.0.0/16", "--subnet-min", "10.0.0.0"), "SubnetMin 10.0.0.0"),
        (("--network", "172.17.0.0/16", "--backend", "carrier-pigeon"), "--backend"),
        (("--network", "172.17.0.0/16", "--store", "etcd://u:p@x"), "no user"),
        (("--network", "172.17.0.0/16", "--store", "x"), "--store: 'x' is no store URL"),
        (("--network", "172.17.0.0/16", "--ipv6-network", "fd00::1/48"), "did you mean fd00::/48?"),
        (("--network", "172.17.0.0/16", "--ipv6-network", "10.0.0.0/8"), "IPv6Network"),
        (
            ("--network", "172.17.0.0/16", "--ipv6-network", "fd00::/48", "--ipv6-subnet-len", "40"),
            "IPv6SubnetLen 40",
        ),
        (("--network", "172.17.0.0/16", "--ipv6-subnet-len", "64"), "say the network too, by --ipv6-network"),
        (
            ("--network", "172.17.0.0/16", "--backend", "udp", "--ipv6-network", "fd00::/48"),
            "backend udp carries IPv4 only",
        ),
        (("--net", "172.17.0.0/16"), "--network"),
        ((), "--network"),
    ],
)
def test_a_bad_network_is_refused_and_makes_no_store(
    ovctl: Ovctl, path: Path, argv: tuple[str, ...], complaint: str
) -> None:
    code, out, err = ovctl("network", "init", *argv)
    assert (code, out) == (2, "")
    assert err.startswith("ovctl: error: ")
    assert complaint in err
    assert err.count("\n") == 1
    assert not path.exists()


@pytest.mark.parametrize(
    "argv", [("network", "show"), ("lease", "list"), ("lease", "release", "10.0.0.0/24")]
)
def test_without_a_store_the_remedy_is_named_and_none_is_made(
    ovctl: Ovctl, path: Path, argv: tuple[str, ...]
) -> None:
    code, out, err = ovctl(*argv)
    assert (code, out) == (4, "")
    assert "ovctl network init" in err
    assert not path.exists()


def test_a_store_without_a_network_is_not_found(ovctl: Ovctl, path: Path) -> None:
    open_store(f"sqlite://{path}", create=True).close()
    code, _, err = ovctl("network", "show")
    assert code == 3
    assert "run: ovctl network init --network CIDR" in err


@pytest.mark.usefixtures("network")
def test_leases_are_listed_by_subnet(ovctl: Ovctl, path: Path) -> None:
    assert ovctl("lease", "list", "-o", "json") == (0, "[]\n", "")
    mac = MacAddress.parse("02:00:00:00:00:01")
    held = Lease(IPv4Network("172.17.4.0/24"), IPv4Address("10.0.0.9"), mac, 1, node="n9", expires_at=4e9)
    with closing(open_store(f"sqlite://{path}")) as store:
        store.put(Lease(IPv4Network("172.17.9.0/24"), IPv4Address("10.0.0.9"), mac, 1, node="n9"), None)
        store.put(held, None)
    code, out, err = ovctl("lease", "list", "-o", "json")
    assert code == 0
    rows = json.loads(out)
    assert [row["subnet"] for row in rows] == ["172.17.4.0/24", "172.17.9.0/24"]
    assert rows[0] | {"expires_in": 0} == {
        "subnet": "172.17.4.0/24",
        "host": "10.0.0.9",
        "node": "n9",
        "vtep_mac": "02:00:00:00:00:01",
        "vni": 1,
        "backend": "vxlan",
        "ipv6_subnet": None,
        "ipv6_host": None,
        "expires_at": 4e9,
        "expires_in": 0,
        "reserved": False,
        "revision": 2,
    }
    assert rows[1]["reserved"] is True
    assert "warning: two leases with one host address" in err
    wide = ovctl("lease", "list", "-o", "wide")[1]
    assert "02:00:00:00:00:01" in wide
    part = IPv6Lease(IPv6Network("fd00:10:0:5::/64"), IPv6Address("fd77::5"), mac, 1)
    with closing(open_store(f"sqlite://{path}")) as store:
        store.put(Lease(IPv4Network("172.17.5.0/24"), IPv4Address("10.0.0.5"), mac, 1, ipv6=part), None)
    dual = json.loads(ovctl("lease", "list", "-o", "json")[1])[1]
    assert (dual["ipv6_subnet"], dual["ipv6_host"]) == ("fd00:10:0:5::/64", "fd77::5")
    assert "fd00:10:0:5::/64  fd77::5" in ovctl("lease", "list", "-o", "wide")[1]
    assert "02:00:00:00:00:01" not in ovctl("lease", "list")[1]


@pytest.mark.usefixtures("network")
def test_a_subnet_is_reserved_and_released(ovctl: Ovctl) -> None:
    assert ovctl("lease", "reserve", "172.17.9.0/24", "--host", "10.0.0.1")[0] == 0
    assert ovctl("lease", "reserve", "172.17.9.0/24", "--host", "10.0.0.1")[0] == 0
    code, _, err = ovctl("lease", "reserve", "172.17.9.0/24", "--host", "10.0.0.2")
    assert (code, err) == (1, "ovctl: error: 172.17.9.0/24 is taken: 172.17.9.0/24 of 10.0.0.1\n")
    assert ovctl("lease", "list")[1].splitlines()[1].split() == ["172.17.9.0/24", "10.0.0.1", "-", "never"]
    assert ovctl("lease", "release", "172.17.9.0/24")[0] == 0
    assert ovctl("lease", "release", "172.17.9.0/24")[0] == 3


@pytest.mark.usefixtures("network")
def test_a_live_lease_becomes_a_reservation_as_it_stands(ovctl: Ovctl, path: Path) -> None:
    held = Lease(IPv4Network("172.17.4.0/24"), IPv4Address("10.0.0.9"), node="n9", expires_at=4e9)
    with closing(open_store(f"sqlite://{path}")) as store:
        store.put(held, None)
        assert ovctl("lease", "reserve", "172.17.4.0/24", "--host", "10.0.0.9")[0] == 0
        (reserved,) = store.snapshot().leases
    assert (reserved.node, reserved.expires_at) == ("n9", None)


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("172.17.9.0/25", "--host", "10.0.0.1"), "172.17.9.0/25 is no subnet of the network"),
        (("172.17.0.0/24", "--host", "10.0.0.1"), "is no subnet of the network"),
        (("172.17.9.1/24", "--host", "10.0.0.1"), "'172.17.9.1/24' is not a subnet"),
        (("172.17.9.0/24", "--host", "n1"), "--host: 'n1' is not an IPv4 address"),
        (("172.17.9.0/24", "--host", "127.0.0.1"), "--host: 127.0.0.1 is not a host's address"),
        (("172.17.9.0/24", "--host", "0.0.0.0"), "--host: 0.0.0.0 is not a host's address"),
        (("172.17.9.0/24",), "--host"),
    ],
)
def test_a_bad_reservation_is_refused(ovctl: Ovctl, argv: tuple[str, ...], complaint: str) -> None:
    code, _, err = ovctl("lease", "reserve", *argv)
    assert code == 2
    assert complaint in err
    assert ovctl("lease", "list", "-o", "json")[1] == "[]\n"


def test_the_file_is_read_where_it_is_named(
    ovctl: Ovctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OVNET_STORE")
    file = tmp_path / "my.toml"
    file.write_text(f'store = "sqlite://{tmp_path}/other.db"\n')
    assert ovctl("--config", str(file), "network", "init", "--network", "10.0.0.0/8")[0] == 0
    assert (tmp_path / "other.db").exists()
    monkeypatch.setenv("OVNET_CONFIG", str(file))
    assert ovctl("network", "show")[0] == 0
    file.write_text("sotre = 1\n")
    code, _, err = ovctl("network", "show")
    assert (code, err) == (2, f"ovctl: error: {file}: sotre: no such setting (did you mean store?)\n")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"\xff"), "not UTF-8 text"),
    ],
)
def test_a_named_file_that_cannot_be_read_is_refused(
    ovctl: Ovctl, tmp_path: Path, make: Callable[[Path], object], complaint: str
) -> None:
    make(tmp_path / "my.toml")
    code, _, err = ovctl(f"--config={tmp_path}/my.toml", "lease", "list")
    assert (code, err) == (2, f"ovctl: error: {tmp_path}/my.toml: {complaint}\n")


@pytest.mark.parametrize(
    "argv", [(), ("frobnicate",), ("lease",), ("lease", "lits"), ("--conf", "x", "lease")]
)
def test_usage_errors_are_one_line_and_exit_2(ovctl: Ovctl, argv: tuple[str, ...]) -> None:
    code, out, err = ovctl(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("ovctl: error: ")
    assert err.count("\n") == 1


ENV = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


@pytest.fixture
def subnet_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's subnet.env, not written yet."""
    path = tmp_path / "subnet.env"
    monkeypatch.setenv("OVNET_SUBNET_FILE", str(path))
    return path


def test_dockers_options_are_a_line_or_variables(ovctl: Ovctl, subnet_env: Path) -> None:
    subnet_env.write_text(ENV)
    line = "--bip=10.5.72.1/24 --ip-masq=false --mtu=1450"
    assert ovctl("docker-opts") == (0, f"{line}\n", "")
    variables = {
        "DOCKER_OPT_BIP": "--bip=10.5.72.1/24",
        "DOCKER_OPT_IPMASQ": "--ip-masq=false",
        "DOCKER_OPT_MTU": "--mtu=1450",
        "DOCKER_OPTS": line,
    }
    assert json.loads(ovctl("docker-opts", "-o", "json")[1]) == variables
    out = ovctl("docker-opts", "-o", "env")[1]
    assert out == "".join(f'{name}="{text}"\n' for name, text in variables.items())
    subnet_env.write_text(ENV.replace("true", "false"))
    assert "--ip-masq=true" in ovctl("docker-opts")[1], "who does not masquerade leaves it to Docker"


def test_dockers_options_are_read_by_a_shell(ovctl: Ovctl, subnet_env: Path, tmp_path: Path) -> None:
    subnet_env.write_text(ENV)
    (tmp_path / "docker.env").write_text(ovctl("docker-opts", "-o", "env")[1])
    script = f'. {tmp_path}/docker.env; printf "%s|" $DOCKER_OPTS "$DOCKER_OPT_BIP"'
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout == "--bip=10.5.72.1/24|--ip-masq=false|--mtu=1450|--bip=10.5.72.1/24|"


def test_without_subnet_env_there_are_no_options(ovctl: Ovctl, subnet_env: Path) -> None:
    code, out, err = ovctl("docker-opts")
    assert (code, out) == (3, "")
    assert err.startswith(f"ovctl: error: {subnet_env}: no such file: a ready agent writes it")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "FLANNEL_NETWORK is missing"),
        (ENV.replace("FLANNEL_MTU", "MTU"), "FLANNEL_MTU is missing"),
        (ENV.replace("10.5.72.1/24", "10.5.72.1"), "FLANNEL_SUBNET '10.5.72.1' is not an IPv4 network"),
        (ENV.replace("1450", '1450"; reboot; "'), "FLANNEL_MTU"),
    ],
)
def test_a_damaged_subnet_env_gives_no_options(
    ovctl: Ovctl, subnet_env: Path, text: str, complaint: str
) -> None:
    subnet_env.write_text(text)
    code, out, err = ovctl("docker-opts")
    assert (code, out) == (1, "")
    assert f"{subnet_env}: {complaint}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("noun", cli.NOUNS)
def test_every_noun_has_help_with_its_settings(ovctl: Ovctl, noun: str) -> None:
    code, out, _ = ovctl(noun, "--help")
    assert code == 0
    assert out.startswith(f"usage: ovctl {noun}")
    assert noun in ovctl("--help")[1]


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Those that run something: not a noun that has verbs."""
    groups = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for each in group.choices.values():
            yield from commands(each)


EACH_COMMAND = tuple(commands(cli.build_parser()))


@pytest.mark.parametrize("command", EACH_COMMAND, ids=lambda each: each.prog)
def test_the_help_of_every_command_has_an_example_that_is_right(command: argparse.ArgumentParser) -> None:
    examples = re.findall(r": ovctl ([^;]+)", command.epilog or "")
    assert examples and (command.epilog or "").startswith("example: ")
    for example in examples:
        assert f"ovctl {example} ".startswith(f"{command.prog} ")
        assert cli.build_parser().parse_args(example.split()).func


@pytest.mark.parametrize("command", EACH_COMMAND, ids=lambda each: each.prog)
def test_help_is_as_narrow_as_the_terminal(
    command: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    wide = [line.strip() for line in command.format_help().splitlines() if len(line) > 40]
    assert [line for line in wide if not line.startswith(("-", "[-"))] == []  # a flag is not broken


def test_a_table_that_a_terminal_is_too_narrow_for_has_a_line_for_each_value() -> None:
    rows = [
        {"level": "ok", "seen": "all of it is well, as far as that was looked at"},
        {"level": "ok", "seen": ""},
    ]
    columns = [Column("level"), Column("seen")]
    assert shown(rows, columns, None) == shown(rows, columns, 80) == table(rows, columns)
    assert shown(rows, columns, 40) == (
        "LEVEL  ok\nSEEN   all of it is well, as far as that\n       was looked at\n\nLEVEL  ok\nSEEN   -\n"
    )


def test_what_cannot_be_broken_stays_whole_on_a_narrow_terminal() -> None:
    path = "/var/lib/" + 50 * "x"
    assert path in shown([{"path": path}], [Column("path")], 40)


def test_nothing_is_coloured_off_a_terminal(ovctl: Ovctl, network: None) -> None:
    for argv in (("network", "show"), ("lease", "list", "-o", "wide"), ("--help",)):
        assert "\x1b" not in "".join(ovctl(*argv)[1:])


def test_the_version_is_shown(ovctl: Ovctl) -> None:
    code, out, _ = ovctl("--version")
    assert code == 0
    assert out.startswith("ovctl ")


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (OvnetError("x"), 1),
        (ConfigError("x"), 2),
        (NotFound("x"), 3),
        (AgentUnreachable("x"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_failures_have_documented_codes(
    ovctl: Ovctl, monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int
) -> None:
    def fail(argv: object) -> int:
        raise failure

    monkeypatch.setattr(cli, "_run", fail)
    assert ovctl("lease", "list")[0] == code


def run_process(*argv: str, stdout: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ctl.cli.main", *argv],
        cwd=REPOSITORY, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.usefixtures("network")
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run_process("network", "show", stdout=writing) == (0, "")
    os.close(writing)


def test_a_bug_in_a_thread_ends_the_process() -> None:
    code = (
        "import threading, ctl.cli.main as cli\n"
        "def run(argv):\n"
        "    threading.Thread(target=lambda: 1 / 0).start()\n"
        "    threading.Event().wait()\n"
        "cli._run = run\n"
        "cli.main([])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_a_command_imports_only_what_it_needs() -> None:
    code = (
        "import sys, ctl.cli.main as cli\n"
        "cli.build_parser(cli._wanted(['--config', 'x', 'map', 'dump']))\n"
        "print(*[m for m in sys.modules"
        " if m.split('.')[0] in ('pyroute2', 'prometheus_client', 'sqlite3', 'json', 'bcc')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""


LIGHT = "ctl.cli.settings, ctl.cli.rows, ctl.cli.output, ctl.kernel.bpf.maps"
"""What `ovctl map dump` needs beside its own module."""

COMMANDS = ", ".join(f"ctl.cli.{noun.replace('-', '_')}" for noun in cli.NOUNS)
"""What they need of netlink is imported by those that run: the agent, hook, doctor and teardown."""

AGENT = "ctl.cli.agent, ctl.agent.loop, ctl.node.node, ctl.store.sqlite.store, metrics.server"

HEAVY = {
    LIGHT: "asyncio bcc http logging multiprocessing prometheus_client pyroute2 sqlite3 ssl",
    COMMANDS: "asyncio bcc multiprocessing pyroute2",
    # pyroute2 imports all of itself (12 MB, 0.1 s), and so asyncio, multiprocessing, unittest and uuid.
    AGENT: "bcc ctl.store.etcd.store",
}


@pytest.mark.parametrize("modules", HEAVY)
def test_what_is_heavy_stays_out_of_memory(modules: str) -> None:
    """Each is some MB, or tens of milliseconds, that nothing here needs."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print(*sys.modules)"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not set(HEAVY[modules].split()) & set(done.stdout.split())


def test_a_table_is_aligned_and_json_has_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = [
        {"b": IPv4Address("10.0.0.1"), "a": None, "c": [1, 2]},
        {"b": "x", "a": True, "c": []},
    ]
    columns = [Column("b", "ADDRESS"), Column("a"), Column("c", wide=True)]
    emit(rows, columns, "table")
    assert capsys.readouterr().out == "ADDRESS   A\n10.0.0.1  -\nx         yes\n"
    emit(rows, columns, "wide")
    assert capsys.readouterr().out == "ADDRESS   A    C\n10.0.0.1  -    1,2\nx         yes  -\n"
    emit(rows, ["b"], "json")
    assert json.loads(capsys.readouterr().out) == [
        {"a": None, "b": "10.0.0.1", "c": [1, 2]},
        {"a": True, "b": "x", "c": []},
    ]
    emit_one({"b": 1, "a": 2}, ["b"], "json")
    assert capsys.readouterr().out == '{\n  "a": 2,\n  "b": 1\n}\n'


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m0s"), (3599, "59m59s"), (11520, "3h12m"), (90000, "1d1h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_table_of_nothing_has_its_heading() -> None:
    assert table([], [Column("subnet"), Column("host")]) == "SUBNET  HOST\n"


def test_an_agent_says_what_it_doubts_before_it_does_anything(path: Path) -> None:
    flags = "--approval-ttl", "60", "--state-dir", "/dev/null/here"
    done = subprocess.run(
        [sys.executable, "-m", "ctl.cli.main", "agent", *flags],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=60,
    )  # fmt: skip
    doubt, _, error = done.stderr.partition("\n")
    assert doubt.startswith("WARNING --approval-ttl 60: ")
    assert done.returncode and error.startswith("ovctl: error: ")
