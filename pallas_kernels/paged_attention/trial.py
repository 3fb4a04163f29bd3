"""Self-check of a backend: compare it with the reference on a small case, on this machine.

A kernel that passes its tests can still be wrong with another driver, compiler or chip. The check
takes about a second at startup and detects this before requests are served.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paged_attention.api import attend, cache_spec
from pallas_kernels.paged_attention.batch import AttentionConfig, PagedBatch, make_batch
from pallas_kernels.paged_attention.spec import AttentionSpec
from pallas_kernels.targets import Target

# Limit of ||result - reference|| / ||reference||, by the dtype of queries and results. Rounding
# causes errors of 1e-7, 5e-4 and 4e-3; a mask that is off by one, or two swapped pages, cause
# errors of 0.1 and more.
TOLERANCE = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 2e-2}

# Longest tile of keys of a GPU kernel; rows of the chunk that see its end, and all its rows.
_TILE, _ROWS_BEFORE, _CHUNK = 128, 5, 21


class WrongResult(Exception):  # noqa: N818 - as dispatch.Unsupported
    """A backend's results differ from the reference's."""


def self_check(config: AttentionConfig, *, backend: str, target: Target, seed: int = 0) -> float:
    """Compare `backend` with the reference on this process's first device; return the error.

    Runs the steps of `_steps`, with NaN in all unwritten slots of pages. Sliding windows are
    shortened to fit the case. The error is the largest of all steps, relative to the norm of the
    reference's result. Raises WrongResult if it exceeds the tolerance of the dtype.
    """
    page = config.page_size
    if config.sliding_window is not None:
        config = replace(config, sliding_window=min(config.sliding_window, page + 3))
    batches, num_pages = _steps(config)
    error = 0.0
    with jax.default_device(jax.local_devices()[0]):
        run = partial(_run, batches, num_pages, seed, config=config, target=target)
        for found, wanted in zip(run(backend=backend), run(backend="reference"), strict=True):
            difference = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
            error = max(error, difference) if np.isfinite(difference) else np.inf
    limit = TOLERANCE[config.dtype]
    if error > limit:
        raise WrongResult(
            f"the {backend} backend of paged attention computes wrong numbers on {target.name}:"
            f" off by {error:.2g} of their norm, where {limit:.2g} is rounding"
        )
    return error


def _steps(config: AttentionConfig) -> tuple[list[PagedBatch], int]:
    """Return the steps to run in turn on the same pages, and the number of pages that they need.

    The first step computes the beginning of a prompt. The second computes a chunk of it past the
    window, a whole page of a second sequence, and a decode of a third. It has the shapes of the
    first, so it runs the same program. The last step decodes one token of each. A fourth sequence
    is empty.

    No tile of keys is longer than _TILE. Some row of the chunk is the first to see nothing of the
    first tile. It comes an odd number of rows after the chunk's first row, so that both are in one
    block of queries, unless blocks have a single row.
    """
    page = config.page_size
    window = page + 3 if config.sliding_window is None else config.sliding_window
    begun = _TILE + window - 1 - _ROWS_BEFORE
    rows = np.array([[begun, 1, 0, 0], [_CHUNK, 1, page, 0], [1, 1, 1, 0]])
    lengths = np.cumsum(rows, axis=0)
    num_tokens = rows[:2].sum(axis=1).max() + 3
    num_pages, page_tables = 1, []
    for needed in -(-lengths[-1] // page):
        # In descending order, so that consecutive pages of a sequence are not in cache order.
        page_tables.append(range(num_pages, num_pages + needed)[::-1])
        num_pages += needed
    batches = []
    for step_rows, step_lengths in zip(rows, lengths, strict=True):
        is_decode = step_rows.max() == 1
        count = int(step_rows.sum()) if is_decode else len(step_rows)
        batch = make_batch(
            query_lengths=step_rows[:count].tolist(),
            kv_lengths=step_lengths[:count].tolist(),
            page_tables=page_tables[:count],
            page_size=page,
            num_tokens=len(step_rows) if is_decode else int(num_tokens),
            num_sequences=len(step_rows),
            table_width=1 + max(map(len, page_tables)),
        )
        batches.append(_with_garbage(batch, num_pages, page))
    return batches, num_pages


def _with_garbage(batch: PagedBatch, num_pages: int, page_size: int) -> PagedBatch:
    """Fill the unused page table entries with other sequences' pages and with invalid numbers."""
    table, lengths = np.asarray(batch.page_table), np.asarray(batch.kv_lengths)
    garbage = np.random.default_rng(0).integers(-1, num_pages + 1, table.shape)
    is_live = np.arange(table.shape[1]) < -(-lengths[:, None] // page_size)
    table = np.where(is_live, table, garbage)
    return replace(batch, page_table=jnp.asarray(table, jnp.int32))


def _run(
    batches: list[PagedBatch],
    num_pages: int,
    seed: int,
    *,
    config: AttentionConfig,
    backend: str,
    target: Target,
) -> list[np.ndarray]:
    """Return the results of all steps, in float32."""
    spec = cache_spec(config, num_pages=num_pages, backend=backend)
    # Used for reading only: brings the int8 contents of the cache close to 1.
    scale = jnp.full(config.kv_heads, 1 / 32) if spec.dtype == jnp.int8 else None
    poison = 99 if spec.dtype == jnp.int8 else jnp.nan

    @partial(jax.jit, donate_argnums=0)
    def step(
        cache: jax.Array,
        batch: PagedBatch,
        rows: tuple[jax.Array, jax.Array, jax.Array | None],
        sinks: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        q, k, v = rows
        return attend(
            q,
            k,
            v,
            cache,
            batch,
            AttentionSpec(
                scale=config.head_dim**-0.5,
                sliding_window=config.sliding_window,
                soft_cap=config.soft_cap,
                value_dim=config.value_dim,
                sinks=sinks,
                k_scale=scale,
                v_scale=scale if config.value_dim is None else None,
            ),
            backend=backend,
            target=target,
        )

    # On the host: compiling random number generators would take longer than the kernels.
    rng = np.random.default_rng(seed)
    sinks = jnp.asarray(rng.standard_normal(config.heads, np.float32)) if config.sinks else None
    cache, results = jnp.full(spec.shape, poison, spec.dtype), []
    for batch in batches:
        num_tokens = batch.positions.shape[0]
        q, k, v = (
            jnp.asarray(
                rng.standard_normal((num_tokens, heads, config.head_dim), np.float32), config.dtype
            )
            for heads in (config.heads, config.kv_heads, config.kv_heads)
        )
        rows = (q, k, v if config.value_dim is None else None)
        result, cache = step(cache, batch, rows, sinks)
        results.append(np.asarray(result, np.float32))
    return results
