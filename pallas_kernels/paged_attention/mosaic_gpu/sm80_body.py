"""Kernel body of paged attention on Ampere; see sm80.py for an overview."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.mosaic_gpu import tile as tiles
from pallas_kernels.paged_attention.mosaic_gpu.tile import KEYS, UNSEEN, spread

# Rows of a tile: 16, the size of an mma instruction, for each of four warps.
ROWS = 64

# Maximum, sum and weighted values (one array per chunk of columns) of every row.
type _Softmax = tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]


@dataclass(frozen=True, kw_only=True)
class KernelParams:
    """Parameters of the kernel, equal for all thread blocks.

    num_stages: tiles of keys and values in the ring buffer. swizzle: bytes of a row in shared
    memory.
    """

    config: AttentionConfig
    scale: float
    is_decode: bool
    is_simulated: bool
    num_stages: int
    swizzle: int

    @property
    def chunks(self) -> list[Any]:
        """Slices of head_dim that are loaded at a time, each one row of shared memory."""
        width = self.swizzle // 2
        return [pl.ds(start, width) for start in range(0, self.config.head_dim, width)]


def run(params: KernelParams, refs: tuple[Any, ...], scratch: dict[str, Any]) -> None:
    """Run one thread block. refs: operands and results. scratch: scratch references by name."""
    block = _Block(params, refs, scratch)
    pl.when(block.item.num_rows > 0)(block.attend)


class _Block:
    """Computation of a thread block, one warpgroup, for one item and one key/value head."""

    def __init__(
        self, params: KernelParams, refs: tuple[Any, ...], scratch: dict[str, Any]
    ) -> None:
        self.params, self.config = params, params.config
        self.q, cache, page_table, items, *self.rest = refs  # sinks, if any, and results
        self.queries = scratch["queries"]
        self.ring, (self.result, self.sums) = scratch["ring_or_result"]
        self.queries_landed = scratch.get("queries_landed")
        self.tile_landed = scratch.get("tile_landed")
        self.index, self.kv_head = lax.axis_index("item"), lax.axis_index("kv_head")
        self.item = tiles.Item.read(items, self.index)
        self.pages = tiles.Pages(
            cache=cache,
            table=page_table,
            kv_head=self.kv_head,
            page_size=self.config.page_size,
        )
        dtype = self.config.dtype
        self.product = plgpu.Layout.MMA_ACC(dtype)
        self.per_row = self.product.reduce(1)
        self.left, self.right = plgpu.Layout.MMA_LHS(dtype), plgpu.Layout.MMA_RHS(dtype)
        self.scores = tiles.Scores(scale=params.scale, config=self.config, layout=self.product)

    def attend(self) -> None:
        """Compute the rows of the item."""
        rows = pl.ds(self.item.first_row * self.config.group, ROWS)
        _copy(self.q.at[self.kv_head, rows], self.queries, self.queries_landed)
        num_tiles = self.item.num_tiles
        for nth in range(self.params.num_stages - 1):
            pl.when(nth < num_tiles)(partial(self.fetch, jnp.int32(nth)))
        if self.queries_landed is not None:
            # cp.async completes in order: once a tile has arrived, so have the queries before it.
            _wait(self.queries_landed)
        self.store(*lax.fori_loop(0, num_tiles, self.step, self.start()))

    def start(self) -> _Softmax:
        """Return the initial maximum, sum and weighted values, which include a sink."""
        has_sinks = len(self.rest) > 1 and not self.params.is_decode
        if has_sinks:
            maximum = plgpu.load(
                self.rest[0].at[self.kv_head], layout=self.per_row, optimized=False
            )
        else:
            maximum = _full((ROWS,), UNSEEN, self.per_row)
        total = _full((ROWS,), float(has_sinks), self.per_row)
        shape = (ROWS, self.params.swizzle // 2)
        return maximum, total, tuple(_full(shape, 0.0, self.product) for _ in self.params.chunks)

    def fetch(self, nth: jax.Array) -> None:
        """Start to copy a tile into its stage of the ring buffer."""
        stage = lax.rem(nth, self.params.num_stages)
        landed = None if self.tile_landed is None else self.tile_landed.at[stage]
        for plane, ring in enumerate(self.ring):
            tile = self.item.first_tile + nth
            self.pages.fetch(plane, self.item, tile, partial(_copy, barrier=landed), ring.at[stage])

    def step(self, nth: jax.Array, carry: _Softmax) -> _Softmax:
        """Add a tile of keys and values (Milakov and Gimelshein 2018, arXiv:1805.02867)."""
        maximum, total, outs = carry
        stages, item = self.params.num_stages, self.item
        stage = lax.rem(nth, stages)
        first_key = (item.first_tile + nth) * KEYS
        # The copies of later tiles, if there are any, may still be in flight.
        _wait(
            None if self.tile_landed is None else self.tile_landed.at[stage],
            pending=(stages - 2) * 2 * self.pages.per_tile,
            is_allowed=nth + stages - 1 <= item.num_tiles,
        )
        # All warps have read the previous tile, so its stage can be overwritten.
        ahead = nth + stages - 1
        pl.when(ahead < item.num_tiles)(partial(self.fetch, ahead))
        products = self.multiply_keys(stage)
        scores = self.scores(products, first_key, item.first_position, item.num_rows)
        factor = self.scores.factor
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=1) * factor)
        weights = jnp.exp2(scores * factor - spread(new_maximum, scores.shape))
        decay = jnp.exp2(maximum - new_maximum)
        total = total * decay + jnp.sum(weights, axis=1)
        values = self.ring[1].at[stage]
        pl.when(first_key + KEYS > item.kv_length)(
            partial(tiles.erase_unwritten, values, first_key, item, plgpu.Layout.WGMMA)
        )
        left = _as_left(weights.astype(self.config.dtype), self.params.is_simulated)
        added = []
        for out, chunk in zip(outs, self.params.chunks, strict=True):
            right = plgpu.load(values.at[:, chunk], layout=self.right)
            decayed = out * spread(decay, out.shape)
            added.append(_multiply(decayed, left, right, self.params.is_simulated))
        return new_maximum, total, tuple(added)

    def multiply_keys(self, stage: jax.Array) -> jax.Array:
        """Return the products of all rows and the keys of a tile: float32[ROWS, KEYS].

        Queries are loaded each time, because there are too few registers to keep them.
        """
        products = _full((ROWS, KEYS), 0.0, self.product)
        for chunk in self.params.chunks:
            left = plgpu.load(self.queries.at[:, chunk], layout=self.left)
            keys = self.ring[0].at[stage, :, chunk].transpose((1, 0))
            right = plgpu.load(keys, layout=self.right)
            products = _multiply(products, left, right, self.params.is_simulated)
        return products

    def store(self, maximum: jax.Array, total: jax.Array, outs: tuple[jax.Array, ...]) -> None:
        """Divide the results by the sums, and write the item's rows."""
        item, group = self.item, self.config.group
        divisor = jnp.where(total > 0, total, 1.0)
        for out, chunk in zip(outs, self.params.chunks, strict=True):
            result = out / spread(divisor, out.shape)
            self.result[:, chunk] = result.astype(self.result.dtype)
        heads = pl.ds(self.kv_head * group, group)
        if self.params.is_decode:
            parts, sums = self.rest
            self.sums[...] = maximum + jnp.log2(divisor)
            tiles.store_rows(
                self.result, group, item.num_rows, lambda i: parts.at[self.index, i, heads]
            )
            tiles.store_sums(
                self.sums,
                self.config,
                item.num_rows,
                self.kv_head,
                lambda i: sums.at[self.index, i],
            )
        else:
            out = self.rest[-1]
            tiles.store_rows(
                self.result, group, item.num_rows, lambda i: out.at[item.first_row + i, heads]
            )


