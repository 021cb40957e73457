"""Signed documents: whole, by the trusted key, of the right kind, or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from controlplane.protocol.envelope import Signed, seal, unseal
from controlplane.protocol.errors import EnvelopeError
from controlplane.protocol.keys import IdentityKey

law = settings(deadline=None)
BROKER, OTHER = IdentityKey(bytes(range(32))), IdentityKey(bytes(range(1, 33)))


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    number: int = 0


class Longer(Document):
    added: int = 1


DOCUMENT = Document(text="hello")
SIGNED = seal(DOCUMENT, "netmap", BROKER)


def refused(signed: Signed, context: str = "netmap") -> str:
    with pytest.raises(EnvelopeError) as caught:
        unseal(signed, context, Document, trusted=BROKER.public_key)
    return str(caught.value)


@law
@given(st.text(st.characters(codec="utf-8")), st.integers(), st.sampled_from(["netmap", "device"]))
def test_a_document_comes_back_whole(text: str, number: int, context: str) -> None:
    document = Document(text=text, number=number)
    signed = Signed.model_validate_json(seal(document, context, BROKER).model_dump_json())
    assert unseal(signed, context, Document, trusted=BROKER.public_key) == document


def test_another_brokers_document_names_both_keys_and_the_fix() -> None:
    said = refused(seal(DOCUMENT, "netmap", OTHER))
    for part in (str(OTHER.public_key), str(BROKER.public_key), "join it again"):
        assert part in said


def test_another_brokers_signature_under_our_brokers_name_is_refused() -> None:
    forged = seal(DOCUMENT, "netmap", OTHER).model_copy(update={"signed_by": BROKER.public_key})
    assert "was changed on the way" in refused(forged)


@law
@given(st.data())
def test_any_changed_character_is_refused(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(SIGNED.payload) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != SIGNED.payload[place]))
    payload = SIGNED.payload[:place] + other + SIGNED.payload[place + 1 :]
    assert "was changed on the way" in refused(SIGNED.model_copy(update={"payload": payload}))


@law
@given(st.text() | st.binary(max_size=70).map(lambda raw: raw.hex()))
def test_any_other_signature_is_refused(signature: str) -> None:
    assert "signature is wrong" in refused(SIGNED.model_copy(update={"signature": signature}))


def test_the_same_json_written_otherwise_is_another_document() -> None:
    payload = json.dumps(json.loads(SIGNED.payload), indent=1)
    refused(SIGNED.model_copy(update={"payload": payload}))


@pytest.mark.parametrize("context", ["device", "", "netmap v1", "netma", "NETMAP"])
def test_a_document_of_one_kind_never_passes_for_another(context: str) -> None:
    assert f"the {context}'s signature is wrong" in refused(SIGNED, context)


def test_a_field_of_a_later_broker_is_named() -> None:
    said = refused(seal(Longer(text="hello"), "netmap", BROKER))
    assert "signed but not understood: added" in said


@pytest.mark.parametrize("field", ["text", "number"])
def test_a_signed_document_with_a_wrong_field_names_it(field: str) -> None:
    wrong = Document.model_construct(**{"text": "x", "number": 1, field: ["no"]})  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="serialized value may not be as expected"):
        signed = seal(wrong, "netmap", BROKER)
    assert f"not understood: {field}: " in refused(signed)


def test_unknown_members_around_the_payload_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Signed.model_validate_json(SIGNED.model_dump_json()[:-1] + ',"extra":1}')
