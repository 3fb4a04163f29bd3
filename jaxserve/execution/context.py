"""What a step is compiled against, beside its shape."""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from jaxserve.api.caches import CacheLayout
from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS
from jaxserve.api.pooling import PoolingType
from jaxserve.execution.attention import AttentionPlan
from jaxserve.execution.batch import StepInput
from jaxserve.execution.logits_processors import NO_PROCESSORS, LogitsProcessors
from jaxserve.execution.shapes import StepShape
from jaxserve.models import ModelConfig
from jaxserve.parallel.sharding import ShardingPlan


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What an engine's operator has chosen about choosing tokens and reporting them."""

    max_logprobs: int = DEFAULT_MAX_LOGPROBS  # at each token, at most the vocabulary
    logprobs_mode: str = "raw_logprobs"  # one of config.LOGPROBS_MODES
    processors: LogitsProcessors = NO_PROCESSORS


class Head(Protocol):
    """What becomes of the hidden states of a step: a function of heads/."""

    def __call__(
        self,
        model: Any,
        hidden: jax.Array,
        inputs: StepInput,
        state: Any,
        *,
        shape: StepShape,
        context: "StepContext",
    ) -> tuple[Any, Any]:
        """Return what the host gets, and the updated slot state.

        model: bound to its parameters. hidden: [tokens, embed]. state: of the kind that the head
        keeps, SlotState or PoolState. The host's part of the result is a StepOutput or PoolOutput.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a step is compiled against, beside its shape."""

    model: ModelConfig
    head: Head
    sharding: ShardingPlan
    caches: CacheLayout
    rope_length: int
    attention: AttentionPlan
    sampling: SamplingSettings = SamplingSettings()
    pooling: PoolingType | None = None  # what `pool_head` makes of a prompt

    @property
    def mesh(self) -> Mesh:
        """Devices that steps run on."""
        return self.sharding.mesh
