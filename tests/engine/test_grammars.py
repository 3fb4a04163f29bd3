"""Sequences that follow grammars: what they get, and what the others do not notice of it."""

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import pytest

from jaxserve.api.engine_config import WorkModel
from jaxserve.api.request import FinishReason, Request
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.grammar import GrammarCompiler, MatcherPool
from jaxserve.grammar.compiler import MAX_COMPILING, CompiledGrammar
from jaxserve.grammar.matchers import GrammarMatcher
from tests.engine.world import World
from tests.grammar.world import compiler, vocabulary
from tests.server.world import VOCAB_SIZE, tokenizer

END = 0
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "sizes": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 2},
    },
    "required": ["colour", "sizes"],
    "additionalProperties": False,
}


def make(**settings: Any) -> World:
    return World(
        **{
            "vocab_size": VOCAB_SIZE,
            "tokenizer": tokenizer().backend,
            "eos_id": END,
            "matchers": MatcherPool(compiler()),
            "num_pages": 256,
            "max_model_len": 256,
            **settings,
        }
    )


def ask(name: str = "a", *, seed: int = 0, **params: Any) -> Request:
    settings: dict[str, Any] = {"json": SCHEMA, "disable_any_whitespace": True}
    asked = params.pop("asked", settings)
    prompt_ids = tuple(range(5, 12)) + tuple(seed % 50 + i for i in range(5))
    return Request(
        id=name,
        prompt_ids=prompt_ids,
        params=SamplingParams(
            **{
                "seed": seed,
                "max_tokens": 120,
                "structured_outputs": StructuredOutputsParams(**asked) if asked else None,
                **params,
            }
        ),
    )


def alone(request: Request, **settings: Any) -> tuple[list[int], str]:
    world = make(**settings)
    world.run(request)
    return world.output(request.id), world.answers[request.id, 0].text


@pytest.mark.parametrize("is_async", [True, False])
def test_answers_follow_their_schema(is_async: bool) -> None:
    world = make(async_scheduling=is_async)
    world.run(*(ask(str(seed), seed=seed) for seed in range(12)))
    for seed in range(12):
        answer = world.answers[str(seed), 0]
        assert answer.finish_reason is FinishReason.STOP
        jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_neighbours_and_preemptions_change_no_token() -> None:
    requests = [ask(str(seed), seed=seed) for seed in range(8)]
    requests += [ask(f"free {seed}", seed=seed, asked=None, max_tokens=30) for seed in range(4)]
    world = make(num_pages=36, max_num_seqs=6)
    world.run(*requests)
    assert world.engine.stats().num_preemptions > 0
    for request in requests:
        assert world.output(request.id) == alone(request)[0], request.id


def test_forced_tokens_are_not_sampled() -> None:
    world = make()
    world.run(ask())
    assert world.runner.num_deferred_samples < len(world.output()) / 2


def test_forced_tokens_are_sampled_where_their_probabilities_are_wanted() -> None:
    world = make()
    world.run(ask(logprobs=1))
    assert world.runner.num_deferred_samples == len(world.output())
    reported = [p for event in world.events for p in event.logprobs]
    assert [each.chosen.token_id for each in reported] == world.output()


