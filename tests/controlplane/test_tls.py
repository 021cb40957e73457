"""The broker's own certificate: made once, kept, and refused by name when damaged."""

from __future__ import annotations

import ipaddress
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from controlplane.errors import StartError
from controlplane.tls import CertificateError, check_pair, ensure_certificate, spki_pin

NAMES = ["broker.example", "192.0.2.1", "2001:db8::1", "bröker.example"]


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_certificate_is_p256_with_all_names(tmp_path: Path) -> None:
    certificate, _ = ensure_certificate(tmp_path, NAMES)
    made = load(certificate)
    public = made.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example", "xn--brker-kua.example"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("192.0.2.1"),
        ipaddress.ip_address("2001:db8::1"),
    ]
    made.verify_directly_issued_by(made)


def test_the_pair_serves_tls_and_the_files_are_private(tmp_path: Path) -> None:
    certificate, key = ensure_certificate(tmp_path / "data", NAMES)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    assert key.stat().st_mode & 0o777 == 0o600
    assert certificate.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in certificate.parent.iterdir()) == ["tls.crt", "tls.key"]


def test_the_pair_is_kept(tmp_path: Path) -> None:
    paths = ensure_certificate(tmp_path, NAMES)
    before = [path.read_bytes() for path in paths]
    assert ensure_certificate(tmp_path, ["another.example"]) == paths
    assert [path.read_bytes() for path in paths] == before


def test_a_lost_certificate_is_made_again_with_the_same_pin(tmp_path: Path) -> None:
    certificate, key = ensure_certificate(tmp_path, NAMES)
    pin, secret = spki_pin(certificate), key.read_bytes()
    certificate.unlink()
    ensure_certificate(tmp_path, NAMES)
    assert (spki_pin(certificate), key.read_bytes()) == (pin, secret)


def test_two_directories_have_two_keys(tmp_path: Path) -> None:
    pins = {spki_pin(ensure_certificate(tmp_path / name, NAMES)[0]) for name in ("a", "b")}
    assert len(pins) == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_the_pin_is_the_one_openssl_computes(tmp_path: Path) -> None:
    certificate, _ = ensure_certificate(tmp_path, NAMES)
    script = (
        f"openssl x509 -in '{certificate}' -noout -pubkey | openssl pkey -pubin -outform der"
        " | openssl dgst -sha256 -binary | base64 | tr '+/' '-_' | tr -d '='"
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert spki_pin(certificate) == done.stdout.strip()


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_damaged_certificate_is_named(tmp_path: Path, content: bytes) -> None:
    certificate, _ = ensure_certificate(tmp_path, NAMES)
    certificate.write_bytes(content)
    with pytest.raises(CertificateError, match=str(certificate)):
        ensure_certificate(tmp_path, NAMES)
    with pytest.raises(CertificateError, match=str(certificate)):
        spki_pin(certificate)
    assert certificate.read_bytes() == content


def _x25519() -> bytes:
    key = x25519.X25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n", _x25519()])
@pytest.mark.parametrize("certificate_lost", [False, True])
def test_a_damaged_key_is_named_and_never_replaced(
    tmp_path: Path, content: bytes, certificate_lost: bool
) -> None:
    certificate, key = ensure_certificate(tmp_path, NAMES)
    if certificate_lost:
        certificate.unlink()
    key.write_bytes(content)
    with pytest.raises(CertificateError, match=str(key)):
        ensure_certificate(tmp_path, NAMES)
    assert key.read_bytes() == content


def test_a_lost_key_is_named_and_not_replaced(tmp_path: Path) -> None:
    certificate, key = ensure_certificate(tmp_path, NAMES)
    key.unlink()
    with pytest.raises(CertificateError, match=f"its private key {key} is not: restore the key"):
        ensure_certificate(tmp_path, NAMES)
    assert not key.exists()
    assert certificate.exists()


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    ensure_certificate(tmp_path / "a", NAMES)
    _, key = ensure_certificate(tmp_path / "b", NAMES)
    shutil.copy(key, tmp_path / "a" / "tls.key")
    with pytest.raises(CertificateError, match="is not for the private key"):
        ensure_certificate(tmp_path / "a", NAMES)


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=f"{tmp_path / 'none.crt'}: No such file"):
        spki_pin(tmp_path / "none.crt")


@pytest.mark.parametrize("name", ["", "two words", "a..b", "x" * 300, "a/b", "-a", "a:b"])
def test_a_bad_name_is_quoted(tmp_path: Path, name: str) -> None:
    with pytest.raises(CertificateError, match="neither an IP address nor a DNS name") as caught:
        ensure_certificate(tmp_path, [name])
    assert repr(name) in str(caught.value)
    assert isinstance(caught.value, StartError)


def test_a_refused_name_can_be_corrected(tmp_path: Path) -> None:
    with pytest.raises(CertificateError):
        ensure_certificate(tmp_path, ["two words"])
    certificate, _ = ensure_certificate(tmp_path, NAMES)
    assert spki_pin(certificate)


def test_a_key_with_a_password_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    certificate, key = ensure_certificate(tmp_path, ["broker.example"])
    check_pair(certificate, key)
    private = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"swordfish"))
    )
    with pytest.raises(CertificateError, match=r"tls\.key .*password"):
        check_pair(certificate, key)
