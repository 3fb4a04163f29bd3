"""The head that scores prompts: log-probabilities of the tokens that follow."""

import jax
from jax import lax

from jaxserve.execution import sampling
from jaxserve.execution.batch import StepInput
from jaxserve.execution.context import StepContext
from jaxserve.execution.forward import logits_of
from jaxserve.execution.sampling import Logprobs
from jaxserve.layers.linear import ALL_ROWS
from jaxserve.models import Decoder

# Prompt rows scored at once: their logits are the largest array of a SCORE step.
SCORED_ROWS = 32


def score(model: Decoder, hidden: jax.Array, inputs: StepInput, context: StepContext) -> Logprobs:
    """Log-probabilities of the token that follows each row, a few rows of logits at a time."""

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
