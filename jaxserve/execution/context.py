"""Static parameters of a compiled step, besides its shape."""

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
    """Engine-wide settings of sampling and log-probabilities."""

    max_logprobs: int = DEFAULT_MAX_LOGPROBS  # per token, at most the vocabulary size
    logprobs_mode: str = "raw_logprobs"  # one of config.LOGPROBS_MODES
    processors: LogitsProcessors = NO_PROCESSORS


class Head(Protocol):
    """Function that computes a step's output from hidden states; see heads/."""

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
        """Return the output for the host and the updated slot state.

        model: bound to its parameters. hidden: [tokens, embed]. state: SlotState or PoolState,
        depending on the head. The output is a StepOutput or a PoolOutput.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Static parameters of a compiled step, besides its shape."""

    model: ModelConfig
    head: Head
    sharding: ShardingPlan
    caches: CacheLayout
    rope_length: int
    attention: AttentionPlan
    sampling: SamplingSettings = SamplingSettings()
    pooling: PoolingType | None = None  # pooling type of `pool_head`

    @property
    def mesh(self) -> Mesh:
        """Devices that run the step."""
        return self.sharding.mesh
