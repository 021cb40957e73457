"""The typed client of the broker's API. *Shell.*

    async with BrokerClient(address, signer) as broker:
        servers = await broker.servers()

Every request is signed (RFC 9421) and goes over TLS pinned to the broker's key. A refusal is raised as
`ProblemError`, no answer as `BrokerUnreachable`, another key as `PinMismatch` before anything was sent.
`AdminClient` adds what administrators do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from controlplane.client.pinning import pin_mismatch, pinned_context
from controlplane.protocol.enrolment import Invite
from controlplane.protocol.envelope import Signed
from controlplane.protocol.errors import BrokerUnreachable, Problem, ProblemError
from controlplane.protocol.keys import IdentityKey
from controlplane.protocol.messages import (
    API,
    AdminMachineList,
    AuthRequest,
    AuthResponse,
    ConnectionInfo,
    ConnectionList,
    ConnectRequest,
    ConnectResponse,
    DeviceList,
    ExportRequest,
    ExportResponse,
    Heartbeat,
    InviteCreated,
    LoginRequest,
    LoginResponse,
    PersonalKeyList,
    PersonalKeyRequest,
    RegisterRequest,
    RegisterResponse,
    RegistrationKeyList,
    RegistrationKeyRequest,
    ServerChange,
    ServerInfo,
    ServerList,
    Status,
)
from controlplane.protocol.signing import sign_request

Answer = TypeVar("Answer", bound=BaseModel)
TIMEOUT = 15.0
"""Seconds for an answer, beside what a long-poll asks for."""
KEEPALIVE = 70.0
"""Seconds an idle connection is kept: a TLS handshake less for who connects after looking around. Below
the broker's own 75 s, so that it is never the broker who closes one that is about to be used."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is and the pin of its TLS key: an invite without its key."""

    url: str
    pin: str

    @classmethod
    def of(cls, invite: Invite) -> BrokerAddress:
        return cls(invite.url, invite.pin)


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs: the identity, and the id under which the broker knows it."""

    key: IdentityKey
    key_id: str

    @classmethod
    def enrolling(cls, key: IdentityKey) -> Signer:
        """Before there is an id: the public key itself."""
        return cls(key, str(key.public_key))


class BrokerClient:
    """One keep-alive connection pool to one broker."""

    def __init__(
        self,
        address: BrokerAddress,
        signer: Signer,
        *,
        clock: Callable[[], float] = time.time,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.address = address
        self._signer = signer
        self._clock = clock
        self._http = httpx2.AsyncClient(
            base_url=address.url + API,
            verify=pinned_context(address.pin),
            timeout=httpx2.Timeout(TIMEOUT, connect=5.0),
            transport=transport,
            trust_env=False,
            limits=httpx2.Limits(keepalive_expiry=KEEPALIVE),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # --- for everyone -----------------------------------------------------------------------

    async def status(self) -> Status:
        return await self._ask(Status, "GET", "/status")

    async def register(self, request: RegisterRequest) -> RegisterResponse:
        return await self._ask(RegisterResponse, "POST", "/register", request)

    async def authenticate(self, request: AuthRequest) -> AuthResponse:
        return await self._ask(AuthResponse, "POST", "/auth", request)

    # --- servers and devices ----------------------------------------------------------------

    async def servers(self) -> tuple[ServerInfo, ...]:
        return (await self._ask(ServerList, "GET", "/servers")).servers

    async def netmap(self, since: int | None = None, wait: float = 0) -> Signed | None:
        """What changed after revision `since`, within `wait` seconds; None if nothing did."""
        query: dict[str, str | int | float] = {} if since is None else {"since": since}
        response = await self._send("GET", "/netmap", query={**query, "wait": wait}, wait=wait)
        return None if response.status_code == 204 else _read(Signed, response)

    async def connect(self, request: ConnectRequest) -> ConnectResponse:
        return await self._ask(ConnectResponse, "POST", "/connections", request)

    async def connections(self, include_ended: bool = False) -> tuple[ConnectionInfo, ...]:
        query = {"include_ended": "true"} if include_ended else {}
        return (await self._ask(ConnectionList, "GET", "/connections", query=query)).connections

    async def disconnect(self, connection_id: str) -> ConnectionInfo:
        return await self._ask(ConnectionInfo, "DELETE", f"/connections/{_segment(connection_id)}")

    async def heartbeat(self, beat: Heartbeat) -> None:
        await self._send("POST", "/heartbeat", beat)

    # --- the wire ---------------------------------------------------------------------------

    async def _ask(
        self,
        answer: type[Answer],
        method: str,
        path: str,
        body: BaseModel | None = None,
        query: dict[str, Any] | None = None,
    ) -> Answer:
        return _read(answer, await self._send(method, path, body, query))

    async def _send(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        query: dict[str, Any] | None = None,
        wait: float = 0,
    ) -> httpx2.Response:
        content = b"" if body is None else body.model_dump_json().encode()
        timeout = httpx2.Timeout(TIMEOUT + wait, connect=5.0)
        request = self._http.build_request(method, path, content=content, params=query, timeout=timeout)
        if content:
            request.headers["Content-Type"] = "application/json"
        signature = sign_request(
            method,
            str(request.url),
            content,
            key=self._signer.key,
            key_id=self._signer.key_id,
            created=self._clock(),
        )
        request.headers.update(signature)
        try:
            response = await self._http.send(request)
        except httpx2.RequestError as error:
            raise pin_mismatch(error) or BrokerUnreachable(
                f"no answer from the broker at {self.address.url}: {str(error) or type(error).__name__}"
            ) from error
        if response.is_success:
            return response
        raise ProblemError(_problem(response))


class AdminClient(BrokerClient):
    """What administrators do."""

    async def login(self, request: LoginRequest) -> LoginResponse:
        return await self._ask(LoginResponse, "POST", "/admin/login", request)

    async def create_registration_key(self, request: RegistrationKeyRequest) -> InviteCreated:
        return await self._ask(InviteCreated, "POST", "/admin/registration-keys", request)

    async def registration_keys(self) -> RegistrationKeyList:
        return await self._ask(RegistrationKeyList, "GET", "/admin/registration-keys")

    async def revoke_registration_key(self, key_id: str) -> None:
        await self._send("DELETE", f"/admin/registration-keys/{_segment(key_id)}")

    async def create_personal_key(self, request: PersonalKeyRequest) -> InviteCreated:
        return await self._ask(InviteCreated, "POST", "/admin/personal-keys", request)

    async def personal_keys(self) -> PersonalKeyList:
        return await self._ask(PersonalKeyList, "GET", "/admin/personal-keys")

    async def revoke_personal_key(self, key_id: str) -> None:
        await self._send("DELETE", f"/admin/personal-keys/{_segment(key_id)}")

    async def machines(self) -> AdminMachineList:
        return await self._ask(AdminMachineList, "GET", "/admin/machines")

    async def revoke_machine(self, machine_id: str) -> None:
        await self._send("DELETE", f"/admin/machines/{_segment(machine_id)}")

    async def devices(self, include_revoked: bool = False) -> DeviceList:
        return await self._ask(DeviceList, "GET", "/admin/devices", query=_revoked(include_revoked))

    async def revoke_device(self, device_id: str) -> None:
        await self._send("DELETE", f"/admin/devices/{_segment(device_id)}")

    async def all_servers(self, include_revoked: bool = False) -> ServerList:
        return await self._ask(ServerList, "GET", "/admin/servers", query=_revoked(include_revoked))

    async def change_server(self, server: str, change: ServerChange) -> ServerInfo:
        return await self._ask(ServerInfo, "PATCH", f"/admin/servers/{_segment(server)}", change)

    async def revoke_server(self, server: str) -> None:
        await self._send("DELETE", f"/admin/servers/{_segment(server)}")

    async def export(self, request: ExportRequest) -> ExportResponse:
        return await self._ask(ExportResponse, "POST", "/exports", request)


def _segment(text: str) -> str:
    """Somebody's text as one segment of a path."""
    return quote(text, safe="")


def _revoked(include: bool) -> dict[str, Any]:
    return {"include_revoked": "true"} if include else {}


def _read(answer: type[Answer], response: httpx2.Response) -> Answer:
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        raise BrokerUnreachable(
            f"the broker's answer to {response.request.url.path} is not understood "
            f"({error.error_count()} faults): do broker and agent have the same version?"
        ) from None


def _problem(response: httpx2.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return Problem.of(
            "http-error",
            response.status_code,
            f"HTTP {response.status_code} from {response.request.url.path}",
        )
