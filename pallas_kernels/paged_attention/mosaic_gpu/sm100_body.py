"""Kernel body of paged attention on Blackwell; see sm100.py for an overview.

tcgen05 writes products to tensor memory. Scores are products of queries and keys in shared memory;
results are products of weights in tensor memory and values in shared memory. While a warpgroup
computes the weights of a tile, the tensor core multiplies the queries by the keys of the next.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.mosaic_gpu import tile as tiles
from pallas_kernels.paged_attention.mosaic_gpu.tile import KEYS, UNSEEN, spread

# Rows of a warpgroup's tile, equal to the lanes of tensor memory.
ROWS = 128

# Columns of results in registers at a time.
_COLUMNS = 32

# Results are rescaled only when the maximum of a row grows by more than this exponent of 2. Until
# then, weights stay relative to the old maximum: this is as exact, and within float32's range.
_GROWTH = 8.0

# Registers per fetching and per computing thread. With three warpgroups, all start with 168.
_FETCH_REGISTERS, _COMPUTE_REGISTERS = 56, 224

_TILE = plgpu.Layout.TCGEN05
_PER_ROW = plgpu.Layout.TCGEN05.reduce(1)

_KEYS, _VALUES = 0, 1  # planes of the cache


@dataclass(frozen=True, kw_only=True)
class KernelParams:
    """Parameters of the kernel, equal for all thread blocks.

    warpgroups: number of computing warpgroups, of ROWS rows each; another one fetches. stages:
    tiles of keys and values in the ring buffer.
    """

    config: AttentionConfig
    scale: float
    is_decode: bool
    warpgroups: int
    stages: int

    @property
    def tokens(self) -> int:
        """Number of query tokens of a warpgroup."""
        return ROWS // self.config.group


def run(params: KernelParams, refs: tuple[Any, ...], scratch: dict[str, Any]) -> None:
    """Run one warpgroup. refs: operands and results. scratch: scratch references by name."""
    block = _Block(params, refs, scratch)

    @pl.when(block.item.num_rows > 0)
    def _work() -> None:
        @pl.when(block.warpgroup < params.warpgroups)
        def _compute() -> None:
            if params.warpgroups > 1:
                plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
            block.attend()

        @pl.when(block.warpgroup == params.warpgroups)
        def _fetch() -> None:
            if params.warpgroups > 1:
                plgpu.set_max_registers(_FETCH_REGISTERS, action="decrease")
            block.fetch_all()


class _Block:
    """Computation of one warpgroup for one item and one key/value head."""

    def __init__(
        self, params: KernelParams, refs: tuple[Any, ...], scratch: dict[str, Any]
    ) -> None:
        self.params, self.config = params, params.config
        q, cache, page_table, items, *self.rest = refs  # sinks, if any, and results
        self.index, self.kv_head = lax.axis_index("item"), lax.axis_index("kv_head")
        self.warpgroup = lax.axis_index("warpgroup")
        self.item = tiles.Item.read(items, self.index)
        self.pages = tiles.Pages(
            cache=cache, table=page_table, kv_head=self.kv_head, page_size=self.config.page_size
        )
        self.q, self.queries = q.at[self.kv_head], scratch["queries"]
        self.ring, (self.result, self.sums) = scratch["ring_or_result"]
        self.products, self.weights, self.out = (
            scratch[name] for name in ("products", "weights", "out")
        )
        self.barriers = scratch["barriers"]
        self.scores = tiles.Scores(scale=params.scale, config=self.config, layout=_TILE)

    # Fetching

    def fetch_all(self) -> None:
        """Fetch the queries of all warpgroups, and keep the ring buffer filled."""
        group, stages, num_tiles = self.config.group, self.params.stages, self.item.num_tiles
        for warpgroup in range(self.params.warpgroups):
            first = (self.item.first_row + warpgroup * self.params.tokens) * group
            plgpu.copy_gmem_to_smem(
                self.q.at[pl.ds(first, ROWS)],
                self.queries.at[warpgroup],
                self.barriers["queries"].at[warpgroup],
            )

        @pl.loop(0, num_tiles)
        def _fill(nth: jax.Array) -> None:
            stage = lax.rem(nth, stages)
            for plane in (_KEYS, _VALUES):
                free = self.barriers["free"][plane].at[stage]
                pl.when(nth >= stages)(partial(plgpu.barrier_wait, free))
                self.fetch(plane, nth, stage)

        # Wait for the last phase of each barrier before exiting.
        @pl.loop(jnp.maximum(num_tiles - stages, 0), num_tiles)
        def _drain(nth: jax.Array) -> None:
            for plane in (_KEYS, _VALUES):
                plgpu.barrier_wait(self.barriers["free"][plane].at[lax.rem(nth, stages)])

    def fetch(self, plane: int, nth: jax.Array, stage: jax.Array) -> None:
        """Fetch a tile into a stage of the ring buffer, with zeros for values never written."""
        tile = self.item.first_tile + nth
        to, ready = self.ring[plane].at[stage], self.barriers["ready"][plane].at[stage]

        def copy(barrier: Any) -> None:
            self.pages.fetch(
                plane, self.item, tile, partial(plgpu.copy_gmem_to_smem, barrier=barrier), to
            )

        if plane == _KEYS:
            copy(ready)
            return
        is_ragged = (tile + 1) * KEYS > self.item.kv_length
        pl.when(~is_ragged)(partial(copy, ready))

        @pl.when(is_ragged)
        def _copy_and_erase() -> None:
            copy(self.barriers["ragged"])
            plgpu.barrier_wait(self.barriers["ragged"])
            tiles.erase_unwritten(to, tile * KEYS, self.item, plgpu.Layout.WGMMA)
            plgpu.commit_smem()
            for _ in range(self.pages.per_tile):
                plgpu.barrier_arrive(ready)

    # Computing

    def attend(self) -> None:
        """Attend with this warpgroup's rows."""
        num_tiles, first_query = self.item.num_tiles, self.warpgroup * self.params.tokens
        self.first_position = self.item.first_position + first_query
        self.num_queries = jnp.clip(self.item.num_rows - first_query, 0, self.params.tokens)
        plgpu.barrier_wait(self.barriers["queries"].at[self.warpgroup])
        pl.when(num_tiles > 0)(partial(self.multiply_keys, jnp.int32(0)))
        maximum = jnp.full((ROWS,), UNSEEN, jnp.float32)
        total = jnp.zeros((ROWS,), jnp.float32)
        if not self.params.is_decode and len(self.rest) > 1:
            # A sink counts as a key before all others, with value 0.
            maximum = plgpu.load(self.rest[0].at[self.kv_head], layout=_PER_ROW, optimized=False)
            total = jnp.ones((ROWS,), jnp.float32)
        carry = plgpu.layout_cast(maximum, _PER_ROW), plgpu.layout_cast(total, _PER_ROW)
        maximum, total = lax.fori_loop(0, num_tiles, self.step, carry)
        self.store(maximum, total)

    def multiply_keys(self, nth: jax.Array) -> None:
        """Start the multiplication of the queries by a tile of keys."""
        stage = lax.rem(nth, self.params.stages)
        plgpu.barrier_wait(self.barriers["ready"][_KEYS].at[stage])
        plgpu.tcgen05_mma(
            self.of_warpgroup(self.products),
            self.queries.at[self.warpgroup],
            self.ring[_KEYS].at[stage].transpose((1, 0)),
            self.barriers["products"].at[self.warpgroup],
            accumulate=False,
        )
        plgpu.tcgen05_commit_arrive(self.barriers["free"][_KEYS].at[stage])

    def of_warpgroup(self, ref: Any) -> Any:
        """Return this warpgroup's columns of a reference to tensor memory."""
        width = ref.shape[1] // self.params.warpgroups
        return ref.at[:, pl.ds(self.warpgroup * width, width)]

    def step(self, nth: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        """Attend to one tile of keys, and accumulate the results in tensor memory."""
        maximum, total = carry
        stage = lax.rem(nth, self.params.stages)
        plgpu.barrier_wait(self.barriers["products"].at[self.warpgroup])
        products = plgpu.async_load_tmem(self.of_warpgroup(self.products), layout=_TILE)
        plgpu.wait_load_tmem()
        pl.when(nth + 1 < self.item.num_tiles)(partial(self.multiply_keys, nth + 1))

        first_key = (self.item.first_tile + nth) * KEYS
        scores = self.scores(products, first_key, self.first_position, self.num_queries)
        factor = self.scores.factor
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=1) * factor)
        # Reduce 1.0 and 0.0 rather than maxima: padding rows can be NaN, which max propagates.
        grown = jnp.max(jnp.where(new_maximum > maximum + _GROWTH, 1.0, 0.0)) > 0.5
        new_maximum = jnp.where(grown, new_maximum, maximum)
        decay = jnp.exp2(maximum - new_maximum)
        weights = jnp.exp2(scores * factor - spread(new_maximum, scores.shape))
        total = total * decay + jnp.sum(weights, axis=1)

        @pl.when(nth > 0)
        def _finish_last() -> None:
            plgpu.barrier_wait(self.barriers["out"].at[self.warpgroup])
            pl.when(grown)(partial(self.rescale, decay))

        plgpu.async_store_tmem(self.of_warpgroup(self.weights), weights.astype(self.config.dtype))
        plgpu.commit_tmem()
        plgpu.barrier_wait(self.barriers["ready"][_VALUES].at[stage])
        plgpu.tcgen05_mma(
            self.of_warpgroup(self.out),
            self.of_warpgroup(self.weights),
            self.ring[_VALUES].at[stage],
            self.barriers["out"].at[self.warpgroup],
            accumulate=nth > 0,
        )
        plgpu.tcgen05_commit_arrive(self.barriers["free"][_VALUES].at[stage])
        return new_maximum, total

    def rescale(self, decay: jax.Array) -> None:
        """Multiply the accumulated results by `decay`."""
        out = self.of_warpgroup(self.out)
        for start in range(0, self.config.head_dim, _COLUMNS):
            columns = out.at[:, pl.ds(start, _COLUMNS)]
            found = plgpu.async_load_tmem(columns, layout=_TILE)
            plgpu.wait_load_tmem()
            plgpu.async_store_tmem(columns, found * spread(decay, found.shape))

    def store(self, maximum: jax.Array, total: jax.Array) -> None:
        """Divide the results by the sums, and write the item's rows."""
        item, config = self.item, self.config
        has_keys = item.num_tiles > 0
        pl.when(has_keys)(lambda: plgpu.barrier_wait(self.barriers["out"].at[self.warpgroup]))
        # Results overwrite tiles, so wait until the other warpgroup has read them.
        plgpu.barrier_arrive(self.barriers["done"])
        plgpu.barrier_wait(self.barriers["done"])
        total = jnp.where(total > 0, total, 1.0)
        out, result = self.of_warpgroup(self.out), self.result.at[self.warpgroup]
        for start in range(0, config.head_dim, _COLUMNS):
            columns = pl.ds(start, _COLUMNS)
            found = plgpu.async_load_tmem(out.at[:, columns], layout=_TILE)
            # Without keys, the accumulator is uninitialized.
            found = jnp.where(has_keys, found, 0.0) / spread(total, found.shape)
            result[:, columns] = found.astype(result.dtype)
        plgpu.wait_load_tmem()
        heads = pl.ds(self.kv_head * config.group, config.group)
        if self.params.is_decode:
            parts, sums = self.rest
            self.sums[...] = maximum + jnp.log2(total)
            tiles.store_rows(
                result, config.group, self.num_queries, lambda i: parts.at[self.index, i, heads]
            )
            tiles.store_sums(
                self.sums, config, self.num_queries, self.kv_head, lambda i: sums.at[self.index, i]
            )
            return
        rows = self.rest[-1]
        first_row = item.first_row + self.warpgroup * self.params.tokens
        tiles.store_rows(
            result, config.group, self.num_queries, lambda i: rows.at[first_row + i, heads]
        )
