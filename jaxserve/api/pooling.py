"""Pooling parameters and models: the result of a prompt is a vector instead of text.

The vector is an embedding or holds the scores of labels. The engine returns raw float32 vectors;
`frontend/pooling.py` truncates, normalizes or activates them as requested.
"""

from dataclasses import dataclass
from enum import StrEnum

from jaxserve.errors import InvalidRequestError


class PoolingType(StrEnum):
    """How the hidden states of a prompt become one vector; the names are vLLM's."""

    LAST = "LAST"
    MEAN = "MEAN"
    CLS = "CLS"


class Activation(StrEnum):
    """Activation of a vector: embeddings are normalized, scores become probabilities."""

    NONE = "none"
    NORMALIZE = "normalize"
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """Pooling parameters of one request; names and meanings as in vLLM.

    dimensions: length to truncate the vector to, for Matryoshka embeddings. use_activation:
    whether to apply the model's activation; None is the model's default. Raises
    InvalidRequestError.
    """

    dimensions: int | None = None
    use_activation: bool | None = None

    def __post_init__(self) -> None:
        dimensions = self.dimensions
        if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
            raise InvalidRequestError(
                f"dimensions must be an integer of at least 1, got {dimensions!r}",
                param="dimensions",
            )
        if not isinstance(self.use_activation, bool | None):
            raise InvalidRequestError(
                f"use_activation must be true or false, got {self.use_activation!r}",
                param="use_activation",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingModel:
    """Description of a pooling model.

    width: length of a vector in the engine. labels: the label that each number scores; empty for
    embeddings. contrasts: the one label is scored by the second of two numbers minus the first.
    pairs_are_chats: the chat template renders a pair of texts, as messages of the roles query and
    document. opens_answer: the add_generation_prompt of such chats. activation: applied to a vector
    if requested; activates: whether it is by default. segment_stride: added to the token ids of the
    second text of a pair, for models with segment (token type) embeddings; else 0. can_generate:
    whether the model has a language model head, for `--runner generate`. splits_prompts: whether
    prompts beyond the context are embedded in chunks. max_embed_len: maximum number of tokens of
    such a prompt; None is no limit.
    """

    type: PoolingType
    width: int
    labels: tuple[str, ...] = ()
    contrasts: bool = False
    pairs_are_chats: bool = False
    opens_answer: bool = False
    activation: Activation = Activation.NORMALIZE
    activates: bool = True
    segment_stride: int = 0
    can_generate: bool = False
    splits_prompts: bool = False
    max_embed_len: int | None = None

    @property
    def task(self) -> str:
        """The task, by vLLM's name: "classify" or "embed"."""
        return "classify" if self.labels else "embed"

    @property
    def is_cross_encoder(self) -> bool:
        """Whether the model scores a pair of texts in one prompt."""
        return len(self.labels) == 1

    def check_task(self, task: str) -> None:
        """Raise InvalidRequestError unless the model does `task`."""
        if task != self.task:
            raise InvalidRequestError(
                f"model must support the task {task}, but this model supports {self.task}",
                param="model",
            )

    def check(self, params: PoolingParams) -> None:
        """Raise InvalidRequestError for parameters that this model does not support."""
        if params.dimensions is None:
            return
        if self.labels:
            raise InvalidRequestError(
                "dimensions can only be given for embeddings", param="dimensions"
            )
        if params.dimensions > self.width:
            raise InvalidRequestError(
                f"dimensions must be at most {self.width} for this model, got {params.dimensions}",
                param="dimensions",
            )
