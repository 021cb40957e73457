"""The pin decides before the first application byte: against a TLS server that records each one."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from controlplane.client.pinning import PinError, pin_mismatch, pin_of, pinned_context
from controlplane.protocol.enrolment import encode_pin
from controlplane.protocol.errors import KeyFormatError, PinMismatch

REQUEST = b"GET /secret HTTP/1.1\r\nHost: broker\r\n\r\n"
WRONG_PIN = encode_pin(bytes(32))


@dataclass
class Served:
    """One connection as the server saw it."""

    received: bytes
    resumed: bool


@dataclass
class Server:
    """Answers one request per connection on loopback and keeps what it received."""

    port: int
    pin: str
    connections: queue.Queue[Served] = field(default_factory=queue.Queue)

    def last(self) -> Served:
        """The next connection that has ended."""
        return self.connections.get(timeout=10)


def _serve(listener: socket.socket, context: ssl.SSLContext, server: Server) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        received, resumed = b"", False
        with connection:
            connection.settimeout(10)
            try:
                with context.wrap_socket(connection, server_side=True) as tls:
                    resumed = bool(tls.session_reused)
                    while chunk := tls.recv(65536):
                        received += chunk
                        if b"\r\n\r\n" in received:
                            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            except OSError:
                pass
        server.connections.put(Served(received, resumed))


def make_certificate(key: ec.EllipticCurvePrivateKey, ends: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody else")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ends - timedelta(days=30))
        .not_valid_after(ends)
        .sign(key, hashes.SHA256())
    )


@contextmanager
def running(directory: Path, ends: datetime, version: ssl.TLSVersion) -> Iterator[Server]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(key, ends)
    pem = directory / "server.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.load_cert_chain(pem)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(listener.getsockname()[1], pin_of(certificate))
        thread = threading.Thread(target=_serve, args=(listener, context, server))
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive()


TOMORROW = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path, TOMORROW, ssl.TLSVersion.TLSv1_3) as server:
        yield server


def ask(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
    """One request over a blocking socket; the session to resume."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="broker", session=session) as tls,
    ):
        assert tls.version() == "TLSv1.3"
        tls.sendall(REQUEST)
        assert tls.recv(1024).endswith(b"ok")
        return tls.session


def test_a_blocking_socket_reaches_the_pinned_key(server: Server) -> None:
    ask(pinned_context(server.pin), server.port)
    assert server.last().received == REQUEST


def test_a_blocking_socket_sends_nothing_to_another_key(server: Server) -> None:
    with pytest.raises(PinError, match=server.pin) as caught:
        ask(pinned_context(WRONG_PIN), server.port)
    assert server.last().received == b""
    mismatch = pin_mismatch(caught.value)
    assert isinstance(mismatch, PinMismatch)
    assert server.pin in str(mismatch)
    assert WRONG_PIN in str(mismatch)
    assert "new invite" in str(mismatch)


async def test_the_http_client_reaches_the_pinned_key(server: Server) -> None:
    async with httpx2.AsyncClient(verify=pinned_context(server.pin), trust_env=False) as client:
        answer = await client.post(f"https://127.0.0.1:{server.port}/auth", content=b"{}")
    assert answer.text == "ok"
    assert server.last().received.startswith(b"POST /auth")


async def test_the_http_client_sends_nothing_to_another_key(server: Server) -> None:
    async with httpx2.AsyncClient(verify=pinned_context(WRONG_PIN), trust_env=False) as client:
        with pytest.raises(httpx2.ConnectError) as caught:
            await client.post(f"https://127.0.0.1:{server.port}/auth", content=b"a personal key")
    assert server.last().received == b""
    assert isinstance(pin_mismatch(caught.value), PinMismatch)


async def test_asyncio_streams_send_nothing_to_another_key(server: Server) -> None:
    with pytest.raises(PinError):
        await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=pinned_context(WRONG_PIN), server_hostname="broker"
        )
    assert server.last().received == b""


def test_an_expired_certificate_for_another_name_is_accepted_with_the_right_key(tmp_path: Path) -> None:
    with running(tmp_path, TOMORROW - timedelta(days=400), ssl.TLSVersion.TLSv1_3) as server:
        ask(pinned_context(server.pin), server.port)
        assert server.last().received == REQUEST


def test_a_resumed_session_is_checked_again(server: Server) -> None:
    context = pinned_context(server.pin)
    session = ask(context, server.port)
    assert server.last().resumed is False
    ask(context, server.port, session)
    assert server.last() == Served(REQUEST, resumed=True)

    # A session that began unchecked, as if by another class on the same context.
    other = pinned_context(WRONG_PIN)
    pinned, other.sslsocket_class = other.sslsocket_class, ssl.SSLSocket
    session = ask(other, server.port)
    server.last()
    other.sslsocket_class = pinned
    with pytest.raises(PinError):
        ask(other, server.port, session)
    assert server.last() == Served(b"", resumed=True)


@pytest.mark.parametrize("verb", ["send", "sendall", "write", "recv", "read"])
def test_a_socket_cannot_be_used_before_its_handshake(server: Server, verb: str) -> None:
    argument = REQUEST if verb in {"send", "sendall", "write"} else 100
    context = pinned_context(server.pin)
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
        context.wrap_socket(plain, do_handshake_on_connect=False) as tls,
        pytest.raises(PinError, match="do_handshake"),
    ):
        getattr(tls, verb)(argument)
    assert server.last().received == b""


def test_a_memory_object_cannot_be_used_before_its_handshake() -> None:
    tls = pinned_context(WRONG_PIN).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    with pytest.raises(PinError):
        tls.write(REQUEST)
    with pytest.raises(PinError):
        tls.read(100)


def test_tls_before_1_3_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, TOMORROW, ssl.TLSVersion.TLSv1_2) as server:
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|protocol version"):
            ask(pinned_context(server.pin), server.port)
        assert server.last().received == b""


@pytest.mark.parametrize("pin", ["", "a" * 42, "a" * 44, "a" * 42 + "+", "a" * 42 + "=", "ä" * 43])
def test_a_malformed_pin_is_refused(pin: str) -> None:
    with pytest.raises(KeyFormatError, match="43 characters"):
        pinned_context(pin)


def test_other_errors_are_no_mismatch() -> None:
    assert pin_mismatch(ConnectionRefusedError(os.strerror(111))) is None
