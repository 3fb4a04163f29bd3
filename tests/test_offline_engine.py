"""Requests offline: many at once, as streams, in order of priority, and interrupted."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from jaxserve import LLM, RequestOutputKind, SamplingParams, StructuredOutputsParams, TokenEvent
from jaxserve.errors import EngineDeadError
from tests.offline import GREEDY, assert_idle, text_of

NUM_SLOTS = 4


def test_more_prompts_than_the_queue_holds_are_answered_in_their_order(llm: LLM) -> None:
    prompts = [f"There were {count} dogs" for count in range(3 * NUM_SLOTS)]
    together = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in together] == prompts
    alone = [text_of(llm.generate(prompt, GREEDY)[0]) for prompt in prompts]
    assert [text_of(output) for output in together] == alone
    assert_idle(llm)


def test_a_prompt_that_cannot_go_on_ends_with_an_error_and_the_others_go_on(llm: LLM) -> None:
    never = replace(GREEDY, allowed_token_ids=(7,), stop_token_ids=(7,), min_tokens=1)
    shaped = replace(
        GREEDY,
        allowed_token_ids=(7,),
        structured_outputs=StructuredOutputsParams(choice=("yes", "no")),
    )
    fine, refused, stuck = llm.generate(["Tom", "Tom", "Tom"], [GREEDY, never, shaped])
    assert text_of(fine) == text_of(llm.generate("Tom", GREEDY)[0])
    assert [output.outputs[0].finish_reason for output in (refused, stuck)] == ["error", "error"]
    assert_idle(llm)


def test_extreme_parameters_give_tokens(llm: LLM) -> None:
    """Values at the ends of their ranges overflow nothing."""
    vocab_size = llm.plan.model.vocab_size
    extremes: list[dict[str, Any]] = [
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 10.0},
        {"temperature": 1e-40},
        {"temperature": 100.0},
        {"top_p": 1e-300},
        {"min_p": 1e-300},
        {"min_p": 1.0},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0, "temperature": 1e-40},
        {"logit_bias": dict.fromkeys(range(vocab_size), -100.0)},
        {"logit_bias": dict.fromkeys(range(vocab_size), 100), "repetition_penalty": 0.01},
    ]
    params = [SamplingParams(**{"seed": 1, "max_tokens": 8, **extreme}) for extreme in extremes]
    outputs = llm.generate(["Tom"] * len(params), params)
    assert {output.outputs[0].finish_reason for output in outputs} <= {"length", "stop"}


def test_lower_priority_numbers_run_first(llm: LLM) -> None:
    count = 3 * NUM_SLOTS
    outputs = llm.generate(["Tom"] * count, GREEDY, priority=range(count, 0, -1))
    starts = [output.metrics.scheduled_s for output in outputs if output.metrics is not None]
    assert starts == sorted(starts, key=lambda start: -(start or 0.0))


def test_stream_yields_the_text_that_generate_returns(llm: LLM) -> None:
    events = list(llm.stream("Once upon a time", GREEDY))
    (output,) = llm.generate("Once upon a time", GREEDY)
    assert len(events) > 1
    assert "".join(event.text for event in events) == text_of(output)
    assert [event.request_finished for event in events] == [False] * (len(events) - 1) + [True]


def test_streams_may_be_open_at_once(llm: LLM) -> None:
    prompts = ["Once upon a time", "The dog"]
    streams = [llm.stream(prompt, GREEDY) for prompt in prompts]
    texts = ["", ""]
    for pair in zip(*streams, strict=True):
        texts = [text + event.text for text, event in zip(texts, pair, strict=True)]
    assert texts == [text_of(output) for output in llm.generate(prompts, GREEDY)]
    assert_idle(llm)


def test_closing_a_stream_ends_its_request(llm: LLM) -> None:
    stream = llm.stream("Once upon a time", SamplingParams(max_tokens=200))
    next(stream)
    assert llm.stats().num_running == 1
    stream.close()
    assert llm.stats().num_running == 0
    assert_idle(llm)


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    """Ctrl-C as in a terminal; what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_step(llm: LLM, monkeypatch: pytest.MonkeyPatch, *, at: int) -> list[list[TokenEvent]]:
    """Send Ctrl-C at the beginning of a step; return the list of what the steps returned."""
    step, finished = llm._engine.engine.step, list[list[TokenEvent]]()

    def interrupted_step() -> list[TokenEvent]:
        if len(finished) == at:
            signal.raise_signal(signal.SIGINT)
        finished.append(step())
        return finished[-1]

    monkeypatch.setattr(llm._engine.engine, "step", interrupted_step)
    return finished


@pytest.mark.usefixtures("default_interrupt")
def test_an_interrupt_waits_for_the_step_and_leaves_the_llm_usable(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        finished = interrupt_step(llm, patch, at=3)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Once upon a time"] * 6, SamplingParams(max_tokens=100))
    assert len(finished) > 3
    assert_idle(llm)
    assert len(llm.generate("Tom", GREEDY)[0].outputs[0].token_ids) == GREEDY.max_tokens


def test_a_failed_engine_says_so_and_takes_nothing_more(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[TokenEvent]:
        raise RuntimeError("device lost")

    # All of it is undone in the end, for the tests that share the engine.
    monkeypatch.setattr(llm._engine, "_is_dead", False)
    monkeypatch.setattr(llm._engine.engine, "step", fail)
    with pytest.raises(EngineDeadError) as caught:
        llm.generate("Tom", GREEDY)
    assert str(caught.value.__cause__) == "device lost"
    with pytest.raises(EngineDeadError):
        llm.generate("Tom", GREEDY)


def test_what_is_enqueued_is_answered_when_waited_for(llm: LLM) -> None:
    ids = llm.enqueue(["One day", "A cat"], GREEDY) + llm.enqueue("The end", GREEDY)
    outputs = llm.wait_for_completion()
    assert [output.request_id for output in outputs] == ids
    expected = llm.generate(["One day", "A cat", "The end"], GREEDY)
    assert [text_of(output) for output in outputs] == [text_of(output) for output in expected]
    assert llm.wait_for_completion() == []


def test_a_stream_tells_what_is_new_or_all_so_far_or_all_at_the_end(llm: LLM) -> None:
    def texts(kind: RequestOutputKind) -> list[str]:
        params = replace(GREEDY, output_kind=kind)
        return [event.text for event in llm.stream("One day", params)]

    new = texts(RequestOutputKind.DELTA)
    assert texts(RequestOutputKind.CUMULATIVE) == ["".join(new[: i + 1]) for i in range(len(new))]
    assert texts(RequestOutputKind.FINAL_ONLY) == ["".join(new)]
