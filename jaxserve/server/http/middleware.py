"""What happens around every request: an id, a log line, a count; and asking for the key.

Pure ASGI: Starlette's BaseHTTPMiddleware would stand between a stream and its client's leaving.
"""

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxserve.errors import OverloadedError
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.observability.ignored_fields import IgnoredLog
from jaxserve.observability.logging import get_logger
from jaxserve.observability.metrics import Metrics
from jaxserve.server.errors import UnauthorizedError, error_response
from jaxserve.server.transport.http11 import IS_SURPLUS

log = get_logger(__name__)

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
OPEN_PATHS = frozenset({"/api/hello", "/health", "/live", "/ping", "/ready"})
PROBED_PATHS = OPEN_PATHS | {"/metrics"}
IGNORED_HEADER = "x-jaxserve-ignored"


@dataclass(slots=True)
class AccessRecord:
    """What the log line of a request says beside its path and status; endpoints fill it in.

    ignored: fields of the body that nothing reads, for the answer's header.
    """

    request_id: str
    ignored: IgnoredFields = field(default_factory=IgnoredFields)
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    key_id: str | None = None
    batch: str | None = None


LOGGED = tuple(each.name for each in fields(AccessRecord) if each.name != "ignored")


def access_record(scope: Scope) -> AccessRecord:
    """Return the record of the request in hand."""
    record: AccessRecord = scope["state"]["access"]
    return record


def owner_of(scope: Scope) -> str:
    """Return whose things the request in hand may see: those of its API key."""
    return access_record(scope).key_id or ""


class RootPathMiddleware:
    """Takes the prefix off the paths of requests that a proxy forwards with it.

    It is the outermost, so that everything inside decides by the same paths.
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
    """Gives a request its id, counts it, logs it, and answers for faults of ours.

    Once the server stops, every answer closes its connection, so that clients go elsewhere.

    A client's own x-request-id is logged and sent back; nothing is ever looked up by it.
    access_log: whether requests are logged at the level info; those to quiet_paths never are,
    unless they fail. ignored_log: notes the fields that nothing reads. strict_fields: whether
    unknown fields are refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        ignored_log: IgnoredLog,
        access_log: bool = True,
        quiet_paths: Sequence[str] = (),
        strict_fields: bool = False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._ignored_log = ignored_log
        self._strict_fields = strict_fields
        self._access_log = access_log
        self._quiet_paths = PROBED_PATHS | {*quiet_paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        record = AccessRecord(request_id, IgnoredFields(is_strict=self._strict_fields))
        scope.setdefault("state", {})["access"] = record
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if scope["app"].state.server.is_stopping:
                    headers["connection"] = "close"
                if ignored := record.ignored.header:
                    headers[IGNORED_HEADER] = ignored
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                if status:
                    raise
                log.exception("request failed")
                await error_response(error, scope)(scope, receive, send_with_id)
            finally:
                self._report(scope, record, status=status, seconds=time.monotonic() - began_s)

    def _report(self, scope: Scope, record: AccessRecord, *, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = scope.get("route")
        handler = route.path if isinstance(route, Route) else "unmatched"
        self._metrics.observe_http(method, handler, status)
        for name, is_hint in record.ignored.names.items():
            label = self._ignored_log.note(name, is_hint=is_hint)
            self._metrics.observe_ignored_field(label)
        # Probes come every second or so: at that rate they would be most of the log.
        is_quiet = handler in self._quiet_paths and status < 400
        write = log.info if self._access_log and not is_quiet else log.debug
        known = {name: getattr(record, name) for name in LOGGED}
        known = {name: value for name, value in known.items() if value is not None}
        write("request", method=method, path=handler, status=status, seconds=seconds, **known)


class SurplusMiddleware:
    """Answers probes on connections beyond the limit, refuses all else, and closes them."""

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
            error = OverloadedError("the server has as many connections as it may", retry_after_s=1)
            app = error_response(error, scope)
        await app(scope, receive, send_closing)


class AuthorizeMiddleware:
    """Asks for an API key at every path but the open ones. Preflights (OPTIONS) carry none.

    Decides by the path of the ASGI scope, never by a URL made with the Host header. Keys are
    compared as digests, in a time that tells nothing of how much of one was right.
    """

    def __init__(
        self, app: ASGIApp, *, api_keys: Sequence[str], open_paths: AbstractSet[str] = OPEN_PATHS
    ) -> None:
        self._app = app
        self._open_paths = open_paths
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass or answer 401."""
        is_open = scope["type"] == "lifespan" or (
            scope["type"] == "http"
            and (scope["path"] in self._open_paths or scope["method"] == "OPTIONS")
        )
        if not is_open:
            digest = self._known(Headers(scope=scope))
            if digest is None:
                error = UnauthorizedError(
                    # OpenAI's words to begin with: LiteLLM knows the error by them.
                    "Incorrect API key provided: this server asks for one that it knows,"
                    " as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
                )
                await error_response(error, scope)(scope, receive, send)
                return
            access_record(scope).key_id = digest.hex()[:12]
        await self._app(scope, receive, send)

    def _known(self, headers: Headers) -> bytes | None:
        """Return the digest of a known key, after looking at all of them."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            # Anthropic's way of sending a key.
            key = headers.get("x-api-key", "")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest if any(matches) else None
