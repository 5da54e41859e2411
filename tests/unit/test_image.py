"""The image's archive without dates, and its list of what is in it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from deploy.image import normal, sbom

EPOCH = 1_700_000_000


def tar(entries: dict[str, tuple[bytes, int]], links: dict[str, str] | None = None) -> bytes:
    """Files by name, with their content and time; hard links by name, with what they are the same as."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.LNKTYPE, target
            archive.addfile(entry)
        for name, (content, mtime) in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), mtime
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def saved(when: int, names: list[str]) -> bytes:
    """What `docker save` gives of an image that was built at `when`, with these files in its layer."""
    layer = tar({name: (name.encode(), when) for name in names})
    config = {
        "created": f"2026-01-01T00:00:{when % 60:02}Z",
        "container": str(when),
        "config": {"Hostname": str(when), "Entrypoint": ["/usr/bin/ovctl"]},
        "history": [{"created": f"2026-01-01T00:00:{when % 60:02}Z", "created_by": "RUN x"}],
        "rootfs": {"type": "layers", "diff_ids": ["sha256:0"]},
    }
    manifest = [{"Config": "c.json", "RepoTags": ["ovnet:1"], "Layers": [f"{when}/layer.tar"]}]
    return tar({
        f"{when}/layer.tar": (layer, when),
        "c.json": (json.dumps(config).encode(), when),
        "manifest.json": (json.dumps(manifest).encode(), when),
    })  # fmt: skip


def test_two_builds_of_the_same_files_are_the_same_bytes(tmp_path: Path) -> None:
    normal.main(saved(EPOCH + 7, ["a", "b"]), tmp_path / "one", EPOCH)
    normal.main(saved(EPOCH + 9, ["b", "a"]), tmp_path / "two", EPOCH)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_archive_is_one_that_docker_loads(tmp_path: Path) -> None:
    """Layers and config by the digest of what is in them, and the config names the layers' digests."""
    normal.main(saved(EPOCH + 7, ["a"]), tmp_path / "image", EPOCH)
    with tarfile.open(tmp_path / "image") as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive}
        content = {name: file.read() for name, file in files.items() if file}
    (image,) = json.loads(content["manifest.json"])
    config = json.loads(content[image["Config"]])
    digests = [hashlib.sha256(content[name]).hexdigest() for name in image["Layers"]]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{digest}" for digest in digests]
    assert image["Config"] == f"{hashlib.sha256(content[image['Config']]).hexdigest()}.json"
    assert (image["RepoTags"], config["created"]) == (["ovnet:1"], "2023-11-14T22:13:20Z")
    assert config["config"] == {"Entrypoint": ["/usr/bin/ovctl"]}


def test_a_file_keeps_its_content_and_its_older_date() -> None:
    blob = normal.layer(tar({"old": (b"x", EPOCH - 5), "new": (b"y", EPOCH + 5)}), EPOCH)
    with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
        assert [(entry.name, entry.mtime) for entry in archive] == [("new", EPOCH), ("old", EPOCH - 5)]


def test_a_hard_link_comes_after_its_target() -> None:
    blob = normal.layer(tar({"z": (b"x", EPOCH)}, {"a": "z"}), EPOCH)
    with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
        assert archive.getnames() == ["z", "a"]


def test_the_bill_of_materials_is_in_one_order() -> None:
    parts = [sbom.component(name, "1", f"pkg:deb/debian/{name}@1") for name in ("b", "a")]
    document = sbom.document("0.1.0", parts)
    assert document == sbom.document("0.1.0", parts[::-1])
    assert document["bomFormat"] == "CycloneDX"