class AtOnce(MatcherPool):
    """A pool that waits for each bitmask."""

    def begin(
        self,
        params: StructuredOutputsParams,
        count: int,
        *,
        may_jump: bool,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> list[GrammarMatcher]:
        matchers = super().begin(params, count, may_jump=may_jump, is_wanted=is_wanted)
        self.wait_for_any(30.0)
        return matchers

    def advance(self, steps: Sequence[tuple[GrammarMatcher, int]]) -> None:
        super().advance(steps)
        self.wait(30.0)


@pytest.mark.parametrize(("num_free", "jumps"), [(0, True), (7, False)])
def test_what_is_forced_is_computed_at_once_unless_that_pads_a_step_for_many(
    num_free: int, jumps: bool
) -> None:
    world = make(
        matchers=AtOnce(compiler()),
        max_num_seqs=8,
        max_num_batched_tokens=64,
        step_sizes=(32,),
        work=WorkModel(free_tokens=8),
    )
    free = [
        ask(f"free {seed}", seed=seed, asked=None, max_tokens=100, ignore_eos=True)
        for seed in range(num_free)
    ]
    world.add(*free)
    for _ in range(10):
        world.step()
    world.run(ask())
    # The forced beginning of the answer is computed with the prompt.
    first = len(ask().prompt_ids) + 8
    forced = [
        row.num_tokens
        for plan in world.runner.plans
        for row in plan.rows
        if row.start > first and row.token_ids
    ]
    assert (max(forced) > 1) == jumps


def test_what_is_forced_from_the_start_needs_no_model() -> None:
    world = make()
    world.run(ask(asked={"choice": ("yes",)}))
    assert world.answers["a", 0].text == "yes"
    assert world.answers["a", 0].finish_reason is FinishReason.STOP
    assert world.runner.num_deferred_samples == 0


def test_choices_of_a_request_go_their_own_ways() -> None:
    world = make()
    world.run(ask(n=4, temperature=1.0))
    texts = [world.answers["a", index].text for index in range(4)]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 1


def test_a_limit_ends_an_answer_where_it_stands() -> None:
    world = make()
    world.run(ask(max_tokens=5))
    assert len(world.output()) == 5
    assert world.answers["a", 0].finish_reason is FinishReason.LENGTH


def test_a_stop_string_ends_an_answer() -> None:
    world = make()
    world.run(ask(stop=('"sizes"',)))
    assert world.answers["a", 0].finish_reason is FinishReason.STOP
    assert world.answers["a", 0].text.endswith(",")


def test_an_answer_may_end_where_its_grammar_lets_it_and_not_too_early() -> None:
    asked = {"regex": "[a-z]*"}
    world = make()
    world.run(ask(asked=asked, min_tokens=20, max_tokens=200))
    assert len(world.output()) >= 20
    assert world.answers["a", 0].text.isalpha()


def test_a_complete_answer_ends_even_if_ends_are_ignored() -> None:
    world = make()
    world.run(ask(ignore_eos=True))
    assert world.answers["a", 0].finish_reason is FinishReason.STOP


def test_a_grammar_that_fails_ends_its_own_request_alone() -> None:
    world = make()
    world.run(ask("bad", asked={"json": {"not": {}}}), ask("good"))
    assert world.answers["bad", 0].finish_reason is FinishReason.ERROR
    assert world.answers["good", 0].finish_reason is FinishReason.STOP


def test_a_grammar_that_allows_none_of_the_allowed_tokens_blames_the_request() -> None:
    world = make()
    world.run(ask("bad", allowed_token_ids=(5,)), ask("good"))
    last = world.answers["bad", 0].last
    assert last is not None
    assert last.finish_reason is FinishReason.ERROR
    assert last.error is not None
    assert "structured_outputs.json and allowed_token_ids allow no token" in last.error
    assert last.error_param == "structured_outputs.json"
    assert world.answers["good", 0].finish_reason is FinishReason.STOP


def test_an_aborted_answer_leaves_nothing_behind() -> None:
    world = make()
    world.add(ask("gone"), ask("stays"))
    for _ in range(6):
        world.step()
    world.engine.abort("gone")
    while world.engine.has_work:
        world.step()
    world.check_idle()


def test_without_a_tokenizer_there_are_no_grammars() -> None:
    world = make(matchers=None)
    with pytest.raises(ValueError, match="structured_outputs needs a tokenizer"):
        world.engine.add(ask())


class Stuck(MatcherPool):
    """A pool whose bitmasks do not come until `may_go` is set."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        super().__init__(compiler)
        self.may_go = threading.Event()

    def _look(self, ways: Sequence[tuple[GrammarMatcher, tuple[int, ...]]]) -> None:
        assert self.may_go.wait(30.0)
        super()._look(ways)


def test_only_the_sequence_itself_waits_for_its_mask() -> None:
    matchers = Stuck(compiler())
    world = make(matchers=matchers)
    world.add(ask("slow"), ask("free", asked=None, max_tokens=40))
    for _ in range(60):
        world.step()
    assert "free" in world.finished
    assert world.output("slow") == []
    matchers.may_go.set()
    while world.engine.has_work:
        world.step()
    world.check_idle()
    jsonschema.validate(json.loads(world.answers["slow", 0].text), SCHEMA)


class Slow(GrammarCompiler):
    """A compiler that does not compile expressions until it is let go."""

    def __init__(self) -> None:
        super().__init__(vocabulary())
        self.may_go = threading.Event()
        self.asked: list[str | None] = []

    def compiled(self, params: StructuredOutputsParams, *, spells: bool = True) -> CompiledGrammar:
        self.asked.append(params.regex)
        if params.regex is not None:
            assert self.may_go.wait(30.0)
        return super().compiled(params, spells=spells)


def test_a_grammar_that_is_compiled_does_not_wait_for_others_to_be() -> None:
    slow = Slow()
    world = make(matchers=MatcherPool(slow))
    world.run(ask("first"))
    world.add(*(ask(f"slow {n}", asked={"regex": f"a{n}"}) for n in range(3)), ask("cached"))
    while "cached" not in world.finished:
        world.step()
    assert not any(world.output(f"slow {n}") for n in range(3))
    slow.may_go.set()
    while world.engine.has_work:
        world.step()


def test_a_grammar_that_nobody_waits_for_is_not_compiled() -> None:
    slow = Slow()
    world = make(matchers=MatcherPool(slow))
    world.add(*(ask(str(n), asked={"regex": f"a{n}"}) for n in range(4)))
    while len(slow.asked) < MAX_COMPILING:
        world.step()
    for n in range(3):
        world.engine.abort(str(n))
    slow.may_go.set()
    while world.engine.has_work:
        world.step()
    assert "a2" not in slow.asked
    assert "a3" in slow.asked


def test_while_a_grammar_runs_no_other_token_is_sampled_within_a_step() -> None:
    world = make()
    world.run(ask("free", asked=None, max_tokens=150), ask("bound"))
    with_grammar = [
        plan.rows for plan in world.runner.plans if any(row.is_deferred for row in plan.rows)
    ]
    # The step in which it begins is planned before it is known that it runs.
    assert sum(any(row.samples for row in rows) for rows in with_grammar) <= 1
    assert len(with_grammar) > 10
    assert world.runner.plans[-1].rows[0].samples, "and later as before"


class Prompt(MatcherPool):
    """A pool whose bitmasks are ready before a step looks for them, however busy the machine is."""

    def begin(
        self,
        params: StructuredOutputsParams,
        count: int,
        *,
        may_jump: bool,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> list[GrammarMatcher]:
        matchers = super().begin(params, count, may_jump=may_jump, is_wanted=is_wanted)
        while any(matcher.next is None for matcher in matchers):
            self.wait_for_any(1.0)
        return matchers

    def advance(self, steps: Sequence[tuple[GrammarMatcher, int]]) -> None:
        super().advance(steps)
        self.wait(30.0)


def test_deferred_samples_of_one_step_are_read_before_the_next_but_one() -> None:
    world = make(matchers=Prompt(compiler()))
    world.run(*(ask(str(seed), seed=seed, logprobs=0) for seed in range(4)))
    # Every sequence advances with every step, as those without a grammar do.
    longest = max(len(world.output(str(seed))) for seed in range(4))
    assert len(world.runner.plans) <= longest + 8
