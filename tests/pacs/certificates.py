"""An authority of a test's own, and certificates that it signed."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """Files: its own certificate, and pairs of certificate and key for two sides."""

    own: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def make_authority(folder: Path) -> Authority:
    """Sign certificates for `localhost` and 127.0.0.1, valid for a day."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    own = _signed("medsynth test authority", key, None, key)
    (folder / "ca.pem").write_bytes(own.public_bytes(serialization.Encoding.PEM))
    for side in ("server", "client"):
        side_key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed("localhost", side_key, own, key).public_bytes(serialization.Encoding.PEM)
        private = side_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{side}.pem").write_bytes(certificate)
        (folder / f"{side}.key").write_bytes(private)
        (folder / f"{side}.key").chmod(0o600)
    return Authority(*(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")))


def _signed(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if issuer is None:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    else:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256())
