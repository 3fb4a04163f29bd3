"""Samples from filtered distributions against their definition, and what must not change one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from jaxserve.execution import sampling
from tests.execution import oracle
from tests.execution.inputs import spread_seeds, step_input
from tests.execution.oracle import Filters

NUM_TRIALS = 1 << 14
# Standard deviations. Seeds are fixed, so a run does not fail by chance; a wrong distribution is
# off by tens.
DEVIATION = 4.0

FILTERS = {
    "nothing": Filters(),
    "hot": Filters(temperature=1.8),
    "cold": Filters(temperature=0.3),
    "top_k": Filters(top_k=7),
    "top_k_1": Filters(top_k=1),
    "top_p": Filters(top_p=0.7),
    "top_p_tiny": Filters(top_p=1e-6),
    "min_p": Filters(min_p=0.05),
    "min_p_1": Filters(min_p=1.0),
    "top_k_top_p": Filters(top_k=40, top_p=0.8),
    "all": Filters(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02),
    "all_hot": Filters(temperature=2.5, top_k=30, top_p=0.5, min_p=0.01),
}

jitted_sample = jax.jit(sampling.sample)


def sampled(
    logits: ArrayLike,
    fields: Mapping[str, ArrayLike] | None = None,
    *,
    num_trials: int = NUM_TRIALS,
) -> NDArray[np.int32]:
    """Sample once per row, or `num_trials` times independently from a single row of logits."""
    rows = np.asarray(logits, np.float32)
    if rows.ndim == 1:
        rows = np.broadcast_to(rows, (num_trials, len(rows)))
    inputs = step_input(len(rows), **(spread_seeds(len(rows)) | dict(fields or {})))
    return np.asarray(jitted_sample(jnp.asarray(rows), inputs))


def random_logits(
    vocab_size: int, *, num_rows: int | None = None, seed: int = 0
) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    shape = (vocab_size,) if num_rows is None else (num_rows, vocab_size)
    return (2.0 * rng.standard_normal(shape)).astype(np.float32)


def kept_by_step(logits: NDArray[np.float32], **fields: ArrayLike) -> NDArray[np.bool_]:
    """The tokens that the step's filters keep."""

    @jax.jit
    def keep(rows: jax.Array) -> jax.Array:
        inputs = step_input(len(logits), **fields)
        return sampling._order(rows) >= sampling._floor(rows, inputs)[:, None]

    return np.asarray(keep(jnp.asarray(logits)))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("vocab_size", [50, 300])
def test_samples_follow_the_distribution(name: str, vocab_size: int) -> None:
    logits = random_logits(vocab_size)
    counts = np.bincount(sampled(logits, asdict(FILTERS[name])), minlength=vocab_size)
    wanted = oracle.distribution(logits, FILTERS[name])
    assert oracle.chi_square_deviation(counts, wanted) < DEVIATION


def test_the_statistic_tells_a_wrong_temperature() -> None:
    logits = random_logits(300)
    counts = np.bincount(sampled(logits, {"temperature": 1.05}), minlength=300)
    assert oracle.chi_square_deviation(counts, oracle.distribution(logits)) > DEVIATION


def test_samples_at_neighbouring_positions_are_independent() -> None:
    tokens = sampled(np.zeros(6))
    first, second = tokens[:-1], tokens[1:]
    counts = np.bincount(first * 6 + second, minlength=36)
    assert oracle.chi_square_deviation(counts, np.full(36, 1 / 36)) < DEVIATION


def test_samples_of_neighbouring_seeds_are_independent() -> None:
    seeds = np.arange(NUM_TRIALS)
    tokens = sampled(np.zeros(6), {"seed_low": seeds, "seed_high": 0, "kv_lengths": 9})
    counts = np.bincount(tokens[:-1] * 6 + tokens[1:], minlength=36)
    assert oracle.chi_square_deviation(counts, np.full(36, 1 / 36)) < DEVIATION


def test_the_upper_half_of_a_seed_counts() -> None:
    seeds = np.arange(NUM_TRIALS)
    tokens = sampled(np.zeros(6), {"seed_low": 0, "seed_high": seeds, "kv_lengths": 9})
    assert oracle.chi_square_deviation(np.bincount(tokens), np.full(6, 1 / 6)) < DEVIATION


def test_a_flat_distribution_over_a_large_vocabulary_is_covered_evenly() -> None:
    vocab_size = 1000
    tokens = sampled(np.zeros(vocab_size))
    counts = np.bincount(tokens, minlength=vocab_size)
    assert oracle.chi_square_deviation(counts, np.full(vocab_size, 1 / vocab_size)) < DEVIATION


