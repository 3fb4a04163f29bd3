"""Handlers of /v1/batches: requests that run at the lowest priority."""

import time
import uuid
from functools import partial

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.parsing import show
from jaxserve.server.batches.schema import WINDOW_S, Batch, BatchBody, BatchList, Counts
from jaxserve.server.http.answer import json_response
from jaxserve.server.http.bodies import read_as
from jaxserve.server.http.lanes import run_in
from jaxserve.server.http.record import tenant_of
from jaxserve.server.schema.pages import page_of
from jaxserve.server.state import server_state

MAX_LISTED = 100
DEFAULT_LISTED = 20


async def create_batch(http: Request) -> Response:
    """Create a batch."""
    state = server_state(http)
    tenant = tenant_of(http.scope)
    body = await read_as(http, BatchBody)
    # Raises if it does not exist.
    find = partial(state.files.get, tenant, body.input_file_id, param="input_file_id")
    file = await run_in(state.lanes.storage, find)
    if file.purpose != "batch":
        raise InvalidRequestError(
            f"input_file_id must be a file of purpose batch, got one of {show(file.purpose)}",
            param="input_file_id",
        )
    created_at = int(time.time())
    lifetime = body.output_expires_after
    batch = Batch(
        id=f"batch_{uuid.uuid4().hex}",
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        created_at=created_at,
        expires_at=created_at + WINDOW_S,
        request_counts=Counts(),
        metadata=body.metadata,
        output_expires_after_s=UNSET if lifetime is None else lifetime.seconds,
    )
    await run_in(state.lanes.storage, partial(state.batches.add_batch, tenant, batch))
    return json_response(batch)


async def list_batches(http: Request) -> Response:
    """Answer with a page of the tenant's batches, newest first."""
    state = server_state(http)
    batches = await run_in(
        state.lanes.storage, partial(state.batches.batches, tenant_of(http.scope))
    )
    page = page_of(batches, http.query_params, max_limit=MAX_LISTED, default=DEFAULT_LISTED)
    return json_response(BatchList(**page))


async def get_batch(http: Request) -> Response:
    """Answer with the current state of a batch."""
    return json_response(await _found(http))


async def cancel_batch(http: Request) -> Response:
    """Cancel a batch. Its files get the results so far."""
    state, batch = server_state(http), await _found(http)
    return json_response(
        await run_in(state.lanes.storage, partial(state.batches.change, batch.id, _cancel))
    )


async def _found(http: Request) -> Batch:
    """Return the batch that the path names, if the client's tenant owns it."""
    state = server_state(http)
    work = partial(state.batches.batch, tenant_of(http.scope), http.path_params["batch_id"])
    return await run_in(state.lanes.storage, work)


def _cancel(batch: Batch) -> None:
    if batch.status not in {"validating", "in_progress"}:
        raise InvalidRequestError(
            f"only batches that are not finished can be cancelled, this one is {batch.status}",
            param="batch_id",
            code="not_cancellable",
        )
    batch.status = "cancelling"
    batch.cancelling_at = int(time.time())
