"""Kernels for NVIDIA GPUs, beyond the tests shared by all backends."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Unsupported, paged_attention
from pallas_kernels.paged_attention import AttentionConfig
from pallas_kernels.paged_attention.cases import LAYERS, Case, ragged
from pallas_kernels.paged_attention.mosaic_gpu import backend as mosaic_gpu
from pallas_kernels.paged_attention.mosaic_gpu import sm90
from pallas_kernels.paged_attention.mosaic_gpu.combine import combine
from pallas_kernels.paged_attention.mosaic_gpu.tile import UNSEEN
from pallas_kernels.paged_attention.worlds import draw, relative_error
from pallas_kernels.targets import CPU, find_target
from tests.kernels.oracle import attended

H200 = find_target("h200")
LLAMA, DEEPSEEK = LAYERS["llama-3.1-8b"], LAYERS["deepseek-v3"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float32"}, "not float32"),
        ({"cache_dtype": "float32"}, "no float32"),
        ({"cache_dtype": "float16"}, "bfloat16 by a cache of float16"),
        ({"head_dim": 80}, "got 80"),
        ({"head_dim": 512}, "got 512"),
        ({"page_size": 8}, "got 8"),
        ({"page_size": 48}, "got 48"),
        ({"heads": 8 * 65}, "at most 64 query heads"),
        ({"heads": 8 * 3, "head_dim": 96}, "multiple of 128 bytes, got 3 of head_dim 96"),
    ],
)
def test_hopper_refuses_with_the_reason(changes: dict[str, int | str], reason: str) -> None:
    config = replace(LLAMA, **changes)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=reason):
        mosaic_gpu.check(config, H200)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cache_dtype": "float8_e4m3fn"}, "latents of the same, not of float8_e4m3fn"),
        ({"kv_heads": 2}, "got 2 KV heads"),
        ({"page_size": 8}, "power of two from 16 on, got 8"),
        ({"value_dim": 448}, "128, 256, 384 or 512, got 448"),
        ({"head_dim": 640}, r"64 more than value_dim \(512\), got 640"),
        ({"sinks": True}, "without sinks only"),
    ],
)
def test_hopper_refuses_latents_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        mosaic_gpu.check(replace(DEEPSEEK, **changes), H200)


def test_latents_are_refused_where_no_kernel_reads_values_within_keys() -> None:
    for place in ("a100", "b200"):
        choice = paged_attention.choose(DEEPSEEK, target=find_target(place))
        assert choice.backend == "reference"
    assert paged_attention.choose(DEEPSEEK, target=H200).backend == "mosaic_gpu"


def test_other_hardware_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="got cpu"):
        mosaic_gpu.check(LLAMA, CPU)
    with pytest.raises(Unsupported, match=r"got 7\.0"):
        mosaic_gpu.check(LLAMA, replace(H200, architecture="7.0"))


@pytest.mark.parametrize("head_dim", [64, 96, 128, 160, 192, 224, 256])
@pytest.mark.parametrize("cache_dtype", ["bfloat16", "float8_e4m3fn"])
def test_every_plan_overlaps_fetches_with_products(head_dim: int, cache_dtype: str) -> None:
    config = replace(LLAMA, head_dim=head_dim, cache_dtype=cache_dtype)
    plans = (
        sm90.decode_plan(config, 1),
        sm90.prefill_plan(config, num_tokens=8192),
    )
    assert all(plan.stages >= 2 for plan in plans)


def test_parts_are_averaged_by_their_sums() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(30, 2, 4, 64)).astype(np.float32)
    sums = rng.normal(scale=5, size=(30, 2, 4)).astype(np.float32)
    # Parts in which a head sees nothing, the first one included; a head without a sink; one whose
    # sink takes all.
    sums[3:6, 0, 1] = sums[20, 0] = UNSEEN
    sinks = np.array([0.5, -np.inf, 1e30, -1.0], np.float32)
    # First item, end and query of each row: of many parts, of one, of none.
    rows = [(3, 29, 0), (29, 30, 1), (0, 3, 1), (0, 0, 0)]
    for sink in (None, sinks):
        out = combine(
            jnp.asarray(parts),
            jnp.asarray(sums),
            jnp.asarray(rows, jnp.int32),
            sinks=None if sink is None else jnp.asarray(sink),
            dtype=jnp.float32,
            target=H200.simulated(),
        )
        wanted = np.zeros((4, 4, 64))
        for row, (first, end, query) in enumerate(rows):
            weights = np.exp2(sums[first:end, query].astype(np.float64))
            with np.errstate(over="ignore"):
                total = weights.sum(axis=0) + (0 if sink is None else np.exp(sink))
            weighted = np.einsum("ih,ihk->hk", weights, parts[first:end, query])
            wanted[row] = weighted / np.where(total > 0, total, 1)[:, None]
        np.testing.assert_allclose(np.asarray(out), wanted, atol=1e-5)


def error_of(case: Case) -> float:
    """Return the error of a step with a promise of few rows, which all are decoded."""
    world = draw(case, seed=2)
    config = case.config
    out, _ = mosaic_gpu.attend(
        jnp.asarray(world.q),
        jnp.asarray(world.k),
        jnp.asarray(world.v),
        jnp.asarray(world.cache),
        world.batch,
        world.spec,
        config=config,
        target=H200.simulated(),
    )
    live = slice(case.num_rows)
    return relative_error(np.asarray(out, np.float64)[live], attended(world)[live])


def test_few_rows_of_a_sequence_are_decoded_together() -> None:
    config = AttentionConfig(
        heads=6,
        kv_heads=2,
        head_dim=64,
        page_size=16,
        dtype="bfloat16",
        cache_dtype="bfloat16",
        sliding_window=300,
        sinks=True,
    )
    # The last rows of the array are those of a sequence with fewer than the others.
    assert error_of(ragged(config, (4, 700), (2, 40), (1, 1), (3, 3), (2, 650))) < 1.2e-2
