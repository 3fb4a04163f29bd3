"""From texts to requests that pool, and from vectors to answers: in servers and offline."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxserve.errors import InvalidRequestError
from jaxserve.loading.tokenizer import Tokenizer
from jaxserve.pooling import Activation, PoolingModel, PoolingParams
from jaxserve.request import Request
from jaxserve.server.protocol.pooling import check_pairs

type Vector = np.ndarray[tuple[int], np.dtype[np.float32]]


def answer(pooling: PoolingModel, raw: bytes, params: PoolingParams) -> Vector:
    """Return what is answered of a vector as the engine has it."""
    vector = np.frombuffer(raw, np.float32)[: params.dimensions]
    activates = pooling.activates if params.use_activation is None else params.use_activation
    activated: Any = _activate(pooling.activation, vector) if activates else vector
    answered: Vector = activated
    return answered


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingPrompts:
    """Makes requests of the prompts of one call.

    truncate: how many tokens to keep of a longer prompt, from its beginning; -1 is as many as the
    model takes, None refuses prompts that are longer. param: the call's name for them.
    """

    tokenizer: Tokenizer
    pooling: PoolingModel
    max_model_len: int
    vocab_size: int
    param: str
    truncate: int | None = None
    add_special_tokens: bool = True
    cache_salt: str = ""
    priority: int = 0
    arrival_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.truncate is not None and not -1 <= self.truncate <= self.max_model_len:
            raise InvalidRequestError(
                f"truncate_prompt_tokens must be in [-1, {self.max_model_len}],"
                f" got {self.truncate}",
                param="truncate_prompt_tokens",
            )

    def of(self, prompt: str | tuple[int, ...], second: str | None = None) -> Request:
        """Return the request of a prompt, or of a pair of texts. Slow: encodes.

        Raises InvalidRequestError.
        """
        limit = self.max_model_len if self.truncate == -1 else self.truncate
        if isinstance(prompt, str):
            token_ids = self._encode(prompt, second, limit)
        else:
            token_ids = prompt[:limit]
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
            error.message = error.message.replace("prompt", self.param)
            raise
        return request

    def _encode(self, text: str, second: str | None, limit: int | None) -> tuple[int, ...]:
        tokenizer = self.tokenizer
        if limit is None:
            for part in (text, second or ""):
                tokenizer.check_num_chars(
                    len(part), max_model_len=self.max_model_len, param=self.param
                )
        else:
            # No more than could be kept of it is worth encoding.
            most = limit * tokenizer.max_token_bytes
            text, second = text[:most], None if second is None else second[:most]
        token_ids, segments = tokenizer.encode_parts(
            text, second, add_special_tokens=self.add_special_tokens, max_tokens=limit
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
    """Texts to be scored against each other: one with each of many, or each with its own.

    A cross-encoder reads a pair as one prompt; of a model of embeddings the score is the cosine.
    """

    pooling: PoolingModel
    firsts: Sequence[str]
    seconds: Sequence[str]

    def __post_init__(self) -> None:
        if self.pooling.labels and not self.pooling.is_cross_encoder:
            raise InvalidRequestError(
                "only a model of embeddings or of one label can score pairs of texts, and this one"
                f" has {len(self.pooling.labels)} labels",
                param="model",
            )

    def requests(self, prompts: PoolingPrompts) -> tuple[Request, ...]:
        """Return the requests whose vectors `scores` wants. Slow: encodes."""
        check_pairs(len(self.firsts), len(self.seconds), param=prompts.param)
        if not self.pooling.is_cross_encoder:
            return tuple(prompts.of(text) for text in (*self.firsts, *self.seconds))
        firsts = self.firsts if len(self.firsts) > 1 else [*self.firsts] * len(self.seconds)
        return tuple(prompts.of(*pair) for pair in zip(firsts, self.seconds, strict=True))

    def scores(self, vectors: Sequence[bytes], params: PoolingParams) -> list[float]:
        """Return the score of each pair, of the vectors of the requests."""
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
    """Return a vector at length 1; one of zeros stays as it is."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
