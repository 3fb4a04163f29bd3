"""Hybrids of attention and recurrent layers get the whole model's tokens, however scheduled."""

import re
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxserve.api.request import Request
from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.build import LoadedModel
from jaxserve.execution.memory import tree_bytes
from jaxserve.frontend.text_engine import TextEngine
from jaxserve.loading.weights import load_model
from jaxserve.observability.metrics import Metrics
from tests.end_to_end.world import (
    PAGE_SIZE,
    engine_for,
    http_of,
    load,
    mixed,
    noise,
    request,
    serve,
    with_text,
    write_family,
)
from tests.goldens.families import FAMILIES
from tests.server.world import VOCAB_SIZE

MAX_MODEL_LEN = 1024
NUM_NEW = 12
# Shorter and longer than a page, the convolution, a chunk of the delta rule, and several chunks.
PROMPTS = [
    np.random.default_rng(length).integers(3, VOCAB_SIZE, length).tolist()
    for length in (1, 3, 9, 63, 64, 65, 150)
]


def write_first_case(folder: Path, family: str) -> Path:
    """Write the first case of a family, with a tokenizer and as many tokens as that has."""
    case = next(iter(FAMILIES[family]))
    return write_family(folder, family, case, max_model_len=MAX_MODEL_LEN)


def greedy_tokens(folder: Path) -> list[list[int]]:
    """Return the greedy tokens of the whole model after each prompt, without a cache."""
    model = load_model(folder)
    logits = jax.jit(model)
    answers = []
    for prompt_ids in PROMPTS:
        tokens = np.zeros(max(map(len, PROMPTS)) + NUM_NEW, np.int32)
        tokens[: len(prompt_ids)] = prompt_ids
        for at in range(len(prompt_ids), len(prompt_ids) + NUM_NEW):
            tokens[at] = np.asarray(logits(tokens))[at - 1].argmax()
        answers.append(tokens[len(prompt_ids) :][:NUM_NEW].tolist())
    return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_first_case(tmp_path_factory.mktemp("hybrid"), "qwen3_5_text")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    return greedy_tokens(folder)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(folder, num_pages=200, max_num_batched_tokens=96, warm_up="none")


def requests(count: int = 1) -> list[Request]:
    return [request(str(i), each, max_tokens=NUM_NEW, n=count) for i, each in enumerate(PROMPTS)]


def test_alone(loaded: LoadedModel, expected: list[list[int]]) -> None:
    for i, each in enumerate(requests()):
        assert serve(engine_for(loaded), [each])[str(i), 0].token_ids == expected[i]


def test_in_a_batch_with_others(loaded: LoadedModel, expected: list[list[int]]) -> None:
    others = noise(30, vocab_size=VOCAB_SIZE, max_length=100)
    answers = serve(engine_for(loaded), mixed(requests(), others), arrivals_per_step=3)
    for i, tokens in enumerate(expected):
        assert answers[str(i), 0].token_ids == tokens


@pytest.mark.parametrize("max_num_batched_tokens", [8, 29])
def test_prompts_in_chunks(
    loaded: LoadedModel, expected: list[list[int]], max_num_batched_tokens: int
) -> None:
    engine = engine_for(loaded, max_num_batched_tokens=max_num_batched_tokens)
    answers = serve(engine, requests())
    for i, tokens in enumerate(expected):
        assert answers[str(i), 0].token_ids == tokens


def test_from_cached_prefixes(loaded: LoadedModel, expected: list[list[int]]) -> None:
    engine = engine_for(loaded)
    serve(engine, requests())
    answers = serve(engine, requests())
    assert answers["6", 0].num_cached_tokens == 144
    for i, tokens in enumerate(expected):
        assert answers[str(i), 0].token_ids == tokens


def small_engine(loaded: LoadedModel) -> TextEngine:
    """Return an engine whose pages do not suffice for all prompts at once."""
    num_states, num_pages = 40, 28
    sizes = {True: num_pages, False: num_states}
    pools = [pool.pages.holds_tokens for pool in loaded.plan.context.caches.pools]
    return engine_for(loaded, num_pages=tuple(sizes[holds] for holds in pools))


def test_choices_of_preempted_sequences(loaded: LoadedModel, expected: list[list[int]]) -> None:
    answers = serve(small_engine(loaded), requests(2))
    assert any(answer.num_preemptions for answer in answers.values())
    for (name, _), answer in answers.items():
        assert answer.token_ids == expected[int(name)]


