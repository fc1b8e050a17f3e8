"""Throwaway certificates for a private broker: a CA, the server's and one client's."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIFETIME_DAYS = 2


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files. The client's common name is its user name on the broker (EXTERNAL)."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    client_name: str


def make_certificates(directory: Path, client_name: str) -> Certificates:
    """Raises RuntimeError where there is no `openssl` command, or it fails."""
    if shutil.which("openssl") is None:
        raise RuntimeError("TLS needs the `openssl` command: apt-get install openssl")
    directory.mkdir(exist_ok=True)
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    constraints = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _openssl("req", "-x509", "-days", str(LIFETIME_DAYS), *_new_key(ca_key, "carod test CA"), *constraints, "-out", ca)
    server, server_key = _issue(directory, "server", "localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    client, client_key = _issue(directory, "client", client_name, "extendedKeyUsage=clientAuth")
    return Certificates(ca, server, server_key, client, client_key, client_name)


def _issue(directory: Path, stem: str, name: str, extension: str) -> tuple[Path, Path]:
    certificate, key, request = (directory / f"{stem}.{suffix}" for suffix in ("pem", "key", "csr"))
    extensions = directory / f"{stem}.ext"
    extensions.write_text(f"{extension}\nbasicConstraints=CA:FALSE\n")
    _openssl("req", *_new_key(key, name), "-out", request)
    authority = ("-CA", directory / "ca.pem", "-CAkey", directory / "ca.key", "-CAcreateserial")
    lifetime = ("-days", str(LIFETIME_DAYS), "-extfile", extensions)
    _openssl("x509", "-req", "-in", request, *authority, *lifetime, "-out", certificate)
    return certificate, key


def _new_key(key: Path, name: str) -> tuple[str | Path, ...]:
    # A P-256 key takes milliseconds to make, an RSA one up to a second.
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    return (*curve, "-nodes", "-subj", f"/CN={name}", "-keyout", key)


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr.strip()}")
