"""`GET /status`: who answers here. The only route that needs no signature."""

from __future__ import annotations

from fastapi import APIRouter

from controlplane.auth import BrokerDep
from controlplane.protocol.messages import Status
from controlplane.protocol.version import VERSION

router = APIRouter(tags=["status"])


@router.get("/status")
def status(broker: BrokerDep) -> Status:
    """The broker's version, clock and signing key."""
    return Status(version=VERSION, time=broker.now(), broker_key=broker.signing_key.public_key)
