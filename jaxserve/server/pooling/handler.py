"""POST /v1/embeddings, /v2/embed, /pooling, /score, /rerank and /classify."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Self

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.api.pooling import PoolingModel, PoolingParams
from jaxserve.api.request import LOWEST_PRIORITY, Request
from jaxserve.engine.engine import GENERATES
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.pooling import Pairs, PoolingPrompts, Vector, answer_of_chunks
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import parse, show
from jaxserve.server.generation.events import Job, Tally
from jaxserve.server.generation.prompts import cache_salt, encode_chat
from jaxserve.server.http.answer import json_response
from jaxserve.server.http.bodies import read, read_as
from jaxserve.server.http.disconnect import unless_disconnected
from jaxserve.server.http.lanes import run_in
from jaxserve.server.http.record import RequestRecord, request_record
from jaxserve.server.models import ServedModel
from jaxserve.server.pooling.answers import (
    BilledUnits,
    Classification,
    Classified,
    CohereEmbeddings,
    Document,
    Embedding,
    Embeddings,
    EmbedMeta,
    Pooled,
    Pooling,
    PoolingMetadata,
    PoolingUsage,
    Ranked,
    Ranking,
    Score,
    Scores,
)
from jaxserve.server.pooling.schema import (
    ClassifyBody,
    ClassifyChatBody,
    CohereBody,
    ConversationBody,
    EmbeddingBody,
    EmbeddingChatBody,
    InputBody,
    PairBody,
    PoolingBody,
    RerankBody,
    ScoreBody,
    VectorBody,
    VectorsBody,
    VectorsChatBody,
)
from jaxserve.server.pooling.vector_formats import by_type, join_bytes, to_json
from jaxserve.server.state import ServerState, server_state


async def create_embeddings(http: HttpRequest) -> Response:
    """Answer with the embeddings of prompts, or of a chat."""
    body = await read(http, partial(_input_or_chat, EmbeddingBody, EmbeddingChatBody))
    call = Call.of(http, body, param=_prompt_field(body))
    call.pooling.check_task("embed")
    answers, usage = await call.answers(body)
    return call.vectors_answer(
        body,
        answers,
        usage,
        id_prefix="embd",
        whole=lambda data, **shared: Embeddings(
            data=[Embedding(index, numbers) for index, numbers in enumerate(data)], **shared
        ),
    )


async def pool(http: HttpRequest) -> Response:
    """Answer with the vectors of prompts, or of a chat, whatever the model's task."""
    body = await read(http, partial(_input_or_chat, VectorsBody, VectorsChatBody))
    call = Call.of(http, body, param=_prompt_field(body))
    if body.task not in {None, call.pooling.task}:
        raise InvalidRequestError(
            f"Unsupported task: {show(body.task)}; this model supports {call.pooling.task}",
            param="task",
        )
    answers, usage = await call.answers(body)
    return call.vectors_answer(
        body,
        answers,
        usage,
        id_prefix="pool",
        whole=lambda data, **shared: Pooling(
            data=[Pooled(index, numbers) for index, numbers in enumerate(data)], **shared
        ),
    )


async def embed_cohere(http: HttpRequest) -> Response:
    """Answer with the embeddings of texts, in Cohere's form."""
    asked = await read_as(http, CohereBody)
    body = asked.embedding()
    call = Call.of(http, body, param="texts")
    call.pooling.check_task("embed")
    answers, usage = await call.answers(body)
    return json_response(
        CohereEmbeddings(
            id=call.id_of("embd"),
            embeddings=by_type(answers, asked.embedding_types),
            texts=[text for text in body.input if isinstance(text, str)],
            meta=EmbedMeta(BilledUnits(usage.prompt_tokens)),
        )
    )


async def classify(http: HttpRequest) -> Response:
    """Answer with the labels of prompts, or of a chat."""
    body = await read(http, partial(_input_or_chat, ClassifyBody, ClassifyChatBody))
    call = Call.of(http, body, param=_prompt_field(body))
    call.pooling.check_task("classify")
    answers, usage = await call.answers(body)
    labels = call.pooling.labels
    data = [
        Classified(index, labels[int(probs.argmax())], probs.tolist(), len(labels))
        for index, probs in enumerate(answers)
    ]
    return json_response(
        Classification(
            id=call.id_of("classify"),
            created=int(time.time()),
            model=call.name,
            data=data,
            usage=usage,
        )
    )


async def score(http: HttpRequest) -> Response:
    """Answer with the scores of pairs of texts."""
    body = await read_as(http, ScoreBody)
    call = Call.of(http, body, param="text_1")
    scores, usage = await call.scores(body, body.text_1, body.text_2)
    return json_response(
        Scores(
            id=call.id_of("score"),
            created=int(time.time()),
            model=call.name,
            data=[Score(index, value) for index, value in enumerate(scores)],
            usage=usage,
        )
    )


