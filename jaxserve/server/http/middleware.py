"""ASGI middleware: root path, request ids and records, connection limit, authentication.

Pure ASGI, because Starlette's BaseHTTPMiddleware hides a client's disconnect from a stream.
"""

import re
import time
import uuid
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxserve.access.keyring import Authenticator
from jaxserve.errors import OverloadedError, StorageError
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.observability.logging import get_logger
from jaxserve.server.errors import ForbiddenError, UnauthorizedError, error_response
from jaxserve.server.http.record import RecordSink, RequestRecord, request_record
from jaxserve.server.transport.http11 import IS_SURPLUS

log = get_logger(__name__)

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
OPEN_PATHS = frozenset({"/api/hello", "/health", "/live", "/ping", "/ready"})
PROBED_PATHS = OPEN_PATHS | {"/metrics"}
IGNORED_HEADER = "x-jaxserve-ignored"


class RootPathMiddleware:
    """Removes the root path that a proxy leaves in request paths.

    The outermost middleware, so that all others see the same paths.
    """

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        root = self._root_path
        if scope["type"] == "http" and f"{scope['path']}/".startswith(f"{root}/"):
            raw = scope["raw_path"]
            path, raw = scope["path"][len(root) :] or "/", raw[len(root.encode()) :] or b"/"
            scope = {**scope, "path": path, "raw_path": raw}
        await self._app(scope, receive, send)


class ObserveMiddleware:
    """Assigns a request id, records the request, and answers unhandled exceptions.

    Once the server is stopping, every answer closes its connection, so that clients reconnect
    elsewhere. A client's x-request-id is logged and returned, and not used for anything else.

    sinks: receive the record of each finished request. strict_fields: whether unknown fields are
    refused.
    """

    def __init__(
        self, app: ASGIApp, *, sinks: Sequence[RecordSink], strict_fields: bool = False
    ) -> None:
        self._app = app
        self._sinks = sinks
        self._strict_fields = strict_fields

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        sent_id = Headers(scope=scope).get("x-request-id", "")
        record = RequestRecord(
            request_id=sent_id if REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex,
            method=scope["method"] if scope["method"] in METHODS else "other",
            ignored=IgnoredFields(is_strict=self._strict_fields),
        )
        scope.setdefault("state", {})["record"] = record

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.request_id
                if scope["app"].state.server.is_stopping:
                    headers["connection"] = "close"
                if ignored := record.ignored.header:
                    headers[IGNORED_HEADER] = ignored
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=record.request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                if record.status:
                    raise
                log.exception("request failed")
                await error_response(error, scope)(scope, receive, send_with_id)
            finally:
                record.seconds = time.monotonic() - began_s
                route = scope.get("route")
                if isinstance(route, Route):
                    record.handler = route.path
                for sink in self._sinks:
                    sink.write(record)


class SurplusMiddleware:
    """Handles connections above the limit: answers probes, refuses the rest, and closes them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if not scope.get("state", {}).get(IS_SURPLUS):
            await self._app(scope, receive, send)
            return

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        app = self._app
        if scope["path"] not in PROBED_PATHS:
            error = OverloadedError("the server has too many connections", retry_after_s=1)
            app = error_response(error, scope)
        await app(scope, receive, send_closing)


class AuthorizeMiddleware:
    """Requires an API key, except for open paths and for CORS preflights (OPTIONS).

    Uses the path of the ASGI scope, never a URL built from the Host header.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        open_paths: AbstractSet[str] = OPEN_PATHS,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the principal of a request and pass it on, or answer 401."""
        is_open = scope["type"] == "lifespan" or (
            scope["type"] == "http"
            and (scope["path"] in self._open_paths or scope["method"] == "OPTIONS")
        )
        if not is_open:
            try:
                principal = self._authenticator.principal(_sent_key(Headers(scope=scope)))
            except StorageError as error:
                await error_response(error, scope)(scope, receive, send)
                return
            if principal is None:
                unauthorized = UnauthorizedError(
                    # Begins with OpenAI's words, by which LiteLLM recognizes the error.
                    "Incorrect API key provided: this server asks for one that it knows,"
                    " as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
                )
                await error_response(unauthorized, scope)(scope, receive, send)
                return
            request_record(scope).principal = principal
        await self._app(scope, receive, send)


class ScopeMiddleware:
    """Refuses requests whose key lacks a scope that the route needs."""

    def __init__(self, app: ASGIApp, *, scopes: Sequence[str]) -> None:
        self._app = app
        self._scopes = scopes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        principal, app = request_record(scope).principal, self._app
        for needed in self._scopes:
            if not principal.has_scope(needed):
                app = error_response(
                    ForbiddenError(
                        f"this API key does not have the scope '{needed}'",
                        param=None,
                        code="insufficient_scope",
                    ),
                    scope,
                )
                break
        await app(scope, receive, send)


def scoped(scopes: Sequence[str], *routes: Route) -> tuple[Route, ...]:
    """Return the routes, which then require these scopes of a request's key."""
    return tuple(
        Route(
            route.path,
            route.endpoint,
            methods=None if route.methods is None else [*route.methods],
            middleware=[Middleware(ScopeMiddleware, scopes=tuple(scopes))],
        )
        for route in routes
    )


def _sent_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        # Anthropic's clients send the key in this header.
        key = headers.get("x-api-key", "")
    return key.strip()
