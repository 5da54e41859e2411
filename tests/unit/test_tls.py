"""TLS by files that somebody renews while we run."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from ctl.core.errors import ConfigError
from ctl.store.connection.tls import Trust, trust_files
from ctl.store.etcd.login import Login
from tests.pki import Certificates


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificates, Certificates]:
    place = tmp_path_factory.mktemp("tls")
    return Certificates(place / "first"), Certificates(place / "second")


@pytest.fixture
def ours(pair: tuple[Certificates, Certificates], tmp_path: Path) -> Certificates:
    """Files of the first that a test may change."""
    return Certificates.copy(pair[0], tmp_path / "ours")


def trust(ours: Certificates) -> Trust:
    return trust_files("etcd", ours.path("ca.pem"), ours.path("client.pem"), ours.path("client.key"))


def ca_of(context: ssl.SSLContext) -> bytes:
    (certificate,) = context.get_ca_certs(binary_form=True)
    return certificate


def test_files_that_are_as_they_were_are_not_read_again(ours: Certificates) -> None:
    trusted = trust(ours)
    assert trusted.now() is trusted.now()


def test_files_renewed_in_place_are_read_for_the_next_connection(
    ours: Certificates, pair: tuple[Certificates, Certificates]
) -> None:
    trusted = trust(ours)
    before = trusted.now()
    ours.become(pair[1])
    after = trusted.now()
    assert after is not before and ca_of(after) != ca_of(before)
    assert trusted.now() is after


def test_a_link_that_is_swapped_as_kubelet_does_is_followed(
    pair: tuple[Certificates, Certificates], tmp_path: Path
) -> None:
    """Size and times of the files may be the same: it is others all the same."""
    link = tmp_path / "..data"
    link.symlink_to(pair[0].directory)
    trusted = trust_files("kubernetes", str(link / "ca.pem"), "", "")
    before = trusted.now()
    other = tmp_path / "..tmp"
    other.symlink_to(pair[1].directory)
    other.replace(link)
    assert ca_of(trusted.now()) != ca_of(before)


@pytest.mark.parametrize("first", ["client.pem", "client.key"])
def test_half_a_pair_changes_nothing_and_is_tried_again(
    ours: Certificates, pair: tuple[Certificates, Certificates], first: str
) -> None:
    trusted = trust(ours)
    before = trusted.now()
    second = {"client.pem": "client.key", "client.key": "client.pem"}[first]
    (ours.directory / first).write_bytes((pair[1].directory / first).read_bytes())
    assert trusted.now() is before
    assert trusted.trouble.startswith(
        f"etcd client certificate {ours.path('client.pem')} and {ours.path('client.key')}: "
    )
    (ours.directory / second).write_bytes((pair[1].directory / second).read_bytes())
    assert trusted.now() is not before
    assert not trusted.trouble


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN CERTIFICATE-----\nMIIB"])
def test_a_file_that_is_not_written_to_its_end_changes_nothing(ours: Certificates, damage: bytes) -> None:
    trusted = trust(ours)
    before = trusted.now()
    ca = ours.directory / "ca.pem"
    whole = ca.read_bytes()
    ca.write_bytes(damage)
    assert trusted.now() is before and "etcd CA " in trusted.trouble
    ca.unlink()
    assert trusted.now() is before and "No such file" in trusted.trouble
    ca.write_bytes(whole)
    assert ca_of(trusted.now()) == ca_of(before) and not trusted.trouble


def test_the_systems_own_cas_are_followed_too(
    pair: tuple[Certificates, Certificates], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system.pem"
    system.write_bytes((pair[0].directory / "ca.pem").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    trusted = trust_files("etcd", "", "", "")
    before = trusted.now()
    system.write_bytes((pair[1].directory / "ca.pem").read_bytes())
    assert ca_of(trusted.now()) != ca_of(before)


def test_files_that_cannot_be_used_at_the_start_are_an_error(ours: Certificates) -> None:
    (ours.directory / "client.key").unlink()
    with pytest.raises(ConfigError, match="client certificate .*: No such file"):
        trust(ours)


def test_a_password_is_read_for_each_log_in(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    login = Login("node", "", str(file))
    file.write_text("two\n")
    assert login.password() == "two"
    file.unlink()
    assert login.password() == "two"
    assert Login("node", "given", "").password() == "given"
