"""Handlers of /v1/files, which batches read and write."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import IO, Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive

from jaxserve.database import storage_faults
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.parsing import parse, show
from jaxserve.server.batches.schema import ExpiresAfter, File, FileDeleted, FileList
from jaxserve.server.errors import BodyTooLargeError
from jaxserve.server.http.answer import json_response
from jaxserve.server.http.body_budget import Lease
from jaxserve.server.http.lanes import run_in
from jaxserve.server.http.record import tenant_of
from jaxserve.server.schema.pages import page_of
from jaxserve.server.state import server_state

# OpenAI's limit for the input of a batch.
MAX_FILE_BYTES = 200 * 2**20
# Limit of the form's other fields.
MAX_FORM_BYTES = 2**16
MAX_FILENAME_CHARS = 255
PIECE_BYTES = 2**20
MAX_LISTED = 10_000


async def upload_file(http: Request) -> Response:
    """Store a file, sent as a multipart form with its purpose."""
    state = server_state(http)
    async with _form(http) as form:
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise InvalidRequestError(
                "file is required: the body must be a multipart form with a file in it",
                param="file",
                code="missing_field",
            )
        if purpose != "batch":
            raise InvalidRequestError(
                f"purpose must be batch, which is all that files are for here, got {show(purpose)}",
                param="purpose",
            )
        work = partial(
            state.files.add,
            tenant_of(http.scope),
            _pieces(upload.file),
            filename=(upload.filename or "")[:MAX_FILENAME_CHARS],
            purpose=purpose,
            lifetime_s=_lifetime_s(form),
        )
        return json_response(await run_in(state.lanes.storage, work))


async def list_files(http: Request) -> Response:
    """Answer with a page of the tenant's files."""
    state = server_state(http)
    work = partial(
        state.files.all_of, tenant_of(http.scope), purpose=http.query_params.get("purpose")
    )
    files = await run_in(state.lanes.storage, work)
    if http.query_params.get("order", "desc") == "desc":
        files.reverse()
    page = page_of(files, http.query_params, max_limit=MAX_LISTED, default=MAX_LISTED)
    return json_response(FileList(**page))


async def get_file(http: Request) -> Response:
    """Answer with the description of a file."""
    return json_response(await _found(http))


async def get_file_content(http: Request) -> Response:
    """Answer with the content of a file."""
    state, file = server_state(http), await _found(http)
    path = await run_in(state.lanes.storage, partial(state.files.content, file.id))
    return FileResponse(path, media_type="application/octet-stream")


async def delete_file(http: Request) -> Response:
    """Delete a file."""
    state = server_state(http)
    file_id = http.path_params["file_id"]
    await run_in(state.lanes.storage, partial(state.files.delete, tenant_of(http.scope), file_id))
    return json_response(FileDeleted(file_id))


async def _found(http: Request) -> File:
    """Return the file that the path names, if the client's tenant owns it."""
    state = server_state(http)
    work = partial(state.files.get, tenant_of(http.scope), http.path_params["file_id"])
    return await run_in(state.lanes.storage, work)


@asynccontextmanager
async def _form(http: Request) -> AsyncIterator[FormData]:
    """Yield the form of a request; long fields are in temporary files.

    A file with a declared length for which there is no room is refused before it is read.
    """
    limit = MAX_FILE_BYTES + MAX_FORM_BYTES
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLargeError(limit)
    state = server_state(http)
    least = max(1, int(declared) - MAX_FORM_BYTES) if declared.isdecimal() else 1
    await run_in(state.lanes.storage, partial(state.files.check_room, least))
    with state.upload_budget.lease() as lease:
        async with _read_form(Request(http.scope, _limited(http.receive, limit, lease))) as form:
            yield form


@asynccontextmanager
async def _read_form(limited: Request) -> AsyncIterator[FormData]:
    try:
        with storage_faults(Path(gettempdir())):
            form = await limited.form(max_files=1, max_fields=8, max_part_size=MAX_FORM_BYTES)
    except HTTPException as error:
        raise InvalidRequestError(
            "the body must be a multipart form of one file and few short fields",
            param=None,
            code="invalid_form",
        ) from error
    try:
        yield form
    finally:
        await form.close()


def _limited(receive: Receive, limit: int, lease: Lease) -> Receive:
    num_bytes = 0

    async def limited() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            raise BodyTooLargeError(limit)
        lease.hold(num_bytes)
        return message

    return limited


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _lifetime_s(form: FormData) -> int | None:
    """Return the requested lifetime of a file in seconds; None for no limit."""
    fields: dict[str, Any] = {
        name: form[f"expires_after[{name}]"]
        for name in ("anchor", "seconds")
        if f"expires_after[{name}]" in form
    }
    if not fields:
        return None
    seconds = fields.get("seconds")
    if isinstance(seconds, str) and seconds.isdecimal() and len(seconds) < 10:
        fields["seconds"] = int(seconds)
    try:
        return parse(fields, ExpiresAfter).seconds
    except InvalidRequestError as error:
        error.param = f"expires_after.{error.param}"
        raise
