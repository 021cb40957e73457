"""Signed requests: what was signed is what is accepted, once, in time, and nothing else."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.protocol.errors import ClockSkewError, ReplayError, SignatureError
from controlplane.protocol.keys import IdentityKey, IdentityPublicKey
from controlplane.protocol.signing import (
    COVERED,
    MAX_NONCE,
    TAG,
    WINDOW,
    ReplayGuard,
    SignedBy,
    sign_request,
    verify_request,
)

law = settings(deadline=None)
NOW = 1_800_000_000.0
KEY, OTHER = IdentityKey(bytes(range(32))), IdentityKey(bytes(range(1, 33)))
KEYS = {"dev_1": KEY.public_key, "dev_2": OTHER.public_key}
URL = "https://broker.example:8443/api/v1/connections?since=1"
BODY = b'{"server": "fra1"}'


@dataclass
class Request:
    """A request as it arrives; `replace`d to change one thing on the way."""

    method: str = "POST"
    url: str = URL
    body: bytes = BODY
    headers: dict[str, str] = field(default_factory=dict)
    now: float = NOW
    guard: ReplayGuard = field(default_factory=lambda: ReplayGuard(0))

    def verify(self) -> SignedBy:
        return verify_request(
            self.method, self.url, self.headers, self.body, resolve=KEYS.get, now=self.now, guard=self.guard
        )

    def refused(self) -> str:
        with pytest.raises(SignatureError) as caught:
            self.verify()
        return str(caught.value)


def signed(
    method: str = "POST", url: str = URL, body: bytes = BODY, key: IdentityKey = KEY, created: float = NOW
) -> Request:
    headers = sign_request(method, url, body, key=key, key_id="dev_1", created=created)
    return Request(method, url, body, headers)


@dataclass
class _Message:
    method: str
    url: str
    headers: dict[str, str]


class _Resolver(HTTPSignatureKeyResolver):
    def resolve_private_key(self, key_id: str) -> Any:
        return Ed25519PrivateKey.from_private_bytes(bytes(KEY))


def custom(
    covered: Sequence[str] = COVERED, body: bytes | None = BODY, key_id: str = "dev_1", **changes: Any
) -> Request:
    """A request signed with the right key, but not as `sign_request` does it."""
    parameters: dict[str, Any] = {
        "created": datetime.fromtimestamp(int(NOW), UTC),
        "nonce": "nonce",
        "label": TAG,
        "tag": TAG,
    }
    message = _Message("POST", URL, changes.pop("headers", {}))
    HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=_Resolver()).sign(
        message, key_id=key_id, covered_component_ids=covered, body=body, **(parameters | changes)
    )
    return Request(headers=message.headers)


# --- accepted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("body", [b"", BODY, bytes(range(256))])
def test_a_signed_request_says_who_and_when(method: str, body: bytes) -> None:
    request = signed(method, body=body, created=NOW + 0.9)
    assert request.verify() == SignedBy("dev_1", int(NOW))


def test_header_names_are_read_in_any_case() -> None:
    for change in (str.lower, str.upper):
        request = signed()
        request.headers = {change(name): value for name, value in request.headers.items()}
        assert request.verify().key_id == "dev_1"


paths = st.text("abc/-._~0123456789", max_size=20).map(lambda path: f"/{path.lstrip('/')}")


@law
@given(st.binary(max_size=200), paths, st.text("abc=&1%20", max_size=10).map(lambda q: q.replace("%", "%20")))
def test_any_request_verifies_as_it_was_signed(body: bytes, path: str, query: str) -> None:
    url = f"https://[2001:db8::1]:8443{path}?{query}"
    assert signed("PUT", url, body).verify() == SignedBy("dev_1", int(NOW))


def test_the_plain_custom_signature_is_accepted() -> None:
    """So that each refusal below is for its one change."""
    assert custom().verify() == SignedBy("dev_1", int(NOW))
    assert custom(include_alg=False).verify() == SignedBy("dev_1", int(NOW))
    assert custom(expires=datetime.fromtimestamp(NOW + 5, UTC)).verify().key_id == "dev_1"


# --- changed on the way -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "DELETE"),
        ("method", "post"),
        ("url", URL.replace("connections", "heartbeat")),
        ("url", URL.replace("connections", "connections/")),
        ("url", URL.replace("since=1", "since=2")),
        ("url", URL.partition("?")[0]),
        ("url", URL.replace("broker.example", "other.example")),
        ("url", URL.replace(":8443", "")),
    ],
)
def test_a_changed_request_line_is_refused(name: str, value: str) -> None:
    request = signed()
    setattr(request, name, value)
    assert "unknown key or wrong signature" in request.refused()


@pytest.mark.parametrize("body", [b"", BODY + b" ", BODY.replace(b"fra1", b"fra2")])
def test_a_changed_body_is_refused_and_named(body: bytes) -> None:
    request = signed()
    request.body = body
    assert "digest" in request.refused().lower()


def test_a_changed_body_with_its_own_digest_is_refused() -> None:
    request, other = signed(), signed(body=b"{}")
    request.body = other.body
    request.headers["Content-Digest"] = other.headers["Content-Digest"]
    assert "wrong signature" in request.refused()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('keyid="dev_1"', 'keyid="dev_2"'),
        (f"created={NOW:.0f}", f"created={NOW + 1:.0f}"),
        ('nonce="', 'nonce="x'),
        ('"@query"', '"@scheme"'),
    ],
)
def test_changed_parameters_are_refused(old: str, new: str) -> None:
    request = signed()
    assert old in request.headers["Signature-Input"]
    request.headers["Signature-Input"] = request.headers["Signature-Input"].replace(old, new)
    request.refused()


@law
@given(st.integers(0, 63), st.integers(1, 255))
def test_any_changed_byte_of_the_signature_is_refused(place: int, flip: int) -> None:
    request = signed()
    label, _, value = request.headers["Signature"].partition("=")
    raw = bytearray(base64.b64decode(value.strip(":")))
    raw[place] ^= flip
    request.headers["Signature"] = f"{label}=:{base64.b64encode(raw).decode()}:"
    assert "wrong signature" in request.refused()


def test_another_key_under_our_key_id_is_refused() -> None:
    assert "unknown key or wrong signature" in signed(key=OTHER).refused()


# --- not enough signed --------------------------------------------------------------------------


def test_an_unsigned_request_is_told_what_to_send() -> None:
    for missing in ("Signature", "Signature-Input"):
        request = signed()
        del request.headers[missing]
        assert "not signed: send Signature-Input and Signature" in request.refused()


@pytest.mark.parametrize("component", COVERED)
def test_a_signature_must_cover_the_whole_request_line(component: str) -> None:
    request = custom([c for c in COVERED if c != component])
    assert f'"{component}"' in (said := request.refused())
    assert "not covered" in said


def test_a_signature_must_cover_the_digest_of_a_body() -> None:
    assert "requires a signed Content-Digest" in custom(body=None).refused()
    # A digest that is there, right, and not signed, so that anybody could change it.
    request = custom(body=None)
    request.headers["Content-Digest"] = signed().headers["Content-Digest"]
    assert "requires a signed Content-Digest" in request.refused()


def test_a_digest_is_needed_also_where_the_body_was_emptied() -> None:
    request = signed()
    request.body = b""
    del request.headers["Content-Digest"]
    request.refused()


def test_another_tag_is_refused() -> None:
    custom(tag="other").refused()
    custom(tag=None).refused()


def test_another_algorithm_is_refused() -> None:
    request = signed()
    request.headers["Signature-Input"] = request.headers["Signature-Input"].replace("ed25519", "hmac-sha256")
    request.refused()


@pytest.mark.parametrize("nonce", [None, "", "x" * (MAX_NONCE + 1)])
def test_a_nonce_of_bounded_length_is_needed(nonce: str | None) -> None:
    assert f"a nonce of 1 to {MAX_NONCE} characters" in custom(nonce=nonce).refused()


def test_created_is_needed() -> None:
    """Written out by RFC 9421 section 2.5, as the library always adds it."""
    parameters = f'("@method" "@authority" "@path" "@query");keyid="dev_1";nonce="n";tag="{TAG}"'
    lines = ["POST", "broker.example:8443", "/api/v1/connections", "?since=1", parameters]
    names = [*COVERED, "@signature-params"]
    base = "\n".join(f'"{name}": {line}' for name, line in zip(names, lines, strict=True))
    signature = base64.b64encode(KEY.sign(base.encode())).decode()
    request = Request(
        body=b"", headers={"Signature-Input": f"{TAG}={parameters}", "Signature": f"{TAG}=:{signature}:"}
    )
    request.refused()


SECOND: dict[str, Any] = {
    "label": "second",
    "nonce": "n2",
    "append_if_signature_exists": True,
    "use_existing_digest": True,
}


def test_two_signatures_are_refused_though_both_hold() -> None:
    request = custom(headers=custom().headers, **SECOND)
    assert "has 2 signatures; send one" in request.refused()


def test_a_broken_second_signature_spoils_the_first() -> None:
    request = custom(headers=custom().headers, **SECOND)
    first, second = request.headers["Signature"].split(", ")
    request.headers["Signature"] = f"{first}, second=:{base64.b64encode(bytes(64)).decode()}:"
    assert second not in request.headers["Signature"]
    assert "wrong signature" in request.refused()


# --- unknown keys -------------------------------------------------------------------------------


def test_an_unknown_key_id_looks_like_a_wrong_signature() -> None:
    assert custom(key_id="dev_9").refused() == signed(key=OTHER).refused()


@pytest.mark.parametrize(
    ("header", "value"),
    [("Content-Digest", None), ("Content-Digest", "sha-256=:AA==:"), ("Signature", f"{TAG}=:{'A' * 86}==:")],
)
def test_nothing_else_that_is_wrong_tells_whether_a_key_id_is_known(header: str, value: str | None) -> None:
    said = []
    for key_id in ("dev_2", "dev_9"):  # neither is by this key
        request = custom(key_id=key_id)
        del request.headers[header]
        if value is not None:
            request.headers[header] = value
        said.append(request.refused())
    assert said[0] == said[1]


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-WINDOW, 0, WINDOW])
def test_a_clock_within_the_window_is_accepted(skew: float) -> None:
    assert signed(created=NOW + skew).verify().created == int(NOW + skew)


@pytest.mark.parametrize(
    ("skew", "says"), [(-61, "61 s behind"), (3600, "3600 s ahead of"), (-86400, "86400")]
)
def test_another_clock_is_refused_with_its_skew_in_seconds(skew: int, says: str) -> None:
    request = signed(created=NOW + skew)
    with pytest.raises(ClockSkewError, match=says) as caught:
        request.verify()
    assert caught.value.skew == skew


def test_a_stale_signature_is_refused() -> None:
    request = signed()
    request.now = NOW + WINDOW + 1
    with pytest.raises(ClockSkewError, match="61 s behind"):
        request.verify()


def test_an_expired_signature_is_refused_within_the_window() -> None:
    expires = datetime.fromtimestamp(NOW, UTC) - timedelta(seconds=1)
    assert "has expired: sign again" in custom(expires=expires).refused()


def test_the_clock_is_judged_only_after_the_signature() -> None:
    """Else anybody could ask for our clock; and a skew is worth telling only to whom we know."""
    with pytest.raises(SignatureError) as caught:
        signed(key=OTHER, created=NOW - 1000).verify()
    assert not isinstance(caught.value, ClockSkewError)


# --- replay -------------------------------------------------------------------------------------


def test_a_signature_is_accepted_once() -> None:
    request = signed()
    request.verify()
    with pytest.raises(ReplayError, match="was used before: sign again"):
        request.verify()
    request.now += WINDOW
    with pytest.raises(ReplayError):
        request.verify()


def test_the_same_request_signed_again_is_accepted() -> None:
    first, second = signed(), signed()
    second.guard = first.guard
    first.verify()
    assert second.verify() == SignedBy("dev_1", int(NOW))


def test_a_nonce_counts_for_each_key_id() -> None:
    guard = ReplayGuard(0)
    guard.accept("dev_1", "nonce", NOW, NOW)
    guard.accept("dev_2", "nonce", NOW, NOW)
    assert len(guard) == 2


def test_what_does_not_verify_is_not_remembered() -> None:
    request = signed(key=OTHER)
    request.refused()
    late = signed(created=NOW - 1000)
    late.guard = request.guard
    late.refused()
    assert len(request.guard) == 0


def test_a_signature_from_before_the_start_is_taken_for_a_replay() -> None:
    request = signed(created=NOW - 5)
    request.guard = ReplayGuard(NOW)
    with pytest.raises(ReplayError, match="before the broker started"):
        request.verify()
    request = signed(created=NOW)
    request.guard = ReplayGuard(NOW + 0.5)
    assert request.verify()


@law
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(-60, 60)), max_size=40))
def test_no_signature_within_the_window_passes_twice(steps: list[tuple[int, int, int]]) -> None:
    """And the memory holds only what could still come again."""
    guard, now = ReplayGuard(0), NOW
    accepted: dict[str, list[float]] = {}
    for wait, number, skew in steps:
        now += wait
        created = now + skew
        nonce = f"{number}-{created}"  # a signature has one nonce and one time
        for _ in range(2):
            try:
                guard.accept("dev_1", nonce, created, now)
            except ReplayError:
                continue
            accepted.setdefault(nonce, []).append(now)
    assert all(len(times) == 1 for times in accepted.values())
    guard.accept("dev_1", "last", now + 1000, now + 1000)
    assert len(guard) == 1


def test_an_old_signature_is_remembered_as_long_as_it_is_in_time() -> None:
    """Created by a clock a window ahead, it stays in time for two windows."""
    request = signed(created=NOW + WINDOW)
    request.verify()
    request.now = NOW + 2 * WINDOW
    with pytest.raises(ReplayError):
        request.verify()


# --- garbage ------------------------------------------------------------------------------------

GOOD = signed()
PIECES = [
    *(part for value in GOOD.headers.values() for part in (value, *value.split(";"), value[:-1])),
    *(
        'sig=("@method");created=1',
        "sig=:AAAA:",
        "();",
        "?1",
        "@1659578233",
        '%"f%c3%bc"',
        ",",
        "=",
        ":",
        '"',
    ),
    *(
        'horizon=("@query-param";name="a");tag="horizon";keyid="dev_1";created=1',
        "(" * 50,
        "é",
        "\ud800",
        "\x00",
    ),
    *('horizon=("@signature-params");tag="horizon";keyid="dev_1";created=1', "created=1.5", "tag=horizon"),
    *('horizon=("x";sf "y";bs "z";key="a" "@status" 5);tag="horizon";keyid="dev_1";created=999999999999999',),
]
values = st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=6).map("".join)
header_names = st.sampled_from([*GOOD.headers, "content-digest", "X", "x"]) | st.text(max_size=5)


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(header_names, values, max_size=4),
    st.sampled_from(["POST", "post", "", "é"]),
    st.sampled_from(
        [URL, "", "/api", "https://", "https://[::1", "http://a:b/", "https://ä/", "https://a/ "]
    ),
    st.sampled_from([BODY, b""]),
)
def test_any_headers_verify_or_raise_a_signature_error(
    headers: dict[str, str], method: str, url: str, body: bytes
) -> None:
    resolved: list[str] = []

    def resolve(key_id: str) -> IdentityPublicKey:
        resolved.append(key_id)
        return KEY.public_key

    try:
        verify_request(
            method, url, {**GOOD.headers, **headers}, body, resolve=resolve, now=NOW, guard=ReplayGuard(0)
        )
    except SignatureError:
        assert all(isinstance(key_id, str) for key_id in resolved)
    else:
        assert (method, url, body) == ("POST", URL, BODY)


# --- across a restart ---------------------------------------------------------------------------


def test_a_signature_from_ahead_is_not_accepted_again_after_a_restart() -> None:
    kept: dict[str, float] = {}
    request = signed(created=NOW + 30)
    request.guard = ReplayGuard(NOW - 100, keep=kept.__setitem__)
    request.verify()
    assert kept == {"dev_1": NOW + 30}
    request.now, request.guard = NOW + 2, ReplayGuard(NOW + 1, kept)
    with pytest.raises(ReplayError, match="before the broker started"):
        request.verify()
    later = signed(created=NOW + 32)
    later.now, later.guard = NOW + 2, request.guard
    assert later.verify()
    request.guard.accept("dev_2", "nonce", NOW + 2, NOW + 2)  # whose clock is right


def test_a_right_clock_costs_nothing_to_keep() -> None:
    kept: dict[str, float] = {}
    guard = ReplayGuard(0, keep=kept.__setitem__)
    guard.accept("dev_1", "nonce", NOW, NOW)
    guard.accept("dev_1", "another", NOW - 59, NOW)
    assert kept == {}


class _Slow(str):
    """Others run while it is looked for."""

    __slots__ = ()

    def __hash__(self) -> int:
        threading.Event().wait(0.002)
        return super().__hash__()


def test_of_threads_with_the_same_nonce_one_passes() -> None:
    guard, threads = ReplayGuard(0), 8
    barrier = threading.Barrier(threads)

    def passes(_: int) -> bool:
        barrier.wait(10)
        try:
            guard.accept("dev_1", _Slow("nonce"), NOW, NOW)
        except ReplayError:
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(passes, range(threads))) == 1
