"""What a thread block of paged attention does on Hopper: see mosaic_gpu_sm90.py for the whole."""

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
from pallas_kernels.paged_attention.reference import MASKED
from pallas_kernels.paged_attention.work import (
    FIRST_POSITION,
    FIRST_ROW,
    KEY_END,
    KEY_START,
    KV_LENGTH,
    NUM_ROWS,
    SEQUENCE,
)

# Rows of a warpgroup's tiles: what wgmma has.
ROWS = 64

_KEYS, _VALUES = 0, 1  # planes of the cache

# Registers of a thread that fetches, and of one that computes: of 168 each when three warpgroups
# start.
_FETCH_REGISTERS, _COMPUTE_REGISTERS = 40, 232

# Keys or values that are copied at once from tile to tile: few, to need few registers.
_COPIED = 32

_LOG2E = math.log2(math.e)

_TILE = plgpu.Layout.WGMMA
_PER_ROW = plgpu.Layout.WGMMA.reduce(1)

type _Softmax = tuple[jax.Array, jax.Array, jax.Array]  # maximum, sum and weighted values by row


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a kernel cuts its work.

    warpgroups: those that compute, each `tokens` query tokens. keys: of a tile. stages: tiles in
    the ring. is_split: whether a thread block has a part of the keys, fetches for itself and leaves
    a part of the result; otherwise one warpgroup more fetches.
    """

    warpgroups: int
    tokens: int
    keys: int
    stages: int
    is_split: bool

    @property
    def num_threads(self) -> int:
        """Warpgroups, as Pallas counts threads."""
        return self.warpgroups if self.is_split else self.warpgroups + 1


@dataclass(frozen=True, kw_only=True)
class How:
    """What is the same for all thread blocks."""

    plan: Plan
    config: AttentionConfig
    scale: float
    is_simulated: bool


def is_narrow(config: AttentionConfig) -> bool:
    """Tell whether keys and values must be widened before they can be multiplied."""
    return jnp.dtype(config.cache_dtype).itemsize == 1


def run(how: How, refs: Sequence[Any], scratch: dict[str, Any]) -> None:
    """Run one warpgroup of one thread block: refs of operands and results, scratch by name."""
    block = _Block(how, refs, scratch)

    @pl.when(block.num_rows > 0)
    def _work() -> None:
        if how.plan.is_split:
            block.compute()
            return

        @pl.when(block.warpgroup < how.plan.warpgroups)
        def _compute() -> None:
            plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
            block.compute()

        @pl.when(block.warpgroup == how.plan.warpgroups)
        def _fetch() -> None:
            plgpu.set_max_registers(_FETCH_REGISTERS, action="decrease")
            block.fetch_all()


class _Block:
    """One warpgroup at work."""

    def __init__(self, how: How, refs: Sequence[Any], scratch: dict[str, Any]) -> None:
        self.how, self.plan, self.config = how, how.plan, how.config
        self.q, self.cache, self.page_table, items = refs[:4]
        self.sinks: Any = None
        self.sums: Any = None
        self.part: Any = None
        if self.plan.is_split:
            self.out, self.sums = refs[4:]
            self.ring, self.part = scratch["ring"]
        else:
            *sinks, self.out = refs[4:]
            self.sinks = sinks[0] if sinks else None
            self.ring = scratch["ring"]
            self.free, self.turn = scratch["free"], scratch["turn"]
        self.q_rows, self.q_tiles = scratch["queries"]
        self.q_ready, self.ready = scratch["q_ready"], scratch["ready"]
        self.wide: Any = scratch.get("wide")

        self.item, self.kv_head = lax.axis_index("item"), lax.axis_index("kv_head")
        self.warpgroup = lax.axis_index("warpgroup")
        self.heads = pl.ds(self.kv_head * self.config.group, self.config.group)
        item = items.at[self.item]
        self.sequence, self.num_rows = item[SEQUENCE], item[NUM_ROWS]
        self.first_row, self.first_position = item[FIRST_ROW], item[FIRST_POSITION]
        self.key_end, self.kv_length = item[KEY_END], item[KV_LENGTH]
        self.first_tile = item[KEY_START] // self.plan.keys
        self.num_tiles = pl.cdiv(self.key_end, self.plan.keys) - self.first_tile

    # Fetching

    def pages(self, tile: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Return page and first offset of each box of a tile: parts of a page, or whole ones."""
        page_size = self.config.page_size
        last = (self.key_end - 1) // page_size
        places = []
        for start in range(0, self.plan.keys, page_size):
            key = (self.first_tile + tile) * self.plan.keys + start
            # Beyond the last key any page will do, but not any entry of the table.
            page = self.page_table[self.sequence, jnp.minimum(key // page_size, last)]
            places.append((page, lax.rem(key, page_size)))
        return places

    def fetch(self, plane: int, tile: jax.Array, pages: list[tuple[jax.Array, jax.Array]]) -> None:
        """Start to fill the slot of a tile."""
        slot = lax.rem(tile, self.plan.stages)
        rows = min(self.plan.keys, self.config.page_size)
        for i, (page, offset) in enumerate(pages):
            plgpu.copy_gmem_to_smem(
                self.cache.at[plane, page, self.kv_head, pl.ds(offset, rows)],
                self.ring[plane].at[slot, pl.ds(i * rows, rows)],
                self.ready[plane].at[slot],
            )

    def fetch_all(self) -> None:
        """Keep the ring filled, as the warpgroup that does only this."""
        stages = self.plan.stages

        @pl.loop(0, self.num_tiles)
        def _fill(tile: jax.Array) -> None:
            pages = self.pages(tile)
            for plane in (_KEYS, _VALUES):

                @pl.when(tile >= stages)
                def _wait(plane: int = plane) -> None:
                    plgpu.barrier_wait(self.free[plane].at[lax.rem(tile, stages)])

                self.fetch(plane, tile, pages)

        # No barrier is left before its last phase was seen.
        @pl.loop(jnp.maximum(self.num_tiles, stages), self.num_tiles + stages)
        def _drain(tile: jax.Array) -> None:
            for plane in (_KEYS, _VALUES):
                plgpu.barrier_wait(self.free[plane].at[lax.rem(tile, stages)])

    def release(
        self, plane: int, tile: jax.Array, pages: list[tuple[jax.Array, jax.Array]]
    ) -> None:
        """Give the slot of a tile that was read to the next one."""
        stages = self.plan.stages
        if not self.plan.is_split:
            plgpu.barrier_arrive(self.free[plane].at[lax.rem(tile, stages)])
            return

        @pl.when(tile + stages < self.num_tiles)
        def _refill() -> None:
            self.fetch(plane, tile + stages, pages)

    # Computing

    def compute(self) -> None:
        """Attend with this warpgroup's rows."""
        plan = self.plan
        # Rows from the end of the array on are not there: the block moves back to rows before it.
        self.start = jnp.minimum(
            self.first_row + self.warpgroup * plan.tokens, self.q.shape[0] - plan.tokens
        )
        self.position = self.first_position + self.start - self.first_row
        if plan.is_split:

            @pl.loop(0, jnp.minimum(plan.stages, self.num_tiles))
            def _fill(tile: jax.Array) -> None:
                pages = self.pages(tile)
                for plane in (_KEYS, _VALUES):
                    self.fetch(plane, tile, pages)

        self.load_queries()
        maximum = jnp.full((ROWS,), MASKED, jnp.float32)
        total = jnp.zeros((ROWS,), jnp.float32)
        if self.sinks is not None:
            # A sink is a key that was seen before all others, and whose value is 0.
            maximum = plgpu.load(self.sinks.at[self.kv_head], optimized=False) * _LOG2E
            total = jnp.ones((ROWS,), jnp.float32)
        carry = (
            plgpu.layout_cast(maximum, _PER_ROW),
            plgpu.layout_cast(total, _PER_ROW),
            plgpu.layout_cast(jnp.zeros((ROWS, self.config.head_dim), jnp.float32), _TILE),
        )
        self.take_first_turn()
        maximum, total, out = lax.fori_loop(0, self.num_tiles, self.step, carry)
        self.leave_last_turn()
        total = jnp.where(total > 0, total, 1.0)
        self.store(out / _spread(total, out.shape[1]), maximum + jnp.log2(total))

    def load_queries(self) -> None:
        """Fetch the rows of queries, and lay them out as wgmma reads them."""
        group = self.config.group
        rows, tile = self.q_rows.at[self.warpgroup], self.q_tiles.at[self.warpgroup]
        ready = self.q_ready.at[self.warpgroup]

        @pl.loop(0, self.plan.tokens)
        def _fetch(token: jax.Array) -> None:
            plgpu.copy_gmem_to_smem(
                self.q.at[self.start + token, self.heads],
                rows.at[pl.ds(token * group, group)],
                ready,
            )

        plgpu.barrier_wait(ready)
        queries = plgpu.load(rows, layout=_TILE, optimized=False)
        plgpu.commit_smem()  # The tile takes the place of the rows once all were read.
        tile[...] = queries
        plgpu.commit_smem()

    def step(self, tile: jax.Array, carry: _Softmax) -> _Softmax:
        """Attend to one tile of keys."""
        plan = self.plan
        maximum, total, out = carry
        slot = lax.rem(tile, plan.stages)
        first_key = (self.first_tile + tile) * plan.keys
        # Read long before they are needed.
        next_pages = self.pages(tile + plan.stages) if plan.is_split else []
        if is_narrow(self.config):
            self.widen(tile, slot, first_key, next_pages)
            scores = self.multiply_keys(self.wide[_KEYS])
        else:
            plgpu.barrier_wait(self.ready[_KEYS].at[slot])
            scores = self.multiply_keys(self.ring[_KEYS].at[slot])
            self.release(_KEYS, tile, next_pages)

        scores, factor = self.mask(self.bound(scores), first_key), self.factor
        new_maximum = jnp.maximum(maximum, scores.max(axis=1) * factor)
        decay = jnp.exp2(maximum - new_maximum)
        weights = jnp.exp2(scores * factor - _spread(new_maximum, plan.keys))
        total = total * decay + weights.sum(axis=1)
        out *= _spread(decay, self.config.head_dim)
        weights = weights.astype(self.config.dtype)
        if is_narrow(self.config):
            return new_maximum, total, self.multiply_values(out, weights, self.wide[_VALUES])

        if self.takes_turns:
            # The exponentials are done before the turn is taken, not during it.
            total, out, weights = lax.optimization_barrier((total, out, weights))
            plgpu.barrier_arrive(self.turn)
        plgpu.barrier_wait(self.ready[_VALUES].at[slot])
        if self.takes_turns:
            plgpu.barrier_wait(self.turn)
        self.clear_unwritten(slot, first_key)
        out = self.multiply_values(out, weights, self.ring[_VALUES].at[slot])
        self.release(_VALUES, tile, next_pages)
        return new_maximum, total, out

    @property
    def factor(self) -> float:
        """What scores are multiplied by, to be powers of two."""
        return _LOG2E * (self.how.scale if self.config.soft_cap is None else self.config.soft_cap)

    def bound(self, scores: jax.Array) -> jax.Array:
        """Apply the soft cap, but for the factor: tanh(x) = 1 - 2 / (1 + exp(2 x)).

        The tensor cores' neighbours have an instruction for tanh, of 11 bits: too few for a score.
        """
        if self.config.soft_cap is None:
            return scores
        powers = jnp.exp2(scores * (2 * _LOG2E * self.how.scale / self.config.soft_cap))
        return 1.0 - 2.0 / (1.0 + powers)

    def mask(self, scores: jax.Array, first_key: jax.Array) -> jax.Array:
        """Hide the keys that are not for a row; most tiles are for all rows."""
        keys, window = self.plan.keys, self.config.sliding_window
        needs_mask = first_key + keys > self.position + 1
        if window is not None:
            needs_mask |= first_key + window < self.position + self.plan.tokens

        def hide(scores: jax.Array) -> jax.Array:
            row = plgpu.broadcasted_iota(jnp.int32, scores.shape, 0, layout=_TILE)
            key = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=_TILE) + first_key
            position = self.position + row // self.config.group
            is_visible = key <= position
            if window is not None:
                is_visible &= key > position - window
            return jnp.where(is_visible, scores, MASKED)

        masked: jax.Array = lax.cond(needs_mask, hide, lambda scores: scores, scores)
        return masked

    def clear_unwritten(self, slot: jax.Array, first_key: jax.Array) -> None:
        """Zero the values of a sequence's last tile that are none: 0 * NaN is NaN.

        The first warpgroup to take its turn does it; the others take theirs after it.
        """
        values = self.ring[_VALUES].at[slot]
        is_due = first_key + self.plan.keys > self.kv_length

        @pl.when(is_due & (self.warpgroup == 0))
        def _clear() -> None:
            self.copy_written(values, values, first_key)

    def widen(
        self,
        tile: jax.Array,
        slot: jax.Array,
        first_key: jax.Array,
        next_pages: list[tuple[jax.Array, jax.Array]],
    ) -> None:
        """Copy a tile of keys and values to where they have the queries' dtype.

        Of two warpgroups, one copies the keys and the other the values.
        """
        self.meet()  # All have multiplied the tiles before.
        for plane in (_KEYS, _VALUES):

            def copy(plane: int = plane) -> None:
                plgpu.barrier_wait(self.ready[plane].at[slot])
                self.copy_written(self.ring[plane].at[slot], self.wide[plane], first_key)
                self.release(plane, tile, next_pages)

            if self.plan.is_split:
                copy()
            else:
                pl.when(self.warpgroup == plane)(copy)
        self.meet()

    def copy_written(self, source: Any, target: Any, first_key: jax.Array) -> None:
        """Copy the rows of a tile, zeros in place of those that were never written."""
        keys, head_dim = self.plan.keys, self.config.head_dim
        shape = (_COPIED, head_dim)
        swizzle = swizzle_of(keys, head_dim, target.dtype)
        layout = plgpu.Layout.SMEM_GMEM_COPY(shape, target.dtype, swizzle)

        @pl.loop(0, keys // _COPIED)
        def _copy(i: jax.Array) -> None:
            rows = pl.ds(i * _COPIED, _COPIED)
            found = plgpu.load(source.at[rows], layout=layout, optimized=False)
            key = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=layout)
            is_written = key + (first_key + i * _COPIED) < self.kv_length
            found = _as_dtype(found, target.dtype)
            target.at[rows][...] = jnp.where(is_written, found, jnp.zeros_like(found))

        plgpu.commit_smem()

    def multiply_keys(self, keys: Any) -> jax.Array:
        """Return queries @ keys.T, in turn with the other warpgroup."""
        queries = self.q_tiles.at[self.warpgroup]
        if self.how.is_simulated:
            simulated = _simulated_product(queries[...], keys[...].T)
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
        if self.how.is_simulated:
            return out + _simulated_product(weights, values[...])

        def multiply(out: Any) -> None:
            plgpu.wgmma(out, weights, values)

        result: jax.Array = pl.run_state(multiply)(plgpu.WGMMAAccumulatorRef.init(out))
        return result

    # Two warpgroups take turns at the tensor cores: one multiplies values, then its next keys,
    # while the other computes exponentials. With narrow tiles they work on the same one.

    @property
    def takes_turns(self) -> bool:
        """Whether there are turns to take."""
        return not self.plan.is_split and not is_narrow(self.config)

    def meet(self) -> None:
        """Wait for the other warpgroup, if there is one."""
        if not self.plan.is_split:
            plgpu.barrier_arrive(self.turn)
            plgpu.barrier_wait(self.turn)

    def take_turn(self) -> None:
        """Let the other warpgroup multiply, and wait until it has begun."""
        if self.takes_turns:
            self.meet()

    def take_first_turn(self) -> None:
        """Let the first warpgroup be ahead."""
        pl.when(self.warpgroup == 1)(self.take_turn)

    def leave_last_turn(self) -> None:
        """Match what the other did first."""
        pl.when(self.warpgroup == 0)(self.take_turn)

    def store(self, out: jax.Array, sums: jax.Array) -> None:
        """Write the rows that this warpgroup has."""
        group = self.config.group
        if self.plan.is_split:
            rows = self.part
            self.sums[self.item, self.kv_head] = sums
        else:
            rows = self.q_rows.at[self.warpgroup]
        plgpu.commit_smem()  # What the rows take the place of was read by all.
        rows[...] = out.astype(rows.dtype)
        plgpu.commit_smem()
        first = self.first_row + self.warpgroup * self.plan.tokens
        end = jnp.minimum(self.first_row + self.num_rows, first + self.plan.tokens)

        @pl.loop(first, end)
        def _store(row: jax.Array) -> None:
            place = (self.item, row - first) if self.plan.is_split else (row,)
            plgpu.copy_smem_to_gmem(
                rows.at[pl.ds((row - self.start) * group, group)], self.out.at[*place, self.heads]
            )

        plgpu.wait_smem_to_gmem(0)


def swizzle_of(keys: int, head_dim: int, dtype: Any) -> int:
    """Return how many bytes of a row are swizzled together: 128, or what divides small rows.

    No more numbers than there are keys in a tile: wgmma takes as many keys at a time.
    """
    itemsize = jnp.dtype(dtype).itemsize
    return math.gcd(head_dim * itemsize, keys * itemsize, 128)


def _spread(per_row: jax.Array, columns: int) -> jax.Array:
    return lax.broadcast_in_dim(per_row, (per_row.shape[0], columns), [0])


def _as_dtype(x: jax.Array, dtype: Any) -> jax.Array:
    """Convert, exactly, what a cache holds to what queries are of."""
    if x.dtype == jnp.float8_e4m3fn:
        # Hopper converts to float16 only.
        x = x.astype(jnp.float16)
        x = x if dtype == jnp.float16 else x.astype(jnp.float32)
    return x.astype(dtype)


def _simulated_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply as wgmma does, which is not interpreted in a loop."""
    plgpu.commit_smem()  # wgmma reads where TMA writes; what plain reads precede, needs a fence
    product: jax.Array = jnp.dot(a, b, preferred_element_type=jnp.float32)
    return product
