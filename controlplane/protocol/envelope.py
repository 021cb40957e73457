"""Documents signed by the broker, checked without it: netmaps and device configurations. *Core.*

    signed = seal(update, "netmap", broker_key)
    update = unseal(signed, "netmap", NetMapUpdate, trusted=broker_public_key)

The signature is over `horizon CONTEXT v1`, a newline and the payload's own bytes, so nothing has to be
serialised the same way twice, and a document of one kind never passes for another.
"""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from controlplane.protocol.errors import EnvelopeError
from controlplane.protocol.keys import IdentityKey, IdentityPublicKey

Document = TypeVar("Document", bound=BaseModel)


class Signed(BaseModel):
    """A payload as it was signed, and by whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    payload: str
    """JSON text."""
    signed_by: IdentityPublicKey
    signature: str
    """Ed25519, base64."""


def seal(document: BaseModel, context: str, key: IdentityKey) -> Signed:
    payload = document.model_dump_json()
    signature = key.sign(_message(context, payload))
    return Signed(
        payload=payload,
        signed_by=key.public_key,
        signature=base64.b64encode(signature).decode(),
    )


def unseal(signed: Signed, context: str, model: type[Document], *, trusted: IdentityPublicKey) -> Document:
    """The document, if `trusted` signed it as a `context`; else `EnvelopeError`."""
    if signed.signed_by != trusted:
        raise EnvelopeError(
            f"the {context} is signed by {signed.signed_by}, but this machine trusts the broker "
            f"{trusted}: if the broker was set up anew, join it again"
        )
    try:
        signature = base64.b64decode(signed.signature, validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    if not trusted.verify(_message(context, signed.payload), signature):
        raise EnvelopeError(f"the {context}'s signature is wrong: it was changed on the way")
    try:
        return model.model_validate_json(signed.payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EnvelopeError(f"the {context} is signed but not understood: {where}: {first['msg']}") from None


def _message(context: str, payload: str) -> bytes:
    return f"horizon {context} v1\n{payload}".encode()
