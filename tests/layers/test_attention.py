"""Dense causal attention against the sum it stands for, written out in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve.layers.attention import causal_attention

type Floats = NDArray[np.float32]

TOKENS, HEADS, KV_HEADS, HEAD_DIM = 9, 4, 2, 8
SCALE = 0.3


def qkv() -> tuple[Floats, Floats, Floats]:
    draw = np.random.default_rng(0)
    q = draw.normal(size=(TOKENS, HEADS, HEAD_DIM)).astype(np.float32)
    k, v = draw.normal(size=(2, TOKENS, KV_HEADS, HEAD_DIM)).astype(np.float32)
    return q, k, v


def by_hand(q: Floats, k: Floats, v: Floats, window: int) -> Floats:
    out = np.zeros_like(q)
    for token in range(TOKENS):
        seen = slice(max(0, token - window + 1), token + 1)
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            weights = np.exp(SCALE * k[seen, kv_head] @ q[token, head])
            out[token, head] = weights @ v[seen, kv_head] / weights.sum()
    return out


@pytest.mark.parametrize("window", [None, 1, 3, TOKENS, 100])
def test_a_token_sees_itself_and_the_window_before_it(window: int | None) -> None:
    q, k, v = qkv()
    out = causal_attention(
        jnp.array(q), jnp.array(k), jnp.array(v), scale=SCALE, sliding_window=window
    )
    np.testing.assert_allclose(out, by_hand(q, k, v, window or TOKENS), atol=1e-6)


def test_bfloat16_stays_bfloat16_and_close() -> None:
    q, k, v = qkv()
    out = causal_attention(*(jnp.array(x, jnp.bfloat16) for x in (q, k, v)), scale=SCALE)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), by_hand(q, k, v, TOKENS), atol=0.03)
