"""Every plan within the limits finds a shape, and only shapes that were compiled."""

from itertools import product

import pytest

from jaxserve.api.plan import StepLimits
from jaxserve.errors import ConfigError
from jaxserve.execution.shapes import (
    FULL,
    GREEDY,
    NOTHING,
    POOL,
    SAMPLE,
    SCORE,
    Feature,
    ShapeTable,
)

PLATFORMS = ("cpu", "gpu", "tpu")
LIMITS = [
    (max_num_seqs, max_num_seqs + extra)
    for max_num_seqs, extra in product((1, 2, 3, 7, 8, 9, 16, 33), (0, 1, 5, 30))
]
NEEDS = [
    *(NOTHING, GREEDY, SAMPLE, FULL, SCORE),
    *(GREEDY | Feature.LOGPROBS, Feature.PROMPT_LOGPROBS),
]


def table(max_num_seqs: int, max_num_batched_tokens: int, platform: str) -> ShapeTable:
    return ShapeTable.plan(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        pages=4,
        platform=platform,
    )


@pytest.mark.parametrize("limits", LIMITS)
def test_every_plan_that_pools_fits_a_compiled_shape(limits: tuple[int, int]) -> None:
    max_num_seqs, max_num_batched_tokens = limits
    shapes = ShapeTable.plan_pooling(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, pages=4
    )
    for num_sequences in range(1, max_num_seqs + 1):
        for num_tokens in range(num_sequences, max_num_batched_tokens + 1):
            shape = shapes.choose(num_tokens=num_tokens, num_sequences=num_sequences, needs=POOL)
            assert shape.tokens >= num_tokens
            assert shape.sequences >= num_sequences
            assert not shape.is_decode


def test_the_first_shape_of_a_pooling_engine_has_room_for_the_longest_row() -> None:
    shapes = ShapeTable.plan_pooling(
        max_num_seqs=8, max_num_batched_tokens=512, pages=1, longest_row=100
    )
    assert shapes.shapes[0].tokens == 128
    assert shapes.only(lambda shape: shape == shapes.shapes[0]).limits == StepLimits(
        num_tokens=128, num_sequences=8
    )


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("limits", LIMITS)
def test_every_plan_fits_a_compiled_shape(limits: tuple[int, int], platform: str) -> None:
    max_num_seqs, max_num_batched_tokens = limits
    shapes = table(*limits, platform)
    compiled = set(shapes.shapes)
    for num_sequences in range(1, max_num_seqs + 1):
        for num_tokens in range(num_sequences, max_num_batched_tokens + 1):
            for needs in NEEDS:
                shape = shapes.choose(
                    num_tokens=num_tokens, num_sequences=num_sequences, needs=needs
                )
                assert shape in compiled
                assert shape.tokens >= num_tokens
                assert shape.sequences >= num_sequences
                assert needs in shape.features
                # Attention relies on it: a decode shape has row s for sequence s.
                assert not shape.is_decode or num_tokens == num_sequences


@pytest.mark.parametrize("platform", PLATFORMS)
def test_shapes_are_few(platform: str) -> None:
    assert len(table(256, 8192, platform).shapes) <= 19
    assert len(table(32, 512, "cpu").shapes) == 8


@pytest.mark.parametrize("limits", LIMITS)
def test_no_shape_is_compiled_twice(limits: tuple[int, int]) -> None:
    for platform in PLATFORMS:
        shapes = table(*limits, platform).shapes
        assert len(shapes) == len(set(shapes))


def test_a_larger_plan_never_gets_a_smaller_shape() -> None:
    shapes = table(33, 128, "cpu")
    tokens = [
        shapes.choose(num_tokens=n, num_sequences=1, needs=GREEDY).tokens for n in range(2, 129)
    ]
    assert tokens == sorted(tokens)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_greedy_decodes_of_accelerators_have_a_program_without_branches(platform: str) -> None:
    shapes = table(8, 8, platform)
    greedy = shapes.choose(num_tokens=1, num_sequences=1, needs=GREEDY)
    assert (greedy.features, greedy.branches) == (GREEDY, False)
    # A step that samples nothing, as it is all deferred, does not read the head's weights.
    for needs in (NOTHING, SAMPLE, FULL):
        shape = shapes.choose(num_tokens=1, num_sequences=1, needs=needs)
        assert (shape.features, shape.branches) == (FULL, True)


def test_every_program_of_a_cpu_branches() -> None:
    assert all(shape.branches for shape in table(32, 512, "cpu").shapes)
    assert table(8, 8, "cpu").choose(num_tokens=1, num_sequences=1, needs=GREEDY).features == FULL


def test_the_largest_deferred_shape_comes_first() -> None:
    deferred = table(256, 8192, "gpu").deferred
    assert [shape.rows for shape in deferred] == [256, 64, 16]
    assert table(256, 8192, "gpu").limits.num_deferred_samples == 256
    assert table(256, 8192, "gpu").choose_deferred(17).rows == 64


def test_a_budget_below_the_sequences_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens .* max_num_seqs \(8\), got 7"):
        table(8, 7, "cpu")


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("limits", [*LIMITS, (256, 8192)])
def test_whatever_is_made_so_far_serves_every_plan_within_its_limits(
    limits: tuple[int, int], platform: str
) -> None:
    whole = table(*limits, platform)
    before = StepLimits(num_tokens=1, num_sequences=1)
    for count in range(1, len(whole.shapes) + 1):
        made = whole.only(whole.shapes[:count].__contains__)
        now = made.limits
        assert now.num_tokens >= before.num_tokens
        assert now.num_sequences >= before.num_sequences
        before = now
        for num_sequences in {1, now.num_sequences}:
            for num_tokens in {num_sequences, now.num_tokens}:
                for needs in NEEDS:
                    shape = made.choose(
                        num_tokens=num_tokens, num_sequences=num_sequences, needs=needs
                    )
                    assert shape in made.shapes
                    assert shape.tokens >= num_tokens
                    assert shape.sequences >= num_sequences
                    assert needs in shape.features
    assert before.num_tokens >= limits[1]
    assert before.num_sequences == limits[0]


def test_accelerators_begin_with_room_for_every_sequence() -> None:
    for platform in ("gpu", "tpu"):
        first = table(256, 8192, platform).shapes[0]
        assert (first.tokens, first.sequences) == (512, 256)
