"""The TPU kernels where blocks, rings and parts of tables end: at sizes that tests can reach."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Unsupported, paged_attention, simulation
from pallas_kernels.paged_attention.cases import LAYERS, Case, decode, ragged, shard
from pallas_kernels.paged_attention.tpu import tuning
from pallas_kernels.paged_attention.worlds import World, draw, pack, relative_error, unpack
from pallas_kernels.targets import TARGETS, find_target
from tests.kernels.oracle import attended, written

LLAMA = replace(shard(LAYERS["llama-3.1-8b"], 4), page_size=16)
OSS = replace(shard(LAYERS["gpt-oss-20b"], 4), page_size=32, sliding_window=75)

CASES = {
    # More sequences than the rings of buffers and of tables have places, a block each.
    "many_short": decode(LLAMA, (1, 5, 16, 9, 16, 3, 12, 7, 16, 2, 10, 11), padding=1),
    # Blocks of a sequence, and chunks of a block, in every phase of the ring of buffers.
    "many_long": decode(LLAMA, (700, 1, 129, 640, 128, 1300)),
    "in_a_window": decode(OSS, (700, 75, 76, 1, 300)),
    "mixed": ragged(LLAMA, (1, 300), (40, 600), (0, 0), (1, 1), (70, 70), (2, 140), (1, 17)),
    "mixed_in_a_window": ragged(OSS, (33, 33), (1, 300), (90, 500), (3, 3)),
    # Rows of the page table that come in two parts, of which a window needs the second only.
    "wide_table": decode(replace(LLAMA, sliding_window=40), (16 * 1030, 9)),
    "wide_table_whole": decode(replace(LLAMA, heads=1, kv_heads=1), (16 * 1030,)),
}


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 256 tokens or of a page, two strips to a page, 32 rows of queries."""
    page_bytes = 2 * 16 * 256 * 2
    monkeypatch.setattr(tuning, "BLOCK_BYTES", 16 * page_bytes)
    monkeypatch.setattr(tuning, "CHUNK", 128)
    monkeypatch.setattr(tuning, "STRIP_BYTES", page_bytes)
    monkeypatch.setattr(tuning, "PREFILL_ROWS", 32)
    monkeypatch.setattr(tuning, "DECODE_SEQUENCES", 4)
    yield
    simulation.detect_races.set(False)
    simulation.eager_copies.set(False)


def run(world: World) -> tuple[np.ndarray, np.ndarray]:
    config = world.case.config
    spec = paged_attention.cache_spec(config, num_pages=world.cache.shape[1], backend="tpu")

    @jax.jit
    def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: jax.Array) -> list[jax.Array]:
        result = paged_attention.attend(
            q,
            k,
            v,
            cache,
            world.batch,
            world.spec,
            backend="tpu",
            target=find_target("v5e").simulated(),
        )
        return list(result)

    out, cache = attend(world.q, world.k, world.v, jnp.asarray(pack(world.cache, spec)))
    return np.asarray(out, np.float64), unpack(np.asarray(cache), spec, config.head_dim)


def check(case: Case) -> None:
    world = draw(case, seed=3)
    out, cache = run(world)
    live = slice(case.num_rows)
    assert relative_error(out[live], attended(world)[live]) < 1.2e-2
    np.testing.assert_array_equal(out[case.num_rows :], 0)
    wanted = written(world)
    np.testing.assert_array_equal(cache[:, 1:].astype(float), wanted[:, 1:].astype(float))


@pytest.mark.parametrize("name", CASES)
def test_is_right_across_blocks_whenever_copies_are_done(name: str) -> None:
    check(CASES[name])
    simulation.eager_copies.set(True)
    check(CASES[name])


@pytest.mark.parametrize("name", ["many_short", "many_long", "mixed"])
def test_no_copy_races_across_blocks(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    simulation.detect_races.set(True)
    run(draw(CASES[name], seed=3))
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "target", "reason"),
    [
        ({}, "h100", "needs a TPU, got h100"),
        ({"dtype": "float16"}, "v5e", "queries must be bfloat16 or float32, got float16"),
        ({"cache_dtype": "float16"}, "v5e", "a cache must be .*, got float16"),
        ({"head_dim": 32}, "v5e", r"head_dim must be in \[64, 256\], got 32"),
        ({"page_size": 8}, "v5e", "page_size must be a multiple of 16 for bfloat16, got 8"),
        (
            {"page_size": 16, "cache_dtype": "int8"},
            "v5e",
            "page_size must be a multiple of 32 for int8, got 16",
        ),
        ({"page_size": 4096}, "v4", "a page of all KV heads must have at most 2097152 bytes"),
        ({"heads": 512}, "v4", "a row of 512 heads of 128 must take at most 524288 bytes"),
    ],
)
def test_refusals_name_what_was_asked_for_and_the_limit(
    changes: dict[str, int | str], target: str, reason: str
) -> None:
    config = replace(LAYERS["llama-3.1-8b"], **changes)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=reason):
        paged_attention.choose(config, target=find_target(target), backend="tpu")


@pytest.mark.parametrize("name", [t.name for t in TARGETS.values() if t.platform == "tpu"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_tpu_takes_every_layer_that_fits(layer: str, name: str) -> None:
    chosen = paged_attention.choose(LAYERS[layer], target=find_target(name))
    # A row of 128 heads of latents is larger than the share of a v4's vector memory.
    is_too_large = (layer, name) == ("deepseek-v3", "v4")
    assert chosen.backend == ("reference" if is_too_large else "tpu")
