"""A logits processor of one's own: top-n-sigma (Tang et al. 2024, arXiv:2411.07641).

python examples/logits_processor.py
jaxserve serve --logits-processors examples.logits_processor:TopNSigma     # PYTHONPATH=.
    ... and requests with {"vllm_xargs": {"top_n_sigma": 1.0}}
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxserve import LLM, LogitsProcessor, SamplingParams
from jaxserve.execution.logits_processors import ProcessorInput


class TopNSigma(LogitsProcessor):
    """Keeps the tokens whose logits are within n standard deviations of the greatest."""

    names = ("top_n_sigma",)

    def __call__(self, logits: jax.Array, inputs: ProcessorInput) -> jax.Array:
        """See LogitsProcessor."""
        floor = jnp.max(logits, axis=-1) - inputs.values[:, 0] * jnp.std(logits, axis=-1)
        return jnp.where(logits >= floor[:, None], logits, -jnp.inf)


if __name__ == "__main__":
    llm = LLM(max_num_seqs=2, logits_processors=[TopNSigma])
    hot = SamplingParams(temperature=2.0, seed=0, max_tokens=40)
    kept = replace(hot, extra_args={"top_n_sigma": 1.0})
    for output in llm.generate(["Once upon a time"] * 2, [hot, kept]):
        print(f"{output.prompt}|{output.outputs[0].text}\n")
