"""A small case through a backend and through the reference: are the numbers right on this machine?

A kernel that passed its tests may still be wrong where it runs: another driver, another compiler,
another chip. A second at the start finds out before anybody is served.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paged_attention.api import attend, cache_spec
from pallas_kernels.paged_attention.batch import AttentionConfig, PagedBatch
from pallas_kernels.targets import Target

# ||result - reference|| / ||reference||, by the dtype of queries and results. Rounding makes 1e-7,
# 5e-4 and 4e-3 of it; a mask that is off by one or two pages mixed up make a tenth and more.
TOLERANCE = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 2e-2}


class WrongResult(Exception):  # noqa: N818 - as dispatch.Unsupported
    """A backend computes other numbers than the reference."""


def self_check(config: AttentionConfig, *, backend: str, target: Target, seed: int = 0) -> float:
    """Compare `backend` with the reference on this process's first device; return the error.

    A step takes the prompts of a few sequences, another decodes a token of each, over pages that
    hold NaN wherever nothing was written; one sequence is empty. Windows are cut to the size of
    the case. The error is that of the worse step, relative to the norm of the reference's result.
    Raises WrongResult when it is above the tolerance of the dtype.
    """
    page = config.page_size
    if config.sliding_window is not None:
        config = replace(config, sliding_window=min(config.sliding_window, page + 3))
    lengths = np.array([2 * page + 3, 1, page, 0], np.int32)
    error = 0.0
    with jax.default_device(jax.local_devices()[0]):
        draw = partial(_two_steps, jax.random.key(seed), lengths, config=config, target=target)
        for found, wanted in zip(draw(backend=backend), draw(backend="reference"), strict=True):
            difference = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
            error = max(error, difference) if np.isfinite(difference) else np.inf
    limit = TOLERANCE[config.dtype]
    if error > limit:
        raise WrongResult(
            f"the {backend} backend of paged attention computes wrong numbers on {target.name}:"
            f" off by {error:.2g} of their norm, where {limit:.2g} is rounding"
        )
    return error


def _two_steps(
    key: jax.Array, lengths: np.ndarray, *, config: AttentionConfig, backend: str, target: Target
) -> list[np.ndarray]:
    """Return the results of a step of whole prompts and of one that decodes, in float32."""
    num_sequences = len(lengths)
    is_live = (lengths > 0).astype(np.int32)
    num_pages = -(-(lengths + 1) // config.page_size)
    page_table = np.zeros((num_sequences, num_pages.max()), np.int32)
    next_page = 1
    for row, needed in zip(page_table, num_pages, strict=True):
        # Backwards: what follows in a sequence need not follow in the cache.
        row[:needed] = np.arange(next_page, next_page + needed)[::-1]
        next_page += needed
    spec = cache_spec(config, num_pages=next_page, backend=backend)
    # Read but not written: a scale brings what int8 holds near 1.
    scale = jnp.full(config.kv_heads, 1 / 32) if spec.dtype == jnp.int8 else None
    poison = 99 if spec.dtype == jnp.int8 else jnp.nan

    def attend_once(cache: jax.Array, batch: PagedBatch) -> tuple[jax.Array, jax.Array]:
        num_tokens = batch.positions.shape[0]
        keys = jax.random.split(jax.random.fold_in(key, num_tokens), 4)
        q, k, v = (
            jax.random.normal(each, (num_tokens, heads, config.head_dim), config.dtype)
            for each, heads in zip(
                keys, (config.heads, config.kv_heads, config.kv_heads), strict=False
            )
        )
        sinks = jax.random.normal(keys[3], (config.heads,)) if config.sinks else None
        return attend(
            q,
            k,
            v,
            cache,
            batch,
            scale=config.head_dim**-0.5,
            sliding_window=config.sliding_window,
            soft_cap=config.soft_cap,
            sinks=sinks,
            k_scale=scale,
            v_scale=scale,
            backend=backend,
            target=target,
        )

    @jax.jit
    def run(prompts: PagedBatch, tokens: PagedBatch) -> tuple[jax.Array, jax.Array]:
        first, cache = attend_once(jnp.full(spec.shape, poison, spec.dtype), prompts)
        second, _ = attend_once(cache, tokens)
        return first, second

    results = run(
        _batch(page_table, lengths, lengths, padding=3),
        _batch(page_table, is_live, lengths + is_live, padding=num_sequences - int(is_live.sum())),
    )
    return [np.asarray(result, np.float32) for result in results]


def _batch(
    page_table: np.ndarray, rows: np.ndarray, lengths: np.ndarray, *, padding: int
) -> PagedBatch:
    """Lay out the last `rows` tokens of sequences of these lengths, and padding rows."""
    ends = np.cumsum(rows)
    sequences = np.repeat(np.arange(len(rows)), rows)
    positions = np.arange(ends[-1]) + (lengths - ends)[sequences]
    num_tokens = ends[-1] + padding
    return PagedBatch(
        page_table=jnp.asarray(page_table),
        query_starts=jnp.asarray(np.append(0, ends), jnp.int32),
        kv_lengths=jnp.asarray(lengths, jnp.int32),
        row_sequences=jnp.asarray(np.pad(sequences, (0, padding)), jnp.int32),
        positions=jnp.asarray(np.pad(positions, (0, padding)), jnp.int32),
        max_query_length=1 if rows.max() == 1 else int(num_tokens),
    )
