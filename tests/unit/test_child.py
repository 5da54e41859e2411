"""What is said where BCC, headers, room or memory are missing: one line, once."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.core.errors import KernelError
from ctl.core.family import IPV4
from ctl.kernel.bpf import child, compile
from ctl.kernel.bpf.child import Bcc

ROOT = Path(__file__).parents[2]
OURS = r"/usr/bin/python3 \(Python 3\.\d+\.\d+\S*\)"
WITHOUT_PACKAGES = 'exec /usr/bin/python3 -S "$@"'


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where our package is installed, beside whatever a test puts there."""
    for name in ("ctl", "bpf"):
        (tmp_path / name).symlink_to(ROOT / name)
    spec = importlib.util.spec_from_file_location(
        "ctl", ROOT / "ctl/__init__.py", submodule_search_locations=[str(tmp_path / "ctl")]
    )
    monkeypatch.setattr(child, "find_spec", lambda _: spec)
    return tmp_path


def failure(place: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a load says, with this in the place of /usr/bin/python3."""
    python = place / "python3"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(child, "_PYTHON", str(python))
    with open(os.devnull) as null, Bcc("") as bcc:
        maps: Any = SimpleNamespace(family=IPV4, fd=lambda _: null.fileno())
        with pytest.raises(KernelError) as caught:
            bcc.load(("from_wire",), maps)
    return str(caught.value)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("", rf"no BCC for {OURS}: install python3-bpfcc"),
        ("LATTICE = 'body-centred cubic'", r"\S+/bcc\.py is not BCC's: remove it, and install python3-bpfcc"),
        (
            "import a_library_of_lattices",
            rf"\S+/bcc\.py does not work with {OURS}: No module named 'a_library_of_lattices': .* install .*",
        ),
        (
            "raise OSError('libbcc.so.0: cannot open shared object file:\\nNo such file or directory')",
            rf"\S+/bcc\.py does not work with {OURS}: libbcc.so.0: cannot open .* directory: .* install .*",
        ),
        ("print 'of Python 2'", rf"\S+/bcc\.py does not work with {OURS}: Missing parentheses .* install .*"),
    ],
    ids=["none", "PyPI's", "PyPI's, half", "without its library", "of another Python"],
)
def test_a_bcc_that_cannot_be_is_named_with_the_remedy(
    beside: Path, module: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if module:
        (beside / "bcc.py").write_text(f"{module}\n")
    line = failure(beside, WITHOUT_PACKAGES, monkeypatch)
    assert re.fullmatch(f"compiling the datapath failed: {said}", line), line
    assert not caplog.records, "it is logged as what the pass has failed for, and not at each attempt"


def test_a_compiler_that_was_killed_is_told_from_one_that_refuses(
    beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = failure(beside, "kill -9 $$", monkeypatch)
    assert line.endswith("/python3 died (Killed): is there memory for it (150 MB)?")


def test_the_compilers_own_words_are_logged_and_the_last_one_told(
    beside: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        line = failure(
            beside, "printf 'bpf/x.h:1: error\\n\\nthe datapath does not compile\\n\\n'; exit 1", monkeypatch
        )
    assert line == "compiling the datapath failed: the datapath does not compile"
    assert "compiler: bpf/x.h:1: error" in caplog.messages


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            KernelError("no Linux UAPI headers: install linux-libc-dev"),
            "no Linux UAPI headers: install linux-libc-dev",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x/kconfig.h"),
            "cannot gather the headers: [Errno 28] No space left on device: '/tmp/x/kconfig.h': "
            "make room in TMPDIR, or reinstall linux-libc-dev",
        ),
    ],
    ids=["no headers", "no room"],
)
def test_headers_that_cannot_be_gathered_are_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr(compile, "write_header_tree", fail)
    with pytest.raises(SystemExit) as ended, compile.header_tree():
        pass
    assert ended.value.code == compile.LACKING
    assert capsys.readouterr().err == f"{said}\n"
