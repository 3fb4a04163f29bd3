"""Methods of `LLM` for pooling models: embeddings, labels and scores, with vLLM's names."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

from tqdm import tqdm

from jaxserve.api.pooling import PoolingModel, PoolingParams
from jaxserve.api.request import Request, TokenEvent
from jaxserve.chat.template import ChatTemplate
from jaxserve.engine.engine import GENERATES
from jaxserve.errors import InvalidRequestError, JaxserveError, naming
from jaxserve.frontend.pooling import Pairs, PoolingPrompts, Vector, answer_of_chunks
from jaxserve.offline.prompts import Prompt, PromptReader, listed
from jaxserve.planning.engine_plan import EnginePlan
from jaxserve.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    """A vector; see `LLM.encode`."""

    data: Vector


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """An embedding."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """Probabilities of the labels for a prompt."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.probs)


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """Relevance of one text to another."""

    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledRequestOutput[Output]:
    """A prompt and its result. A pair scored by embeddings has the ids of both texts."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: Output
    finished: bool = True


class OfflinePooler:
    """Pools prompts. run: see `LLM.run`."""

    def __init__(
        self,
        plan: EnginePlan,
        tokenizer: Tokenizer,
        run: Callable[[Iterable[Request]], Iterable[TokenEvent]],
    ) -> None:
        self._plan = plan
        self._tokenizer = tokenizer
        self._run = run

    def pool[Output](
        self,
        prompts: Prompt | Sequence[Prompt],
        params: PoolingParams | None,
        make: Callable[[Vector], Output],
        *,
        task: str | None,
        truncate: int | None,
        use_tqdm: bool,
    ) -> list[PooledRequestOutput[Output]]:
        """Return `make` of each prompt's vector. task: task that the model must support."""
        params = params or PoolingParams()
        pooling = self._pooling()
        if task is not None:
            pooling.check_task(task)
        pooling.check(params)
        requests = self._requests(pooling, listed(prompts), truncate)
        rest = iter(self._vectors([*chain.from_iterable(requests)], use_tqdm=use_tqdm))
        outputs = []
        for chunks in requests:
            vectors = [next(rest) for _ in chunks]
            num_tokens = [len(chunk.prompt_ids) for chunk in chunks]
            outputs.append(
                PooledRequestOutput(
                    request_id=chunks[0].id,
                    prompt_token_ids=[*chain.from_iterable(chunk.prompt_ids for chunk in chunks)],
                    outputs=make(answer_of_chunks(pooling, vectors, num_tokens, params)),
                )
            )
        return outputs

    def score(
        self,
        firsts: Sequence[str],
        seconds: Sequence[str],
        params: PoolingParams | None,
        *,
        truncate: int | None,
        use_tqdm: bool,
    ) -> list[PooledRequestOutput[ScoringOutput]]:
        """Return the score of each pair of texts; see `frontend.pooling.Pairs`."""
        pooling = self._pooling()
        pairs = Pairs(pooling=pooling, firsts=firsts, seconds=seconds, template=self._pair_template)
        requests = pairs.requests(self._prompts(pooling, truncate))
        vectors = self._vectors(requests, use_tqdm=use_tqdm)
        scores = pairs.scores(vectors, params or PoolingParams())
        ids = [[*request.prompt_ids] for request in requests]
        if not pooling.is_cross_encoder:
            num_firsts = len(firsts)
            ids = [[*ids[i % num_firsts], *each] for i, each in enumerate(ids[num_firsts:])]
        return [
            PooledRequestOutput(
                request_id=requests[-len(scores) + index].id,
                prompt_token_ids=ids[index],
                outputs=ScoringOutput(value),
            )
            for index, value in enumerate(scores)
        ]

    @cached_property
    def _pair_template(self) -> ChatTemplate | None:
        """Chat template that renders pairs of texts, for models whose pairs are chats."""
        if not self._pooling().pairs_are_chats or self._tokenizer.chat_template is None:
            return None
        return ChatTemplate(self._tokenizer)

    def _pooling(self) -> PoolingModel:
        if self._plan.pooling is None:
            raise InvalidRequestError(GENERATES.replace("--runner ", "runner="), param="model")
        return self._plan.pooling

    def _prompts(self, pooling: PoolingModel, truncate: int | None) -> PoolingPrompts:
        return PoolingPrompts(
            tokenizer=self._tokenizer,
            pooling=pooling,
            max_model_len=self._plan.scheduler.max_model_len,
            vocab_size=self._plan.model.num_token_ids,
            param="prompts",
            truncate=truncate,
        )

    def _requests(
        self, pooling: PoolingModel, prompts: Sequence[Prompt], truncate: int | None
    ) -> list[tuple[Request, ...]]:
        make = self._prompts(pooling, truncate)
        max_model_len = self._plan.scheduler.max_model_len
        reader = PromptReader(self._tokenizer, max_model_len=max_model_len)
        requests = []
        for position, prompt in enumerate(prompts):
            with naming(position, len(prompts)):
                text_or_ids = prompt if isinstance(prompt, str) else reader.read(prompt).token_ids
                requests.append(make.chunks(text_or_ids))
        return requests

    def _vectors(self, requests: Sequence[Request], *, use_tqdm: bool) -> list[bytes]:
        """Return the vectors of requests, in order."""
        vectors: dict[str, bytes] = {}
        disable = None if use_tqdm else True  # None: only on a terminal
        bar = partial(tqdm, desc="Prompts", unit="prompt", total=len(requests), disable=disable)
        for event in bar(self._run(requests)):
            if event.vector is None:
                raise JaxserveError(event.error or "a prompt was not pooled")
            vectors[event.request_id] = event.vector
        return [vectors[request.id] for request in requests]


class PoolingMethods:
    """Methods of `LLM` for pooling models."""

    _pooler: OfflinePooler

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PooledRequestOutput[EmbeddingOutput]]:
        """Return the embeddings of prompts. The LLM must have runner="pooling".

        prompts: as in `generate`. truncate_prompt_tokens: number of tokens to keep of longer
        prompts; -1 keeps as many as the model supports. Raises InvalidRequestError before anything
        runs.
        """
        return self._pooler.pool(
            prompts,
            pooling_params,
            lambda vector: EmbeddingOutput(vector.tolist()),
            task="embed",
            truncate=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
        )

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PooledRequestOutput[ClassificationOutput]]:
        """Return the probabilities of the labels of prompts; see `embed`."""
        return self._pooler.pool(
            prompts,
            pooling_params,
            lambda vector: ClassificationOutput(vector.tolist()),
            task="classify",
            truncate=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
        )

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
        pooling_task: str | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PooledRequestOutput[PoolingOutput]]:
        """Return the vectors of prompts, for any task; see `embed`."""
        return self._pooler.pool(
            prompts,
            pooling_params,
            PoolingOutput,
            task=pooling_task,
            truncate=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
        )

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        /,
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PooledRequestOutput[ScoringOutput]]:
        """Score pairs of texts: one text with each of many, or two lists of equal length.

        A model with one label reads both texts at once; for an embedding model, the score is the
        cosine.
        """
        return self._pooler.score(
            [data_1] if isinstance(data_1, str) else data_1,
            [data_2] if isinstance(data_2, str) else data_2,
            pooling_params,
            truncate=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
        )
