"""How a layer attends: the protocol its caller fills in, and the dense answer of the full forward.

A decoder layer knows queries, keys and values; it does not know where earlier keys and values
are kept. The compiled step passes an `Attend` that reads and writes pages, the full-sequence
forward passes `attend_dense`, a researcher may pass one that records the weights.
"""

from typing import Protocol

import jax
from jax import lax
from jaxtyping import Array, Float, Int32

# Queries that `packed_attention` takes at once: their scores are the largest array of an encoder.
PACKED_QUERIES = 128


class Attend[Cache](Protocol):
    """Attention of one layer over whatever `Cache` is: KV pages, or None for a whole sequence."""

    def __call__(
        self,
        q: Float[Array, "tokens heads head_dim"],
        k: Float[Array, "tokens kv_heads head_dim"],
        v: Float[Array, "tokens kv_heads head_dim"],
        cache: Cache,
        *,
        scale: float,
        sliding_window: int | None,
    ) -> tuple[Float[Array, "tokens heads head_dim"], Cache]:
        """Return what each token gathered, and the cache with the new keys and values in it.

        q and k are rotated already. sliding_window: a token sees itself and the
        `sliding_window - 1` tokens before it; None is all of them.
        """
        ...


def causal_attention(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    *,
    scale: float,
    sliding_window: int | None = None,
) -> Float[Array, "tokens heads head_dim"]:
    """Attend within one whole sequence, each token to itself and those before it.

    Each key-value head serves heads / kv_heads neighbouring query heads (Ainslie et al., "GQA",
    2023, arXiv:2305.13245). Scores and softmax are float32; the result has the dtype of `v`.
    """
    with jax.named_scope("attention"):
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            is_causal=True,
            local_window_size=None if sliding_window is None else (sliding_window - 1, 0),
        )


def attend_dense(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    cache: None,
    *,
    scale: float,
    sliding_window: int | None,
) -> tuple[Float[Array, "tokens heads head_dim"], None]:
    """Attend within one whole sequence, keeping nothing: the `Attend` of the full forward."""
    return causal_attention(q, k, v, scale=scale, sliding_window=sliding_window), cache


def packed_attention(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens heads head_dim"],
    v: Float[Array, "tokens heads head_dim"],
    texts: Int32[Array, " tokens"],
    *,
    scale: float,
) -> Float[Array, "tokens heads head_dim"]:
    """Attend within whole texts that lie packed together, each token to all tokens of its text.

    texts: which text each token is of. A few queries at a time meet all keys.
    """

    def attend(block: tuple[Array, Array]) -> Array:
        queries, own = block
        mask = own[:, None] == texts[None, :]
        return jax.nn.dot_product_attention(
            queries[None], k[None], v[None], scale=scale, mask=mask[None, None]
        )[0]

    num_tokens = q.shape[0]
    size = max(size for size in range(1, PACKED_QUERIES + 1) if num_tokens % size == 0)
    with jax.named_scope("attention"):
        blocks = (q.reshape(-1, size, *q.shape[1:]), texts.reshape(-1, size))
        mixed: Array = lax.map(attend, blocks)
        return mixed.reshape(q.shape)


def attend_both_ways(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens heads head_dim"],
    v: Float[Array, "tokens heads head_dim"],
    cache: None,
    *,
    scale: float,
    sliding_window: int | None,
) -> tuple[Float[Array, "tokens heads head_dim"], None]:
    """Attend within one whole text, each token to all: the `Attend` of an encoder by itself."""
    assert sliding_window is None, "an encoder sees all"
    with jax.named_scope("attention"):
        return jax.nn.dot_product_attention(q, k, v, scale=scale), cache
