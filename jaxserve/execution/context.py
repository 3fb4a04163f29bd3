"""What a step is compiled against, beside its shape."""

from dataclasses import dataclass

from jax.sharding import Mesh

from jaxserve.api.caches import CacheLayout
from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS
from jaxserve.api.pooling import PoolingType
from jaxserve.execution.attention import AttentionPlan
from jaxserve.execution.logits_processors import NO_PROCESSORS, LogitsProcessors
from jaxserve.models import ModelConfig
from jaxserve.parallel.sharding import ShardingPlan


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What an engine's operator has chosen about choosing tokens and reporting them."""

    max_logprobs: int = DEFAULT_MAX_LOGPROBS  # at each token, at most the vocabulary
    logprobs_mode: str = "raw_logprobs"  # one of config.LOGPROBS_MODES
    processors: LogitsProcessors = NO_PROCESSORS


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a step is compiled against, beside its shape."""

    model: ModelConfig
    sharding: ShardingPlan
    caches: CacheLayout
    rope_length: int
    attention: AttentionPlan
    sampling: SamplingSettings = SamplingSettings()
    pooling: PoolingType | None = None  # what `pooling.pool_step` makes of a prompt

    @property
    def mesh(self) -> Mesh:
        """Devices that steps run on."""
        return self.sharding.mesh
