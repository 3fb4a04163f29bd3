"""Error responses in OpenAI's form, and in Anthropic's for its endpoints."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from jaxserve.errors import (
    EngineDeadError,
    InvalidRequestError,
    JaxserveError,
    OverloadedError,
    StorageError,
    StorageFault,
)

INVALID = "invalid_request_error"
SERVER = "server_error"
MAX_PATH_CHARS = 100
CLIENT_CLOSED_REQUEST = 499
# Errors at this path have Anthropic's form.
MESSAGES_PATH = "/v1/messages"
ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# Restarting an engine takes at least this long.
ENGINE_RETRY_S = 10
STORAGE_RETRY_S = 10


class UnauthorizedError(InvalidRequestError):
    """The request has no API key, or an unknown one."""

    status = 401

    def __init__(self, message: str) -> None:
        super().__init__(message, param=None, code="invalid_api_key")


class BodyTooLargeError(InvalidRequestError):
    """The body exceeds the limit."""

    status = 413

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the request body must be at most {limit} bytes", param=None, code="body_too_large"
        )


class BodiesFullError(OverloadedError):
    """The bodies of concurrent requests exceed the budget."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the bodies of concurrent requests would exceed {limit} bytes: try again later",
            retry_after_s=2.0,
        )


class ForbiddenError(InvalidRequestError):
    """The host or origin of the request is not allowed."""

    status = 403


class MediaTypeError(InvalidRequestError):
    """The media type of the body is not JSON.

    Required against cross-site requests: a web page can send other media types to any server
    without a preflight request.
    """

    status = 415

    def __init__(self) -> None:
        super().__init__(
            "the body must be sent with the header 'Content-Type: application/json'",
            param=None,
            code="unsupported_media_type",
        )


class ShuttingDownError(OverloadedError):
    """The server is stopping: it refuses new requests, and ends those that exceed the timeout."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", retry_after_s=1.0)


class LoadingError(OverloadedError):
    """The server's models are still loading."""

    def __init__(self) -> None:
        super().__init__("the server is loading its model", retry_after_s=5.0)


class EngineSilentError(OverloadedError):
    """The engine is not responding at the moment."""

    def __init__(self) -> None:
        super().__init__("the engine is not responding", retry_after_s=5.0)


class GenerationError(JaxserveError):
    """The engine failed to complete a request, without fault of the client."""


class ErrorBody(msgspec.Struct):
    """The value of the field `error`."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


def describe(error: Exception) -> tuple[int, ErrorBody, dict[str, str]]:
    """Return the HTTP status, the body and the headers for an error."""
    match error:
        case InvalidRequestError():
            return error.status, ErrorBody(error.message, INVALID, error.param, error.code), {}
        case OverloadedError():
            codes = {
                ShuttingDownError: "shutting_down",
                LoadingError: "loading",
                EngineSilentError: "engine_silent",
            }
            code = codes.get(type(error), "overloaded")
            seconds = max(1, math.ceil(error.retry_after_s))
            body = ErrorBody(error.message, SERVER, code=code)
            return 503, body, {"retry-after": str(seconds)}
        case EngineDeadError():
            body = ErrorBody(str(error), SERVER, code="engine_dead")
            return 503, body, {"retry-after": str(ENGINE_RETRY_S)}
        case StorageError(fault=StorageFault.FULL):
            body = ErrorBody(error.message, SERVER, code="storage_full")
            # Otherwise OpenAI's and Anthropic's clients would retry.
            return 507, body, {"x-should-retry": "false"}
        case StorageError():
            body = ErrorBody(error.message, SERVER, code="storage_unavailable")
            return 503, body, {"retry-after": str(STORAGE_RETRY_S)}
        case _:
            message = "the server could not complete the request"
            return 500, ErrorBody(message, SERVER, code="internal_error"), {}


def encode(status: int, body: ErrorBody, *, path: str) -> bytes:
    """Return the JSON of an error, for the body of a response or the data of an event.

    OpenAI's form is `{"error": {message, type, param, code}}`; Anthropic's, used for its paths, has
    only a type and a message.
    """
    if path != MESSAGES_PATH and not path.startswith(f"{MESSAGES_PATH}/"):
        return msgspec.json.encode({"error": body})
    kind = ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": body.message}})


def error_response(error: Exception, scope: Scope) -> Response:
    """Return the response for an error. Errors other than jaxserve's are not described."""
    status, body, headers = describe(error)
    if status == 401:
        headers = {"www-authenticate": "Bearer", **headers}
    if status == 413 or isinstance(error, BodiesFullError):
        # Close instead of reading the rest of the body.
        headers = {"connection": "close", **headers}
    return _json(status, body, headers, scope)


async def on_jaxserve_error(request: Request, error: Exception) -> Response:
    """Answer a JaxserveError."""
    assert isinstance(error, JaxserveError)
    if isinstance(error, StorageError):
        # Details for the operator go to the log only.
        request.scope["state"]["record"].error = str(error)
    return error_response(error, request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer Starlette's own errors, such as unknown paths and methods."""
    assert isinstance(error, HTTPException)
    method, path = request.method[:16], request.scope["path"][:MAX_PATH_CHARS]
    words: Mapping[int, tuple[str, str | None]] = {
        404: (f"there is nothing at {method} {path}", "not_found"),
        405: (f"{method} is not allowed at {path}", "method_not_allowed"),
    }
    message, code = words.get(error.status_code, ("the request was refused", None))
    body = ErrorBody(message, INVALID, code=code)
    return _json(error.status_code, body, dict(error.headers or {}), request.scope)


async def on_client_disconnect(_: Request, __: Exception) -> Response:
    """Return a response for the log only, with nginx's status for a disconnect."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


HANDLERS: Mapping[Any, Any] = {
    JaxserveError: on_jaxserve_error,
    HTTPException: on_http_exception,
    ClientDisconnect: on_client_disconnect,
}


def _json(status: int, body: ErrorBody, headers: Mapping[str, str], scope: Scope) -> Response:
    return Response(
        encode(status, body, path=scope["path"]),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )
