"""POST /v1/chat/completions: what the assistant says next."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from msgspec import UNSET
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.request import TokenEvent
from jaxserve.server.answer import json_response
from jaxserve.server.disconnect import unless_disconnected
from jaxserve.server.generation import Collected, Job, Tally
from jaxserve.server.logprobs import LogprobWriter
from jaxserve.server.middleware import access_record
from jaxserve.server.prompts import RequestMaker, cache_salt, in_worker
from jaxserve.server.protocol.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatMessage,
    Delta,
    Maybe,
    Usage,
)
from jaxserve.server.protocol.chat import ChatBody
from jaxserve.server.protocol.common import StreamOptions
from jaxserve.server.protocol.parsing import parse, read_object
from jaxserve.server.sse import DONE, EventStream, event
from jaxserve.server.state import server_state


async def create_chat_completion(http: HttpRequest) -> Response:
    """Answer a chat, whole or as a stream."""
    fields = await read_object(http, max_bytes=server_state(http).config.max_body_bytes)
    body = parse(fields, ChatBody)
    writer = await chat_writer(http, body)
    if body.stream:
        return EventStream(writer.stream())
    return json_response(await unless_disconnected(http, writer.whole()))


async def chat_writer(http: HttpRequest, body: ChatBody) -> "ChatWriter":
    """Return what answers a chat, once it is rendered and checked: every chat comes through here.

    Raises InvalidRequestError for what the model cannot take.
    """
    state = server_state(http)
    model = state.model(body.model)
    body.check()
    maker = RequestMaker(
        model=model,
        body=body,
        params=body.params(model.defaults),
        cache_salt=cache_salt(state, http.scope, body.cache_salt),
    )
    requests = await unless_disconnected(http, in_worker(state, partial(maker.of_chat, body)))
    job = Job(state=state, model=model, requests=requests, record=access_record(http.scope))
    return ChatWriter(job, body)


class ChatWriter:
    """Writes one answer."""

    def __init__(self, job: Job, body: ChatBody) -> None:
        self._job = job
        self._body = body
        self._logprobs = LogprobWriter(job.model.tokenizer, as_ids=body.return_tokens_as_token_ids)
        self._id = f"chatcmpl-{body.request_id or uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = body.model or job.model.name
        self._fingerprint = job.model.system_fingerprint

    async def whole(self) -> ChatCompletion:
        """Return the answer when all of it is there."""
        tally = Tally(self._job.requests)
        choices = await self._job.collect(tally)
        answer = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=[self._choice(index, choice) for index, choice in enumerate(choices)],
            usage=tally.usage(),
        )
        if self._body.return_token_ids:
            answer.prompt_token_ids = self._job.requests[0].prompt_ids
        if self._body.prompt_logprobs is not None:
            answer.prompt_logprobs = self._logprobs.prompt(choices[0].prompt_logprobs or ())
        return answer

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the answer's events, `[DONE]` last."""
        async with aclosing(self.chunks()) as steps:
            async for chunks in steps:
                yield b"".join(map(event, chunks))
        yield DONE

    async def chunks(self) -> AsyncGenerator[list[ChatChunk]]:
        """Yield the answer's chunks, those of a step together.

        Each choice begins with a chunk of its role, sent with its first token, and ends with one
        of its finish_reason, whose delta is empty.
        """
        options = self._body.stream_options or StreamOptions()
        tally = Tally(self._job.requests)
        begun: set[int] = set()
        async with aclosing(self._job.events()) as events:
            async for index, new in events:
                tally.add(new)
                usage: Maybe[Usage | None] = UNSET
                if options.continuous_usage_stats:
                    usage = tally.usage()
                elif options.include_usage:
                    usage = None
                chunks = []
                if index not in begun:
                    begun.add(index)
                    chunks.append(self._first_chunk(index, usage))
                chunks += [
                    self._chunk([choice], usage) for choice in self._chunk_choices(index, new)
                ]
                yield chunks
        if options.include_usage:
            yield [self._chunk([], tally.usage())]
        self._job.finish(tally)

    def _choice(self, index: int, choice: Collected) -> ChatChoice:
        body = self._body
        return ChatChoice(
            index=index,
            message=ChatMessage(body.echoed + choice.text),
            logprobs=self._logprobs.chat(choice.logprobs) if body.logprobs else None,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if body.return_token_ids else UNSET,
        )

    def _first_chunk(self, index: int, usage: Maybe[Usage | None]) -> ChatChunk:
        choice = ChatChunkChoice(index, Delta("assistant", self._body.echoed))
        chunk = self._chunk([choice], usage)
        if self._body.return_token_ids:
            chunk.prompt_token_ids = self._job.requests[0].prompt_ids
        return chunk

    def _chunk_choices(self, index: int, new: TokenEvent) -> list[ChatChunkChoice]:
        """Return what is new: the text, even if it is none yet, and the end apart from it."""
        body = self._body
        choices = []
        if new.text or (new.token_ids and (new.finish_reason is None or new.logprobs)):
            piece = ChatChunkChoice(index, Delta(content=new.text))
            if body.logprobs:
                piece.logprobs = self._logprobs.chat(new.logprobs)
            choices.append(piece)
        if new.finish_reason is not None:
            choices.append(
                ChatChunkChoice(
                    index, Delta(), finish_reason=new.finish_reason, stop_reason=new.stop_reason
                )
            )
        if body.return_token_ids and choices:
            choices[0].token_ids = new.token_ids
        return choices

    def _chunk(self, choices: list[ChatChunkChoice], usage: Maybe[Usage | None]) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )
