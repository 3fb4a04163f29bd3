"""Real trained checkpoints: the full forward agrees with transformers, token for token."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.loading.weights import load_model
from tests.data import checkpoint


@pytest.mark.parametrize("name", ["stories260K-hf", "stories260K-hd64-hf", "babyllama-char105-hf"])
def test_greedy_continuation_and_logprobs_are_those_of_transformers(name: str) -> None:
    folder = checkpoint(name)
    forward = jax.jit(load_model(folder))
    for case in json.loads((folder / "golden.json").read_text("utf-8"))["cases"]:
        prompt, generated = case["prompt_ids"], np.array(case["generated_ids"])
        # Teacher-forced: one forward over prompt and continuation sees what greedy steps saw.
        logits = forward(jnp.array([*prompt, *generated]))[len(prompt) - 1 : -1]
        np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), generated)
        logprobs = jax.nn.log_softmax(logits)[np.arange(len(generated)), generated]
        np.testing.assert_allclose(logprobs, case["generated_logprobs"], rtol=0, atol=1e-4)
        top = dict(case["first_step_top5"])
        np.testing.assert_allclose(logits[0, np.array(list(top))], list(top.values()), atol=1e-4)
