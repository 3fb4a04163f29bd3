"""Handlers of /v1/responses, whose responses can be stored and continued."""

import asyncio
import time
import uuid
from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse

from jaxserve.errors import InvalidRequestError, JaxserveError, StorageError
from jaxserve.frontend.chat import Chat
from jaxserve.frontend.schema.parsing import parse, renamed
from jaxserve.observability.logging import get_logger
from jaxserve.server.chat.pieces import ChatAnswer, chat_body
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.generation.prompts import encode_chat
from jaxserve.server.http.answer import json_response
from jaxserve.server.http.bodies import read_as
from jaxserve.server.http.disconnect import unless_disconnected
from jaxserve.server.http.lanes import run_in
from jaxserve.server.http.record import request_record, tenant_of
from jaxserve.server.http.sse import EventStream, tagged_event
from jaxserve.server.models import ServedModel
from jaxserve.server.responses.answers import InputTokens, ItemList, Response, ResponseDeleted
from jaxserve.server.responses.items import ITEMS, Item, with_ids
from jaxserve.server.responses.schema import ResponsePrompt, ResponsesBody
from jaxserve.server.responses.store import BEAT_S, ResponseStore
from jaxserve.server.responses.tools import targets
from jaxserve.server.responses.writer import ResponseWriter, response_error
from jaxserve.server.state import ServerState, server_state

log = get_logger(__name__)

# Maximum time for which storing a background response is retried.
FINISH_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)


async def create_response(http: HttpRequest) -> HttpResponse:
    """Create a response: whole, as a stream, or in the background."""
    state = server_state(http)
    body = await _read(http, ResponsesBody)
    body.check()
    earlier = await _earlier_items(http, body)

    def make() -> tuple[dict[str, str], ChatBody]:
        start = _first_item(state.router.model(body.model), body, earlier)
        fields = body.chat(earlier, start=start)
        names = body.field_names(earlier, fields, start=start)
        with renamed(names):
            return names, chat_body(fields, ChatBody)

    names, chat = await run_in(state.lanes.prompts, make)
    with renamed(names):
        answer = await ChatAnswer.begin(http, chat)
    writer = ResponseWriter(
        answer,
        _begin(answer, body),
        targets(body.tools),
        tells_messages=body.enable_response_messages,
    )
    work = Work(state, writer, body, tenant=tenant_of(http.scope))
    if body.background:
        return json_response(await work.in_background())
    if body.stream:
        return EventStream(work.stream(), error_name="error")
    return json_response(await unless_disconnected(http, work.whole()))


async def get_response(http: HttpRequest) -> HttpResponse:
    """Answer with a stored response."""
    stored = await _in_store(http, ResponseStore.get)
    return json_response(stored.response)


async def delete_response(http: HttpRequest) -> HttpResponse:
    """Delete a stored response."""
    await _in_store(http, ResponseStore.delete)
    return json_response(ResponseDeleted(http.path_params["response_id"]))


async def cancel_response(http: HttpRequest) -> HttpResponse:
    """Cancel a response that runs in the background."""
    return json_response(await _in_store(http, ResponseStore.cancel))


async def list_input_items(http: HttpRequest) -> HttpResponse:
    """Answer with the input items of a stored response."""
    items = (await _in_store(http, ResponseStore.get)).input
    ids = [item["id"] for item in items] or [None]
    return json_response(ItemList(items, ids[0], ids[-1]))


async def count_input_tokens(http: HttpRequest) -> HttpResponse:
    """Answer with the number of prompt tokens that a response would have."""
    state = server_state(http)
    body = await _read(http, ResponsePrompt)
    earlier = await _earlier_items(http, body)
    model, ignored = state.router.model(body.model), request_record(http.scope).ignored

    def work() -> int:
        start = _first_item(model, body, earlier)
        fields = body.chat(earlier, start=start)
        with renamed(body.field_names(earlier, fields, start=start)):
            return len(encode_chat(model, parse(fields, Chat), ignored))

    return json_response(InputTokens(await run_in(state.lanes.prompts, work)))


