"""Dense causal attention against the sum it stands for, written out in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve.layers.attention import attend_both_ways, causal_attention, packed_attention
from jaxserve.layers.rope import Rope, rotation
from pallas_kernels.paged_attention import AttentionSpec
from pallas_kernels.rotary import rotate

type Floats = NDArray[np.float32]

TOKENS, HEADS, KV_HEADS, HEAD_DIM = 9, 4, 2, 8
SCALE = 0.3


def qkv() -> tuple[Floats, Floats, Floats]:
    draw = np.random.default_rng(0)
    q = draw.normal(size=(TOKENS, HEADS, HEAD_DIM)).astype(np.float32)
    k, v = draw.normal(size=(2, TOKENS, KV_HEADS, HEAD_DIM)).astype(np.float32)
    return q, k, v


def by_hand(
    q: Floats,
    k: Floats,
    v: Floats,
    window: int,
    *,
    soft_cap: float = np.inf,
    sinks: Floats | None = None,
) -> Floats:
    out = np.zeros_like(q)
    for token in range(TOKENS):
        seen = slice(max(0, token - window + 1), token + 1)
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            scores = SCALE * k[seen, kv_head] @ q[token, head]
            if soft_cap < np.inf:
                scores = soft_cap * np.tanh(scores / soft_cap)
            weights = np.exp(scores)
            total = weights.sum() + (0 if sinks is None else np.exp(sinks[head]))
            out[token, head] = weights @ v[seen, kv_head] / total
    return out


@pytest.mark.parametrize("window", [None, 1, 3, TOKENS, 100])
def test_a_token_sees_itself_and_the_window_before_it(window: int | None) -> None:
    q, k, v = qkv()
    spec = AttentionSpec(scale=SCALE, sliding_window=window)
    out = causal_attention(jnp.array(q), jnp.array(k), jnp.array(v), spec)
    np.testing.assert_allclose(out, by_hand(q, k, v, window or TOKENS), atol=1e-6)


def test_soft_cap_bounds_the_scores_and_sinks_take_their_share() -> None:
    q, k, v = qkv()
    sinks = np.array([-1.0, 0.0, 1.0, 2.0], np.float32)
    spec = AttentionSpec(scale=SCALE, sliding_window=4, soft_cap=0.5, sinks=jnp.array(sinks))
    out = causal_attention(jnp.array(q), jnp.array(k), jnp.array(v), spec)
    np.testing.assert_allclose(out, by_hand(q, k, v, 4, soft_cap=0.5, sinks=sinks), atol=1e-6)


def test_attention_rotates_what_the_layer_has_not() -> None:
    q, k, v = (jnp.array(x) for x in qkv())
    table = rotation(Rope(), HEAD_DIM, jnp.arange(TOKENS), length=TOKENS)
    rotated = causal_attention(rotate(q, table), rotate(k, table), v, AttentionSpec(scale=SCALE))
    spec = AttentionSpec(scale=SCALE, rope=table)
    np.testing.assert_array_equal(causal_attention(q, k, v, spec), rotated)


def test_packed_texts_attend_each_by_itself() -> None:
    q, k, v = (jnp.array(x) for x in (qkv()[0], *(x.repeat(2, axis=1) for x in qkv()[1:])))
    spec = AttentionSpec(scale=SCALE, soft_cap=2.0, sinks=jnp.array([0.0, 0.5, 1.0, 1.5]))
    texts = jnp.array([0] * 4 + [1] * 5)
    parts = [attend_both_ways(q[s], k[s], v[s], None, spec)[0] for s in (slice(4), slice(4, None))]
    np.testing.assert_allclose(
        packed_attention(q, k, v, texts, spec), jnp.concatenate(parts), atol=1e-6
    )


def test_bfloat16_stays_bfloat16_and_close() -> None:
    q, k, v = qkv()
    q16, k16, v16 = (jnp.array(x, jnp.bfloat16) for x in (q, k, v))
    out = causal_attention(q16, k16, v16, AttentionSpec(scale=SCALE))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), by_hand(q, k, v, TOKENS), atol=0.03)
