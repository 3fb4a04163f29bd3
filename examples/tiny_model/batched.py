"""Forward pass of a batch of whole sequences whose tokens share one axis.

`Decoder.__call__` maps over the rows of a batch. Here the layers see the tokens of all rows at
once, so that a mixture of experts multiplies each expert's matrix by many rows.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jaxserve.layers.attention import causal_attention
from jaxserve.models import Decoder, Tap
from pallas_kernels.paged_attention import AttentionSpec
from pallas_kernels.rotary import rotate


def batch_logits(model: Decoder, token_ids: Array, *, tap: Tap | None = None) -> Array:
    """Return float32 logits [rows, tokens, vocab] of int32[rows, tokens].

    All layers must have attention, with keys and values of their own. tap: called with the named
    activations of all rows, whose tokens are one axis.
    """
    rows, length = token_ids.shape

    def attend(
        q: Array, k: Array, v: Array | None, cache: None, spec: AttentionSpec
    ) -> tuple[Array, None]:
        assert v is not None
        if spec.rope is not None:
            q, k = rotate(q, spec.rope), rotate(k, spec.rope)
        unrotated = replace(spec, rope=None)
        by_row = (each.reshape(rows, length, *each.shape[1:]) for each in (q, k, v))
        mixed = jax.vmap(lambda q, k, v: causal_attention(q, k, v, unrotated))(*by_row)
        return mixed.reshape(rows * length, *mixed.shape[2:]), cache

    hidden, _ = model.hidden(
        token_ids.reshape(-1),
        jnp.tile(jnp.arange(length), rows),
        (None,) * model.config.num_layers,
        attend,
        rope_length=length,
        tap=tap,
    )
    return model.logits(hidden).reshape(rows, length, -1)