class Work:
    """The creation of one response, which is stored if the request asks for it."""

    def __init__(
        self, state: ServerState, writer: ResponseWriter, body: ResponsesBody, *, tenant: str
    ) -> None:
        self._state = state
        self._writer = writer
        self._body = body
        self._tenant = tenant

    async def whole(self) -> Response:
        """Return the complete response."""
        await self._run()
        await self._keep()
        if self._writer.failure is not None:
            raise self._writer.failure
        return self._writer.response

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the response's events.

        It is stored before the last event, so that a client can continue it as soon as it has that
        event.
        """
        async with aclosing(self._writer.events()) as steps:
            async for events in steps:
                if self._writer.response.status != "in_progress":
                    await self._keep()
                yield b"".join(map(tagged_event, events))

    async def in_background(self) -> dict[str, Any]:
        """Start in the background, and return the response as stored."""
        self._writer.response.status = "queued"
        await self._keep()
        queued: dict[str, Any] = msgspec.to_builtins(self._writer.response)
        self._writer.response.status = "in_progress"
        task = asyncio.create_task(self._run_and_finish())
        self._state.background.add(task)
        task.add_done_callback(self._state.background.discard)
        return queued

    async def _run(self) -> None:
        async with aclosing(self._writer.events()) as steps:
            async for _ in steps:
                pass

    async def _run_and_finish(self) -> None:
        """Create the response, unless it is cancelled or deleted meanwhile."""
        response = self._writer.response
        task = asyncio.create_task(self._run())
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=BEAT_S)
                if not await self._is_wanted():
                    return
            task.result()
        except Exception as error:
            if not isinstance(error, JaxserveError):
                log.exception("a response in the background failed")
            response.status = "failed"
            response.error = response_error(error)
        finally:
            task.cancel()
            await asyncio.wait({task})
        await self._finish()

    async def _is_wanted(self) -> bool:
        beat = partial(self._state.responses.beat, self._writer.response.id)
        try:
            return await run_in(self._state.lanes.storage, beat)
        except StorageError:
            # The storage may work again when the response is complete.
            return True

    async def _finish(self) -> None:
        """Store a background response, retrying while the storage fails.

        Clients have no other way to get it.
        """
        finish = partial(self._state.responses.finish, self._writer.response)
        for delay_s in FINISH_DELAYS_S:
            try:
                await run_in(self._state.lanes.storage, finish)
            except StorageError as error:
                log.error("a response in the background is not kept yet", reason=str(error))
                await asyncio.sleep(delay_s)
            else:
                return
        log.error("a response in the background is lost", response=self._writer.response.id)

    async def _keep(self) -> None:
        """Store the response if requested. Raises StorageError."""
        if not self._body.store:
            return

        def work() -> None:
            response = self._writer.response
            items = with_ids(self._body.input, response.id)
            self._state.responses.put(self._tenant, response, items)

        try:
            await run_in(self._state.lanes.storage, work)
        except StorageError as error:
            # Errors of a stream that has started are not logged elsewhere.
            log.error("a response could not be kept", reason=str(error))
            raise


def _begin(answer: ChatAnswer, body: ResponsesBody) -> Response:
    """Return a response that has not started: the fields of the request, with defaults."""
    text = {} if body.text is None else body.text.model_dump(exclude_none=True, by_alias=True)
    reasoning = body.reasoning
    choice = body.tool_choice
    return Response(
        id=f"resp_{uuid.uuid4().hex}",
        created_at=int(time.time()),
        background=body.background,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata,
        model=answer.model,
        parallel_tool_calls=body.parallel_tool_calls,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning={
            "effort": None if reasoning is None else reasoning.effort,
            "summary": None if reasoning is None else reasoning.summary,
        },
        safety_identifier=body.safety_identifier,
        store=body.store,
        temperature=answer.params.temperature,
        text={"format": {"type": "text"}} | text,
        tool_choice=choice if isinstance(choice, str) else choice.model_dump(exclude_none=True),
        tools=[tool.model_dump() for tool in body.tools],
        top_logprobs=body.top_logprobs or 0,
        top_p=answer.params.top_p,
        truncation=body.truncation,
        user=body.user,
    )


def _first_item(model: ServedModel, body: ResponsePrompt, earlier: Sequence[Item]) -> int:
    """Return how many items to drop, with `truncation: auto`, for the prompt to fit.

    The conversation is cut at the first turn of the user that leaves room for an answer, or at the
    last turn of the user. Slow; call it on a worker thread.
    """
    limit = getattr(body, "max_output_tokens", None) or 1

    def fits(start: int) -> bool:
        fields = ResponsePrompt.chat(body, earlier, start=start)
        try:
            return len(encode_chat(model, parse(fields, Chat))) + limit <= model.max_model_len
        except InvalidRequestError:
            # Too long to encode, or invalid: the request itself will be refused.
            return False

    if body.truncation == "disabled" or fits(0):
        return 0
    starts = body.starts(earlier)
    found = bisect_left(starts, True, hi=max(0, len(starts) - 1), key=fits)
    return starts[found] if starts else 0


async def _read[B: ResponsePrompt](http: HttpRequest, model: type[B]) -> B:
    """Read a body, and replace references by the stored items."""
    body = await read_as(http, model)
    if not body.references:
        return body
    state = server_state(http)
    find = partial(state.responses.items, tenant_of(http.scope), body.references)
    return body.resolved(await run_in(state.lanes.storage, find))


async def _earlier_items(http: HttpRequest, body: ResponsePrompt) -> list[Item]:
    """Return the items of the conversation that a body continues."""
    if body.previous_response_id is None:
        return []
    state = server_state(http)
    tenant, response_id = tenant_of(http.scope), body.previous_response_id

    def work() -> list[Item]:
        return ITEMS.validate_python(state.responses.conversation(tenant, response_id))

    return await run_in(state.lanes.storage, work)


async def _in_store(http: HttpRequest, work: Any) -> Any:
    """Apply an action to the response that the path names."""
    state = server_state(http)
    response_id = http.path_params["response_id"]
    return await run_in(
        state.lanes.storage, partial(work, state.responses, tenant_of(http.scope), response_id)
    )
