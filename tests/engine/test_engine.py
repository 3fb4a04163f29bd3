"""The engine's loop: events, ends, failures, and what is reported of them."""

import subprocess
import sys

import pytest

from jaxserve.api.plan import DeferredSamplePlan, StepLimits, StepPlan
from jaxserve.api.request import FinishReason
from jaxserve.engine.scheduler import NOT_FINITE
from jaxserve.errors import ContextLengthError, InvalidRequestError
from jaxserve.frontend.detokenizer import Detokenizer
from jaxserve.observability.stats import FinishedStats, StepStats
from tests.engine.answers import LONG, last_event
from tests.engine.world import World, request, word_tokenizer
from tests.fakes import FakePendingStep, token_logprobs


class Recorder:
    """Metrics kept in lists."""

    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.finished: list[FinishedStats] = []

    def observe_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def observe_finished(self, stats: FinishedStats) -> None:
        self.finished.append(stats)


def test_the_next_step_is_dispatched_before_the_last_one_is_read() -> None:
    world = World()
    world.add(request("a"))
    assert world.step() == []
    assert len(world.runner.plans) == 1
    assert len(world.step()) == 1
    assert len(world.runner.plans) == 2


def test_without_async_scheduling_every_step_is_read_at_once() -> None:
    world = World(async_scheduling=False)
    world.add(request("a"))
    assert len(world.step()) == 1
    assert not world.runner.pending


@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
def test_as_many_steps_are_under_way_as_the_runner_says(max_in_flight: int) -> None:
    world = World(num_pages=200, max_in_flight=max_in_flight)
    requests = [request(f"{i}", [*range(4, 10 + 4 * i)], max_tokens=10) for i in range(4)]
    world.add(*requests)
    most = 0
    while world.engine.has_work:
        world.step()
        most = max(most, len(world.runner.pending))
    assert most == max_in_flight - 1
    for each in requests:
        assert world.output(each.id) == world.expected(each.id)


def test_an_idle_engine_steps_without_effect() -> None:
    world = World()
    assert world.step() == []
    assert not world.engine.has_work


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_steps_keep_to_limits_that_grow_under_way(async_scheduling: bool) -> None:
    world = World(num_pages=200, max_num_seqs=6, async_scheduling=async_scheduling)
    requests = [request(f"{i}", [*range(4, 10 + 4 * i)], max_tokens=10) for i in range(8)]
    world.add(*requests)
    # The fake asserts that no step has more.
    for num_tokens, num_sequences in [(3, 2), (5, 3)]:
        world.runner.limits = StepLimits(num_tokens=num_tokens, num_sequences=num_sequences)
        for _ in range(12):
            world.step()
        assert max(plan.num_tokens for plan in world.runner.plans) == num_tokens
        assert max(len(plan.rows) for plan in world.runner.plans) == num_sequences
    world.runner.limits = StepLimits(num_tokens=16, num_sequences=6)
    world.run()
    for each in requests:
        assert world.output(each.id) == world.expected(each.id)


def test_an_exception_of_the_runner_leaves_the_engine() -> None:
    class BrokenRunner:
        max_in_flight = 2
        limits = StepLimits(num_tokens=16, num_sequences=4)

        def dispatch(self, plan: StepPlan) -> FakePendingStep:
            raise RuntimeError("the device is gone")

        def sample_deferred(self, plan: DeferredSamplePlan) -> FakePendingStep:
            raise RuntimeError("the device is gone")

    world = World()
    world.engine._runner = BrokenRunner()
    world.engine.add(request("a"))
    with pytest.raises(RuntimeError, match="the device is gone"):
        world.engine.step()


