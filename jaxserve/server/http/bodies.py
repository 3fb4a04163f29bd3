"""Read and parse request bodies without blocking the event loop."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from jaxserve.frontend.schema.body import Body
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import parse
from jaxserve.server.errors import BodyTooLargeError, MediaTypeError
from jaxserve.server.http.body_budget import Lease
from jaxserve.server.http.decoding import decode
from jaxserve.server.http.disconnect import unless_disconnected
from jaxserve.server.http.lanes import run_in
from jaxserve.server.http.record import request_record
from jaxserve.server.state import server_state

# Bodies up to this size are parsed on the event loop, in a few milliseconds at worst.
SMALL_BYTES = 2**15
# Bodies above this size are parsed one at a time.
LARGE_BYTES = 2**20


async def read[T](http: Request, make: Callable[[dict[str, Any], IgnoredFields], T]) -> T:
    """Return the result of `make` for the fields of a body, such as a validated model.

    make: takes the fields, and collects ignored ones. Raises InvalidRequestError if the body is not
    a JSON object, and the errors of `make`.
    """
    check_media_type(http)
    ignored = request_record(http.scope).ignored
    state = server_state(http)
    with state.body_budget.lease() as lease:
        body = await read_body(http, max_bytes=state.config.max_body_bytes, lease=lease)

        def work() -> T:
            return make(decode(body), ignored)

        if len(body) <= SMALL_BYTES:
            return work()
        lane = state.lanes.bodies if len(body) > LARGE_BYTES else state.lanes.prompts
        return await unless_disconnected(http, run_in(lane, work))


async def read_as[T: Body](http: Request, model: type[T]) -> T:
    """Return the body as a model. Raises InvalidRequestError naming the field at fault."""
    return await read(http, lambda fields, ignored: parse(fields, model, ignored))


async def read_body(request: Request, *, max_bytes: int, lease: Lease) -> bytes:
    """Return the body. A declared length above the limit is refused before reading.

    lease: accounts for the body while the caller keeps it. Raises BodyTooLargeError and
    BodiesFullError. Starlette's own limit is not used, because it answers in plain text, which
    OpenAI's clients cannot parse.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLargeError(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError(max_bytes)
        lease.hold(len(body))
    return bytes(body)


def check_media_type(request: Request) -> None:
    """Raise MediaTypeError unless the media type is JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise MediaTypeError
