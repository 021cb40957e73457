"""Messages: unknown fields refused, limits held, and no secret in what is shown of them."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.pretty import pretty_repr

from controlplane.protocol import messages
from controlplane.protocol.enrolment import EnrolmentKey, Invite, InviteKind, encode_pin
from controlplane.protocol.keys import IdentityKey, PrivateKey
from controlplane.protocol.messages import (
    AuthRequest,
    ConnectRequest,
    Heartbeat,
    InviteCreated,
    Location,
    LoginRequest,
    Message,
    Name,
    PersonalKeyRequest,
    RegisterRequest,
    RegisterResponse,
    RegistrationKeyRequest,
    UserName,
)

law = settings(deadline=None)
IDENTITY = str(IdentityKey(bytes(range(32))).public_key)
PUBLIC = str(PrivateKey(bytes(range(32))).public_key)
KEYS = {kind: EnrolmentKey.generate(kind) for kind in InviteKind}
INVITE = Invite("broker.example", 8443, encode_pin(bytes(32)), KEYS[InviteKind.device])
SECRET = "verification-secret-of-this-server"

REQUESTS: dict[type[Message], tuple[str, EnrolmentKey, dict[str, Any]]] = {
    RegisterRequest: (
        "registration_key",
        KEYS[InviteKind.server],
        {"identity": IDENTITY, "public_key": PUBLIC, "name": "fra1", "listen_port": 51820, "version": "1"},
    ),
    AuthRequest: (
        "personal_key",
        KEYS[InviteKind.device],
        {"identity": IDENTITY, "public_key": PUBLIC, "device_name": "laptop", "platform": "linux"},
    ),
    LoginRequest: ("admin_key", KEYS[InviteKind.admin], {"identity": IDENTITY, "machine": "desk"}),
}
CASES = [(model, *rest) for model, rest in REQUESTS.items()]


def models() -> list[type[BaseModel]]:
    return [
        model
        for _, model in inspect.getmembers(messages, inspect.isclass)
        if issubclass(model, Message) and model.__module__ == messages.__name__
    ]


def shown(error: ValidationError) -> str:
    """All that a handler or a log could take from an error."""
    return " ".join([str(error), repr(error), repr(error.errors()), error.json()])


# --- secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "field", "key", "rest"), CASES)
def test_a_request_carries_its_key_in_json_only(
    model: type[Message], field: str, key: EnrolmentKey, rest: dict[str, Any]
) -> None:
    request = model.model_validate({**rest, field: key.reveal()})
    sent = request.model_dump_json()
    assert json.loads(sent)[field] == key.reveal()
    assert model.model_validate_json(sent) == request
    for text in (repr(request), str(request), str(request.model_dump()), pretty_repr(request), f"{request}"):
        assert key.secret not in text


@pytest.mark.parametrize(("model", "field", "key", "rest"), CASES)
def test_no_error_about_a_request_echoes_its_key(
    model: type[Message], field: str, key: EnrolmentKey, rest: dict[str, Any]
) -> None:
    text = key.reveal()
    bodies: list[Any] = [
        {field: text},  # other fields lack
        {**rest, field: text[:-1]},
        {**rest, field: [text]},
        {**rest, field: {"key": text}},
        {**rest, field.replace("_", "-"): text},
        {**rest, field: text, "unknown": text},
        {**rest, field: text, "identity": text},
        text,
        [text],
    ]
    for body in bodies:
        with pytest.raises(ValidationError) as caught:
            model.model_validate(body)
        assert key.secret[:20] not in shown(caught.value), body
        with pytest.raises(ValidationError) as caught:
            model.model_validate_json(json.dumps(body))
        assert key.secret[:20] not in shown(caught.value), body


@pytest.mark.parametrize(("model", "field", "key", "rest"), CASES)
def test_an_error_still_says_where_and_what(
    model: type[Message], field: str, key: EnrolmentKey, rest: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate({**rest, field: key.reveal()[:-1], "identity": "short"})
    found = {error["loc"]: error["msg"] for error in caught.value.errors()}
    assert set(found) == {(field,), ("identity",)}
    assert "was it cut off when copied?" in found[(field,)]
    assert "44 characters" in found[("identity",)]


def test_a_response_shows_its_secret_in_json_only() -> None:
    created = InviteCreated(key_id="key_1", invite=INVITE.reveal(), expires_at=None)
    registered = RegisterResponse.model_validate(
        {
            "server_id": "srv_1",
            "name": "fra1",
            "verification_secret": SECRET,
            "broker_key": IDENTITY,
            "addresses": ["10.64.0.1/20"],
        }
    )
    for response, secret in ((created, INVITE.key.secret), (registered, SECRET)):
        assert secret in response.model_dump_json()
        for text in (repr(response), str(response), pretty_repr(response)):
            assert secret not in text


def test_no_message_has_a_field_for_a_private_key() -> None:
    for model in models():
        for name, field in model.model_fields.items():
            assert "private" not in name
            assert "PrivateKey" not in str(field.annotation)


def test_only_three_requests_take_an_enrolment_key() -> None:
    takers = {m for m in models() for f in m.model_fields.values() if f.annotation is EnrolmentKey}
    assert takers == set(REQUESTS)


# --- form ---------------------------------------------------------------------------------------


def test_every_message_is_frozen_and_refuses_unknown_fields() -> None:
    assert len(models()) > 20
    for model in models():
        assert model.model_config.get("extra") == "forbid", model
        assert model.model_config.get("frozen") is True, model


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ValidationError, match="colour") as caught:
        ConnectRequest.model_validate({"server": "fra1", "colour": "red"})
    assert caught.value.errors()[0]["type"] == "extra_forbidden"


def test_every_message_has_a_json_schema() -> None:
    for model in models():
        assert model.model_json_schema()["additionalProperties"] is False


@pytest.mark.parametrize("name", ["fra1", "a", "A.b-c_d", "x" * 63, " fra1 "])
def test_a_name_is_taken(name: str) -> None:
    assert TypeAdapter(Name).validate_python(name) == name.strip()


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "ä", "x" * 64, "a\nb", "a\x00", "$(x)"])
def test_another_name_is_refused(name: str) -> None:
    for kind in (Name, UserName):
        if not (kind is UserName and name == "x" * 64):
            with pytest.raises(ValidationError):
                TypeAdapter(kind).validate_python(name)


@law
@given(st.text())
def test_a_name_never_holds_what_a_shell_or_a_path_would_obey(text: str) -> None:
    try:
        name = TypeAdapter(Name).validate_python(text)
    except ValidationError:
        return
    assert name.isascii()
    assert name.replace(".", "").replace("_", "").replace("-", "").isalnum()
    assert name[0].isalnum()


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (RegistrationKeyRequest, {"max_uses": 0}),
        (RegistrationKeyRequest, {"max_uses": 1001}),
        (RegistrationKeyRequest, {"expires_in": 59}),
        (RegistrationKeyRequest, {"expires_in": 366 * 24 * 3600 + 1}),
        (PersonalKeyRequest, {"user_name": "alice", "expires_in": 1}),
        (PersonalKeyRequest, {"user_name": "alice", "notes": "x" * 256}),
        (Location, {"country": "de"}),
        (Location, {"country": "DEU"}),
        (Location, {"latitude": 90.1}),
        (Location, {"longitude": -180.1}),
        (Location, {"latitude": float("nan")}),
        (Heartbeat, {"revision": 1, "version": "1", "active_connections": -1}),
        (Heartbeat, {"revision": 1, "version": "1", "active_connections": 0, "metrics": {"x" * 65: 1.0}}),
        (ConnectRequest, {"server": "fra1", "connection_type": "tor"}),
    ],
)
def test_values_out_of_range_are_refused(model: type[Message], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(body)


def test_defaults_are_the_safe_ones() -> None:
    assert RegistrationKeyRequest().max_uses == 1
    assert RegistrationKeyRequest().expires_in == 24 * 3600
    assert PersonalKeyRequest(user_name="alice").expires_in is None
