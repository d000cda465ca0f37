"""A certificate authority of a test's own, and the files that it makes."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    cert: Path
    key: Path


class Authority:
    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(self._name, self._name, self._key, timedelta(days=1))
        self.pem = _pem(made.add_extension(x509.BasicConstraints(True, None), True).sign(self._key, hashes.SHA256()))
        self.file = folder / f"{name}.pem".replace(" ", "-")
        self.file.write_bytes(self.pem)

    def issue(self, name: str, *, host: str = "127.0.0.1", lasts: timedelta = timedelta(hours=1)) -> Pair:
        """Writes `name`.pem and `name`.key, or puts new ones in their place, as a rotation does."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = _builder(subject, self._name, key, lasts).add_extension(x509.SubjectAlternativeName([_san(host)]), False)
        files = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        kind = serialization.PrivateFormat.PKCS8
        put(files.key, key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
        put(files.cert, _pem(made.sign(self._key, hashes.SHA256())))
        return files


def put(path: Path, data: bytes) -> None:
    """Replaces a file at once: nobody sees half of it."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    os.replace(new, path)


def serial_of(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lasts: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + lasts)
    )


def _san(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
