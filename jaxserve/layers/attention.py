"""Attention interface of layers, and attention within whole sequences.

A decoder layer computes queries, keys and values, and is independent of the cache. A compiled step
passes an `Attend` that reads and writes pages. A forward pass over a whole sequence passes
`attend_dense`. A researcher may pass one that records the weights.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from pallas_kernels.paged_attention import AttentionSpec
from pallas_kernels.rotary import rotate

# Queries per block of `packed_attention`. Their scores are an encoder's largest array.
PACKED_QUERIES = 128

# Score of a masked key. Finite, so that a row without keys does not become NaN.
_MASKED = -1e30


class Attend[Cache](Protocol):
    """Attention of one layer over a `Cache`: KV pages, or None for a whole sequence."""

    def __call__(
        self,
        q: Float[Array, "tokens heads head_dim"],
        k: Float[Array, "tokens kv_heads head_dim"],
        v: Float[Array, "tokens kv_heads value_dim"] | None,
        cache: Cache,
        spec: AttentionSpec,
    ) -> tuple[Float[Array, "tokens heads value_dim"], Cache]:
        """Return the attention output, and the cache with the new keys and values.

        v is None if `spec` has a value_dim: values are the first dimensions of the keys.
        """
        ...


def causal_attention(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads value_dim"] | None,
    spec: AttentionSpec,
) -> Float[Array, "tokens heads value_dim"]:
    """Attend within one whole sequence, each token to itself and earlier tokens.

    Each key-value head serves heads / kv_heads adjacent query heads (Ainslie et al., "GQA", 2023,
    arXiv:2305.13245). Scores and softmax are float32; the result has the dtype of the values.
    """
    rows = jnp.arange(q.shape[0])
    distances = rows[:, None] - rows[None, :]
    mask = distances >= 0
    if spec.sliding_window is not None:
        mask &= distances < spec.sliding_window
    with jax.named_scope("attention"):
        q, k = _rotated(q, k, spec)
        values = k[..., : spec.value_dim] if v is None else v
        return _attend(q, k, values, mask, spec)


def attend_dense(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads value_dim"] | None,
    cache: None,
    spec: AttentionSpec,
) -> tuple[Float[Array, "tokens heads value_dim"], None]:
    """Attend within one whole sequence without a cache: a decoder's default `Attend`."""
    return causal_attention(q, k, v, spec), cache


def packed_attention(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    texts: Int32[Array, " tokens"],
    spec: AttentionSpec,
) -> Float[Array, "tokens heads head_dim"]:
    """Attend within packed whole texts, each token to all tokens of its text.

    texts: index of each token's text, whose tokens are adjacent. A window limits the distance to
    tokens on both sides, to less than itself. Blocks of queries are processed one after the other.
    """
    num_tokens = q.shape[0]
    rows = jnp.arange(num_tokens)

    def attend(block: tuple[Array, Array, Array]) -> Array:
        queries, own, at = block
        mask = own[:, None] == texts[None, :]
        if spec.sliding_window is not None:
            mask &= jnp.abs(at[:, None] - rows[None, :]) < spec.sliding_window
        return _attend(queries, k, v, mask, spec)

    size = max(size for size in range(1, PACKED_QUERIES + 1) if num_tokens % size == 0)
    with jax.named_scope("attention"):
        q, k = _rotated(q, k, spec)
        blocks = (
            q.reshape(-1, size, *q.shape[1:]),
            texts.reshape(-1, size),
            rows.reshape(-1, size),
        )
        mixed: Array = lax.map(attend, blocks)
        return mixed.reshape(q.shape)


def attend_both_ways(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"] | None,
    cache: None,
    spec: AttentionSpec,
) -> tuple[Float[Array, "tokens heads head_dim"], None]:
    """Attend within one whole text, each token to all: an encoder's default `Attend`."""
    assert v is not None, "encoders compute values of their own"
    return packed_attention(q, k, v, jnp.zeros(q.shape[0], jnp.int32), spec), cache


def _rotated(q: Array, k: Array, spec: AttentionSpec) -> tuple[Array, Array]:
    return (q, k) if spec.rope is None else (rotate(q, spec.rope), rotate(k, spec.rope))


def _attend(
    q: Float[Array, "queries heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads value_dim"],
    mask: Bool[Array, "queries tokens"],
    spec: AttentionSpec,
) -> Float[Array, "queries heads value_dim"]:
    """Attend where `mask` is true. Queries and keys are rotated already."""
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[2])
    scores = jnp.einsum("tgrk,sgk->grts", grouped, k, preferred_element_type=jnp.float32)
    scores *= spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * jnp.tanh(scores / spec.soft_cap)
    scores = jnp.where(mask, scores, _MASKED)
    if spec.sinks is not None:
        sinks = spec.sinks.astype(scores.dtype).reshape(*scores.shape[:2], 1, 1)
        scores = jnp.concatenate([scores, jnp.broadcast_to(sinks, (*scores.shape[:3], 1))], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : k.shape[0]].astype(v.dtype)
    return jnp.einsum("grts,sgk->tgrk", weights, v).reshape(*q.shape[:2], -1)
