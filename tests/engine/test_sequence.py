"""A sequence's counters, and its tokens across prompt and output."""

import pytest

from jaxserve.engine.plan_builder import PlanBuilder
from jaxserve.engine.prefix_cache import page_digests, root_digest
from jaxserve.engine.sequence import Sequence, SequenceGroup, choice_seed
from tests.engine.world import request


def make(prompt_ids: tuple[int, ...] = (1, 2, 3), output_ids: tuple[int, ...] = ()) -> Sequence:
    return Sequence(
        group=SequenceGroup(request=request(prompt_ids=prompt_ids)),
        index=0,
        order=(0, 1, 1, 0),
        seed=0,
        root_digest=root_digest(""),
        max_length=20,
        eos_ids=frozenset(),
        stop_ids=frozenset(),
        num_prompt=len(prompt_ids),
        length=len(prompt_ids) + len(output_ids),
        output_ids=list(output_ids),
    )


@pytest.mark.parametrize(("start", "stop"), [(a, b) for a in range(6) for b in range(a, 6)])
def test_tokens_runs_from_prompt_into_output(start: int, stop: int) -> None:
    sequence = make((1, 2, 3), (4, 5))
    assert sequence.tokens(start, stop) == (1, 2, 3, 4, 5)[start:stop]


def test_a_token_is_known_from_its_commit_on() -> None:
    sequence = make((1, 2, 3))
    sequence.enter(1, num_cached=0)
    PlanBuilder().add_chunk(sequence, 3)
    assert (sequence.num_known, sequence.length) == (3, 4)
    sequence.check_integrity()
    sequence.num_computed = 3
    sequence.output_ids.append(9)
    assert (sequence.num_known, sequence.length) == (4, 4)
    sequence.check_integrity()


def test_leaving_keeps_known_tokens_and_drops_awaited_ones() -> None:
    sequence = make((1, 2, 3), (4,))
    sequence.enter(1, num_cached=0)
    PlanBuilder().add_chunk(sequence, 4)
    assert sequence.length == 5
    sequence.leave()
    assert sequence.length == 4
    assert sequence.slot is None
    sequence.check_integrity()


def test_digests_cover_output_tokens_and_are_computed_once() -> None:
    sequence = make((1, 2, 3), (4, 5))
    sequence.extend_digests(1, page_size=2)
    first = sequence.digests[0]
    sequence.extend_digests(2, page_size=2)
    assert sequence.digests[0] is first
    assert sequence.digests == page_digests(root_digest(""), [1, 2, 3, 4], page_size=2)


def test_a_broken_counter_is_seen() -> None:
    sequence = make()
    sequence.num_computed = 4
    with pytest.raises(AssertionError, match="entries 0 <= 4 <= 0 <= 3"):
        sequence.check_integrity()


def test_choices_have_different_streams_that_never_change() -> None:
    # The numbers are part of what a seed promises: a new release must not change them.
    assert [choice_seed(0, 0), choice_seed(0, 1)] == [7191335395864046732, 1127269934338255990]


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
def test_the_start_of_a_stream_fits_64_bits(seed: int) -> None:
    assert 0 <= choice_seed(seed, 127) < 2**64
