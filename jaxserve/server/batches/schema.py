"""Request and response types of /v1/files and /v1/batches, and the lines of their files."""

from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal

from msgspec import UNSET, Struct
from pydantic import ConfigDict, Field

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.body import Body, Metadata
from jaxserve.frontend.schema.parsing import parse
from jaxserve.server.http.decoding import decode
from jaxserve.server.schema.answers import Maybe

MAX_CUSTOM_ID_CHARS = 512
# A line is a body and little else.
MAX_LINE_BYTES = 2**24
WINDOW_S = 24 * 3600


class ExpiresAfter(Body):
    """Expiry of a file."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


class BatchBody(Body):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class Line(Body):
    """A line of a batch's input file: one request; `model_extra` has its unknown fields."""

    model_config = ConfigDict(extra="allow")

    custom_id: Annotated[str, Field(max_length=MAX_CUSTOM_ID_CHARS)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, from 1.

    Only the beginning of a line above the limit is read, enough to detect it.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        yield number, line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def parse_line(text: bytes) -> Line:
    """Return the request in a line. Raises InvalidRequestError."""
    if len(text) > MAX_LINE_BYTES:
        raise InvalidRequestError(
            f"a line must have at most {MAX_LINE_BYTES} bytes, got more", param=None
        )
    return parse(decode(text), Line)


class LineResponse(Struct):
    """An endpoint's response to a line. body: its JSON."""

    status_code: int
    request_id: str
    body: Any


class LineError(Struct):
    """Reason for which a line has no response."""

    code: str
    message: str


class Result(Struct, kw_only=True):
    """A line of a batch's output or error file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineError | None

    @property
    def is_error(self) -> bool:
        """Whether it belongs to the error file."""
        return self.response is None or self.response.status_code != 200


class File(Struct, kw_only=True):
    """A file."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: Maybe[int] = UNSET
    filename: str
    purpose: str
    status: str = "processed"


class FileList(Struct, kw_only=True):
    """A page of files."""

    object: str = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Struct):
    """Answer of DELETE."""

    id: str
    object: str = "file"
    deleted: bool = True


class Counts(Struct):
    """Number of requests, and of those completed and failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchError(Struct):
    """Error in a line of an input file; lines count from 1."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(Struct):
    """Errors in an input file."""

    data: list[BatchError]
    object: str = "list"


class Batch(Struct, kw_only=True):
    """A batch."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: Maybe[BatchErrors] = UNSET
    input_file_id: str
    completion_window: str
    status: str = "validating"
    output_file_id: Maybe[str] = UNSET
    error_file_id: Maybe[str] = UNSET
    created_at: int
    in_progress_at: Maybe[int] = UNSET
    expires_at: int
    finalizing_at: Maybe[int] = UNSET
    completed_at: Maybe[int] = UNSET
    failed_at: Maybe[int] = UNSET
    expired_at: Maybe[int] = UNSET
    cancelling_at: Maybe[int] = UNSET
    cancelled_at: Maybe[int] = UNSET
    request_counts: Counts
    metadata: dict[str, str] | None = None
    output_expires_after_s: Maybe[int] = UNSET


class BatchList(Struct, kw_only=True):
    """A page of batches."""

    object: str = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
