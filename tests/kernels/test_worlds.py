"""Cases count what they say, and worlds are as hostile as the contract allows."""

import numpy as np
import pytest

from pallas_kernels.paged_attention import CacheSpec
from pallas_kernels.paged_attention.cases import BENCHMARKS, LAYERS, TESTS, Case, decode
from pallas_kernels.paged_attention.worlds import draw, pack, relative_error, unpack

SHAPE = (2, 7, 3, 4, 6)  # planes, pages, kv_heads, offsets, head_dim


@pytest.mark.parametrize(
    "spec",
    [
        CacheSpec(
            (7, 2, 4, 3, 6), np.float32, ("pages", "planes", "offsets", "kv_heads", "head_dim")
        ),
        CacheSpec(
            (2, 3, 7, 4, 8), np.float32, ("planes", "kv_heads", "pages", "offsets", "head_dim")
        ),
        CacheSpec((7, 3, 4, 16), np.float32, ("pages", "kv_heads", "offsets", "lanes")),
    ],
)
def test_unpacking_gives_back_what_was_packed(spec: CacheSpec) -> None:
    cache = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    packed = pack(cache, spec)
    assert packed.shape == spec.shape
    np.testing.assert_array_equal(unpack(packed, spec, SHAPE[-1]), cache)


def test_lanes_are_a_key_then_its_value_then_zeros() -> None:
    cache = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    spec = CacheSpec((7, 3, 4, 16), np.float32, ("pages", "kv_heads", "offsets", "lanes"))
    row = pack(cache, spec)[5, 2, 1]
    np.testing.assert_array_equal(row, [*cache[0, 5, 2, 1], *cache[1, 5, 2, 1], 0, 0, 0, 0])


@pytest.mark.parametrize("name", TESTS)
def test_pairs_and_keys_are_those_that_a_mask_lets_through(name: str) -> None:
    case = TESTS[name]
    num_pairs = num_keys = 0
    for rows, total in case.sequences:
        positions, keys = np.arange(total - rows, total)[:, None], np.arange(total)
        mask = keys <= positions
        if case.config.sliding_window is not None:
            mask &= keys > positions - case.config.sliding_window
        num_pairs += int(mask.sum())
        num_keys += int(mask.any(axis=0).sum())
    assert (case.num_pairs, case.num_keys) == (num_pairs, num_keys)


def test_no_two_sequences_share_a_page_and_none_has_page_0() -> None:
    world = draw(TESTS["mixed"], seed=3)
    table = np.asarray(world.batch.page_table)
    owned = np.concatenate(
        [
            table[s, : world.case.pages_for(total)]
            for s, (_, total) in enumerate(world.case.sequences)
        ]
    )
    assert len(set(owned.tolist()) | {0}) == len(owned) + 1


def test_slots_are_poisoned_unless_an_earlier_step_wrote_them() -> None:
    world = draw(decode(LAYERS["qwen3-0.6b"], (70,)), seed=3)
    is_poisoned = np.isnan(world.cache.astype(float)).all(axis=(0, 2, 4))
    first, second = np.asarray(world.batch.page_table)[0]
    assert not is_poisoned[first].any()
    np.testing.assert_array_equal(is_poisoned[second], np.arange(64) >= 69 - 64)
    assert np.delete(is_poisoned, [first, second], axis=0).all()


def test_error_is_that_of_the_worst_row_and_head() -> None:
    wanted = np.ones((5, 3, 4))
    found = wanted.copy()
    found[2, 1] = 1.5
    assert relative_error(found, wanted) == pytest.approx(0.5)
    found[0, 0, 0] = np.nan
    assert relative_error(found, wanted) == np.inf


def test_decode_step_has_a_row_per_sequence() -> None:
    config = LAYERS["qwen3-0.6b"]
    with pytest.raises(ValueError, match="have one row"):
        Case(config=config, sequences=((2, 2),), is_decode=True)
    with pytest.raises(ValueError, match=r"padding_rows .* \(1\), got 2"):
        Case(config=config, sequences=(), is_decode=True, padding_rows=2, padding_sequences=1)


def test_benchmarks_reach_from_one_sequence_to_256_and_from_128_tokens_to_32k() -> None:
    decodes = [case for name, case in BENCHMARKS.items() if name.startswith("decode/")]
    batches = {len(case.sequences) for case in decodes}
    lengths = {total for case in decodes for _, total in case.sequences}
    groups = {case.config.group for case in decodes}
    assert (min(batches), max(batches)) == (1, 256)
    assert (min(lengths), max(lengths)) == (128, 32768)
    assert {1, 4, 8} <= groups