def test_layers_of_mamba2_and_layers_without_a_mixer(tmp_path: Path) -> None:
    """Prompts alone, batched in chunks, cached and preempted get the tokens of the whole model."""
    folder = write_first_case(tmp_path, "nemotron_h")
    expected = greedy_tokens(folder)
    loaded = load(folder, num_pages=200, max_num_batched_tokens=32, warm_up="none")
    alone = serve(engine_for(loaded), requests()[-1:])
    assert alone["6", 0].token_ids == expected[6]
    engine = engine_for(loaded)
    batched, cached = serve(engine, requests()), serve(engine, requests())
    assert cached["6", 0].num_cached_tokens == 144
    preempted = serve(small_engine(loaded), requests(2))
    assert any(answer.num_preemptions for answer in preempted.values())
    for answers in (batched, cached, preempted):
        for (name, _), answer in answers.items():
            assert answer.token_ids == expected[int(name)]


def test_forced_tokens_of_structured_outputs(loaded: LoadedModel) -> None:
    """With log-probabilities, every token is sampled, also those that the grammar forces."""
    pattern = StructuredOutputsParams(regex="[a-e]{4} once upon a time [a-e]{4} the end[.!?]")
    params = {"structured_outputs": pattern, "max_tokens": 60, "ignore_eos": False}
    engine = with_text(loaded, loaded.engine)

    def answers(**more: int) -> list[list[int]]:
        asked = [request(str(i), each, **params, **more) for i, each in enumerate(PROMPTS)]
        found = serve(engine, asked)
        return [found[str(i), 0].token_ids for i in range(len(PROMPTS))]

    jumping = answers()
    assert len({tuple(each) for each in jumping}) > 1
    assert jumping == answers(logprobs=0)


def test_states_are_planned_and_updated_in_place(loaded: LoadedModel) -> None:
    plan = loaded.plan
    assert plan.memory.recurrent > 0
    assert plan.memory.cache >= tree_bytes(plan.programs.cache)
    memory = plan.programs.compile(plan.abstract_params(), plan.shapes.shapes[0]).memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= tree_bytes(plan.programs.cache)


def test_two_devices_compute_what_one_does(folder: Path, expected: list[list[int]]) -> None:
    sharded = load(
        folder, tensor_parallel_size=2, num_pages=200, max_num_batched_tokens=96, warm_up="none"
    )
    answers = serve(engine_for(sharded), requests())
    for i, tokens in enumerate(expected):
        assert answers[str(i), 0].token_ids == tokens


def test_every_turn_of_a_chat_over_http_starts_from_the_turn_before(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    metrics = Metrics(max_model_len=MAX_MODEL_LEN)

    def chat(*, enable_prefix_caching: bool) -> list[tuple[str, int, int]]:
        """Return answer, cached tokens and prompt tokens of each turn."""
        engine = engine_for(
            loaded,
            enable_prefix_caching=enable_prefix_caching,
            metrics=metrics.engine("served") if enable_prefix_caching else None,
        )
        turns: list[tuple[str, int, int]] = []
        messages: list[dict[str, str]] = []
        with http_of(loaded, engine.engine, tmp_path, metrics=metrics) as http:
            for number in range(10):
                messages.append({"role": "user", "content": f"a tale of {number} lazy dogs"})
                asked = {"model": "served", "messages": messages, "temperature": 0, "max_tokens": 9}
                answer = http.post("/v1/chat/completions", json=asked).json()
                text, usage = answer["choices"][0]["message"]["content"], answer["usage"]
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                turns.append((text, cached, usage["prompt_tokens"]))
                messages.append({"role": "assistant", "content": text})
            if enable_prefix_caching:
                name = re.escape("vllm:prefix_cache_hits_total")
                (hits,) = re.findall(rf"^{name}.* (.*)$", http.get("/metrics").text, re.MULTILINE)
                assert float(hits) == sum(cached for _, cached, _ in turns)
        return turns

    turns, without = chat(enable_prefix_caching=True), chat(enable_prefix_caching=False)
    assert [text for text, *_ in turns] == [text for text, *_ in without]
    assert all(cached == 0 for _, cached, _ in without)
    for (_, _, before), (_, cached, _) in pairwise(turns):
        # At least the prompt of the last turn: its answer may be tokenized differently.
        assert cached >= (before - 1) // PAGE_SIZE * PAGE_SIZE
