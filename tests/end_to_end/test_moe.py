"""A trained mixture of experts: tokens of transformers, however they are scheduled."""

import pytest

from jaxserve.build import LoadedModel
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


def test_on_two_devices(found: list[Golden]) -> None:
    loaded = load(checkpoint(NAME), warm_up="none", tensor_parallel_size=2)
    check(serve(engine_for(loaded), golden_requests(found)), found)
