"""Forward pass of the model: from a packed batch to hidden states and logits."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxserve.execution.batch import StepInput
from jaxserve.execution.caches import CacheArrays, KVCache, PagedAttend, layer_caches
from jaxserve.execution.context import StepContext
from jaxserve.execution.shapes import StepShape
from jaxserve.layers.attention import packed_attention
from jaxserve.layers.linear import Rows
from jaxserve.models import Decoder
from jaxserve.parallel.sharding import ShardingPlan
from pallas_kernels.paged_attention import AttentionSpec


def forward(
    model: Any,
    token_ids: jax.Array,
    inputs: StepInput,
    cache: KVCache,
    *,
    shape: StepShape,
    context: StepContext,
) -> tuple[jax.Array, KVCache]:
    """Run the layers of a bound model; return its hidden states and the updated cache.

    token_ids: int32[tokens]. The hidden states are [tokens, embed].
    """
    arrays = CacheArrays(cache)
    attend = PagedAttend(context) if context.model.is_causal else PackedAttend.over(inputs)
    hidden, _ = model.hidden(
        token_ids,
        inputs.positions,
        layer_caches(arrays, inputs, shape, context) or (None,) * context.model.num_layers,
        attend,
        rows=Rows(inputs.query_starts[-1]),
        rope_length=context.rope_length,
    )
    return hidden, arrays.all


def logits_of(model: Decoder, hidden: jax.Array, rows: Rows, sharding: ShardingPlan) -> jax.Array:
    """Return the logits of hidden states, float32[rows, vocab], replicated on all devices.

    rows: the rows of `hidden` that are not padding. The sharding is constrained in two steps. With
    one constraint, XLA gathers the head's weights instead of the logits.
    """
    logits = model.logits(hidden, rows)
    split = sharding.sharding(("rows", "vocab"), logits.shape)
    parts = lax.with_sharding_constraint(logits, split)
    whole: jax.Array = lax.with_sharding_constraint(
        parts, NamedSharding(sharding.mesh, PartitionSpec())
    )
    return whole[:, : model.config.vocab_size]


@dataclass(frozen=True)
class PackedAttend:
    """Attention of an encoder layer: each token attends to its entire prompt."""

    prompts: jax.Array  # int32[tokens], sequence of each row; padding has its own

    @staticmethod
    def over(inputs: StepInput) -> "PackedAttend":
        """Return the attention of a step."""
        rows = jnp.arange(inputs.token_ids.shape[0])
        is_live = rows < inputs.query_starts[-1]
        return PackedAttend(jnp.where(is_live, inputs.row_sequences, inputs.slots.shape[0]))

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: None,
        spec: AttentionSpec,
    ) -> tuple[jax.Array, None]:
        """See layers.attention.Attend."""
        return packed_attention(q, k, v, self.prompts, spec), cache
