"""Answer chats and completions, whole or as a stream."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from msgspec import UNSET, Struct
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.api.request import TokenEvent
from jaxserve.frontend.schema.generation import StreamOptions
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.completions.schema import CompletionBody
from jaxserve.server.generation.beam_search import search_beams
from jaxserve.server.generation.events import Collected, Job, Tally, at_intervals
from jaxserve.server.generation.logprobs import LogprobWriter
from jaxserve.server.generation.prompts import RequestMaker, cache_salt
from jaxserve.server.http.answer import json_response
from jaxserve.server.http.bodies import read_as
from jaxserve.server.http.disconnect import unless_disconnected
from jaxserve.server.http.lanes import run_in
from jaxserve.server.http.record import request_record
from jaxserve.server.http.sse import DONE, EventStream, event
from jaxserve.server.schema.answers import ChatChunk, Completion, Maybe, Timing, Usage
from jaxserve.server.state import server_state


async def make_job(http: HttpRequest, body: ChatBody | CompletionBody) -> Job:
    """Return the job for the body of a chat or a completion. Raises InvalidRequestError."""
    state, record = server_state(http), request_record(http.scope)
    model = state.router.model(body.model)
    maker = RequestMaker(
        model=model,
        body=body,
        cache_salt=cache_salt(record.principal, body.cache_salt),
        ignored=record.ignored,
        is_batch=record.batch is not None,
    )
    requests = await unless_disconnected(http, run_in(state.lanes.prompts, maker.requests))
    if maker.grammars:
        await unless_disconnected(http, run_in(state.lanes.grammars, maker.check_grammars))
    return Job(
        state=state,
        model=model,
        requests=requests,
        record=record,
        field_names=body.field_names,
        run=partial(search_beams, model, body) if body.use_beam_search else None,
    )


class AnswerWriter[Body: ChatBody | CompletionBody, Answer: Struct, Chunk: ChatChunk | Completion](
    ABC
):
    """Writes one answer. Subclasses define the types of the answer and of its chunks."""

    def __init__(self, job: Job, body: Body, *, id_prefix: str) -> None:
        self.job = job
        self.body = body
        self.logprobs = LogprobWriter(
            job.model.tokenizer,
            as_ids=job.state.config.return_tokens_as_token_ids
            if body.return_tokens_as_token_ids is None
            else body.return_tokens_as_token_ids,
            by_id=bool(body.logprob_token_ids),
        )
        self.id = f"{id_prefix}-{body.request_id or job.record.request_id}"
        self.created = int(time.time())
        self.model = body.model or job.model.name
        self.fingerprint = job.model.system_fingerprint

    @abstractmethod
    def answer(self, choices: Sequence[Collected], usage: Usage, timing: Maybe[Timing]) -> Answer:
        """Return the whole answer."""

    @abstractmethod
    def opening(self, index: int) -> list[Chunk]:
        """Return the chunks that precede the first event of choice `index`."""

    @abstractmethod
    def chunks_of(self, index: int, new: TokenEvent) -> list[Chunk]:
        """Return the chunks of an event of choice `index`, with usage not set."""

    @abstractmethod
    def last_chunk(self, usage: Usage, timing: Maybe[Timing]) -> Chunk:
        """Return the final chunk, which has the usage and no choices."""

    async def whole(self) -> Answer:
        """Generate and return the whole answer."""
        tally = self.tally()
        choices = await self.job.collect(tally)
        return self.answer(choices, tally.usage(), self._timing(tally))

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the encoded events of the answer, `[DONE]` last."""
        async with aclosing(self.chunks()) as steps:
            async for chunks in steps:
                yield b"".join(map(event, chunks))
        yield DONE

    async def chunks(self) -> AsyncGenerator[list[Chunk]]:
        """Yield the chunks of the answer, those of one step together.

        With continuous_usage_stats, or if forced by the operator, each chunk has the usage of its
        choice, including the tokens of the chunk's event.
        """
        options = self.body.stream_options or StreamOptions()
        is_forced = self.job.state.config.force_include_usage
        include_usage = options.include_usage or is_forced
        is_continuous = options.continuous_usage_stats or is_forced
        tally = self.tally()
        interval = self.body.stream_interval or self.job.state.config.stream_interval

        def limits_schema(chunks: list[Chunk], new: TokenEvent) -> list[Chunk]:
            if include_usage:
                usage = tally.usage(new) if is_continuous else None
                for chunk in chunks:
                    chunk.usage = usage
            return chunks

        with self.job.recorded(tally):
            async with aclosing(self.job.events()) as events:
                steps = events if interval == 1 else at_intervals(events, interval)
                async for index, new in steps:
                    tally.begin(new)
                    opening = limits_schema(self.opening(index), new)
                    tally.add(new)
                    yield opening + limits_schema(self.chunks_of(index, new), new)
            if include_usage:
                yield [self.last_chunk(tally.usage(), self._timing(tally))]

    @property
    def prompt_texts(self) -> list[str]:
        """The decoded prompts."""
        decode = self.job.model.tokenizer.decode
        return [decode(request.prompt_ids) for request in self.job.requests]

    def _timing(self, tally: Tally) -> Maybe[Timing]:
        return tally.timing() if self.job.state.config.per_request_metrics else UNSET

    def tally(self) -> Tally:
        """Return a new counter of the answer's tokens."""
        return Tally(self.job.requests, counts_output=not self.body.only_scores)


async def respond[Body: ChatBody | CompletionBody](
    http: HttpRequest,
    kind: type[Body],
    writer: Callable[[Job, Body], AnswerWriter[Body, Any, Any]],
) -> Response:
    """Answer a request, given the model of its body and its writer."""
    body = await read_as(http, kind)
    answer = writer(await make_job(http, body), body)
    if body.stream:
        return EventStream(answer.stream())
    return json_response(await unless_disconnected(http, answer.whole()))