@pytest.mark.parametrize("vocab_size", [1, 2, 127, 128, 129, 1000, 10_007])
def test_filters_keep_exactly_what_the_definition_keeps(vocab_size: int) -> None:
    """Rows that keep few tokens and rows that keep many, which are searched for differently."""
    rng = np.random.default_rng(vocab_size)
    num_rows = 192
    logits = random_logits(vocab_size, num_rows=num_rows, seed=1)
    logits *= rng.choice([0.1, 1.0, 3.0], (num_rows, 1)).astype(np.float32)
    near = sampling._NEAR_BLOCKS
    fields = {
        "temperature": rng.choice([0.3, 1.0, 1.7], num_rows),
        "top_k": rng.choice([0, 0, 1, 20, near - 1, near, near + 1, vocab_size - 1], num_rows),
        "top_p": rng.choice([1.0, 0.97, 0.5, 0.01], num_rows),
        "min_p": rng.choice([0.0, 0.0, 0.001, 0.2], num_rows),
    }
    keeps = kept_by_step(logits, **fields)
    for row in range(num_rows):
        filters = Filters(
            temperature=float(fields["temperature"][row]),
            top_k=int(fields["top_k"][row]),
            top_p=float(fields["top_p"][row]),
            min_p=float(fields["min_p"][row]),
        )
        # Sums of float32 may end a token earlier or later where one ends just there.
        fewest, most = (
            oracle.kept(logits[row], replace(filters, top_p=min(1.0, filters.top_p * slack)))
            for slack in (1 - 1e-5, 1 + 1e-5)
        )
        if filters.top_p == 1.0:
            fewest = most
        assert (fewest <= keeps[row]).all(), filters
        assert (keeps[row] <= most).all(), filters


def test_zeros_of_either_sign_are_equals() -> None:
    logits = np.array([[-1.0, 0.0, -0.0, -2.0]], np.float32)
    assert kept_by_step(logits, top_k=1)[0].tolist() == [False, True, True, False]


def test_rows_that_are_not_numbers_do_not_keep_the_search_from_ending() -> None:
    bits = np.array([0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32)
    for logits in (np.full((4, 10_007), -np.inf), random_logits(10_007, num_rows=4)):
        rows = logits.astype(np.float32)
        rows[:, 0] = bits.view(np.float32)
        tokens = sampled(rows, {"top_k": 5, "top_p": 0.5, "min_p": 0.1})
        assert np.all((tokens >= 0) & (tokens < 10_007))


@pytest.mark.parametrize("filters", [Filters(top_k=3), Filters(top_k=180), Filters(top_p=0.5)])
def test_equals_in_more_blocks_than_are_searched_first_are_kept(filters: Filters) -> None:
    logits = np.zeros((1, 10_007), np.float32)
    logits[0, ::50] = 5.0
    keeps = kept_by_step(logits, **asdict(filters))[0]
    np.testing.assert_array_equal(np.flatnonzero(keeps), np.arange(0, 10_007, 50))


@pytest.mark.parametrize(
    ("filters", "num_kept"),
    [
        (Filters(top_k=2), 3),
        (Filters(top_p=0.3), 3),
        (Filters(top_k=4), 5),
        (Filters(min_p=0.9), 3),
    ],
)
def test_equals_of_the_last_token_kept_are_kept(filters: Filters, num_kept: int) -> None:
    # Three tokens share the first place, two the next, one the last.
    logits = np.array([[1.0, 3.0, 2.0, 3.0, 2.0, 3.0]], np.float32)
    keeps = kept_by_step(logits, **asdict(filters))[0]
    np.testing.assert_array_equal(keeps, oracle.kept(logits[0], filters))
    assert keeps.sum() == num_kept


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-23])
def test_the_ends_of_the_unit_interval_sample_tokens_that_have_a_weight(uniform: float) -> None:
    weights = np.zeros((1, 300), np.float32)
    weights[0, [140, 150, 160]] = [1e-3, 1.0, 1e-3]
    token = jax.jit(sampling._sample_weights)(weights, jnp.full((1, 2), uniform))
    assert token == (140 if uniform == 0.0 else 160)


def test_forbidden_tokens_are_never_kept_by_count() -> None:
    logits = np.full((1, 40), -np.inf, np.float32)
    logits[0, [3, 17]] = [0.0, -1.0]
    tokens = sampled(logits[0], {"top_k": 30}, num_trials=512)
    assert set(tokens.tolist()) == {3, 17}


