"""Kernel body of paged attention on Hopper; see sm90.py for an overview."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.mosaic_gpu import tile as tiles
from pallas_kernels.paged_attention.mosaic_gpu.combine import row_layout
from pallas_kernels.paged_attention.mosaic_gpu.sm90_ring import KEYS, VALUES, Pages, Plan, Ring
from pallas_kernels.paged_attention.mosaic_gpu.tile import UNSEEN, spread
from pallas_kernels.paged_attention.mosaic_gpu.work import NUM_ROWS

# Rows of a warpgroup's tiles, as wgmma requires.
ROWS = 64

# Registers per fetching and per computing thread. With three warpgroups, all start with 168.
FETCH_REGISTERS, COMPUTE_REGISTERS = 40, 232

# Keys or values that are copied between tiles at a time; few, to save registers.
_COPIED = 32

_TILE = plgpu.Layout.WGMMA
_PER_ROW = plgpu.Layout.WGMMA.reduce(1)

type _Softmax = tuple[jax.Array, jax.Array, jax.Array]  # maximum, sum and weighted values by row


@dataclass(frozen=True, kw_only=True)
class KernelParams:
    """Parameters of the kernel, equal for all thread blocks."""

    plan: Plan
    config: AttentionConfig
    scale: float
    is_simulated: bool


def is_narrow(config: AttentionConfig) -> bool:
    """Return whether keys and values must be widened before they can be multiplied."""
    return jnp.dtype(config.cache_dtype).itemsize == 1


def has_aligned_queries(config: AttentionConfig) -> bool:
    """Return whether TMA can copy single queries: each starts at a multiple of 128 bytes."""
    return config.group * config.head_dim * jnp.dtype(config.dtype).itemsize % 128 == 0


def swizzle_of(keys: int, head_dim: int, dtype: Any) -> int:
    """Return the swizzle in bytes: 128, or a divisor of smaller rows.

    It spans at most as many numbers as a tile has keys, because wgmma reads that many keys at a
    time.
    """
    itemsize = jnp.dtype(dtype).itemsize
    return math.gcd(head_dim * itemsize, keys * itemsize, 128)


def run(params: KernelParams, refs: Sequence[Any], scratch: dict[str, Any]) -> None:
    """Run one warpgroup. refs: operands and results. scratch: scratch references by name."""
    items = refs[3]

    @pl.when(items[lax.axis_index("item"), NUM_ROWS] > 0)
    def _work() -> None:
        if params.plan.is_split:
            _Block(params, refs, scratch).compute()
            return

        # Each branch reads its item: values read before the branch would occupy registers in both.
        @pl.when(lax.axis_index("warpgroup") < params.plan.warpgroups)
        def _compute() -> None:
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            _Block(params, refs, scratch).compute()

        @pl.when(lax.axis_index("warpgroup") == params.plan.warpgroups)
        def _fetch() -> None:
            plgpu.set_max_registers(FETCH_REGISTERS, action="decrease")
            _Block(params, refs, scratch).ring.fetch_all()


class _Block:
    """Computation of one warpgroup for one item and one key/value head."""

    def __init__(self, params: KernelParams, refs: Sequence[Any], scratch: dict[str, Any]) -> None:
        self.params, self.plan, self.config = params, params.plan, params.config
        self.q, cache, page_table, items, *self.others = refs  # sinks, if any, and results
        self.index, self.kv_head = lax.axis_index("item"), lax.axis_index("kv_head")
        self.warpgroup = lax.axis_index("warpgroup")
        self.heads = pl.ds(self.kv_head * self.config.group, self.config.group)
        self.item = item = tiles.Item.read(items, self.index)
        # A tile must not extend beyond the end of the array, so the last tile is moved back.
        self.first_row = item.first_row + self.warpgroup * self.plan.tokens
        self.start = jnp.minimum(self.first_row, self.q.shape[0] - self.plan.tokens)
        self.position = item.first_position + self.start - item.first_row

        self.q_rows, self.q_tiles = scratch["queries"]
        self.q_ready = scratch["q_ready"]
        self.turn: Any = scratch.get("turn")
        (slots, self.wide), self.part = scratch["ring"]
        self.ring = Ring(
            plan=params.plan,
            config=params.config,
            item=item,
            kv_head=self.kv_head,
            cache=cache,
            page_table=page_table,
            slots=slots,
            ready=scratch["ready"],
            free=scratch.get("free"),
        )
        self.scores = tiles.Scores(scale=params.scale, config=params.config, layout=_TILE)

    def compute(self) -> None:
        """Compute this warpgroup's rows."""
        self.fetch_queries()
        if self.plan.is_split:
            self.ring.fetch_first()
        self.arrange_queries()
        maximum = jnp.full((ROWS,), UNSEEN, jnp.float32)
        total = jnp.zeros((ROWS,), jnp.float32)
        if self.config.sinks and not self.plan.is_split:
            # A sink counts as a key before all others, with value 0.
            maximum = plgpu.load(self.others[0].at[self.kv_head], optimized=False)
            total = jnp.ones((ROWS,), jnp.float32)
        carry = (
            plgpu.layout_cast(maximum, _PER_ROW),
            plgpu.layout_cast(total, _PER_ROW),
            plgpu.layout_cast(jnp.zeros((ROWS, self.config.head_dim), jnp.float32), _TILE),
        )
        # The first warpgroup is one turn ahead.
        pl.when(self.warpgroup == 1)(self.take_turn)
        maximum, total, out = lax.fori_loop(0, self.ring.num_tiles, self.step, carry)
        pl.when(self.warpgroup == 0)(self.take_turn)
        total = jnp.where(total > 0, total, 1.0)
        out /= spread(total, out.shape)
        if self.plan.is_split:
            self.store_part(out, maximum + jnp.log2(total))
        else:
            self.store(out)

    def fetch_queries(self) -> None:
        """Start to fetch the rows of queries."""
        group, tokens = self.config.group, self.plan.tokens
        ready = self.q_ready.at[self.warpgroup]
        if group == 1:
            source = self.q.at[pl.ds(self.start, tokens), self.kv_head]
            plgpu.copy_gmem_to_smem(source, self.q_rows.at[self.warpgroup, pl.ds(0, tokens)], ready)
            return

        @pl.loop(0, tokens)
        def _fetch(token: jax.Array) -> None:
            rows = self.q_rows.at[self.warpgroup, pl.ds(token * group, group)]
            plgpu.copy_gmem_to_smem(self.q.at[self.start + token, self.heads], rows, ready)

    def arrange_queries(self) -> None:
        """Convert the queries to the layout that wgmma reads."""
        plgpu.barrier_wait(self.q_ready.at[self.warpgroup])
        queries = plgpu.load(self.q_rows.at[self.warpgroup], layout=_TILE, optimized=False)
        plgpu.commit_smem()  # The tile overwrites the rows once all were read.
        self.q_tiles.at[self.warpgroup][...] = queries
        plgpu.commit_smem()

    def step(self, tile: jax.Array, carry: _Softmax) -> _Softmax:
        """Attend to one tile of keys."""
        maximum, total, out = carry
        first_key = self.ring.first_key(tile)
        next_pages = self.ring.next_pages(tile)  # Read long before they are needed.
        if is_narrow(self.config):
            self.widen(tile, first_key, next_pages)
            scores = self.multiply_keys(self.wide[KEYS])
        else:
            scores = self.multiply_keys(self.ring.get(KEYS, tile))
            self.ring.release(KEYS, tile, next_pages)

        scores = self.scores(scores, first_key, self.position, self.plan.tokens)
        factor = self.scores.factor
        new_maximum = jnp.maximum(maximum, scores.max(axis=1) * factor)
        decay = jnp.exp2(maximum - new_maximum)
        weights = jnp.exp2(scores * factor - spread(new_maximum, scores.shape))
        total = total * decay + weights.sum(axis=1)
        out *= spread(decay, out.shape)
        weights = weights.astype(self.config.dtype)
        if is_narrow(self.config):
            return new_maximum, total, self.multiply_values(out, weights, self.wide[VALUES])

        if self.takes_turns:
            # Compute the exponentials before taking the turn, not during it.
            total, out, weights = lax.optimization_barrier((total, out, weights))
            plgpu.barrier_arrive(self.turn)
        values = self.ring.get(VALUES, tile)
        if self.takes_turns:
            plgpu.barrier_wait(self.turn)

        # Zero the values that were never written, because 0 * NaN is NaN.
        @pl.when((first_key + self.plan.keys > self.item.kv_length) & (self.warpgroup == 0))
        def _clear() -> None:
            copy_written(values, values, first_key, self.item.kv_length)

        out = self.multiply_values(out, weights, values)
        self.ring.release(VALUES, tile, next_pages)
        return new_maximum, total, out

    def widen(self, tile: jax.Array, first_key: jax.Array, next_pages: Pages) -> None:
        """Copy a tile of keys and values to buffers with the queries' dtype.

        If there are two warpgroups, one copies the keys and the other the values.
        """
        self.meet()  # All warpgroups have multiplied the previous tiles.
        for plane in (KEYS, VALUES):

            def copy(plane: int = plane) -> None:
                source, target = self.ring.get(plane, tile), self.wide[plane]
                copy_written(source, target, first_key, self.item.kv_length)
                self.ring.release(plane, tile, next_pages)

            if self.plan.is_split:
                copy()
            else:
                pl.when(self.warpgroup == plane)(copy)
        self.meet()

    def multiply_keys(self, keys: Any) -> jax.Array:
        """Return queries @ keys.T, taking turns with the other warpgroup."""
        queries = self.q_tiles.at[self.warpgroup]
        if self.params.is_simulated:
            simulated = simulated_product(queries[...], keys[...].T)
            self.take_turn()
            return simulated

        def multiply(scores: Any) -> jax.Array:
            plgpu.wgmma(scores, queries, keys.transpose((1, 0)))
            self.take_turn()
            product: jax.Array = scores[...]
            return product

        shape = (ROWS, self.plan.keys)
        scores: jax.Array = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))
        return scores

    def multiply_values(self, out: jax.Array, weights: jax.Array, values: Any) -> jax.Array:
        """Return out + weights @ values."""
        return add_product(out, weights, values, is_simulated=self.params.is_simulated)

    # Two warpgroups alternate on the tensor cores: one multiplies values and then its next keys,
    # while the other computes exponentials. With narrow tiles, both work on the same tile.

    @property
    def takes_turns(self) -> bool:
        """Whether two warpgroups take turns."""
        return not self.plan.is_split and not is_narrow(self.config)

    def take_turn(self) -> None:
        """Let the other warpgroup multiply, and wait until it has begun."""
        if self.takes_turns:
            self.meet()

    def meet(self) -> None:
        """Wait for the other warpgroup, if there is one."""
        if not self.plan.is_split:
            plgpu.barrier_arrive(self.turn)
            plgpu.barrier_wait(self.turn)

    def store(self, out: jax.Array) -> None:
        """Write this warpgroup's rows of results."""
        result, rows = self.others[-1], self.q_rows.at[self.warpgroup]
        plgpu.commit_smem()  # The rows overwrite the queries, which all have read.
        rows[...] = out.astype(rows.dtype)
        plgpu.commit_smem()
        end = self.item.first_row + self.item.num_rows

        @pl.loop(self.first_row, jnp.minimum(end, self.first_row + self.plan.tokens))
        def _store(row: jax.Array) -> None:
            self.store_query(rows, row - self.start, result.at[row, self.heads])

        plgpu.wait_smem_to_gmem(0)

    def store_part(self, out: jax.Array, sums: jax.Array) -> None:
        """Write the partial results over this item's keys, and the logarithms of their sums."""
        (all_parts, all_sums), (part_rows, sum_rows) = self.others, self.part
        plgpu.commit_smem()  # The part overwrites the ring buffer, which all have read.
        part_rows[...] = out
        sum_rows[...] = sums
        plgpu.commit_smem()

        @pl.loop(0, self.item.num_rows)
        def _store(query: jax.Array) -> None:
            self.store_query(part_rows, query, all_parts.at[self.index, query, self.heads])

        def sums_of(query: jax.Array) -> Any:
            return all_sums.at[self.index, query]

        tiles.store_sums(sum_rows, self.config, self.item.num_rows, self.kv_head, sums_of)
        plgpu.wait_smem_to_gmem(0)

    def store_query(self, rows: Any, query: jax.Array, to: Any) -> None:
        """Start to copy the rows of one query of a tile to [group, head_dim]."""
        group, head_dim = self.config.group, self.config.head_dim
        found = rows.at[pl.ds(query * group, group)]
        if has_aligned_queries(self.config) or self.plan.is_split:
            plgpu.copy_smem_to_gmem(found, to)
        else:
            layout = row_layout(group, head_dim)
            to[...] = plgpu.load(found, layout=layout, optimized=False)


