"""Costs of a step, against a count of all query-key pairs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jaxserve.execution.cost import Cost, StepCosts
from jaxserve.execution.shapes import GREEDY, SCORE, Feature
from jaxserve.layers.routing import Routing
from jaxserve.models import DecoderConfig, MixtureOfExperts, abstract_params
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import ARRAYS, WeightLayout
from jaxserve.quantization.int8 import METHOD as INT8
from tests.execution.programs import SMALL, plan, with_attention, with_feed_forward

HEAD = 64 * 512
# SMALL with 8 experts of width 32, of which each token uses 2.
MOE = replace(
    SMALL,
    layers=tuple(
        replace(
            layer,
            feed_forward=MixtureOfExperts(
                routing=Routing(num_experts=8, top_k=2), embed=SMALL.embed, ffw=32
            ),
        )
        for layer in SMALL.layers
    ),
)
EXPERT = 3 * SMALL.embed * 32


def costs(model: DecoderConfig, **kept: Any) -> StepCosts:
    layout = WeightLayout(sharding=ShardingPlan(make_mesh(1)), **kept)
    params = abstract_params(model, layout)
    return StepCosts(model, params=params, attention=plan(model))


def count(
    model: DecoderConfig,
    starts: list[int],
    lengths: list[int],
    *,
    num_sampled: int | None = None,
    features: Feature = GREEDY,
) -> Cost:
    return costs(model).count(
        np.array(starts),
        np.array(lengths),
        num_tokens=sum(lengths),
        num_sampled=len(starts) if num_sampled is None else num_sampled,
        features=features,
    )


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize(
    ("starts", "lengths"),
    [([0, 7, 2, 40], [1, 1, 1, 1]), ([5, 0, 6, 30], [1, 9, 4, 12]), ([0], [20])],
)
def test_attention_is_counted_pair_by_pair(
    starts: list[int], lengths: list[int], window: int | None
) -> None:
    model = with_attention(SMALL, sliding_window=window)
    pairs, keys = 0, set()
    for sequence, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for query in range(start, start + length):
            first = 0 if window is None else max(0, query - window + 1)
            pairs += query - first + 1
            keys |= {(sequence, key) for key in range(first, query + 1)}
    cost, alone = count(model, starts, lengths), count(model, [0] * len(starts), [0] * len(starts))
    tokens = sum(lengths)
    per_token = cost.flops - alone.flops - 4 * 8 * 8 * pairs
    assert per_token % (2 * tokens) == 0
    # Beside attention every token costs the same, wherever it stands.
    assert per_token // tokens == count(model, [0], [1]).flops - 2 * HEAD - 4 * 8 * 8
    read = cost.read_bytes - alone.read_bytes - tokens * 64 * 4
    assert read == len(keys) * 2 * 4 * 8 * 4
    assert cost.written_bytes - alone.written_bytes == tokens * 2 * 4 * 8 * 4


def test_layers_that_differ_are_counted_each_by_itself() -> None:
    full, windowed = (
        with_attention(replace(SMALL, layers=SMALL.layers * 2), sliding_window=window)
        for window in (None, 3)
    )
    mixed = replace(full, layers=(full.layers[0], windowed.layers[1]))
    starts, lengths = [7, 40], [1, 5]
    costs_ = [count(model, starts, lengths) for model in (full, mixed, windowed)]
    for name in ("flops", "read_bytes", "written_bytes"):
        first, middle, last = (getattr(cost, name) for cost in costs_)
        assert 2 * middle == first + last
    assert costs_[0].flops > costs_[2].flops


def test_only_rows_that_sample_have_logits() -> None:
    some, all_ = (count(SMALL, [4, 4], [1, 1], num_sampled=number) for number in (1, 2))
    assert all_.flops - some.flops == 2 * HEAD
    assert all_.num_bytes - some.num_bytes == 2 * 512 * 4
    scored = count(SMALL, [4, 4], [1, 1], features=SCORE)
    assert scored.flops - all_.flops == 2 * 2 * HEAD


@pytest.mark.parametrize("tied", [True, False])
def test_how_matrices_are_kept_changes_bytes_and_no_flops(*, tied: bool) -> None:
    model = replace(SMALL, tied_embeddings=tied)
    arrays, packed, halves, rounded = (
        costs(model, method=method, packed=kind).count(
            np.array([7]), np.array([1]), num_tokens=1, num_sampled=1, features=GREEDY
        )
        for method, kind in (
            (ARRAYS, None),
            (ARRAYS, "float32"),
            (ARRAYS, "bfloat16"),
            (INT8, "int8"),
        )
    )
    assert arrays.flops == packed.flops == halves.flops == rounded.flops
    # Whole panels are read, and there are vectors beside matrices.
    assert arrays.read_bytes <= packed.read_bytes < 1.3 * arrays.read_bytes
    assert rounded.read_bytes < halves.read_bytes < packed.read_bytes


def test_faster_products_leave_room_for_more_rows_and_less_for_attention() -> None:
    balance = {"flops_per_byte": 8.0, "attention_efficiency": 0.5}
    plain, fast = (costs(SMALL).work(**balance, product_speed=speed) for speed in (1.0, 4.0))
    assert fast.free_tokens == pytest.approx(4 * plain.free_tokens, abs=2)
    assert fast.prefill_attention == 4 * plain.prefill_attention
    assert fast.decode_attention == 4 * plain.decode_attention
    assert fast.sampling == plain.sampling


def test_a_token_computes_its_experts_only() -> None:
    router = SMALL.embed * 8
    dense = with_feed_forward(SMALL, ffw=64)
    more = 2 * len(SMALL.layers) * router
    assert count(MOE, [5], [1]).flops == count(dense, [5], [1]).flops + more


def test_experts_without_tokens_are_not_read() -> None:
    def expert_bytes(num_tokens: int) -> int:
        starts, lengths = [0], [num_tokens]
        idle = count(MOE, starts, [1000], num_sampled=1).read_bytes
        everything = count(SMALL, starts, [1000], num_sampled=1).read_bytes
        here = count(MOE, starts, lengths, num_sampled=1).read_bytes
        dense = count(SMALL, starts, lengths, num_sampled=1).read_bytes
        return here - dense - (idle - everything) + 4 * 8 * EXPERT * len(SMALL.layers)

    one = 4 * 2 * EXPERT * len(SMALL.layers)
    assert expert_bytes(1) == one
    # The second token's experts are among those of the first with a probability of a quarter.
    assert expert_bytes(2) == pytest.approx(one * 1.75, abs=1)
    assert expert_bytes(1000) == 8 * one // 2
