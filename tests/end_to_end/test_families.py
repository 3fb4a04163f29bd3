"""Families with layers unlike Llama's: the engine's tokens are those of the model alone."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.loading.weights import load_model
from tests.data import checkpoint
from tests.end_to_end.world import engine_for, load, request, serve
from tests.goldens.families import FAMILIES, write_case

NUM_TOKENS = 16
# Shorter and longer than the windows, and than the chunks of prompts.
LENGTHS = (3, 9, 20, 41)


def continuations(folder: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the greedy tokens after each prompt, from the whole model without a cache."""
    model = jax.jit(load_model(folder, dtype="float32"))
    size = max(map(len, prompts)) + NUM_TOKENS
    found = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(NUM_TOKENS):
            padded = jnp.array(tokens + [0] * (size - len(tokens)))
            tokens.append(int(model(padded)[len(tokens) - 1].argmax()))
        found.append(tokens[len(prompt) :])
    return found


@pytest.mark.parametrize(
    ("family", "devices"), [("gemma3_text", 1), ("gemma4_text", 2), ("olmo2", 2)]
)
def test_tokens_are_those_of_the_model_alone_batched_chunked_and_cached(
    family: str, devices: int, tmp_path: Path
) -> None:
    folder = write_case(tmp_path, family, next(iter(FAMILIES[family])))
    loaded = load(
        folder,
        warm_up="none",
        tokenizer=str(checkpoint("stories260K-hf")),
        tensor_parallel_size=devices,
    )
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 96, length).tolist() for length in LENGTHS]
    requests = [request(str(i), each, max_tokens=NUM_TOKENS) for i, each in enumerate(prompts)]
    expected = continuations(folder, prompts)
    engine = engine_for(loaded)
    batched = serve(engine, requests, arrivals_per_step=1)
    assert [batched[str(i), 0].token_ids for i in range(len(prompts))] == expected
    cached = serve(engine, requests)
    assert [cached[str(i), 0].token_ids for i in range(len(prompts))] == expected
    assert cached["3", 0].num_cached_tokens > 0
    alone = serve(engine_for(loaded, enable_prefix_caching=False), requests[-1:])
    assert alone["3", 0].token_ids == expected[-1]