def copy_written(source: Any, target: Any, first_key: jax.Array, kv_length: jax.Array) -> None:
    """Copy a tile, [keys, dimensions], with zeros for keys from `kv_length` on.

    Those were never written: they may be NaN, and 0 * NaN is NaN.
    """
    keys, head_dim = source.shape
    shape = (_COPIED, head_dim)
    swizzle = swizzle_of(keys, head_dim, target.dtype)
    layout = plgpu.Layout.SMEM_GMEM_COPY(shape, target.dtype, swizzle)

    @pl.loop(0, keys // _COPIED)
    def _copy(i: jax.Array) -> None:
        rows = pl.ds(i * _COPIED, _COPIED)
        found = plgpu.load(source.at[rows], layout=layout, optimized=False)
        key = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=layout)
        is_written = key + (first_key + i * _COPIED) < kv_length
        found = _as_dtype(found, target.dtype)
        target.at[rows][...] = jnp.where(is_written, found, jnp.zeros_like(found))

    plgpu.commit_smem()


def _as_dtype(x: jax.Array, dtype: Any) -> jax.Array:
    """Convert numbers of a narrow cache to the queries' dtype, exactly."""
    if x.dtype == jnp.float8_e4m3fn:
        # Hopper can convert to float16 only.
        x = x.astype(jnp.float16)
        x = x if dtype == jnp.float16 else x.astype(jnp.float32)
    return x.astype(dtype)


def add_product(
    out: jax.Array, weights: jax.Array, values: Any, *, is_simulated: bool
) -> jax.Array:
    """Return out + weights @ values. `values` is in shared memory, the others in registers."""
    if is_simulated:
        return out + simulated_product(weights, values[...])

    def multiply(out: Any) -> None:
        plgpu.wgmma(out, weights, values)

    result: jax.Array = pl.run_state(multiply)(plgpu.WGMMAAccumulatorRef.init(out))
    return result


def simulated_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a @ b in float32. The interpreter does not support wgmma in a loop."""
    plgpu.commit_smem()  # Plain reads need this fence before TMA writes; those of wgmma do not.
    product: jax.Array = jnp.dot(a, b, preferred_element_type=jnp.float32)
    return product
