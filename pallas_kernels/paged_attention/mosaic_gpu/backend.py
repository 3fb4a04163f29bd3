"""Paged attention on NVIDIA GPUs, in Pallas' Mosaic GPU language.

Sequences with few rows are decoded: their keys are split over thread blocks, and a second kernel
merges the partial results (Flash-Decoding, Dao et al. 2023). The other sequences are prefilled, one
block of queries at a time, as in FlashAttention-3 (arXiv:2407.08608). Both read keys and values
through the page table (PagedAttention, arXiv:2309.06180). This module is common to all
architectures; each architecture implements `Kernels`.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Shaped

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.paged_attention import reference
from pallas_kernels.paged_attention.batch import AttentionConfig, CacheSpec, PagedBatch
from pallas_kernels.paged_attention.mosaic_gpu import sm80, sm90, sm90_latent, sm100, work
from pallas_kernels.paged_attention.mosaic_gpu.combine import combine
from pallas_kernels.paged_attention.mosaic_gpu.work import Blocks
from pallas_kernels.paged_attention.spec import AttentionSpec
from pallas_kernels.targets import Target


class Kernels(Protocol):
    """Kernels of one architecture: a module with these functions.

    A cache is [planes, pages, kv_heads, page_size, head_dim], with keys in plane 0 and values in
    plane 1, unless they are within the keys. work.py describes the columns of
    `items`. An item is computed once per key/value head; items without rows are skipped. Only cache
    slots and page table entries of a sequence's first KV_LENGTH tokens are valid: other slots may
    have any contents, including NaN, and other entries may be any number.
    """

    def check(self, config: AttentionConfig) -> None:
        """Raise Unsupported, with the reason, if these kernels do not support `config`."""

    def blocks(self, config: AttentionConfig) -> Blocks:
        """Return the block sizes for which work lists are created."""

    def decode(
        self,
        q: Float[Array, "tokens heads head_dim"],
        cache: Shaped[Array, "planes pages kv_heads page_size head_dim"],
        page_table: Int32[Array, "sequences pages"],
        items: Int32[Array, "items fields"],
        *,
        query_tokens: int,
        scale: float,
        config: AttentionConfig,
        target: Target,
    ) -> tuple[
        Float[Array, "items query_tokens heads result_dim"],
        Float[Array, "items query_tokens heads"],
    ]:
        """Attend with at most `query_tokens` rows to the keys of each item, without sinks.

        query_tokens is at most `Blocks.decode_tokens`. KEY_START is a multiple of
        `Blocks.decode_keys`; KEY_END is a multiple too, or equals KV_LENGTH.

        Returns, in float32, each query's result over the item's keys, and the base-2 logarithm of
        its denominator: log2(sum(exp(score))). For a query that sees none of the keys, the result
        is any finite number, and the logarithm is UNSEEN of tile.py, a finite number below every
        score. Entries beyond an item's rows are unspecified.
        """

    def prefill(
        self,
        q: Float[Array, "tokens heads head_dim"],
        cache: Shaped[Array, "planes pages kv_heads page_size head_dim"],
        page_table: Int32[Array, "sequences pages"],
        items: Int32[Array, "items fields"],
        *,
        scale: float,
        sinks: Float[Array, " heads"] | None,
        config: AttentionConfig,
        target: Target,
    ) -> Float[Array, "tokens heads result_dim"]:
        """Attend with the rows of each item, at most `Blocks.prefill_tokens`.

        KEY_START may be any key. The results of an item without keys are zeros; rows that are in no
        item are unspecified.
        """


# By compute capability.
KERNELS: dict[str, Kernels] = {
    "8.0": sm80,
    "9.0": sm90,
    "10.0": sm100,
}

# The same for latents, where values are within the keys.
LATENT_KERNELS: dict[str, Kernels] = {"9.0": sm90_latent}

# Least keys of a split: fewer are not worth a thread block and the merging of another part.
SPLIT_TOKENS = 256


def check(config: AttentionConfig, target: Target) -> None:
    """See api.Backend."""
    if target.architecture not in KERNELS:
        raise Unsupported(
            f"needs compute capability {' or '.join(KERNELS)}, got {target.architecture}"
        )
    if config.dtype not in {"bfloat16", "float16"}:
        raise Unsupported(f"tensor cores take bfloat16 and float16, not {config.dtype}")
    if config.cache_dtype == "float32":
        raise Unsupported("tensor cores take no float32, which the cache holds")
    if config.value_dim is not None and target.architecture not in LATENT_KERNELS:
        raise Unsupported("values must be stored beside the keys, not within them")
    _kernels(config, target).check(config)


def _kernels(config: AttentionConfig, target: Target) -> Kernels:
    kernels = KERNELS if config.value_dim is None else LATENT_KERNELS
    return kernels[target.architecture]


def cache_spec(config: AttentionConfig, *, num_pages: int) -> CacheSpec:
    """Return the reference's layout: a head's page is contiguous, so that TMA copies it at once."""
    return reference.cache_spec(config, num_pages=num_pages)


empty_cache = reference.empty_cache


def workspace_bytes(
    config: AttentionConfig,
    target: Target,
    *,
    num_tokens: int,
    num_sequences: int,
    max_query_length: int,
) -> int:
    """See api.Backend. Counts the partial results and, in mixed steps, the merged ones."""
    query_tokens = _query_tokens(config, target, max_query_length)
    # As many items as the longest page table could make.
    num_items = work.num_decode_items(
        num_sequences=num_sequences,
        table_tokens=1 << 30,
        split_tokens=SPLIT_TOKENS,
        cores=target.cores,
        blocks=_kernels(config, target).blocks(config),
    )
    parts = num_items * query_tokens * config.heads * (config.result_dim + 1) * 4
    results = num_tokens * config.heads * config.result_dim * jnp.dtype(config.dtype).itemsize
    return parts + (results if query_tokens == max_query_length else 2 * results)


def attend(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"] | None,
    cache: Shaped[Array, "planes pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    spec: AttentionSpec,
    *,
    config: AttentionConfig,
    target: Target,
) -> tuple[Float[Array, "tokens heads result_dim"], jax.Array]:
    """See api.Backend."""
    kernels = _kernels(config, target)
    batch = batch.confined(
        num_tokens=q.shape[0], num_pages=cache.shape[1], page_size=config.page_size
    )
    cache = reference.write(cache, k, v, batch)
    query_tokens = _query_tokens(config, target, batch.max_query_length)
    with jax.named_scope("paged_attention"):
        decoded, is_decoded = _decode(q, cache, batch, query_tokens, spec, config, target)
        if query_tokens == batch.max_query_length:
            return decoded, cache
        items = work.prefill_work(
            batch,
            num_tokens=q.shape[0],
            decoded_tokens=query_tokens,
            block_tokens=kernels.blocks(config).prefill_tokens,
            sliding_window=config.sliding_window,
        )
        prefilled = kernels.prefill(
            q,
            cache,
            batch.page_table,
            items,
            scale=spec.scale,
            sinks=spec.sinks,
            config=config,
            target=target,
        )
        return jnp.where(is_decoded[:, None, None], decoded, prefilled), cache


def _query_tokens(config: AttentionConfig, target: Target, max_query_length: int) -> int:
    """Return the most rows of a decoded sequence: all if they fit into an item, otherwise one."""
    fits = _kernels(config, target).blocks(config).decode_tokens
    return max_query_length if max_query_length <= fits else 1


def _decode(
    q: Float[Array, "tokens heads head_dim"],
    cache: Shaped[Array, "planes pages kv_heads page_size head_dim"],
    batch: PagedBatch,
    query_tokens: int,
    spec: AttentionSpec,
    config: AttentionConfig,
    target: Target,
) -> tuple[Float[Array, "tokens heads result_dim"], jax.Array]:
    """Return the results of decoded sequences, with zeros elsewhere, and the mask of their rows."""
    kernels = _kernels(config, target)
    num_items = work.num_decode_items(
        num_sequences=batch.kv_lengths.shape[0],
        table_tokens=batch.page_table.shape[1] * config.page_size,
        split_tokens=SPLIT_TOKENS,
        cores=target.cores,
        blocks=kernels.blocks(config),
    )
    todo = work.decode_work(
        batch,
        num_tokens=q.shape[0],
        query_tokens=query_tokens,
        num_items=num_items,
        tile_tokens=kernels.blocks(config).decode_keys,
        split_tokens=SPLIT_TOKENS,
        sliding_window=config.sliding_window,
    )
    parts, sums = kernels.decode(
        q,
        cache,
        batch.page_table,
        todo.items,
        query_tokens=query_tokens,
        scale=spec.scale,
        config=config,
        target=target,
    )
    merged = combine(parts, sums, todo.row_items, sinks=spec.sinks, dtype=q.dtype, target=target)
    is_decoded = todo.row_items[:, work.FIRST_ITEM] < todo.row_items[:, work.END_ITEM]
    return merged, is_decoded
