"""Limits of requests that depend on the model."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS
from jaxserve.api.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """Limits of requests that a model and its runner can serve.

    vocab_size: token ids in requests must be below it. can_generate: whether the model could
    generate text if it were not configured for pooling. max_logprobs: limit of alternatives per
    token. check: raises InvalidRequestError for parameters that the runner does not support.
    """

    vocab_size: int
    can_generate: bool = True
    max_logprobs: int = DEFAULT_MAX_LOGPROBS
    check: Callable[[SamplingParams], None] | None = None
