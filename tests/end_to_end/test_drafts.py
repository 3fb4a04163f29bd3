"""Rows that yield several tokens, from the drafter to the device and back."""

from dataclasses import replace

import pytest

from jaxserve.api.model_limits import ModelLimits
from jaxserve.build import LoadedModel, build
from jaxserve.config.engine import EngineOptions
from jaxserve.engine import Engine, Scheduler
from jaxserve.engine.sequence import Sequence
from jaxserve.execution.shapes import GREEDY, Feature, StepShape
from jaxserve.planning.planner import plan_engine
from tests.data import checkpoint
from tests.end_to_end.verify import MOST_DRAFTS, verify_head
from tests.end_to_end.world import PAGE_SIZE, Golden, golden_requests, serve, with_text


@pytest.fixture(scope="module")
def verifying() -> LoadedModel:
    """The stories' model with a program that verifies drafts, and a few others."""
    plan = plan_engine(
        EngineOptions(
            model=str(checkpoint("stories260K-hf")),
            max_num_seqs=4,
            max_num_batched_tokens=16,
            page_size=PAGE_SIZE,
            compilation_cache=False,
            warm_up="full",
        )
    )
    pages = plan.shapes.shapes[0].pages
    verify = StepShape(16, 4, pages, GREEDY | Feature.DRAFTS)
    return build(
        replace(
            plan,
            context=replace(plan.context, head=verify_head),
            shapes=replace(plan.shapes, shapes=(*plan.shapes.shapes, verify)),
        )
    )


@pytest.mark.parametrize("wrong_every", [1, 2, 1000])
def test_golden_tokens_come_several_at_once(
    wrong_every: int, verifying: LoadedModel, stories_goldens: list[Golden]
) -> None:
    goldens = {golden.prompt_ids: golden.token_ids for golden in stories_goldens[:3]}

    def drafter(sequence: Sequence) -> tuple[int, ...]:
        done = len(sequence.output_ids)
        token_ids = goldens[sequence.request.prompt_ids][done : done + MOST_DRAFTS]
        return tuple(
            token_id + (position % wrong_every == 0)
            for position, token_id in enumerate(token_ids, start=done)
        )

    plan, num_before = verifying.plan, verifying.compilations.since_mark
    engine = Engine(
        Scheduler(plan.scheduler, plan.cache, drafter=drafter),
        verifying.runner,
        ModelLimits(vocab_size=plan.model.vocab_size),
    )
    requests = golden_requests(stories_goldens[:3], max_tokens=60)
    answers = serve(with_text(verifying, engine), requests)
    for i, golden in enumerate(stories_goldens[:3]):
        assert answers[str(i), 0].token_ids == golden.token_ids[:60]
    assert verifying.compilations.since_mark == num_before
    records = engine.timeline.recent
    assert "16x4-tokens+drafts" in {record.program for record in records}
    # After the prompts a row yields one token, two, or four.
    fewest = {1: 59, 2: 29, 1000: 14}[wrong_every]
    assert fewest <= len(records) < 2 * fewest + 10
