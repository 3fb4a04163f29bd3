"""Kernels for Ampere and Blackwell, and for latents on Hopper: cases specific to them."""

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import Unsupported, paged_attention
from pallas_kernels.gpu_targets import gpu_target_config
from pallas_kernels.paged_attention import AttentionConfig, AttentionSpec, PagedBatch
from pallas_kernels.paged_attention.cases import LAYERS, Case, decode, ragged, shard
from pallas_kernels.paged_attention.mosaic_gpu import backend as mosaic_gpu
from pallas_kernels.paged_attention.worlds import draw, relative_error
from pallas_kernels.targets import find_target
from tests.kernels.oracle import attended

LLAMA, DEEPSEEK = LAYERS["llama-3.1-8b"], LAYERS["deepseek-v3"]

needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the CUDA 13 plugin of jax is not installed",
)

# Bytes of shared memory that a thread block can have (CUDA C++ Programming Guide, technical
# specifications per compute capability).
SHARED_BYTES = {"a100": 163 * 1024, "h200": 227 * 1024, "b200": 227 * 1024}


@pytest.mark.parametrize("place", ["a100", "b200"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cache_dtype": "float8_e4m3fn"}, "not of float8_e4m3fn"),
        ({"cache_dtype": "int8"}, "not of int8"),
        ({"cache_dtype": "float16"}, "not of float16"),
        ({"dtype": "float32"}, "not float32"),
        ({"head_dim": 80}, "multiple of 32 up to 256, got 80"),
        ({"head_dim": 288}, "multiple of 32 up to 256, got 288"),
        ({"page_size": 4}, "8, 16, 32 or a multiple of 64, got 4"),
        ({"page_size": 48}, "8, 16, 32 or a multiple of 64, got 48"),
        ({"heads": 8 * 129}, "too few for 129 query heads"),
    ],
)
def test_what_tiles_cannot_be_made_of_is_refused_with_the_reason(
    place: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason):
        mosaic_gpu.check(replace(LLAMA, **changes), find_target(place))


def test_ampere_refuses_boxes_that_four_warps_cannot_share() -> None:
    config = replace(LLAMA, page_size=8, head_dim=96)
    with pytest.raises(Unsupported, match="pages of 8 x 96 over four warps"):
        mosaic_gpu.check(config, find_target("a100"))
    mosaic_gpu.check(config, find_target("b200"))


@pytest.mark.parametrize("place", ["a100", "b200"])
def test_the_kernels_are_what_is_chosen(place: str) -> None:
    choice = paged_attention.choose(LLAMA, target=find_target(place))
    assert choice.backend == "mosaic_gpu"


@pytest.mark.parametrize("keys", [16, 64])
def test_a_product_of_mma_has_its_numbers_where_a_left_factor_needs_them(keys: int) -> None:
    product = plgpu.Layout.MMA_ACC(jnp.bfloat16).to_mgpu()
    factor = plgpu.Layout.MMA_LHS(jnp.bfloat16).to_mgpu()
    held, needed = _held(product, (64, keys)), _held(factor, (64, keys))
    np.testing.assert_array_equal(held.reshape(needed.shape), needed)