def _full(shape: tuple[int, ...], value: float, layout: Any) -> jax.Array:
    filled: jax.Array = plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)
    return filled


def _copy(source: Any, to: Any, barrier: Any) -> None:
    """Start a copy to shared memory: with cp.async, or with a barrier in simulation.

    The interpreter of jax 0.11.2 supports copies with a barrier only
    (jax/_src/pallas/mosaic_gpu/interpret/jaxpr_interpret.py, _interpret_copy_gmem_to_smem_p).
    """
    if barrier is None:
        plgpu.copy_gmem_to_smem(source, to, oob_mode=plgpu.OOBFillMode.PROMISE_IN_BOUNDS)
    else:
        plgpu.copy_gmem_to_smem(source, to, barrier)


def _wait(barrier: Any, *, pending: int = 0, is_allowed: jax.Array | bool = True) -> None:
    """Wait for all copies except the last `pending` ones, if `is_allowed`, or for all copies.

    Also synchronizes the warps, so that a copy started afterwards cannot overwrite memory that
    another warp is still reading.
    """
    if barrier is not None:
        plgpu.barrier_wait(barrier)
        plgpu.commit_smem()
    elif pending == 0:
        plgpu.wait_gmem_to_smem(0)
    else:
        pl.when(is_allowed)(lambda: plgpu.wait_gmem_to_smem(pending))
        pl.when(jnp.logical_not(is_allowed))(lambda: plgpu.wait_gmem_to_smem(0))


def _multiply(acc: jax.Array, a: jax.Array, b: jax.Array, is_simulated: bool) -> jax.Array:
    """Return acc + a @ b. The interpreter of jax 0.11.2 does not support mma."""
    if is_simulated:
        return acc + jnp.dot(a, b, preferred_element_type=jnp.float32)
    return plgpu.mma(acc, a, b)


def _as_left(weights: jax.Array, is_simulated: bool) -> jax.Array:
    """Convert a result of mma to the layout of a left operand, without moving data.

    In both layouts, a thread has two adjacent numbers of each row and each eight columns; the
    registers of a left operand only group columns by sixteen (PTX ISA, "Matrix Fragments for
    mma.m16n8k16"). `plgpu.layout_cast` of jax 0.11.2 does not support this conversion
    (FragmentedArray.to_layout in jax/experimental/mosaic/gpu/fragmented_array.py).
    """
    if is_simulated:
        return weights
    layout = plgpu.Layout.MMA_LHS(weights.dtype)

    def relabel(_: Any, product: mgpu.FragmentedArray) -> mgpu.FragmentedArray:
        to = layout.to_mgpu()
        registers = product.registers.reshape(to.registers_shape(product.shape))
        return mgpu.FragmentedArray(_registers=registers, _layout=to, _is_signed=None)

    inline = plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.MMA_ACC(weights.dtype),),
        return_type=plgpu.ShapeDtypeStruct(weights.shape, weights.dtype, layout=layout),
    )
    relabelled: jax.Array = inline(relabel)(weights)
    return relabelled
