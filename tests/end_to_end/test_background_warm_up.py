"""An engine serves with the first of its programs, and better with every one that follows."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxserve.api.plan import NULL_SLOT, RowPlan, StepLimits, StepPlan
from jaxserve.build import LoadedModel
from jaxserve.config.engine import EngineOptions
from jaxserve.execution.program_pool import ProgramPool
from jaxserve.execution.program_sources import ProgramSources
from jaxserve.execution.programs import Program, all_programs, first_programs
from jaxserve.planning.planner import plan_engine
from tests.data import checkpoint
from tests.end_to_end.world import PAGE_SIZE, Answers, engine_for, load, noise, serve

TIMEOUT_S = 60.0
LIMITS: dict[str, Any] = {"max_num_seqs": 32, "max_num_batched_tokens": 128}
FIRST_TOKENS, FIRST_SEQUENCES = 32, 16


class Gate:
    """Lets programs be made one by one; those in `broken` cannot be."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.made = threading.Semaphore(0)
        self.broken: set[Program] = set()

    def let(self, count: int = 1) -> None:
        """Let so many be made, and wait until they are."""
        for _ in range(count):
            self.permits.release()
            assert self.made.acquire(timeout=TIMEOUT_S)


@contextmanager
def half_warm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[tuple[LoadedModel, Gate]]:
    """An engine that is ready, with the making of all that follows in our hands."""
    gate = Gate()
    make_one, make = ProgramPool._make_one, ProgramSources.make

    def gated(pool: ProgramPool, program: Program) -> None:
        if program in first:
            return make_one(pool, program)
        assert gate.permits.acquire(timeout=TIMEOUT_S)
        make_one(pool, program)
        return gate.made.release()  # the pool has it, or knows that it cannot

    def breaking(sources: ProgramSources, program: Program) -> jax.stages.Compiled:
        if program in gate.broken:
            raise jax.errors.JaxRuntimeError("INTERNAL: XLA has given up")
        return make(sources, program)

    monkeypatch.setattr(ProgramPool, "_make_one", gated)
    monkeypatch.setattr(ProgramSources, "make", breaking)
    plan = plan_engine(EngineOptions(model=str(folder), page_size=PAGE_SIZE, **LIMITS))
    first = first_programs(plan.shapes)
    loaded = load(folder, warm_up="background", **LIMITS)
    try:
        yield loaded, gate
    finally:
        gate.permits.release(100)
        loaded.programs.close()


def tokens(answers: Answers) -> dict[tuple[str, int], list[int]]:
    return {name: answer.token_ids for name, answer in answers.items()}


@pytest.fixture(scope="module")
def folder() -> Path:
    return checkpoint("stories260K-hf")


def test_every_kind_of_request_gets_the_same_tokens_whatever_is_made(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    requests = noise(12, vocab_size=512, max_length=100)
    with half_warm(monkeypatch, folder) as (loaded, gate):
        assert loaded.programs.num_made == 3
        limits = loaded.runner.limits
        assert (limits.num_tokens, limits.num_sequences) == (FIRST_TOKENS, FIRST_SEQUENCES)
        alone = tokens(serve(engine_for(loaded), requests))
        # While they run, the other programs come one after the other.
        engine = engine_for(loaded)
        for request in requests:
            engine.add(request)
        found: dict[tuple[str, int], list[int]] = {name: [] for name in alone}
        while engine.has_work:
            if loaded.programs.num_made < len(all_programs(loaded.plan.shapes)):
                gate.let()
            for _ in range(3):
                for event in engine.step():
                    found[event.request_id, event.index] += event.token_ids
        assert found == alone
        limits = loaded.runner.limits
        assert (limits.num_tokens, limits.num_sequences) == (128, 32)
        assert tokens(serve(engine_for(loaded), requests)) == alone
        # Planned compilations are not errors.
        assert loaded.compilations.since_mark == 0


def test_a_program_that_cannot_be_made_is_done_without(
    monkeypatch: pytest.MonkeyPatch, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requests = noise(8, vocab_size=512, max_length=60)
    with half_warm(monkeypatch, folder) as (loaded, gate):
        shapes = loaded.plan.shapes.shapes
        gate.broken = set(shapes[1:])
        gate.let(len(shapes) - 1)
        answers = serve(engine_for(loaded), requests)
        assert {answer.error for answer in answers.values()} == {None}
        assert loaded.runner.limits.num_tokens == FIRST_TOKENS
    told = [record for record in caplog.records if "failed to make program" in record.message]
    assert len(told) == len(shapes) - 1


def test_a_plan_takes_the_program_it_was_planned_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    row = RowPlan(slot=NULL_SLOT, start=0, num_tokens=1, token_ids=(5,))
    with half_warm(monkeypatch, folder) as (loaded, gate):
        runner = loaded.runner

        def program(limits: StepLimits) -> str:
            pending = runner.dispatch(StepPlan(rows=(row,), programs=limits.programs))
            pending.wait()
            return pending.run.program

        early = runner.limits
        first = program(early)
        gate.let(len(all_programs(loaded.plan.shapes)) - 3)
        late = runner.limits
        assert first == loaded.plan.shapes.shapes[0].name == program(early)
        assert program(late) == "decode-1-full"
