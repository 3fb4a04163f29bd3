"""Every backend against the definition written out in float64 numpy."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Unsupported, paged_attention
from pallas_kernels.dispatch import choose

TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A ragged step: (rows in this step, tokens in all) of each sequence, and padding."""

    sequences: tuple[tuple[int, int], ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 4
    pages: int = 20
    padding_rows: int = 3
    padding_sequences: int = 2
    sliding_window: int | None = None
    dtype: str = "float32"

    @property
    def config(self) -> paged_attention.AttentionConfig:
        return paged_attention.AttentionConfig(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            page_size=self.page_size,
            dtype=self.dtype,
            cache_dtype=self.dtype,
            sliding_window=self.sliding_window,
        )


CASES = {
    "decode": Case(sequences=((1, 1), (1, 7), (1, 33), (1, 64)), padding_rows=0),
    "prefill": Case(sequences=((13, 13), (40, 40))),
    "mixed": Case(sequences=((1, 9), (1, 50), (17, 60), (33, 33), (5, 5))),
    "chunk_in_the_middle": Case(sequences=((20, 70), (16, 32))),
    "multi_query": Case(sequences=((1, 30), (12, 12)), heads=4, kv_heads=1),
    "multi_head": Case(sequences=((1, 30), (12, 12)), heads=4, kv_heads=4),
    "large_pages": Case(sequences=((1, 300), (50, 200)), page_size=64, pages=5),
    "odd_table_width": Case(sequences=((30, 150),), page_size=8, pages=19),
    "sliding_window": Case(sequences=((1, 300), (40, 170), (1, 3)), sliding_window=9, pages=80),
    "sliding_window_decode": Case(
        sequences=((1, 300), (1, 290)), sliding_window=17, pages=80, padding_rows=0
    ),
    "bfloat16": Case(sequences=((1, 40), (20, 20)), dtype="bfloat16"),
    "only_padding": Case(sequences=()),
}


@dataclass(frozen=True, kw_only=True)
class World:
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    cache: np.ndarray
    batch: paged_attention.PagedBatch
    histories: list[tuple[np.ndarray, np.ndarray]]  # all keys and values of each sequence


def build(case: Case, seed: int = 0) -> World:
    """Draw a step whose caches hold the histories, and NaN wherever nothing was written."""
    rng = np.random.default_rng(seed)
    num_sequences = len(case.sequences) + case.padding_sequences
    num_rows = sum(rows for rows, _ in case.sequences)
    is_decode = case.padding_rows == 0
    tokens = num_sequences if is_decode else num_rows + case.padding_rows
    used = sum(-(-total // case.page_size) for _, total in case.sequences)
    free_pages = iter(rng.permutation(used) + 1)
    spec = paged_attention.cache_spec(case.config, num_pages=used + 1, backend="reference")
    cache = np.full(spec.shape, np.nan, np.float32)
    page_table = np.zeros((num_sequences, case.pages), np.int32)
    starts = np.zeros(num_sequences + 1, np.int32)
    lengths = np.zeros(num_sequences, np.int32)
    row_sequences = np.zeros(tokens, np.int32)
    positions = np.zeros(tokens, np.int32)
    q = rng.standard_normal((tokens, case.heads, case.head_dim)).astype(np.float32)
    k = rng.standard_normal((tokens, case.kv_heads, case.head_dim)).astype(np.float32)
    v = rng.standard_normal((tokens, case.kv_heads, case.head_dim)).astype(np.float32)
    histories = []
    row = 0
    for s, (rows, total) in enumerate(case.sequences):
        shape = (total, case.kv_heads, case.head_dim)
        keys, values = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        for page in range(-(-total // case.page_size)):
            page_table[s, page] = next(free_pages)
        for p in range(total - rows):
            page, offset = page_table[s, p // case.page_size], p % case.page_size
            cache[0, page, :, offset], cache[1, page, :, offset] = keys[p], values[p]
        keys[total - rows :], values[total - rows :] = k[row : row + rows], v[row : row + rows]
        row_sequences[row : row + rows] = s
        positions[row : row + rows] = np.arange(total - rows, total)
        row += rows
        starts[s + 1], lengths[s] = row, total
        histories.append((keys, values))
    starts[len(case.sequences) + 1 :] = row
    batch = paged_attention.PagedBatch(
        page_table=jnp.asarray(page_table),
        query_starts=jnp.asarray(starts),
        kv_lengths=jnp.asarray(lengths),
        row_sequences=jnp.asarray(row_sequences),
        positions=jnp.asarray(positions),
        max_query_length=1 if is_decode else tokens,
    )
    return World(q=q, k=k, v=v, cache=cache, batch=batch, histories=histories)


def run(case: Case, world: World, backend: str) -> tuple[np.ndarray, np.ndarray]:
    dtype = jnp.dtype(case.dtype)
    arrays = (jnp.asarray(x, dtype) for x in (world.q, world.k, world.v, world.cache))
    attend = jax.jit(paged_attention.attend, static_argnames=("scale", "sliding_window", "backend"))
    out, cache = attend(
        *arrays,
        world.batch,
        scale=case.head_dim**-0.5,
        sliding_window=case.sliding_window,
        backend=backend,
    )
    return np.asarray(out, np.float32), np.asarray(cache, np.float32)


def expected(case: Case, world: World) -> np.ndarray:
    out = np.zeros(world.q.shape, np.float64)
    group = case.heads // case.kv_heads
    row = 0
    for (rows, total), (keys, values) in zip(case.sequences, world.histories, strict=True):
        for position in range(total - rows, total):
            first = 0
            if case.sliding_window is not None:
                first = max(0, position - case.sliding_window + 1)
            for head in range(case.heads):
                visible = slice(first, position + 1)
                scores = keys[visible, head // group].astype(np.float64) @ world.q[row, head]
                weights = np.exp((scores - scores.max()) * case.head_dim**-0.5)
                out[row, head] = weights @ values[visible, head // group] / weights.sum()
            row += 1
    return out


@pytest.mark.parametrize("backend", paged_attention.BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_matches_the_definition_and_ignores_garbage(name: str, backend: str) -> None:
    case = CASES[name]
    world = build(case)
    out, _ = run(case, world, backend)
    np.testing.assert_allclose(out, expected(case, world), atol=TOLERANCE[case.dtype])


@pytest.mark.parametrize("backend", paged_attention.BACKENDS)
@pytest.mark.parametrize("name", ["decode", "mixed"])
def test_writes_only_the_new_tokens_and_the_rubbish_page(name: str, backend: str) -> None:
    case = CASES[name]
    world = build(case)
    _, cache = run(case, world, backend)
    wanted = world.cache.copy()
    row = 0
    for s, (rows, total) in enumerate(case.sequences):
        for p in range(total - rows, total):
            page = np.asarray(world.batch.page_table)[s, p // case.page_size]
            wanted[0, page, :, p % case.page_size] = world.k[row]
            wanted[1, page, :, p % case.page_size] = world.v[row]
            row += 1
    np.testing.assert_array_equal(cache[:, 1:], wanted[:, 1:])


@pytest.mark.parametrize("backend", paged_attention.BACKENDS)
def test_second_run_is_bit_equal(backend: str) -> None:
    case = CASES["mixed"]
    world = build(case)
    first, _ = run(case, world, backend)
    second, _ = run(case, world, backend)
    np.testing.assert_array_equal(first, second)


def test_unknown_backend_is_named() -> None:
    case = CASES["decode"]
    with pytest.raises(ValueError, match="backend must be one of reference, got 'cuda'"):
        run(case, build(case), "cuda")


def test_dispatch_gives_every_reason_when_all_refuse() -> None:
    def refuse(reason: str) -> None:
        raise Unsupported(f"no {reason}")

    checks = {"a": lambda: refuse("bf16"), "b": lambda: refuse("pages")}
    with pytest.raises(Unsupported, match="a: no bf16; b: no pages"):
        choose("op", checks, None)


def test_dispatch_lets_errors_of_a_backend_through() -> None:
    def broken() -> None:
        raise NotImplementedError("deep inside")

    with pytest.raises(NotImplementedError):
        choose("op", {"broken": broken, "fine": lambda: None}, None)
