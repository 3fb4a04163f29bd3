"""Head that scores prompts: log-probabilities of the tokens that follow."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxserve.execution import sampling
from jaxserve.execution.batch import StepInput
from jaxserve.execution.context import StepContext
from jaxserve.execution.forward import logits_of
from jaxserve.execution.sampling import Logprobs
from jaxserve.execution.shapes import Feature, StepShape
from jaxserve.layers.linear import ALL_ROWS
from jaxserve.models import Decoder

# Prompt rows scored at once. Their logits are the largest array of a scoring step.
SCORED_ROWS = 32


def score_head(
    model: Decoder, hidden: jax.Array, inputs: StepInput, *, shape: StepShape, context: StepContext
) -> Logprobs:
    """Return log-probabilities of the token after each row, zeros if no row needs them."""
    score = partial(_score, model, hidden, inputs, context)
    with jax.named_scope("prompt_logprobs"):
        if not shape.branches:
            return score()
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(score))
        is_needed = inputs.needs[0] & Feature.PROMPT_LOGPROBS != 0
        scores: Logprobs = lax.cond(is_needed, score, lambda: blank)
        return scores


def _score(model: Decoder, hidden: jax.Array, inputs: StepInput, context: StepContext) -> Logprobs:
    """Score a few rows at a time, because their logits are large."""

    def score_some(row: tuple[jax.Array, jax.Array]) -> Logprobs:
        rows, chosen = row
        scores = jax.nn.log_softmax(logits_of(model, rows, ALL_ROWS, context.sharding), axis=-1)
        return sampling.report(scores, chosen, num_top=context.sampling.max_logprobs)

    num_rows = hidden.shape[0]
    size = max(size for size in range(1, SCORED_ROWS + 1) if num_rows % size == 0)
    scores: Logprobs = lax.map(
        score_some, (hidden.reshape(-1, size, hidden.shape[1]), inputs.targets.reshape(-1, size))
    )
    flat: Logprobs = jax.tree.map(lambda x: x.reshape(num_rows, *x.shape[2:]), scores)
    return flat
