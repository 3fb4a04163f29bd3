"""POST /v1/completions: texts that continue prompts."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from msgspec import UNSET
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.request import PositionLogprobs, TokenEvent
from jaxserve.server.answer import json_response
from jaxserve.server.disconnect import unless_disconnected
from jaxserve.server.generation import Collected, Job, Tally
from jaxserve.server.logprobs import LogprobWriter
from jaxserve.server.middleware import access_record
from jaxserve.server.prompts import RequestMaker, cache_salt, in_worker
from jaxserve.server.protocol.answers import (
    Completion,
    CompletionChoice,
    Maybe,
    Usage,
)
from jaxserve.server.protocol.common import StreamOptions
from jaxserve.server.protocol.completions import CompletionBody
from jaxserve.server.protocol.parsing import parse, read_object
from jaxserve.server.sse import DONE, EventStream, event
from jaxserve.server.state import server_state


async def create_completion(http: HttpRequest) -> Response:
    """Answer with texts, whole or as a stream."""
    state = server_state(http)
    fields = await read_object(http, max_bytes=state.config.max_body_bytes)
    body = parse(fields, CompletionBody)
    model = state.model(body.model)
    body.check()
    maker = RequestMaker(
        model=model,
        body=body,
        params=body.params(model.defaults),
        cache_salt=cache_salt(state, http.scope, body.cache_salt),
    )
    requests = await unless_disconnected(http, in_worker(state, partial(maker.of_prompts, body)))
    job = Job(state=state, model=model, requests=requests, record=access_record(http.scope))
    writer = CompletionWriter(job, body)
    if body.stream:
        return EventStream(writer.stream())
    return json_response(await unless_disconnected(http, writer.whole()))


class CompletionWriter:
    """Writes one answer."""

    def __init__(self, job: Job, body: CompletionBody) -> None:
        self._job = job
        self._body = body
        self._tokenizer = job.model.tokenizer
        self._logprobs = LogprobWriter(self._tokenizer, as_ids=body.return_tokens_as_token_ids)
        self._id = f"cmpl-{body.request_id or uuid.uuid4().hex}"
        self._created = int(time.time())
        # Characters told of so far, of each choice that has begun.
        self._offsets: dict[int, int] = {}

    async def whole(self) -> Completion:
        """Return the answer when all of it is there."""
        tally = self._tally()
        choices = await self._job.collect(tally)
        return self._completion(
            [self._choice(index, choice) for index, choice in enumerate(choices)], tally.usage()
        )

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the answer's events, `[DONE]` last."""
        options = self._body.stream_options or StreamOptions()
        tally = self._tally()
        async with aclosing(self._job.events()) as events:
            async for index, new in events:
                tally.add(new)
                usage: Maybe[Usage | None] = UNSET
                if options.continuous_usage_stats:
                    usage = tally.usage()
                elif options.include_usage:
                    usage = None
                yield event(self._completion([self._choice(index, new)], usage))
        if options.include_usage:
            yield event(self._completion([], tally.usage()))
        self._job.finish(tally)
        yield DONE

    def _tally(self) -> Tally:
        return Tally(self._job.requests, counts_output=not self._body.only_scores)

    def _completion(
        self, choices: list[CompletionChoice], usage: Maybe[Usage | None]
    ) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._body.model or self._job.model.name,
            system_fingerprint=self._job.model.system_fingerprint,
            choices=choices,
            usage=usage,
        )

    def _choice(self, index: int, new: TokenEvent | Collected) -> CompletionChoice:
        """Return what is new of a choice: a whole one, or a stream's next piece of it."""
        body = self._body
        is_first = index not in self._offsets
        offset = self._offsets.setdefault(index, 0)
        prompt = body.prompt[index // self._job.n]
        prompt_ids = self._job.requests[index // self._job.n].prompt_ids
        text, token_ids = new.text, [*new.token_ids]
        positions: list[PositionLogprobs | None] = [*new.logprobs]
        if body.only_scores:
            text, token_ids, positions = "", [], []
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=None,
            finish_reason=new.finish_reason,
            stop_reason=new.stop_reason,
        )
        if body.return_token_ids:
            choice.token_ids = token_ids
            choice.prompt_token_ids = prompt_ids if is_first else UNSET
        if body.prompt_logprobs is not None:
            choice.prompt_logprobs = self._logprobs.prompt(new.prompt_logprobs or ())
        if body.echo and is_first:
            echoed = prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)
            choice.text = echoed + text
            token_ids = [*prompt_ids, *token_ids]
            positions = [None, *(new.prompt_logprobs or ()), *positions]
        if body.logprobs is not None:
            choice.logprobs = self._logprobs.completion(positions, token_ids, offset=offset)
            self._offsets[index] += sum(map(len, map(self._tokenizer.token_text, token_ids)))
        return choice
