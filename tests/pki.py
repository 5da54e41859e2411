"""Certificates for tests of TLS: a CA, a server and a client, made by openssl."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.process import run


class Certificates:
    """A CA and what it signed."""

    def __init__(self, directory: Path, addresses: Sequence[str] = ("127.0.0.1",)) -> None:
        """`addresses`: where the server that it is for answers."""
        self.directory = directory
        directory.mkdir()
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                      "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
        self._sign("server", f"subjectAltName={','.join(f'IP:{each}' for each in addresses)}")
        self._sign("client", "extendedKeyUsage=clientAuth")

    def path(self, name: str) -> str:
        return str(self.directory / name)

    @classmethod
    def copy(cls, other: Certificates, directory: Path) -> Certificates:
        """The same files in another directory, which must not be there yet."""
        made = cls.__new__(cls)
        made.directory = directory
        shutil.copytree(other.directory, directory)
        return made

    def become(self, other: Certificates) -> None:
        """Be renewed in place: the same names, the content of another's."""
        for file in other.directory.iterdir():
            shutil.copyfile(file, self.directory / file.name)

    def _sign(self, name: str, extension: str) -> None:
        (self.directory / "ext").write_text(extension + "\n")
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                      "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                      "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        run(["openssl", *arguments], cwd=self.directory)