def _held(layout: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return which numbers a thread holds: int[warps, lanes, registers, numbers of a register]."""
    numbers = np.arange(np.prod(shape)).reshape(shape)
    for tile in layout.tiling.tiles:
        kept, tiled = numbers.shape[: -len(tile)], numbers.shape[-len(tile) :]
        split = [n for size, part in zip(tiled, tile, strict=True) for n in (size // part, part)]
        numbers = numbers.reshape(*kept, *split)
        first = len(kept)
        outer = [first + 2 * i for i in range(len(tile))]
        numbers = numbers.transpose(*range(first), *outer, *(axis + 1 for axis in outer))
    warps = [axis for axis in layout.warp_dims if isinstance(axis, int)]
    axes = [axis % numbers.ndim for axis in (*warps, *layout.lane_dims, layout.vector_dim)]
    rest = [axis for axis in range(numbers.ndim) if axis not in axes]
    order = (*axes[:-1], *rest, axes[-1])
    return numbers.transpose(order).reshape(4, 32, -1, layout.vector_length)


@pytest.mark.parametrize("is_decode", [True, False])
def test_results_are_rescaled_as_scores_grow_from_tile_to_tile(is_decode: bool) -> None:
    config = shard(LLAMA, 8)
    case = decode(config, (300,)) if is_decode else ragged(config, (40, 300))
    world = draw(case, seed=0)
    keys = world.cache.copy()
    pages = np.asarray(world.batch.page_table)[0]
    for nth in range(case.pages_for(300)):
        keys[0, pages[nth]] = (keys[0, pages[nth]].astype(np.float32) * 2**nth).astype(keys.dtype)
    world = replace(world, cache=keys)
    out, _ = paged_attention.attend(
        jnp.asarray(world.q),
        jnp.asarray(world.k),
        jnp.asarray(world.v),
        jnp.asarray(world.cache),
        world.batch,
        world.spec,
        backend="mosaic_gpu",
        target=find_target("b200").simulated(),
    )
    live = slice(case.num_rows)
    assert relative_error(np.asarray(out, np.float64)[live], attended(world)[live]) < 1.2e-2


SIZES = [
    replace(LLAMA, head_dim=head_dim, page_size=page_size)
    for head_dim in (64, 128)
    for page_size in (16, 64)
]
# The second has two thread blocks per item.
LATENTS = [replace(DEEPSEEK, heads=n, page_size=size) for n, size in ((16, 16), (128, 64))]
# By target: name of the kernels, architecture, and configurations.
COMPILED = {
    "a100": ("sm80", "sm_80", SIZES),
    "b200": ("sm100", "sm_100a", SIZES),
    "h200": ("latents", "sm_90a", LATENTS),
}


def steps(config: AttentionConfig) -> tuple[Case, Case]:
    return decode(config, (4096,) * 256), ragged(config, *[(1024, 1024)] * 7, (1021, 1024))


@needs_cuda_plugin
@pytest.mark.parametrize("place", COMPILED)
def test_real_shapes_compile_without_spills_and_fit_the_chip(place: str) -> None:
    # A process of its own: jaxlib 0.11.2 has ptxas compile all of Mosaic's kernels for the
    # architecture of a process's first.
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_mosaic_gpu_variants", place],
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "MOSAIC_GPU_DUMP_PTXAS": "1",
            "MOSAIC_GPU_DUMP_RESOURCES": "1",
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-2000:]
    kernel, architecture, configs = COMPILED[place]
    compiled = re.findall(r"'(paged_attention_\w+)_mosaic_gpu_kernel' for '(\w+)'", report)
    assert {architecture for _, architecture in compiled} == {architecture}
    counts = Counter(name for name, _ in compiled)
    # A mixed step decodes too.
    assert counts[f"paged_attention_decode_{kernel}"] == 2 * len(configs)
    assert counts[f"paged_attention_prefill_{kernel}"] == len(configs)
    assert set(re.findall(r"(\d+) bytes spill stores", report)) == {"0"}
    shared = [int(n) for n in re.findall(r"smem_scratch_bytes=(\d+)", report)]
    assert len(shared) == len(compiled)
    assert max(shared) <= SHARED_BYTES[place]


def _compile(case: Case, place: str) -> None:
    """Compile a step for a GPU that is not there."""
    config = case.config
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name=place,
        topology="1x1x1",
        target_config=gpu_target_config(place),
    )
    mesh = topologies.make_mesh(topology, (1,), ("x",))

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def rows(heads: int) -> Any:
        return array(case.num_tokens, heads, config.head_dim, dtype=jnp.bfloat16)

    batch = PagedBatch(
        page_table=array(case.num_sequences, case.max_pages),
        query_starts=array(case.num_sequences + 1),
        kv_lengths=array(case.num_sequences),
        row_sequences=array(case.num_tokens),
        positions=array(case.num_tokens),
        max_query_length=case.max_query_length,
    )
    spec = paged_attention.cache_spec(config, num_pages=1024, backend="mosaic_gpu")

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array | None, cache: jax.Array, batch: PagedBatch
    ) -> tuple[jax.Array, jax.Array]:
        return paged_attention.attend(
            q,
            k,
            v,
            cache,
            batch,
            AttentionSpec(scale=0.1, value_dim=config.value_dim),
            backend="mosaic_gpu",
            target=find_target(place),
        )

    # Mosaic asks the default device which chip it is for.
    with jax.default_device(mesh.devices.flat[0]):
        values = rows(config.kv_heads) if config.value_dim is None else None
        operands = rows(config.heads), rows(config.kv_heads), values
        cache = array(*spec.shape, dtype=spec.dtype)
        jax.jit(attend).lower(*operands, cache, batch).compile()


if __name__ == "__main__":
    for config in COMPILED[sys.argv[1]][2]:
        for step in steps(config):
            _compile(step, sys.argv[1])
