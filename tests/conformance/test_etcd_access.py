"""Who may speak to etcd, and what ovctl says when it may not or cannot: one line, one exit code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ctl.core.errors import ConfigError, StoreDenied, StoreError
from ctl.store.etcd.store import EtcdStore
from tests.conformance.conftest import Opener
from tests.conformance.test_etcd_watch import lease, watched
from tests.etcd import SERVERS, Etcd, free_ports
from tests.namespace import REPOSITORY
from tests.pki import Certificates
from tests.process import run, wait_until

SECONDS = 40.0


def ovctl(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it with no settings but these."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OVNET_", "FLANNELD_"))}
    return run(
        [sys.executable, "-m", "ctl.cli.main", *arguments],
        check=False, cwd=REPOSITORY, env={**env, "OVNET_CONFIG": "/dev/null", **environ},
    )  # fmt: skip


def refused(code: int, *arguments: str, **environ: str) -> str:
    """The one line that an invocation ends with, its exit code being `code`."""
    done = ovctl(*arguments, **environ)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("ovctl: error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# --- Nobody there --------------------------------------------------------------


def test_nobody_there_is_exit_4() -> None:
    (port,) = free_ports(1)
    line = refused(4, "lease", "list", "--store", f"etcd://127.0.0.1:{port}")
    assert line == f"ovctl: error: etcd unreachable: http://127.0.0.1:{port}: connection refused\n"


def test_a_name_that_does_not_resolve_is_exit_4() -> None:
    assert "nosuchhost.invalid" in refused(4, "network", "show", "--store", "etcd://nosuchhost.invalid")


def test_something_else_there_is_exit_4(etcd: Etcd) -> None:
    peer = etcd.members[0].peer
    line = refused(4, "lease", "list", "--store", f"etcd://127.0.0.1:{peer}")
    assert f"http://127.0.0.1:{peer}: not etcd's v3 API" in line


def test_flannels_variables_are_enough(etcd: Etcd, prefix: str) -> None:
    environ = {"FLANNELD_ETCD_ENDPOINTS": etcd.members[0].endpoint, "FLANNELD_ETCD_PREFIX": prefix}
    done = ovctl("network", "init", "--network", "10.5.0.0/16", **environ)
    assert done.returncode == 0, done.stderr
    assert etcd.value(f"{prefix}/config").startswith('{"Network":"10.5.0.0/16"')
    assert ovctl("lease", "reserve", "10.5.9.0/24", "--host", "10.0.0.9", **environ).returncode == 0
    assert "lease" not in (etcd.get(f"{prefix}/subnets/10.5.9.0-24") or {})
    etcd.ctl("lease", "grant", "600")
    opened = ovctl("lease", "list", "-o", "json", **environ)
    assert '"reserved": true' in opened.stdout and "Infinity" not in opened.stdout


def test_an_end_that_is_unknown_is_null(etcd: Etcd, opened: Opener, prefix: str) -> None:
    opened(etcd.url).put(lease(1), None)
    flags = ("--store", etcd.url, "--etcd-prefix", prefix)
    assert '"expires_at": null' in ovctl("lease", "list", "-o", "json", *flags).stdout
    assert "unknown" in ovctl("lease", "list", *flags).stdout


# --- User and password ---------------------------------------------------------


@pytest.fixture(params=sorted(SERVERS))
def guarded(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Iterator[Etcd]:
    """Authentication on; `node` may use the prefix, `guest` may use nothing."""
    with Etcd(
        request.param, tmp_path / "etcd", flags=("--auth-token-ttl", "2")[: 2 * (request.param == "3.5")]
    ) as etcd:
        etcd.start()
        etcd.ctl("user", "add", "root:secret")
        etcd.ctl("user", "grant-role", "root", "root")
        etcd.ctl("role", "add", "ovnet")
        etcd.ctl("role", "grant-permission", "ovnet", "--prefix=true", "readwrite", prefix)
        etcd.ctl("user", "add", "node:hunter2")
        etcd.ctl("user", "grant-role", "node", "ovnet")
        etcd.ctl("user", "add", "guest:guest")
        etcd.ctl("auth", "enable")
        etcd.ctl_flags = ["--user", "root:secret"]
        yield etcd


def test_user_and_password_open_the_prefix(
    guarded: Etcd, opened: Opener, tmp_path: Path, prefix: str
) -> None:
    store = opened(guarded.url, username="node", password="hunter2")
    with watched(store) as seen:
        seen.has()
        store.put(lease(1), None)
        seen.has(1)
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    flags = ("--store", guarded.url, "--etcd-prefix", prefix, "--etcd-username", "node")
    assert "172.17.1.0/24" in ovctl("lease", "list", *flags, "--etcd-password-file", str(file)).stdout
    assert "172.17.1.0/24" in ovctl("lease", "list", *flags, OVNET_ETCD_PASSWORD="hunter2").stdout


def test_a_token_that_the_server_forgot_is_renewed(guarded: Etcd, opened: Opener) -> None:
    store = opened(guarded.url, username="node", password="hunter2")
    stored = store.put(lease(1), None)
    with watched(store) as seen:
        seen.has(1)
        member = guarded.members[0]
        member.kill()  # tokens are in its memory only
        member.start()
        wait_until(member.healthy, SECONDS, "etcd is back")
        store.put(replace(stored, vni=7), stored)
        store.put(lease(2), None)
        seen.has(1, 2)


def test_a_change_of_rights_needs_a_new_token_and_gets_it(guarded: Etcd, opened: Opener) -> None:
    store = opened(guarded.url, username="node", password="hunter2")
    store.put(lease(1), None)
    guarded.ctl("role", "add", "another")
    store.put(lease(2), None)
    assert len(store.snapshot().leases) == 2


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--etcd-username", "node", "--etcd-password", "wrong"), "authentication failed"),
        (("--etcd-username", "nobody", "--etcd-password", "hunter2"), "authentication failed"),
        (("--etcd-username", "guest", "--etcd-password", "guest"), "permission denied"),
        ((), "it wants --etcd-username"),
    ],
)
def test_wrong_credentials_are_exit_2(
    guarded: Etcd, prefix: str, flags: tuple[str, ...], complaint: str
) -> None:
    line = refused(2, "lease", "list", "--store", guarded.url, "--etcd-prefix", prefix, *flags)
    assert complaint in line
    assert "wrong" not in line and "hunter2" not in line


def test_the_doctor_has_another_remedy_for_wrong_credentials_than_for_a_store_that_is_away(
    guarded: Etcd, prefix: str, tmp_path: Path
) -> None:
    here = ("--state-dir", str(tmp_path / "state"), "--bpffs", "/sys/fs/bpf/nowhere", "-o", "json")
    flags = ("--store", guarded.url, "--etcd-prefix", prefix, "--etcd-username", "node")
    done = ovctl("doctor", *here, *flags, "--etcd-password", "wrong")
    (found,) = [each for each in json.loads(done.stdout) if each["check"] == "store"]
    assert found["level"] == "failure" and "authentication failed" in found["seen"]
    assert "password" in found["remedy"] and "wrong" not in done.stdout


def test_a_password_where_none_is_needed_does_no_harm(etcd: Etcd, opened: Opener) -> None:
    store = opened(etcd.url, username="node", password="hunter2")
    store.put(lease(1), None)
    assert len(store.snapshot().leases) == 1


def test_a_password_file_that_is_not_there_is_exit_2() -> None:
    line = refused(
        2, "lease", "list", "--store", "etcd://127.0.0.1:1", "--etcd-password-file", "/nonexistent/x"
    )
    assert "/nonexistent/x: No such file" in line


# --- TLS -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("ovlab-tls") / "ours")


@pytest.fixture(scope="module", params=sorted(SERVERS))
def secured(
    request: pytest.FixtureRequest, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Etcd]:
    path = certificates.path
    flags = [
        "--cert-file", path("server.pem"), "--key-file", path("server.key"),
        "--client-cert-auth", "--trusted-ca-file", path("ca.pem"),
    ]  # fmt: skip
    with Etcd(request.param, tmp_path_factory.mktemp("ovlab-tls-etcd"), flags=flags, scheme="https") as etcd:
        etcd.ctl_flags = [
            "--cacert",
            path("ca.pem"),
            "--cert",
            path("client.pem"),
            "--key",
            path("client.key"),
        ]
        yield etcd.start()


def test_tls_with_a_client_certificate(
    secured: Etcd, certificates: Certificates, opened: Opener, prefix: str
) -> None:
    path = certificates.path
    files = {"cafile": path("ca.pem"), "certfile": path("client.pem"), "keyfile": path("client.key")}
    store = opened(secured.url, **files)
    with watched(store) as seen:
        seen.has()
        store.put(lease(1), None)
        seen.has(1)
    flags = [word for name, file in files.items() for word in (f"--etcd-{name}", file)]
    done = ovctl("lease", "list", "--store", secured.url, "--etcd-prefix", prefix, *flags)
    assert "172.17.1.0/24" in done.stdout, done.stderr


def test_tls_connections_that_the_server_closed_are_made_again(
    secured: Etcd, certificates: Certificates, opened: Opener
) -> None:
    path = certificates.path
    store = opened(
        secured.url, cafile=path("ca.pem"), certfile=path("client.pem"), keyfile=path("client.key")
    )
    store.put(lease(1), None)
    member = secured.members[0]
    member.kill()
    member.start()
    wait_until(member.healthy, SECONDS, "etcd is back")
    store.put(lease(2), None)
    assert len(store.snapshot().leases) == 2


def test_tls_mistakes_are_exit_2(secured: Etcd, certificates: Certificates, tmp_path: Path) -> None:
    path = certificates.path
    base = ("lease", "list", "--store", secured.url)
    ca = ("--etcd-cafile", path("ca.pem"))
    other = Certificates(tmp_path / "others").path
    assert "its certificate is not trusted" in refused(2, *base)
    assert "its certificate is not trusted" in refused(2, *base, "--etcd-cafile", other("ca.pem"))
    assert "TLS: " in refused(2, *base, *ca)
    strange = ("--etcd-certfile", other("client.pem"), "--etcd-keyfile", other("client.key"))
    assert "TLS: " in refused(2, *base, *ca, *strange)
    assert "both" in refused(2, *base, *ca, "--etcd-certfile", path("client.pem"))
    missing = ("--etcd-certfile", "/nonexistent/x", "--etcd-keyfile", "/nonexistent/y")
    assert "/nonexistent/x and /nonexistent/y: No such file" in refused(2, *base, *ca, *missing)
    mixed = ("--etcd-certfile", path("client.pem"), "--etcd-keyfile", path("ca.key"))
    assert "etcd client certificate" in refused(2, *base, *ca, *mixed)


def test_tls_to_a_plain_server_and_the_reverse(etcd: Etcd, secured: Etcd) -> None:
    # Its plain-text answer is a mistake of the settings (2). The reset behind it, for the bytes
    # that it did not read, can overtake that answer, and then it may as well be away (4).
    done = ovctl("lease", "list", "--store", f"etcds://127.0.0.1:{etcd.members[0].port}")
    assert done.returncode in (2, 4) and "TLS: " in done.stderr and done.stderr.count("\n") == 1, done
    assert refused(4, "lease", "list", "--store", f"etcd://127.0.0.1:{secured.members[0].port}")


@pytest.mark.parametrize("reset", [True, False])
def test_a_connection_closed_in_the_tls_handshake_is_named(reset: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        asked = pool.submit(refused, 4, "lease", "list", "--store", f"etcds://127.0.0.1:{port}")
        server.settimeout(SECONDS)
        with server.accept()[0] as connection:
            assert connection.recv(1) == b"\x16"  # a ClientHello
            # Closed with bytes unread: a reset. Read to its end of now: an orderly end.
            if not reset:
                connection.recv(1 << 16)
        assert asked.result() == (
            f"ovctl: error: etcd unreachable: https://127.0.0.1:{port}: "
            "TLS: closed in the handshake; a server without TLS?\n"
        )


# --- Renewed while the node runs ----------------------------------------------


def test_certificates_that_are_renewed_in_place_are_used_when_etcd_is_back(
    own_etcd: Etcd, opened: Opener, tmp_path: Path
) -> None:
    """CA, certificate and key all become others, as when a CA ends; nobody restarts the node."""
    old, new = Certificates(tmp_path / "old"), Certificates(tmp_path / "new")
    served, ours = Certificates.copy(old, tmp_path / "served"), Certificates.copy(old, tmp_path / "ours")
    own_etcd.scheme = "https"
    own_etcd.flags += [
        "--cert-file", served.path("server.pem"), "--key-file", served.path("server.key"),
        "--client-cert-auth", "--trusted-ca-file", served.path("ca.pem"),
    ]  # fmt: skip
    own_etcd.ctl_flags = _ctl(old)
    own_etcd.start()
    store = opened(
        own_etcd.url,
        cafile=ours.path("ca.pem"), certfile=ours.path("client.pem"), keyfile=ours.path("client.key"),
    )  # fmt: skip
    member = own_etcd.members[0]
    with watched(store) as seen:
        store.put(lease(1), None)
        seen.has(1)
        member.kill()
        served.become(new)
        own_etcd.ctl_flags = _ctl(new)
        member.start()
        wait_until(member.healthy, SECONDS, "etcd is back")
        says(store, "certificate is not trusted")
        ours.become(new)
        seen.has(1)
        store.put(lease(2), None)
        seen.has(1, 2)


def says(store: EtcdStore, text: str) -> None:
    """Returns when that is why nothing can be read."""

    def said() -> bool:
        try:
            store.snapshot()
        except StoreError as error:
            return text in str(error)
        return False

    wait_until(said, SECONDS, text)


def _ctl(certificates: Certificates) -> list[str]:
    files = {"--cacert": "ca.pem", "--cert": "client.pem", "--key": "client.key"}
    return [word for flag, name in files.items() for word in (flag, certificates.path(name))]


def test_a_password_that_is_changed_in_its_file_is_used_at_the_next_log_in(
    guarded: Etcd, opened: Opener, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    store = opened(guarded.url, username="node", password_file=str(file))
    with watched(store) as seen:
        store.put(lease(1), None)
        seen.has(1)
        run(guarded.ctl_argv("user", "passwd", "node", "--interactive=false"), stdin="hunter3\n")
        member = guarded.members[0]
        member.kill()  # its tokens go with it
        member.start()
        wait_until(member.healthy, SECONDS, "etcd is back")
        says(store, "authentication failed")
        file.write_text("hunter3\n")
        seen.has(1)
        store.put(lease(2), None)
        seen.has(1, 2)


# --- A full disk ---------------------------------------------------------------


def test_a_full_quota_refuses_writes_and_keeps_leases_alive(own_etcd: Etcd, opened: Opener) -> None:
    own_etcd.flags += ["--quota-backend-bytes", str(1 << 20)]
    own_etcd.start()
    store = opened(own_etcd.url)
    stored = store.put(lease(1), None)
    _fill(own_etcd)
    with watched(store) as seen:
        seen.has(1)
        with pytest.raises(
            StoreError, match=r"database space exceeded \(alarm NOSPACE\): .*etcdctl alarm disarm"
        ):
            store.put(replace(stored, vni=7), stored)
        # Reading and keeping alive write nothing, so a node that has its lease goes on.
        assert store.put(replace(stored, expires_at=lease(1).expires_at), stored).revision == stored.revision
        own_etcd.ctl("compaction", str(own_etcd.revision()))
        own_etcd.ctl("defrag")
        own_etcd.ctl("alarm", "disarm")
        again: EtcdStore = opened(own_etcd.url)
        again.put(lease(2), None)
        seen.has(1, 2)


def _fill(etcd: Etcd) -> None:
    for _ in range(40):
        if run(etcd.ctl_argv("put", "/filler"), check=False, stdin="x" * 100_000).returncode != 0:
            break
    assert "NOSPACE" in etcd.ctl("alarm", "list")


def test_errors_of_ours_are_told_apart() -> None:
    assert StoreDenied.exit_code == ConfigError.exit_code == 2
    assert issubclass(StoreDenied, StoreError) and StoreError.exit_code == 4
