"""The archive of a bug report: whole, ours alone, and never over somebody's file."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from ctl.core.errors import AgentError
from ctl.process.archive import compressed, new_file, tar


def test_texts_come_out_as_they_went_in() -> None:
    packed = tar({"a.txt": "one\n", "sub/b.txt": "zwei ü \udcff"}, "report", 1000.9)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        found = {each.name: (each.mtime, each.mode) for each in archive}
        assert found == {"report/a.txt": (1000, 0o600), "report/sub/b.txt": (1000, 0o600)}
        text = archive.extractfile("report/sub/b.txt")
        assert text is not None and text.read().decode() == "zwei ü ?"


def test_it_is_packed_by_zstd_and_where_there_is_none_by_gzip() -> None:
    content = b"much the same " * 1000
    assert gzip.decompress(compressed(content, None)) == content
    packed = compressed(content, shutil.which("zstd"))
    assert subprocess.run(["zstd", "-dc"], input=packed, capture_output=True, check=True).stdout == content
    assert len(packed) < 200


def test_a_tool_that_fails_is_named() -> None:
    with pytest.raises(AgentError, match="/bin/false did not compress"):
        compressed(b"", "/bin/false")


def test_a_file_that_exists_is_refused_before_anything_is_collected(tmp_path: Path) -> None:
    path = tmp_path / "report"
    with new_file(path) as made:
        made.write(b"first")
    assert path.stat().st_mode & 0o777 == 0o600
    for refused, why in (path, "exists"), (tmp_path / "none" / "report", "No such file"):
        with pytest.raises(AgentError, match=why), new_file(refused):
            pytest.fail("nothing is collected")
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("error", [AgentError("no zstd"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_of_a_file_that_is_not_finished_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "report"
    with pytest.raises(AgentError if isinstance(error, OSError) else type(error)), new_file(path) as made:
        made.write(b"half")
        raise error
    assert not path.exists()
