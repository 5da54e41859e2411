"""Which secrets are taken out of a text, and what stays."""

from __future__ import annotations

import pytest

from ctl.core.redaction import redacted

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJvdm5ldCJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "text",
    [
        "etcd://root:hunter2@10.0.0.1:2379 is away",
        "https://hunter2@example.net/",
        "https://root:hun/ter2-hunter2@example.net/",
        "--etcd-password hunter2 --etcd-username root",
        "--etcd-password=hunter2",
        "OVNET_ETCD_PASSWORD=hunter2",
        'etcd_password = "hunter2 and more"',
        '{"password": "hunter2", "user": "root"}',
        "    token: hunter2",
        "    client-key-data: hunter2==",
        "Authorization: Bearer hunter2",
        "Authorization: Basic hunter2==",
        "flow_seed: hunter2",
        "-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2 that was cut off",
    ],
)
def test_what_looks_like_a_secret_is_left_out(text: str) -> None:
    assert "hunter2" not in redacted(text)


def test_a_token_of_kubernetes_is_left_out_wherever_it_stands() -> None:
    assert redacted(f"refused {JWT}, again") == "refused [left out], again"


def test_a_secret_that_is_known_is_left_out_wherever_it_stands() -> None:
    assert redacted("xhunter2x hunter", ["hunter", "hunter2", ""]) == "x[left out]x [left out]"


@pytest.mark.parametrize(
    "text",
    [
        "etcd://10.0.0.1:2379 answers, 2 leases",
        'iifname "ovnet0" counter packets 3 bytes 252 drop comment "mine"',
        "the user, password, certificate or token of the settings",
        "--etcd-password-file /etc/ovnet/password",
        "password_file = /etc/ovnet/password\n",
        "02:00:00:00:00:01 dev ovnet.1 dst 192.0.2.9 self permanent",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text
