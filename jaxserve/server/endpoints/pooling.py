"""POST /v1/embeddings, /score, /rerank and /classify: what is made of the vectors of prompts."""

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.engine.engine import GENERATES
from jaxserve.errors import InvalidRequestError
from jaxserve.pooling import PoolingModel, PoolingParams
from jaxserve.request import LOWEST_PRIORITY, Request
from jaxserve.server.answer import json_response
from jaxserve.server.disconnect import unless_disconnected
from jaxserve.server.generation import Job, Tally
from jaxserve.server.middleware import AccessRecord, access_record
from jaxserve.server.pooling import Pairs, PoolingPrompts, Vector, answer
from jaxserve.server.prompts import cache_salt, in_worker
from jaxserve.server.protocol.parsing import parse, read_object
from jaxserve.server.protocol.pooling import (
    Classification,
    Classified,
    ClassifyBody,
    Document,
    Embedding,
    EmbeddingBody,
    Embeddings,
    PoolingBody,
    PoolingUsage,
    Ranked,
    Ranking,
    RerankBody,
    Score,
    ScoreBody,
    Scores,
)
from jaxserve.server.state import ServedModel, ServerState, server_state


async def create_embeddings(http: HttpRequest) -> Response:
    """Answer with the embeddings of prompts."""
    body = parse(await _fields(http), EmbeddingBody)
    call = Call.of(http, body, param="input")
    call.pooling.check_task("embed")
    vectors, usage = await call.vectors(call.each_of(body.input))
    data = [
        Embedding(index, _encoded(vector) if body.encoding_format == "base64" else vector.tolist())
        for index, vector in enumerate(call.answers(vectors))
    ]
    return json_response(
        Embeddings(
            id=f"embd-{call.record.request_id}",
            created=int(time.time()),
            model=call.name,
            data=data,
            usage=usage,
        )
    )


async def classify(http: HttpRequest) -> Response:
    """Answer with the labels of prompts."""
    body = parse(await _fields(http), ClassifyBody)
    call = Call.of(http, body, param="input")
    call.pooling.check_task("classify")
    vectors, usage = await call.vectors(call.each_of(body.input))
    labels = call.pooling.labels
    data = [
        Classified(index, labels[int(probs.argmax())], probs.tolist(), len(labels))
        for index, probs in enumerate(call.answers(vectors))
    ]
    return json_response(
        Classification(
            id=f"classify-{call.record.request_id}",
            created=int(time.time()),
            model=call.name,
            data=data,
            usage=usage,
        )
    )


async def score(http: HttpRequest) -> Response:
    """Answer with the scores of pairs of texts."""
    body = parse(await _fields(http), ScoreBody)
    call = Call.of(http, body, param="text_1")
    scores, usage = await call.scores(body.text_1, body.text_2)
    return json_response(
        Scores(
            id=f"score-{call.record.request_id}",
            created=int(time.time()),
            model=call.name,
            data=[Score(index, value) for index, value in enumerate(scores)],
            usage=usage,
        )
    )


async def rerank(http: HttpRequest) -> Response:
    """Answer with documents in the order of their relevance to a query."""
    body = parse(await _fields(http), RerankBody)
    call = Call.of(http, body, param="documents")
    scores, usage = await call.scores([body.query], body.texts)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results = [
        Ranked(index, scores[index], Document(body.texts[index]) if kept else None)
        for index, kept in ((index, body.return_documents) for index in order)
    ]
    return json_response(
        Ranking(
            id=f"rerank-{call.record.request_id}",
            model=call.name,
            usage=usage,
            results=results[: body.top_n or None],
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a model that pools."""

    http: HttpRequest
    state: ServerState
    record: AccessRecord
    model: ServedModel
    pooling: PoolingModel
    params: PoolingParams
    prompts: PoolingPrompts
    name: str

    @classmethod
    def of(cls, http: HttpRequest, body: PoolingBody, *, param: str) -> Self:
        """Return the call of a body; param: its field of prompts. Raises InvalidRequestError."""
        state, record = server_state(http), access_record(http.scope)
        model = state.model(body.model)
        pooling, params = model.pooling, body.params()
        if pooling is None:
            raise InvalidRequestError(GENERATES, param="model")
        pooling.check(params)
        prompts = PoolingPrompts(
            tokenizer=model.tokenizer,
            pooling=pooling,
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            param=param,
            truncate=body.truncate_prompt_tokens,
            add_special_tokens=body.add_special_tokens,
            cache_salt=cache_salt(state, record, body.cache_salt),
            priority=model.checked_priority(body.priority)
            if record.batch is None
            else LOWEST_PRIORITY,
        )
        return cls(
            http=http,
            state=state,
            record=record,
            model=model,
            pooling=pooling,
            params=params,
            prompts=prompts,
            name=body.model or model.name,
        )

    def each_of(self, inputs: Sequence[str | tuple[int, ...]]) -> Callable[[], tuple[Request, ...]]:
        """Return what makes a request of each input."""
        return lambda: tuple(self.prompts.of(prompt) for prompt in inputs)

    async def vectors(
        self, make: Callable[[], tuple[Request, ...]]
    ) -> tuple[list[bytes], PoolingUsage]:
        """Return the vectors of requests, and the tokens they took."""
        requests = await unless_disconnected(self.http, in_worker(self.state, make))
        self.model.check_num_prompts(len(requests), param=self.prompts.param)
        job = Job(state=self.state, model=self.model, requests=requests, record=self.record)
        tally = Tally(requests)
        choices = await unless_disconnected(self.http, job.collect(tally))
        vectors = [choice.vector for choice in choices]
        details = tally.usage().prompt_tokens_details
        return vectors, PoolingUsage(tally.prompt_tokens, tally.prompt_tokens, details)

    def answers(self, vectors: Sequence[bytes]) -> list[Vector]:
        """Return what is answered of vectors."""
        return [answer(self.pooling, vector, self.params) for vector in vectors]

    async def scores(
        self, firsts: Sequence[str], seconds: Sequence[str]
    ) -> tuple[list[float], PoolingUsage]:
        """Return the scores of pairs of texts, and the tokens they took."""
        pairs = Pairs(pooling=self.pooling, firsts=firsts, seconds=seconds)
        vectors, usage = await self.vectors(partial(pairs.requests, self.prompts))
        return pairs.scores(vectors, self.params), usage


async def _fields(http: HttpRequest) -> dict[str, object]:
    return await read_object(http, max_bytes=server_state(http).config.max_body_bytes)


def _encoded(vector: Vector) -> str:
    return base64.b64encode(vector.astype(np.dtype("<f4")).tobytes()).decode()
