"""`docker save`'s archive without what differs from one build to the next: stdin to FILE.

Docker notes when it built, in the image's config, and names layers by directories of its own. Here every
date is $SOURCE_DATE_EPOCH's and everything is named by the digest of what it holds, so that the same files
give the same bytes. `docker load` takes it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def layer(blob: bytes, epoch: int) -> bytes:
    """A layer with its files in order, none newer than `epoch`."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(blob)) as old,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for entry in sorted(old.getmembers(), key=_order):
            entry.mtime = min(int(entry.mtime), epoch)
            entry.pax_headers = {name: text for name, text in entry.pax_headers.items() if "xattr" in name}
            new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
    return out.getvalue()


def _order(entry: tarfile.TarInfo) -> tuple[bool, str]:
    """A hard link comes after what it links to."""
    return entry.islnk(), entry.name


def config(text: bytes, layers: list[bytes], epoch: int) -> bytes:
    """The image's config for these layers, built at `epoch`."""
    image: dict[str, Any] = json.loads(text)
    when = datetime.fromtimestamp(epoch, UTC).isoformat().replace("+00:00", "Z")
    image["created"] = when
    for step in image["history"]:
        step["created"] = when
    for name in ("container", "container_config", "docker_version"):
        image.pop(name, None)
    image["config"].pop("Hostname", None)
    image["config"].pop("Image", None)
    image["rootfs"]["diff_ids"] = [f"sha256:{_digest(each)}" for each in layers]
    return json.dumps(image, sort_keys=True).encode()


def _digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def write(path: Path, files: dict[str, bytes], epoch: int) -> None:
    """A tar of `files`, in their order."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, blob in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(blob), epoch, 0o644
            archive.addfile(entry, io.BytesIO(blob))


def main(saved: bytes, path: Path, epoch: int) -> None:
    """Write `saved` anew to `path`."""
    with tarfile.open(fileobj=io.BytesIO(saved)) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file, name
            return file.read()

        (image,) = json.loads(read("manifest.json"))
        layers = [layer(read(name), epoch) for name in image["Layers"]]
        described = config(read(image["Config"]), layers, epoch)
    names = [f"{_digest(each)}.tar" for each in layers]
    manifest = [{"Config": f"{_digest(described)}.json", "RepoTags": image["RepoTags"], "Layers": names}]
    files = dict(zip(names, layers, strict=True))
    files[manifest[0]["Config"]] = described
    files["manifest.json"] = json.dumps(manifest).encode()
    write(path, files, epoch)


if __name__ == "__main__":
    main(sys.stdin.buffer.read(), Path(sys.argv[1]), int(os.environ["SOURCE_DATE_EPOCH"]))
