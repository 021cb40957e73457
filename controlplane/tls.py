"""The broker's TLS certificate: made by itself, or yours. *Shell.*

    certificate, key = ensure_certificate(directory, ["broker.example", "192.0.2.1"])
    pin = spki_pin(certificate)

Machines trust the pin of the public key (`controlplane.client.pinning`) and not the certificate, so
the key is what lasts: while it is there, the certificate can be made again and every invite still
holds. Names and dates are for browsers.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane.client.files import ensure_private_directory, write_private
from controlplane.client.pinning import pin_of
from controlplane.errors import StartError

CERTIFICATE = "tls.crt"
KEY = "tls.key"
VALIDITY = timedelta(days=3650)
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_BACKDATED = timedelta(days=1)
"""So that a machine whose clock is behind does not see a certificate of the future."""


class CertificateError(StartError):
    """A certificate or its key cannot be used; the message names the file."""


def ensure_certificate(directory: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """The paths of a certificate and its private key in `directory`, made where they lack.

    `names` are the DNS names and IP addresses of the subject alternative names. What is there is kept
    whatever its names are; a certificate that lacks beside a readable key is made for that key, so the
    pin stays. Files of mode 0600, ECDSA P-256 (RFC 5480). Raises `CertificateError` for files that
    cannot be read or do not belong together.
    """
    certificate, key = directory / CERTIFICATE, directory / KEY
    if certificate.exists():
        if not key.exists():
            raise CertificateError(
                f"{certificate} is there, but its private key {key} is not: restore the key, or move "
                "the certificate away and let a new pair be made (every machine then joins again)"
            )
        if _load_certificate(certificate).public_key() != _load_key(key).public_key():
            raise CertificateError(f"{certificate} is not for the private key {key}: restore the right one")
        return certificate, key
    ensure_private_directory(directory)
    if key.exists():
        private = _load_key(key)
    else:
        private = ec.generate_private_key(ec.SECP256R1())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(key, pem)
    write_private(certificate, _self_signed(private, names).public_bytes(Encoding.PEM))
    return certificate, key


def check_pair(certificate: Path, key: Path) -> None:
    """Raise `CertificateError`, which names the file, unless TLS can be served with a given pair."""
    for path in (certificate, key):
        _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise CertificateError(
            f"TLS cannot be served with the certificate {certificate} and the key {key} "
            f"({reason.lower().replace('_', ' ')}): give a PEM certificate and its own key without a password"
        ) from None


def _no_password() -> str:
    """Instead of OpenSSL asking for one on the terminal."""
    raise ValueError("the key has a password")


def spki_pin(certificate: Path) -> str:
    """The pin of a PEM certificate (the first of a chain): what an invite carries.

    Raises `CertificateError`, which names the file.
    """
    return pin_of(_load_certificate(certificate))


def _self_signed(key: PrivateKey, names: Sequence[str]) -> x509.Certificate:
    now = datetime.now(UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Horizon broker")])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        dns_name = name.encode("idna").decode()
    except UnicodeError:
        dns_name = ""
    if not re.fullmatch(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?", dns_name):
        raise CertificateError(f"{name!r} is neither an IP address nor a DNS name")
    return x509.DNSName(dns_name)


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(_read(path))
        certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{path} is not a PEM certificate that can be read: restore it") from None
    return certificate


def _load_key(path: Path) -> PrivateKey:
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, PrivateKey):
        raise CertificateError(
            f"{path} is not a PEM private key for TLS without a password: restore it, or move it and "
            f"{CERTIFICATE} away and let a new pair be made (every machine then joins again)"
        )
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from None