async def rerank(http: HttpRequest) -> Response:
    """Answer with documents ordered by relevance to a query."""
    body = await read_as(http, RerankBody)
    call = Call.of(http, body, param="documents")
    scores, usage = await call.scores(body, [body.query], body.texts)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results = [
        Ranked(index, scores[index], Document(body.texts[index]) if kept else None)
        for index, kept in ((index, body.return_documents) for index in order)
    ]
    return json_response(
        Ranking(
            id=call.id_of("rerank"),
            model=call.name,
            usage=usage,
            results=results[: body.top_n or None],
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a pooling model."""

    http: HttpRequest
    state: ServerState
    record: RequestRecord
    model: ServedModel
    pooling: PoolingModel
    params: PoolingParams
    prompts: PoolingPrompts
    name: str
    request_id: str

    @classmethod
    def of(cls, http: HttpRequest, body: PoolingBody, *, param: str) -> Self:
        """Return the call of a body. Raises InvalidRequestError.

        param: name of the field with the prompts.
        """
        state, record = server_state(http), request_record(http.scope)
        model = state.router.model(body.model)
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
            truncation_side=body.truncation_side,
            pads=body.padding == "max_length",
            add_special_tokens=body.add_special_tokens,
            cache_salt=cache_salt(record.principal, body.cache_salt),
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
            request_id=body.request_id or record.request_id,
        )

    def id_of(self, prefix: str) -> str:
        """Return the id of the answer."""
        return f"{prefix}-{self.request_id}"

    def chunks_of(self, body: InputBody | ConversationBody) -> list[tuple[Request, ...]]:
        """Return the requests for each input, or for the chat. Slow, because it tokenizes."""
        if isinstance(body, InputBody):
            return [self.prompts.chunks(prompt) for prompt in body.input]
        will_fit = body.truncate_prompt_tokens is not None or self.pooling.splits_prompts
        encoded = encode_chat(self.model, body, self.record.ignored, takes_any_length=will_fit)
        return [self.prompts.chunks(encoded)]

    def vectors_answer(
        self,
        body: VectorBody,
        answers: Sequence[Vector],
        usage: PoolingUsage,
        *,
        id_prefix: str,
        whole: Callable[..., msgspec.Struct],
    ) -> Response:
        """Return the response in the format that a body requests.

        whole: builds the JSON answer from the encoded vectors.
        """
        shared: dict[str, Any] = {
            "id": self.id_of(id_prefix),
            "created": int(time.time()),
            "model": self.name,
            "usage": usage,
        }
        if not body.encoding_format.startswith("bytes"):
            return json_response(whole([to_json(each, body) for each in answers], **shared))
        data, places = join_bytes(answers, body)
        headers = {}
        if body.encoding_format == "bytes":
            metadata = PoolingMetadata(data=places, **shared)
            # Headers must be ASCII, unlike msgspec's JSON.
            headers["metadata"] = json.dumps(msgspec.to_builtins(metadata))
        return Response(data, headers=headers, media_type="application/octet-stream")

    async def vectors(self, requests: tuple[Request, ...]) -> tuple[list[bytes], PoolingUsage]:
        """Return the vectors of requests, and their usage."""
        self.model.check_num_prompts(len(requests), param=self.prompts.param)
        job = Job(state=self.state, model=self.model, requests=requests, record=self.record)
        tally = Tally(requests)
        choices = await unless_disconnected(self.http, job.collect(tally))
        vectors = [choice.vector for choice in choices]
        details = tally.usage().prompt_tokens_details
        return vectors, PoolingUsage(tally.prompt_tokens, tally.prompt_tokens, details)

    async def answers(
        self, body: InputBody | ConversationBody
    ) -> tuple[list[Vector], PoolingUsage]:
        """Return the result of each input, or of the chat, and their usage."""
        prompts = await self._make(partial(self.chunks_of, body))
        vectors, usage = await self.vectors(tuple(chain.from_iterable(prompts)))
        rest = iter(vectors)
        return [
            answer_of_chunks(
                self.pooling,
                [next(rest) for _ in chunks],
                [len(chunk.prompt_ids) for chunk in chunks],
                self.params,
            )
            for chunks in prompts
        ], usage

    async def _make[Made](self, work: Callable[[], Made]) -> Made:
        """Run slow work on prompts in its lane."""
        return await unless_disconnected(self.http, run_in(self.state.lanes.prompts, work))

    async def scores(
        self, body: PairBody, firsts: Sequence[str], seconds: Sequence[str]
    ) -> tuple[list[float], PoolingUsage]:
        """Return the scores of pairs of texts, and their usage."""
        template = self.model.chat if self.pooling.pairs_are_chats else None
        pairs = Pairs(
            pooling=self.pooling,
            firsts=firsts,
            seconds=seconds,
            max_first_tokens=body.max_tokens_per_query,
            max_second_tokens=body.max_tokens_per_doc,
            template=template,
            variables=body.variables(template, self.record.ignored),
        )
        requests = await self._make(partial(pairs.requests, self.prompts))
        vectors, usage = await self.vectors(requests)
        return pairs.scores(vectors, self.params), usage


def _input_or_chat[Plain: InputBody, Conversation: ConversationBody](
    plain: type[Plain],
    conversation: type[Conversation],
    fields: dict[str, Any],
    ignored: IgnoredFields,
) -> Plain | Conversation:
    if "messages" in fields:
        return parse(fields, conversation, ignored)
    return parse(fields, plain, ignored)


def _prompt_field(body: InputBody | ConversationBody) -> str:
    return "input" if isinstance(body, InputBody) else "messages"