def test_greedy_rows_of_a_sampled_batch_take_the_most_likely_token() -> None:
    logits = random_logits(300, num_rows=64)
    tokens = sampled(logits, {"temperature": [0.0, 5.0] * 32, "top_k": [0, 200] * 32})
    np.testing.assert_array_equal(tokens[::2], logits[::2].argmax(axis=1))


@pytest.mark.parametrize("places", [(100, 101), (63, 64), (70, 299), (5, 130), (0, 299)])
def test_the_first_of_equals_is_the_most_likely(places: tuple[int, int]) -> None:
    logits = random_logits(300, num_rows=4)
    logits[:, places] = 50.0
    np.testing.assert_array_equal(jax.jit(sampling.greedy)(logits), [places[0]] * 4)


@pytest.mark.parametrize("vocab_size", [1, 5, 64, 65])
def test_greedy_of_forbidden_tokens_stays_in_the_vocabulary(vocab_size: int) -> None:
    logits = np.full((3, vocab_size), -np.inf, np.float32)
    logits[1] = np.nan
    tokens = np.asarray(jax.jit(sampling.greedy)(logits))
    assert (tokens < vocab_size).all()


@settings(max_examples=20)
@given(data=st.data())
def test_a_sample_depends_on_its_own_row_alone(data: st.DataObject) -> None:
    """Not on the other rows, nor on how many there are, nor on its place among them."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    logits = random_logits(300, num_rows=16, seed=int(rng.integers(2**32)))
    rows = [asdict(FILTERS[name]) for name in rng.choice(list(FILTERS), 16)]
    fields = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    fields |= {name: np.array(value) for name, value in spread_seeds(16, per_seed=4).items()}

    def sample_rows(chosen: Sequence[int]) -> NDArray[np.int32]:
        return sampled(logits[chosen], {name: value[chosen] for name, value in fields.items()})

    together = sample_rows(range(16))
    order = rng.permutation(16).tolist()
    np.testing.assert_array_equal(sample_rows(order), together[order])
    for row in (0, 7):
        assert sample_rows([row])[0] == together[row]


def test_positions_and_seeds_give_different_samples() -> None:
    logits = np.zeros(5000)
    by_position = sampled(
        logits, {"seed_low": 1, "seed_high": 0, "kv_lengths": np.arange(64)}, num_trials=64
    )
    by_seed = sampled(
        logits, {"seed_low": np.arange(64), "seed_high": 0, "kv_lengths": 1}, num_trials=64
    )
    # Among 64 samples of 5000 two are equal less than once on average; 60 are different at least.
    assert len(set(by_position.tolist())) >= 60
    assert len(set(by_seed.tolist())) >= 60


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
def test_huge_logits_are_sampled_from(temperature: float) -> None:
    logits = np.array([-3e38, 3e38, 0.0, 3e38, 1e38], np.float32)
    tokens = sampled(logits, {"temperature": temperature}, num_trials=512)
    assert set(tokens.tolist()) == {1, 3}


def test_at_a_tiny_temperature_the_most_likely_token_is_sampled() -> None:
    logits = random_logits(300, num_rows=512)
    tokens = sampled(logits, {"temperature": 0.01})
    # Within 0.05 of the most likely a token is still sampled now and then: exp(-5).
    ahead = -np.diff(np.sort(logits)[:, -2:])[:, 0] < -0.2
    assert ahead.sum() > 200
    np.testing.assert_array_equal(tokens[ahead], logits.argmax(axis=1)[ahead])


def test_a_report_ranks_the_token_chosen_and_lists_the_greatest_and_the_named() -> None:
    scores = random_logits(300, num_rows=8)
    chosen = np.arange(8, dtype=np.int32)
    named = np.stack([chosen + 1, chosen + 100], axis=1)
    report = jax.jit(partial(sampling.report, num_top=20))(
        jnp.asarray(scores), jnp.asarray(chosen), named=jnp.asarray(named)
    )
    own = scores[np.arange(8), chosen]
    np.testing.assert_array_equal(report.chosen, own)
    np.testing.assert_array_equal(report.rank, 1 + (scores > own[:, None]).sum(axis=1))
    best = np.argsort(-scores, axis=1)[:, :20]
    np.testing.assert_array_equal(report.top_ids, best)
    np.testing.assert_array_equal(report.top, np.take_along_axis(scores, best, axis=1))
    np.testing.assert_array_equal(report.named, np.take_along_axis(scores, named, axis=1))
