"""Ends of choices: stop tokens, stop strings, length limits and aborts."""

import pytest

from jaxserve.api.request import FinishReason
from tests.engine.answers import LONG, last_event, unstopped
from tests.engine.world import EOS, World, request, word_tokenizer, words


def test_eos_ends_a_choice_without_stop_reason() -> None:
    world = World(vocab_size=8)
    world.run(request("a", (1, 2, 3), max_tokens=40))
    assert world.output()[-1] == EOS
    assert last_event(world).finish_reason is FinishReason.STOP
    assert last_event(world).stop_reason is None


def test_a_stop_token_is_named_and_is_no_text() -> None:
    stop = unstopped()[3]
    world = World(tokenizer=word_tokenizer())
    world.run(request("a", (1, 2, 3), stop_token_ids=(stop,)))
    assert last_event(world).stop_reason == stop
    assert world.output()[-1] == stop
    assert world.answers["a", 0].text == words(world.output()[:-1])


def test_a_stop_token_is_text_on_demand() -> None:
    stop = unstopped()[3]
    world = World(tokenizer=word_tokenizer())
    world.run(request("a", (1, 2, 3), stop_token_ids=(stop,), include_stop_str_in_output=True))
    assert world.answers["a", 0].text == words(world.output())


def test_ignore_eos_goes_on() -> None:
    world = World(vocab_size=8)
    world.run(request("a", (1, 2, 3), max_tokens=40, ignore_eos=True))
    assert len(world.output()) == 40
    assert EOS in world.output()


def test_max_tokens_ends_with_length() -> None:
    world = World()
    world.run(request("a", max_tokens=1))
    assert last_event(world).finish_reason is FinishReason.LENGTH
    assert len(world.output()) == 1


def test_the_context_ends_with_length() -> None:
    world = World(max_model_len=10)
    world.run(request("a", (1, 2, 3), max_tokens=None, ignore_eos=True))
    assert last_event(world).finish_reason is FinishReason.LENGTH
    assert len(world.output()) == 7


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_a_stop_string_across_tokens_ends_a_choice(async_scheduling: bool) -> None:
    says = unstopped()
    stop = words(says[2:4])[1:-1]
    world = World(tokenizer=word_tokenizer(), async_scheduling=async_scheduling)
    world.run(request("a", (1, 2, 3), stop=(stop,)))
    assert world.output() == says[:4]
    assert world.answers["a", 0].text == words(says[:2]) + "w"
    assert last_event(world).finish_reason is FinishReason.STOP
    assert last_event(world).stop_reason == stop


def test_a_stop_string_in_the_last_token_allowed_is_a_stop() -> None:
    says = unstopped(max_tokens=4)
    world = World(tokenizer=word_tokenizer())
    world.run(request("a", (1, 2, 3), max_tokens=4, stop=(words(says[3:]),)))
    assert last_event(world).finish_reason is FinishReason.STOP
    assert world.answers["a", 0].text == words(says[:3])


def test_text_held_for_a_stop_string_comes_with_the_last_event() -> None:
    says = unstopped()
    world = World(tokenizer=word_tokenizer())
    world.run(request("a", (1, 2, 3), ignore_eos=True, stop=(words(says[-1:]) + "!",)))
    assert world.answers["a", 0].text == words(says)


def test_each_choice_ends_once_and_the_request_with_the_last_of_them() -> None:
    world = World()
    world.run(request("a", LONG, n=3))
    ends = [event for event in world.events if event.finish_reason is not None]
    assert sorted(event.index for event in ends) == [0, 1, 2]
    assert [event.request_finished for event in ends] == [False, False, True]


def test_an_abort_ends_all_choices_with_the_next_step() -> None:
    world = World()
    world.add(request("a", LONG, n=2))
    world.step()
    world.engine.abort("a")
    assert world.engine.has_work
    events = world.step()
    assert [event.finish_reason for event in events] == [FinishReason.ABORT] * 2
    assert [event.request_finished for event in events] == [False, True]
    world.run()


def test_an_abort_before_the_first_step_is_answered() -> None:
    world = World()
    world.add(request("a"))
    world.engine.abort("a")
    world.run()
    assert last_event(world).finish_reason is FinishReason.ABORT
    assert world.runner.plans == []


def test_aborting_what_is_finished_or_unknown_does_nothing() -> None:
    world = World()
    world.run(request("a"))
    world.engine.abort("a")
    world.engine.abort("b")
    assert not world.engine.has_work
