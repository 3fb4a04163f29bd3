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
    return whole


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
        *,
        scale: float,
        sliding_window: int | None,
    ) -> tuple[jax.Array, jax.Array]:
        """See layers.attention.Attend."""
        attend = _attend_sharded(self.context, scale=scale, sliding_window=sliding_window)
        result: tuple[jax.Array, jax.Array] = attend(q, k, v, cache, self.batch)
        return result


# A jitted function of its own: it is traced and lowered once for all layers that are alike, which
# takes most of a second for a kernel. XLA puts it in their places again.
@lru_cache(maxsize=16)
def _attend_sharded(
    context: StepContext, *, scale: float, sliding_window: int | None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    attend = partial(
        paged_attention.attend,
        scale=scale,
        sliding_window=sliding_window,
        backend=context.attention.backend,
        target=context.attention.target,
    )
    heads = PartitionSpec(None, TENSOR, None)
    pages = context.cache_sharding
    sharded = jax.shard_map(
        attend,
        mesh=context.mesh,
        in_specs=(heads, heads, heads, pages, PartitionSpec()),
        out_specs=(heads, pages),
        check_vma=False,
    )
    return jax.jit(sharded)


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
        *,
        scale: float,
        sliding_window: int | None,
    ) -> tuple[jax.Array, None]:
        """See layers.attention.Attend."""
        assert sliding_window is None, "an encoder sees all"
        return packed_attention(q, k, v, self.prompts, scale=scale), cache
