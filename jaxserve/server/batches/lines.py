"""Lines of a batch: reading, validating, and answering them with the application's endpoints."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxserve.access.principal import Principal
from jaxserve.database import storage_faults
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.literals import encode_json
from jaxserve.server.batches.schema import (
    BatchError,
    Line,
    LineError,
    LineResponse,
    Result,
    lines_of,
    parse_line,
)
from jaxserve.server.errors import error_response
from jaxserve.server.http.record import request_record

MAX_LINES = 50_000
MAX_ERRORS = 100
# Maximum interval between two yields of `answer_all`.
POLL_S = 0.5
MIN_RETRY_S = 1.0
MAX_RETRY_S = 30.0
OVERLOADED = 503

type Numbered = tuple[int, Line]


class BatchLineMiddleware:
    """Middleware that marks a request as a line of a batch, with its tenant."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one line."""
        record = request_record(scope)
        record.principal = Principal(scope["state"]["tenant"])
        record.batch = scope["state"]["batch"]
        app = self._app
        try:
            for name in scope["state"]["ignored"]:
                record.ignored.add((name,))
        except InvalidRequestError as error:
            app = error_response(error, scope)
        await app(scope, receive, send)


class LineRunner:
    """Answers lines with the application's own endpoints, without HTTP."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def answer_all(
        self, lines: Iterable[Numbered], *, concurrency: int, tenant: str = "", batch: str = ""
    ) -> AsyncGenerator[list[tuple[int, Result]]]:
        """Yield results with line numbers, in groups, as they arrive.

        Yields at least every POLL_S seconds, possibly an empty list. concurrency: number of lines
        answered at once. Closing the generator cancels the others.
        """
        rest = iter(lines)
        running: dict[asyncio.Task[Result], int] = {}
        try:
            while True:
                for number, line in islice(rest, concurrency - len(running)):
                    answer = self._answer(line, tenant=tenant, batch=batch)
                    running[asyncio.create_task(answer)] = number
                if not running:
                    return
                done, _ = await asyncio.wait(
                    running, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED
                )
                yield [(running.pop(task), task.result()) for task in done]
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _answer(self, line: Line, *, tenant: str, batch: str) -> Result:
        """Return the result of a line; wait while the server is full or has no engine."""
        if line.body.get("stream"):
            body = {"message": "stream must be false in a batch, got True", "param": "stream"}
            error = {"error": {**body, "type": "invalid_request_error", "code": None}}
            return result_of(line, response=LineResponse(400, uuid.uuid4().hex, error))
        delay_s = MIN_RETRY_S
        while True:
            state = {"tenant": tenant, "batch": batch, "ignored": (*(line.model_extra or ()),)}
            status, request_id, body = await _post(self._app, line, state)
            if status != OVERLOADED:
                return result_of(line, response=LineResponse(status, request_id, body))
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MAX_RETRY_S)


def read_lines(path: Path) -> Iterator[Numbered]:
    """Yield the requests of an input file with their line numbers.

    Raises InvalidRequestError for an invalid line, and StorageError if the file cannot be read.
    """
    with storage_faults(path), path.open("rb") as file:
        for number, text in lines_of(file):
            if text.strip():
                yield number, parse_line(text)


def check_lines(path: Path, endpoint: str | None) -> tuple[int, list[BatchError]]:
    """Return the number of requests in a file, and its errors.

    endpoint: required endpoint of all requests; None for any. Raises StorageError if the file
    cannot be read.
    """
    errors: list[BatchError] = []
    seen: set[str] = set()
    with storage_faults(path), path.open("rb") as file:
        for number, text in lines_of(file):
            if not text.strip() or len(errors) == MAX_ERRORS:
                continue
            try:
                line = parse_line(text)
            except InvalidRequestError as error:
                errors.append(
                    BatchError(error.code or "invalid_line", error.message, error.param, number)
                )
                continue
            if endpoint is not None and line.url != endpoint:
                message = f"url must be the batch's endpoint, {endpoint}"
                errors.append(BatchError("mismatched_endpoint", message, "url", number))
            elif line.custom_id in seen:
                message = "custom_id must not come twice"
                errors.append(BatchError("duplicate_custom_id", message, "custom_id", number))
            seen.add(line.custom_id)
    if not seen and not errors:
        errors.append(BatchError("empty_file", "the input file has no requests", None, None))
    if len(seen) > MAX_LINES:
        message = f"a batch has at most {MAX_LINES} requests, got {len(seen)}"
        errors.append(BatchError("too_many_requests", message, None, None))
    return len(seen), errors


def result_of(
    line: Line, *, response: LineResponse | None = None, error: LineError | None = None
) -> Result:
    """Return the result of a line: the endpoint's response, or an error."""
    return Result(
        id=f"batch_req_{uuid.uuid4().hex}",
        custom_id=line.custom_id,
        response=response,
        error=error,
    )


async def _post(app: ASGIApp, line: Line, state: dict[str, Any]) -> tuple[int, str, Any]:
    """Call the application for a line; return status, request id and JSON."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": line.method,
        "scheme": "http",
        "path": line.url,
        "raw_path": line.url.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "state": state,
    }
    request: list[Message] = [
        {"type": "http.request", "body": encode_json(line.body), "more_body": False}
    ]
    answer: list[Message] = []

    async def receive() -> Message:
        if request:
            return request.pop()
        # The client never disconnects.
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await never

    async def send(message: Message) -> None:
        answer.append(message)

    await app(scope, receive, send)
    headers = dict(answer[0]["headers"])
    body = b"".join(message.get("body", b"") for message in answer[1:])
    return answer[0]["status"], headers[b"x-request-id"].decode(), msgspec.json.decode(body)
