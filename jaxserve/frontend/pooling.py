"""Requests of embedding, classification and scoring models, and their results.

Shared by the server and the offline API.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal

import numpy as np

from jaxserve.api.pooling import Activation, PoolingModel, PoolingParams
from jaxserve.api.request import Request
from jaxserve.chat.template import ChatTemplate
from jaxserve.errors import ContextLengthError, InvalidRequestError, naming
from jaxserve.frontend.schema.parsing import renamed
from jaxserve.tokenization.tokenizer import Tokenizer, truncated

type Vector = np.ndarray[tuple[int], np.dtype[np.float32]]


def answer(pooling: PoolingModel, raw: bytes, params: PoolingParams) -> Vector:
    """Return the result for a pooled vector: truncated, and with its activation applied.

    raw: float32 values from the engine. params: dimensions to keep, and whether to activate.
    """
    vector = np.frombuffer(raw, np.float32)
    if pooling.contrasts:
        vector = vector[1:] - vector[:1]
    vector = vector[: params.dimensions]
    activates = pooling.activates if params.use_activation is None else params.use_activation
    activated: Any = _activate(pooling.activation, vector) if activates else vector
    answered: Vector = activated
    return answered


def answer_of_chunks(
    pooling: PoolingModel,
    vectors: Sequence[bytes],
    num_tokens: Sequence[int],
    params: PoolingParams,
) -> Vector:
    """Return the result for a prompt, given the vectors of its chunks and their lengths in tokens.

    As in vLLM, it is the mean of the chunks' results, weighted by their lengths and normalized.
    """
    answers = [answer(pooling, vector, params) for vector in vectors]
    if len(answers) == 1:
        return answers[0]
    mean = np.average(answers, axis=0, weights=num_tokens).astype(np.float32).tobytes()
    return answer(pooling, mean, params)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingPrompts:
    """Builds the requests for the prompts of one call.

    param: name of the prompts in errors. truncate: number of tokens to keep of a longer prompt; -1
    keeps max_model_len, None refuses longer prompts. truncation_side: side on which tokens are
    dropped. pads: whether to pad shorter prompts to `truncate` tokens, or to max_model_len.
    """

    tokenizer: Tokenizer
    pooling: PoolingModel
    max_model_len: int
    vocab_size: int
    param: str
    truncate: int | None = None
    truncation_side: Literal["left", "right"] = "right"
    pads: bool = False
    add_special_tokens: bool = True
    cache_salt: str = ""
    priority: int = 0
    arrival_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.truncate is not None and not -1 <= self.truncate <= self.max_model_len:
            raise InvalidRequestError(
                f"truncate_prompt_tokens must be in [-1, {self.max_model_len}],"
                f" got {self.truncate}. Please request a smaller truncation size.",
                param="truncate_prompt_tokens",
            )

    @property
    def limit(self) -> int | None:
        """Number of tokens that longer prompts are truncated to; None refuses them."""
        return self.max_model_len if self.truncate == -1 else self.truncate

    def of(
        self,
        prompt: str | tuple[int, ...],
        second: str | None = None,
        *,
        part_limits: tuple[int | None, ...] = (),
    ) -> Request:
        """Return the request for a prompt, or for a pair of texts. Slow, because it tokenizes.

        part_limits: number of tokens to keep of each text. Raises InvalidRequestError.
        """
        token_ids = self._token_ids(prompt, second, part_limits, max_tokens=self.max_model_len)
        return self._request(token_ids)

    def chunks(self, prompt: str | tuple[int, ...]) -> tuple[Request, ...]:
        """Return the requests for a prompt, in order. Slow, because it tokenizes.

        It is one request, unless the prompt is longer than the context and the model splits
        prompts. Raises InvalidRequestError.
        """
        if not self.pooling.splits_prompts:
            return (self.of(prompt),)
        max_tokens = self.pooling.max_embed_len
        token_ids = self._token_ids(prompt, None, (), max_tokens=max_tokens)
        if max_tokens is not None and len(token_ids) > max_tokens:
            raise ContextLengthError(
                f"{self.param} must have at most {max_tokens} tokens, the max_embed_len of this"
                f" server, got {len(token_ids)}",
                param=self.param,
            )
        starts = range(0, max(1, len(token_ids)), self.max_model_len)
        return tuple(self._request(token_ids[i : i + self.max_model_len]) for i in starts)

    def _token_ids(
        self,
        prompt: str | tuple[int, ...],
        second: str | None,
        part_limits: tuple[int | None, ...],
        *,
        max_tokens: int | None,
    ) -> tuple[int, ...]:
        """Return a prompt truncated and padded. max_tokens: refuse texts that must be longer."""
        limit = self.limit
        if isinstance(prompt, str):
            token_ids = self._encode(prompt, second, limit, part_limits, max_tokens)
        elif limit is None:
            token_ids = prompt
        else:
            token_ids = truncated(prompt, limit, side=self.truncation_side)
        if self.pads:
            token_ids = self._padded(token_ids, limit or self.max_model_len)
        return token_ids

    def _request(self, token_ids: tuple[int, ...]) -> Request:
        request = Request(
            id=uuid.uuid4().hex,
            prompt_ids=token_ids,
            pools=True,
            cache_salt=self.cache_salt,
            priority=self.priority,
            arrival_s=self.arrival_s,
        )
        try:
            request.check(
                vocab_size=self.vocab_size, max_model_len=self.max_model_len, max_logprobs=0
            )
        except InvalidRequestError as error:
            error.param = self.param
            error.message = error.message.replace("prompt", self.param, 1)
            raise
        return request

    def _padded(self, token_ids: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
        pad_id = self.tokenizer.pad_id
        if pad_id is None:
            raise InvalidRequestError(
                "padding must be do_not_pad: this model's tokenizer has no padding token",
                param="padding",
            )
        return token_ids + (pad_id,) * (num_tokens - len(token_ids))

    def _encode(
        self,
        text: str,
        second: str | None,
        limit: int | None,
        part_limits: tuple[int | None, ...],
        max_tokens: int | None,
    ) -> tuple[int, ...]:
        tokenizer = self.tokenizer
        texts: list[str] = []
        for part, part_limit in zip_longest(
            [text] if second is None else [text, second], part_limits
        ):
            limits = [each for each in (limit, part_limit) if each is not None]
            if limits:
                # Encode no more than could be kept.
                most = min(limits) * tokenizer.max_token_bytes
                texts.append(part[-most:] if self.truncation_side == "left" else part[:most])
            else:
                if max_tokens is not None:
                    tokenizer.check_num_chars(len(part), max_model_len=max_tokens, param=self.param)
                texts.append(part)
        token_ids, segments = tokenizer.encode_parts(
            *texts,
            add_special_tokens=self.add_special_tokens,
            max_tokens=limit,
            part_limits=part_limits,
            side=self.truncation_side,
        )
        stride = self.pooling.segment_stride
        if second is None or not stride:
            return token_ids
        return tuple(
            token_id + stride * segment
            for token_id, segment in zip(token_ids, segments, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of texts to score: one text with each of many, or two lists of equal length.

    A cross-encoder reads a pair as one prompt. For an embedding model, the score is the cosine
    similarity. max_first_tokens, max_second_tokens: number of tokens to keep of each text; 0 keeps
    all. template, variables: chat template that renders a pair, and its variables, for models whose
    pairs are chats.
    """

    pooling: PoolingModel
    firsts: Sequence[str]
    seconds: Sequence[str]
    max_first_tokens: int = 0
    max_second_tokens: int = 0
    template: ChatTemplate | None = None
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.pooling.pairs_are_chats and self.template is None:
            raise InvalidRequestError(
                "model must have a chat template to score pairs: start it with --chat-template",
                param="model",
            )
        if self.pooling.labels and not self.pooling.is_cross_encoder:
            raise InvalidRequestError(
                "model must be an embedding model or have one label to score pairs, got"
                f" {len(self.pooling.labels)} labels",
                param="model",
            )

    def requests(self, prompts: PoolingPrompts) -> tuple[Request, ...]:
        """Return the requests whose vectors `scores` takes. Slow, because it tokenizes."""
        check_pairs(len(self.firsts), len(self.seconds), param=prompts.param)
        limits = self.max_first_tokens or None, self.max_second_tokens or None
        requests: list[Request] = []
        if not self.pooling.is_cross_encoder:
            for texts, limit in zip((self.firsts, self.seconds), limits, strict=True):
                for index, text in enumerate(texts):
                    with naming(index, len(texts), what="pair"):
                        requests.append(prompts.of(text, part_limits=(limit,)))
            return tuple(requests)
        firsts = self.firsts if len(self.firsts) > 1 else [*self.firsts] * len(self.seconds)
        for index, pair in enumerate(zip(firsts, self.seconds, strict=True)):
            with naming(index, len(firsts), what="pair"):
                if self.template is not None:
                    requests.append(self._chat(self.template, *pair, prompts))
                else:
                    requests.append(prompts.of(*pair, part_limits=limits))
        return tuple(requests)

    def _chat(
        self, template: ChatTemplate, first: str, second: str, prompts: PoolingPrompts
    ) -> Request:
        """Return the request for a pair that the chat template renders.

        If the prompt must be truncated, the second text is, because the answer depends on the end
        of the template.
        """
        tokenizer, side = prompts.tokenizer, prompts.truncation_side
        chats = replace(prompts, add_special_tokens=False)  # the template has them

        def render(first: str, second: str) -> str:
            texts = {"query": first, "document": second}
            with renamed({"messages": prompts.param}):
                return template.render(
                    [{"role": role, "content": text} for role, text in texts.items()],
                    add_generation_prompt=self.pooling.opens_answer,
                    variables=self.variables,
                )

        if self.max_first_tokens:
            first = tokenizer.shorten(first, self.max_first_tokens, side=side)
        if self.max_second_tokens or prompts.limit is not None:
            second = tokenizer.shorten(
                second, self.max_second_tokens or prompts.limit or 0, side=side
            )
        text = render(first, second)
        if prompts.limit is not None:
            num_others = len(tokenizer.encode(render(first, ""), add_special_tokens=False))
            room = max(prompts.limit - num_others, 0)
            text = render(first, tokenizer.shorten(second, room, side=side))
        return chats.of(text)

    def scores(self, vectors: Sequence[bytes], params: PoolingParams) -> list[float]:
        """Return the score of each pair, given the vectors of the requests."""
        if self.pooling.is_cross_encoder:
            return [float(answer(self.pooling, vector, params)[0]) for vector in vectors]
        units = np.stack([_unit(np.frombuffer(vector, np.float32)) for vector in vectors])
        firsts, seconds = units[: len(self.firsts)], units[len(self.firsts) :]
        cosines: list[float] = (firsts * seconds).sum(axis=1).tolist()
        return cosines


def _activate(activation: Activation, vector: Vector) -> Any:
    match activation:
        case Activation.NONE:
            return vector
        case Activation.NORMALIZE:
            return _unit(vector)
        case Activation.SIGMOID:
            return 1.0 / (1.0 + np.exp(-vector))
        case Activation.SOFTMAX:
            grown = np.exp(vector - vector.max())
            return grown / grown.sum()


def _unit(vector: Vector) -> Any:
    """Return a vector normalized to length 1. A zero vector is unchanged."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def check_pairs(num_firsts: int, num_seconds: int, *, param: str) -> None:
    """Raise InvalidRequestError unless there is one first text, or as many as second texts."""
    if num_firsts not in {1, num_seconds}:
        raise InvalidRequestError(
            f"the number of first texts must be 1 or {num_seconds}, the number of second texts,"
            f" got {num_firsts}",
            param=param,
        )
