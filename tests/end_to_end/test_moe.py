"""A trained mixture of experts: tokens of transformers, however they are scheduled."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxserve.build import LoadedModel
from jaxserve.loading.weights import load_model
from tests.data import checkpoint
from tests.end_to_end.world import (
    MAX_NUM_SEQS,
    Answers,
    Golden,
    engine_for,
    golden_requests,
    goldens,
    load,
    mixed,
    noise,
    request,
    serve,
)
from tests.goldens.families import write_case
from tests.server.world import write_tokenizer

NAME = "stories260K-mixtral-hf"


@pytest.fixture(scope="module")
def mixtral() -> LoadedModel:
    # Programs are compiled when a step first needs them.
    return load(
        checkpoint(NAME), warm_up="none", max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=64
    )


@pytest.fixture(scope="module")
def found() -> list[Golden]:
    return goldens(NAME)


def check(answers: Answers, found: list[Golden]) -> None:
    for i, golden in enumerate(found):
        assert answers[str(i), 0].token_ids == golden.token_ids, f"golden {i}"


def test_alone(mixtral: LoadedModel, found: list[Golden]) -> None:
    for i, each in enumerate(golden_requests(found)):
        answers = serve(engine_for(mixtral), [each])
        assert answers[str(i), 0].token_ids == found[i].token_ids


def test_among_others_and_through_preemptions(mixtral: LoadedModel, found: list[Golden]) -> None:
    others = noise(30, vocab_size=mixtral.plan.model.vocab_size, max_length=60, seed=1)
    engine = engine_for(mixtral, num_pages=70)
    answers = serve(engine, mixed(golden_requests(found), others), arrivals_per_step=1)
    check(answers, found)
    assert engine.engine.stats().num_preemptions >= 3


def test_prompts_in_chunks(mixtral: LoadedModel, found: list[Golden]) -> None:
    engine = engine_for(mixtral, max_num_seqs=4, max_num_batched_tokens=5)
    check(serve(engine, golden_requests(found)), found)


def test_from_a_cached_prefix(mixtral: LoadedModel, found: list[Golden]) -> None:
    golden, engine = found[0], engine_for(mixtral)
    serve(engine, [request("first", golden.prompt_ids, max_tokens=100)])
    prompt_ids = (*golden.prompt_ids, *golden.token_ids[:100])
    answers = serve(engine, [request("second", prompt_ids, max_tokens=100)])
    assert answers["second", 0].num_cached_tokens >= 96
    assert answers["second", 0].token_ids == golden.token_ids[100:]


@pytest.mark.parametrize("whole", [False, True])
def test_on_two_devices(found: list[Golden], *, whole: bool) -> None:
    loaded = load(
        checkpoint(NAME), warm_up="none", tensor_parallel_size=2, enable_expert_parallel=whole
    )
    gate = loaded.plan.abstract_params()["layers"][0]["mlp"]["experts"]["gate"]
    experts, embed, ffw = gate.shape
    held = (experts // 2, embed, ffw) if whole else (experts, embed, ffw // 2)
    assert gate.sharding.shard_shape(gate.shape) == held
    check(serve(engine_for(loaded), golden_requests(found)), found)


@pytest.mark.parametrize(
    ("family", "case"), [("gpt_oss", "sinks and windows"), ("glm4_moe", "groups")]
)
def test_tokens_are_those_of_the_model_alone(family: str, case: str, tmp_path: Path) -> None:
    folder = write_tokenizer(write_case(tmp_path, family, case))
    forward = jax.jit(load_model(folder))
    loaded = load(folder, warm_up="none", max_num_batched_tokens=16)
    prompts = [each.prompt_ids for each in noise(4, vocab_size=96, max_length=40)]
    requests = [request(str(i), ids, max_tokens=20) for i, ids in enumerate(prompts)]
    # The first engine fills the prefix cache for its second round; the other one preempts.
    engine = engine_for(loaded)
    rounds = [serve(engine, requests), serve(engine, requests)]
    rounds.append(serve(engine_for(loaded, num_pages=16), requests))
    for i, prompt in enumerate(prompts):
        tokens = rounds[0][str(i), 0].token_ids
        padded = np.zeros(64, np.int32)
        padded[: len(prompt) + len(tokens)] = [*prompt, *tokens]
        best = np.argmax(forward(padded), axis=-1)
        assert tokens == best[len(prompt) - 1 :][: len(tokens)].tolist()
        for answers in rounds[1:]:
            assert answers[str(i), 0].token_ids == tokens
    assert sum(answer.num_cached_tokens for answer in rounds[1].values()) > 0
    assert sum(answer.num_preemptions for answer in rounds[2].values()) > 0
