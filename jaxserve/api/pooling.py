"""Pooling: a prompt answered by one vector, an embedding or scores of labels, and by no text.

The engine yields raw float32 vectors; what a request wants of one (its first dimensions, length 1,
probabilities) is made of it where the request is looked after (`frontend/pooling.py`).
"""

from dataclasses import dataclass
from enum import StrEnum

from jaxserve.errors import InvalidRequestError


class PoolingType(StrEnum):
    """Which hidden states of a prompt are its vector; the names are vLLM's."""

    LAST = "LAST"
    MEAN = "MEAN"
    CLS = "CLS"


class Activation(StrEnum):
    """What makes an answer of a vector: embeddings are normalised, scores become probabilities."""

    NONE = "none"
    NORMALIZE = "normalize"
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """What one request wants; names and meanings as in vLLM.

    dimensions: keep only so many, which Matryoshka embeddings allow. use_activation: whether the
    model's activation is applied; None is the model's own way. Raises InvalidRequestError.
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
    """A model that pools.

    width: numbers of a vector. labels: what each of them scores; empty for embeddings. activation:
    what is done with a vector; activates: whether it does so unless it is told otherwise.
    segment_stride: what is added to the token ids of the second text of a pair, where the model
    tells them apart. can_generate: whether it has a head for tokens, for `--runner generate`.
    """

    type: PoolingType
    width: int
    labels: tuple[str, ...] = ()
    activation: Activation = Activation.NORMALIZE
    activates: bool = True
    segment_stride: int = 0
    can_generate: bool = False

    @property
    def task(self) -> str:
        """The word for what the vectors are, vLLM's."""
        return "classify" if self.labels else "embed"

    @property
    def is_cross_encoder(self) -> bool:
        """Whether it scores a pair of texts as one prompt."""
        return len(self.labels) == 1

    def check_task(self, task: str) -> None:
        """Raise InvalidRequestError unless the vectors are what `task` wants."""
        if task != self.task:
            kinds = {"embed": "gives embeddings", "classify": "scores labels"}
            raise InvalidRequestError(
                f"this model {kinds[self.task]}: it cannot be asked to {task}", param="model"
            )

    def check(self, params: PoolingParams) -> None:
        """Raise InvalidRequestError for what this model cannot give."""
        if params.dimensions is None:
            return
        if self.labels:
            raise InvalidRequestError(
                "dimensions can only be given for embeddings", param="dimensions"
            )
        if params.dimensions > self.width:
            raise InvalidRequestError(
                f"dimensions must be at most the model's own ({self.width}),"
                f" got {params.dimensions}",
                param="dimensions",
            )
