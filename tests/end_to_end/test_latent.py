"""Greedy tokens with latent attention are the whole model's, however they are scheduled."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxserve.api.caches import PagedGroup
from jaxserve.build import LoadedModel
from jaxserve.execution.memory import tree_bytes
from jaxserve.loading.weights import load_model
from tests.data import checkpoint
from tests.end_to_end.world import PAGE_SIZE, Answers, engine_for, load, request, serve
from tests.goldens.families import FAMILIES, golden, write

# A dense layer, then one of experts; with the vocabulary of the tokenizer.
CONFIG = FAMILIES["deepseek_v3"]["yarn"] | {"vocab_size": 512}
PROMPTS = [
    tuple(int(token) for token in np.random.default_rng(length).integers(3, 500, length))
    for length in (1, 8, 33, 60)
]
NUM_TOKENS = 40
REQUESTS = [request(str(i), prompt, max_tokens=NUM_TOKENS) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes, _ = golden("deepseek_v3")["yarn"]
    of_vocabulary = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (512, 32))
    folder = write(tmp_path_factory.mktemp("latent"), CONFIG, shapes | of_vocabulary)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint("stories260K-hf") / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(folder, warm_up="none")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    """The greedy tokens of the whole model, without a cache."""
    model = load_model(folder)
    logits = jax.jit(partial(jax.lax.map, model))
    tokens = np.zeros((len(PROMPTS), max(map(len, PROMPTS)) + NUM_TOKENS), np.int32)
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    ends = np.array([len(prompt) for prompt in PROMPTS])
    rows = np.arange(len(PROMPTS))
    for _ in range(NUM_TOKENS):
        tokens[rows, ends] = logits(tokens)[rows, ends - 1].argmax(axis=-1)
        ends += 1
    return [row[end - NUM_TOKENS : end].tolist() for row, end in zip(tokens, ends, strict=True)]


def tokens_of(answers: Answers) -> list[list[int]]:
    return [answers[str(i), 0].token_ids for i in range(len(PROMPTS))]


def test_alone_and_in_a_batch(loaded: LoadedModel, expected: list[list[int]]) -> None:
    for i, each in enumerate(REQUESTS):
        assert serve(engine_for(loaded), [each])[str(i), 0].token_ids == expected[i]
    assert tokens_of(serve(engine_for(loaded), REQUESTS, arrivals_per_step=1)) == expected


@pytest.mark.parametrize("max_num_batched_tokens", [4, 7])
def test_in_chunks(
    loaded: LoadedModel, expected: list[list[int]], max_num_batched_tokens: int
) -> None:
    engine = engine_for(loaded, max_num_seqs=4, max_num_batched_tokens=max_num_batched_tokens)
    assert tokens_of(serve(engine, REQUESTS)) == expected


def test_through_preemptions(loaded: LoadedModel, expected: list[list[int]]) -> None:
    engine = engine_for(loaded, num_pages=20)
    assert tokens_of(serve(engine, REQUESTS)) == expected
    assert engine.engine.stats().num_preemptions > 0


def test_from_cached_latents(loaded: LoadedModel, expected: list[list[int]]) -> None:
    engine = engine_for(loaded)
    serve(engine, REQUESTS)
    again = serve(engine, REQUESTS)
    assert tokens_of(again) == expected
    cached = [again[str(i), 0].num_cached_tokens for i in range(len(PROMPTS))]
    assert cached == [(len(prompt) - 1) // PAGE_SIZE * PAGE_SIZE for prompt in PROMPTS]


def test_on_two_devices_that_each_have_all_latents(folder: Path, expected: list[list[int]]) -> None:
    # The other tests use the C kernel.
    loaded = load(folder, warm_up="none", tensor_parallel_size=2, attention_backend="reference")
    assert tokens_of(serve(engine_for(loaded), REQUESTS)) == expected
    for array in loaded.plan.programs.cache:
        assert array.sharding.is_fully_replicated


def test_the_plan_counts_latents_once(loaded: LoadedModel) -> None:
    plan = loaded.plan
    assert [type(group) for group in plan.cache.groups] == [PagedGroup]
    width = CONFIG["kv_lora_rank"] + CONFIG["qk_rope_head_dim"]
    assert plan.memory.page == CONFIG["num_hidden_layers"] * PAGE_SIZE * width * 4
    memory = plan.programs.compile(plan.abstract_params(), plan.shapes.shapes[0]).memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= tree_bytes(plan.programs.cache)
