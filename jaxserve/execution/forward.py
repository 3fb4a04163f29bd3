"""The model's part of a step: from a packed batch to hidden states, and from those to logits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxserve.execution.batch import StepInput
from jaxserve.execution.context import StepContext
from jaxserve.execution.shapes import StepShape
from jaxserve.layers.attention import packed_attention
from jaxserve.layers.linear import Rows
from jaxserve.models import Decoder
from jaxserve.parallel.sharding import TENSOR, partition_spec
from pallas_kernels import paged_attention
from pallas_kernels.paged_attention import AttentionSpec

# One array per layer, as `paged_attention.cache_spec` describes it.
type KVCache = tuple[jax.Array, ...]


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

    token_ids: int32[tokens]. The hidden states are [tokens, embed], a row for each token.
    """
    attend: PagedAttend | PackedAttend
    if context.model.is_causal:
        attend = PagedAttend(paged_batch(inputs, shape), context)
    else:
        attend = PackedAttend.over(inputs)
    hidden, cache = model.hidden(
        token_ids,
        inputs.positions,
        cache,
        attend,
        rows=Rows(inputs.query_starts[-1]),
        rope_length=context.rope_length,
    )
    return hidden, cache


def logits_of(model: Decoder, hidden: jax.Array, rows: Rows, mesh: Mesh) -> jax.Array:
    """Return the logits of hidden states: float32[rows, vocab], whole on every device.

    rows: those of `hidden` that are not padding.
    The sharding is constrained in two steps: asked for whole logits at once, XLA gathers the head's
    weights instead.
    """
    logits = model.logits(hidden, rows)
    split = partition_spec(("rows", "vocab"), logits.shape, mesh)
    parts = lax.with_sharding_constraint(logits, NamedSharding(mesh, split))
    whole: jax.Array = lax.with_sharding_constraint(parts, NamedSharding(mesh, PartitionSpec()))
    return whole[:, : model.config.vocab_size]


def paged_batch(inputs: StepInput, shape: StepShape) -> paged_attention.PagedBatch:
    """Say where the rows of a step, and what they attend to, lie in pages."""
    return paged_attention.PagedBatch(
        page_table=inputs.page_table,
        query_starts=inputs.query_starts,
        kv_lengths=inputs.kv_lengths,
        row_sequences=inputs.row_sequences,
        positions=inputs.positions,
        max_query_length=shape.max_query_length,
    )


@dataclass(frozen=True)
class PagedAttend:
    """Paged attention as a decoder layer calls it: every device attends with its own heads."""

    batch: paged_attention.PagedBatch
    context: StepContext

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: jax.Array,
        spec: AttentionSpec,
    ) -> tuple[jax.Array, jax.Array]:
        """See layers.attention.Attend."""
        return _attend_sharded(self.context)((q, k, v), cache, self.batch, spec)


# A jitted function of its own: it is traced and lowered once for all layers that are alike, which
# takes most of a second for a kernel. XLA puts it in their places again.
@lru_cache(maxsize=16)
def _attend_sharded(context: StepContext) -> Callable[..., tuple[jax.Array, jax.Array]]:
    heads, pages, whole = PartitionSpec(None, TENSOR, None), context.cache_sharding, PartitionSpec()

    @jax.jit
    def attend(
        qkv: tuple[jax.Array, jax.Array, jax.Array],
        cache: jax.Array,
        batch: paged_attention.PagedBatch,
        spec: AttentionSpec,
    ) -> tuple[jax.Array, jax.Array]:
        sharded = jax.shard_map(
            partial(
                paged_attention.attend,
                backend=context.attention.backend,
                target=context.attention.target,
            ),
            mesh=context.mesh,
            in_specs=(
                *(heads, heads, heads),
                pages,
                whole,
                spec.partitioned(heads=PartitionSpec(TENSOR), tokens=whole),
            ),
            out_specs=(heads, pages),
            check_vma=False,
        )
        result: tuple[jax.Array, jax.Array] = sharded(*qkv, cache, batch, spec)
        return result

    return attend


@dataclass(frozen=True)
class PackedAttend:
    """Attention of an encoder's layer: each token to all of its prompt, which is here whole."""

    prompts: jax.Array  # int32[tokens], the sequence of each row; padding is one of its own

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
