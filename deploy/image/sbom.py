"""The software bill of materials of this system, as CycloneDX JSON on stdout: `sbom.py VERSION`.

Debian's packages by dpkg, and the wheels that the package of ovnet brings. No date and no serial number:
the same packages give the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

HOME = Path("/usr/lib/ovnet")


def debian() -> list[dict[str, object]]:
    """Every installed package."""
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = (line.split() for line in shown.stdout.splitlines())
    return [
        component(name, version, f"pkg:deb/debian/{name}@{version}?arch={arch}")
        for name, version, arch in rows
    ]


def wheels(version: str) -> list[dict[str, object]]:
    """What lies beside ovnet's own modules."""
    found = distributions(path=[str(HOME / version)])
    return [component(each.name, each.version, f"pkg:pypi/{each.name}@{each.version}") for each in found]


def component(name: str, version: str, purl: str) -> dict[str, object]:
    """One entry."""
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


def document(version: str, components: list[dict[str, object]]) -> dict[str, object]:
    """The whole, for ovnet `version`."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "ovnet", "version": version}},
        "components": sorted(components, key=lambda each: str(each["purl"])),
    }


if __name__ == "__main__":
    print(json.dumps(document(sys.argv[1], debian() + wheels(sys.argv[1])), indent=1))
