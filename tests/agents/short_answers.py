"""Ends every answer after a few tokens: random weights would go on for as long as they may."""

import jax
import jax.numpy as jnp

from jaxserve import LogitsProcessor
from jaxserve.execution.logits_processors import ProcessorInput

EOS_ID = 2
NUM_TOKENS = 24


class ShortAnswers(LogitsProcessor):
    """Allows only the end of an answer once it has NUM_TOKENS tokens, and none before."""

    def __call__(self, logits: jax.Array, inputs: ProcessorInput) -> jax.Array:
        """See LogitsProcessor."""
        ends = inputs.counts.sum(axis=-1, keepdims=True) >= NUM_TOKENS
        is_end = jnp.arange(logits.shape[-1])[None] == EOS_ID
        return jnp.where(ends == is_end, logits, -jnp.inf)
