"""The broker as an ASGI application. *Shell.*

Every refusal leaves as an RFC 9457 problem, by one handler for each source: our own errors, FastAPI's
validation, Starlette's HTTP errors, and what nobody foresaw (logged whole, answered without detail).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy import exc
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlplane import upkeep
from controlplane.broker import Broker
from controlplane.errors import BodyTooLarge, BrokerError, Busy, problem_of
from controlplane.protocol.errors import PROBLEM_MEDIA_TYPE, Problem, ProtocolError
from controlplane.protocol.messages import API, MAX_BODY
from controlplane.protocol.version import VERSION
from controlplane.routes import admin, connections, enrolment, netmap, servers, status

log = logging.getLogger(__name__)
_SECRET_FIELDS = {"registration_key", "personal_key", "admin_key"}


def create_app(broker: Broker) -> FastAPI:
    """The application over an open broker; it closes the broker at shutdown."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        broker: Broker = app.state.broker
        loop = asyncio.get_running_loop()
        broker.notifier.bind(loop)
        broker.applied.bind(loop)
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(upkeep.keep(broker))
                yield
                task.cancel()
        finally:
            broker.close()

    app = FastAPI(
        title="Horizon broker",
        version=VERSION,
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.broker = broker
    for module in (status, enrolment, servers, netmap, connections, admin):
        app.include_router(module.router, prefix=API)
    app.add_middleware(BodyLimit)
    app.add_exception_handler(BrokerError, _refused)
    app.add_exception_handler(ProtocolError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(exc.OperationalError, _database_error)
    app.add_exception_handler(exc.TimeoutError, _database_error)
    app.add_exception_handler(Exception, _unforeseen)
    return app


def respond(problem: Problem) -> Response:
    return Response(problem.model_dump_json(), problem.status, media_type=PROBLEM_MEDIA_TYPE)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, BrokerError | ProtocolError)  # noqa: S101  (registered for these)
    return respond(problem_of(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = [_fault(fault) for fault in error.errors()[:10]]
    return respond(Problem.of("invalid-request", 422, "; ".join(faults)))


def _fault(fault: dict[str, object]) -> str:
    """One validation error in words: where, what, and the value unless it is a secret."""
    location = fault.get("loc")
    parts = [str(part) for part in location] if isinstance(location, tuple) else []
    where = ".".join(parts[1:] or parts) or "body"
    text = f"{where}: {fault.get('msg')}"
    value = fault.get("input")
    if isinstance(value, str | int | float) and not _SECRET_FIELDS & set(parts):
        text += f" (given {str(value)[:80]!r})"
    return text


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    code = {404: "no-such-route", 405: "method-not-allowed"}.get(error.status_code, "http-error")
    detail = f"{request.method} {request.url.path}: {error.detail}"
    return respond(Problem.of(code, error.status_code, detail))


async def _database_error(request: Request, error: Exception) -> Response:
    """A database that others hold too long is a reason to try again; any other fault is unforeseen."""
    if isinstance(error, exc.OperationalError) and "locked" not in str(error.orig):
        raise error
    log.warning("%s %s: %s", request.method, request.url.path, error)
    return respond(problem_of(Busy("the broker's database is busy: try again in some seconds")))


async def _unforeseen(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return respond(Problem.of("internal-error", 500, "the broker failed on this request; its log says why"))


class BodyLimit:
    """Refuses a request body above `MAX_BODY`, whether it declares its length or not.

    The body is read here: an error raised from `receive` would reach the framework, which calls any
    failure to read a body a 400.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = BodyTooLarge(f"the request body is larger than {MAX_BODY} bytes")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            await respond(problem_of(error))(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY:
                await respond(problem_of(error))(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def read() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, read, send)