def test_the_engine_needs_no_jax() -> None:
    code = (
        "import sys, jaxserve.client, jaxserve.engine, tests.fakes\n"
        "assert not {'jax', 'transformers'} & sys.modules.keys(), sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_logits_that_are_no_numbers_end_one_choice_only() -> None:
    world = World(fails=lambda row, tokens: tokens[0] == 13 and len(tokens) == 5)
    world.run(request("a", (13, 2, 3)), request("b", (1, 2, 3)))
    assert last_event(world, "a").finish_reason is FinishReason.ERROR
    assert last_event(world, "a").error == NOT_FINITE
    assert len(world.output("a")) == 2
    assert world.output("b") == world.expected("b")


def test_a_request_whose_text_cannot_be_made_fails_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    push = Detokenizer.push
    calls = iter([False, False, True])

    def fail_on_the_third_call(self: Detokenizer, token_id: int) -> str:
        if self._num_tokens == 1 and next(calls):
            raise ValueError("a secret")
        return push(self, token_id)

    monkeypatch.setattr(Detokenizer, "push", fail_on_the_third_call)
    world = World(tokenizer=word_tokenizer(), vocab_size=64, max_num_seqs=4)
    world.run(
        request("a", (1, 2), ignore_eos=True),
        request("b", (1, 3), ignore_eos=True),
        request("c", (1, 4), n=2, ignore_eos=True),
    )
    for index in range(2):
        event = last_event(world, "c", index)
        assert event.finish_reason is FinishReason.ERROR
        assert event.error == "an internal error has ended this request"
    assert world.output("a") == world.expected("a")
    assert world.output("b") == world.expected("b")
    assert "request 'c' failed" in caplog.text


def test_a_request_that_cannot_be_served_is_refused_whole() -> None:
    world = World(vocab_size=64)
    with pytest.raises(InvalidRequestError, match="ids must be in \\[0, 63\\], got 64"):
        world.engine.add(request("a", (1, 64)))
    with pytest.raises(ContextLengthError):
        world.engine.add(request("a", (1,) * 64))
    with pytest.raises(InvalidRequestError, match="stop must be empty"):
        world.text.add(request("a", stop=("x",)))
    assert not world.engine.has_work
    world.engine.check_integrity()


def test_logprobs_come_with_their_tokens_and_those_of_the_prompt_once() -> None:
    world = World(max_num_batched_tokens=10)
    world.run(request("a", LONG, n=2, max_tokens=3, logprobs=1, prompt_logprobs=1))
    of_choice = [event for event in world.events if event.index == 0]
    assert [event.logprobs for event in of_choice] == [
        (token_logprobs(event.token_ids[0], 1),) for event in of_choice
    ]
    assert of_choice[0].prompt_logprobs == tuple(token_logprobs(token) for token in LONG[1:])
    others = [event for event in world.events if event is not of_choice[0]]
    assert all(event.prompt_logprobs is None for event in others)


def test_a_prompt_of_one_token_has_no_prompt_logprobs_but_says_so() -> None:
    world = World()
    world.run(request("a", (1,), prompt_logprobs=0))
    assert world.events[0].prompt_logprobs == ()


def test_usage_stands_in_every_event() -> None:
    world = World()
    world.run(request("a", LONG))
    world.run(request("b", LONG))
    assert {event.num_prompt_tokens for event in world.events} == {24}
    assert {event.num_cached_tokens for event in world.events if event.request_id == "b"} == {20}


def test_times_are_in_order() -> None:
    world = World()
    world.run(request("a", LONG))
    times = last_event(world).metrics
    assert times is not None
    assert times.scheduled_s is not None
    assert times.first_token_s is not None
    assert times.finished_s is not None
    assert times.arrival_s <= times.scheduled_s <= times.first_token_s <= times.finished_s


@pytest.mark.parametrize("num_pages", [64, 15])
def test_the_metrics_add_up(num_pages: int) -> None:
    recorder = Recorder()
    world = World(metrics=recorder, num_pages=num_pages, max_model_len=52)
    world.run(*(request(str(n), LONG[n:], n=2, max_tokens=20, seed=n) for n in range(6)))
    num_generated = sum(len(answer.token_ids) for answer in world.answers.values())
    num_prompt = sum(2 * (24 - n) for n in range(6))
    assert sum(step.num_generated_tokens for step in recorder.steps) == num_generated
    assert sum(step.num_prompt_tokens for step in recorder.steps) == num_prompt
    assert sum(step.prefix_queries for step in recorder.steps) == num_prompt
    num_first = sum(len(step.first_token_s) for step in recorder.steps)
    assert num_first == len(recorder.finished) == 12
    num_inter = sum(sum(step.inter_token_s.values()) for step in recorder.steps)
    assert num_inter == num_generated - 12
    assert sum(stats.num_generated_tokens for stats in recorder.finished) == num_generated
    assert sum(stats.num_cached_tokens for stats in recorder.finished) == sum(
        step.prefix_hits for step in recorder.steps
    )
    assert sum(stats.times.num_preemptions for stats in recorder.finished) == sum(
        step.num_preemptions for step in recorder.steps
    )
    last = recorder.steps[-1]
    assert (last.num_running, last.num_waiting, last.num_pages_used) == (0, 0, 0)


def test_stats_count_from_the_start() -> None:
    world = World()
    world.run(request("a", LONG, max_tokens=2, ignore_eos=True))
    world.run(request("b", LONG, max_tokens=2, ignore_eos=True))
    stats = world.engine.stats()
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (48, 4)
    assert (stats.prefix_queries, stats.prefix_hits) == (48, 20)


def test_a_batch_goes_to_whose_requests_it_is_of() -> None:
    world = World(async_scheduling=False)
    world.engine.add(request("a", n=2, max_tokens=1), client=1, first_key=10)
    world.engine.add(request("b", max_tokens=1), client=2, first_key=10)
    batches: dict[int, list[int]] = {}
    while world.engine.has_work:
        for client, batch in world.engine.step().items():
            batches[client] = [*batches.get(client, []), *batch.keys]
    assert batches == {1: [10, 11], 2: [10]}


def test_a_choice_finished_by_its_client_is_heard_of_no_more_and_counts_as_it_says() -> None:
    recorder = Recorder()
    world = World(metrics=recorder)
    world.engine.add(request("a", n=2, ignore_eos=True))
    while not any(batch.keys for batch in world.engine.step().values()):
        pass
    world.engine.finish("a", 0, num_tokens=1)
    world.engine.finish("a", 0, num_tokens=1)
    keys: list[int] = []
    while world.engine.has_work:
        for batch in world.engine.step().values():
            keys += [*batch.keys, *(end.key for end in batch.ends)]
    world.engine.check_integrity()
    assert set(keys) == {1}
    assert [(s.reason, s.num_generated_tokens) for s in recorder.finished] == [
        (FinishReason.STOP, 1),
        (FinishReason.LENGTH, 8),
    ]


def test_what_a_client_that_left_asked_for_is_ended_and_not_told() -> None:
    world = World()
    for client, name in enumerate("ab"):
        world.engine.add(request(name, n=2, ignore_eos=True), client=client, first_key=0)
    world.engine.step()
    world.engine.leave(0)
    assert world.engine.stats().num_running + world.engine.stats().num_waiting == 2
    while world.engine.has_work:
        assert 0 not in world.engine.step()
    world.engine.check_integrity()
    assert world.engine.stats().num_pages_used == 0
